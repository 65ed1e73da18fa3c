"""Staging: one copy per node, resumed after a kill, checked byte by byte; errors are one line."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from helpers import ROOT, environment
from pictures import write_collection

from brain_dist.building.build import build
from brain_dist.building.verify import verify
from brain_dist.collection.recipes import default_recipe
from brain_dist.errors import Fault, UserError
from brain_dist.store.dataset import open_dataset
from brain_dist.store.options import BuildOptions
from brain_dist.store.reader import ShardReader
from brain_dist.store.stage import stage

TEST, TRAIN, VAL = (f"mine-{split}-00000.tar" for split in ("test", "train", "val"))
# A process that stages argv[1] into argv[2], in small blocks; it reports waiting at once
CHILD = """
import resource, signal, sys
from brain_dist.store import remote, stage
from brain_dist.errors import run
remote.BLOCK, stage.PATIENCE = 1000, 0.0
if sys.argv[1].startswith("plain:"):
    import fsspec
    sys.path[:0] = ["tests/support", "tests/store"]
    from test_stage import PlainHttp
    fsspec.register_implementation("plain", PlainHttp)
if len(sys.argv) > 3:  # the kernel kills this process at the first byte beyond
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
sys.exit(run(lambda: print(stage.stage(sys.argv[1], sys.argv[2])) or 0))
"""


class PlainHttp(fsspec.AbstractFileSystem):
    """plain://HOST:PORT/PATH: whole files over HTTP, by the standard library, without seek."""

    protocol = "plain"

    @classmethod
    def _strip_protocol(cls, path):
        return path.removeprefix("plain://")

    def open(self, path, mode="rb", **options):
        return urllib.request.urlopen(f"http://{path}")


class Server(ThreadingHTTPServer):
    """Serves a folder: the second half of ``stalled`` when ``go`` is set, the first answer of ``flipped`` damaged."""

    def __init__(self, folder: Path, *, stalled: str = "", flipped: str = "") -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.stalled, self.flipped, self.go, self.requests = stalled, flipped, threading.Event(), []
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"plain://127.0.0.1:{self.server_port}"


class Handler(SimpleHTTPRequestHandler):
    def copyfile(self, source, outputfile):
        name, data = Path(self.path).name, bytearray(source.read())
        if name == self.server.flipped and name not in self.server.requests:
            data[len(data) // 2] ^= 1
        self.server.requests.append(name)
        half = len(data) // 2 if name == self.server.stalled else len(data)
        outputfile.write(data[:half])
        outputfile.flush()
        if half < len(data):
            self.server.go.wait(60)
            outputfile.write(data[half:])

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 images in three shards, the one of train larger than the others."""
    base = tmp_path_factory.mktemp("stage")
    source = write_collection(base / "mine", size=64)
    options = BuildOptions(shard_size="100", fractions=(0.5, 0.25, 0.25))
    build(source, base / "out", default_recipe(source), options, workers=1, allow_missing=True)
    return base / "out"


@pytest.fixture
def source(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "source"))


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)


@pytest.fixture
def serve():
    servers = []

    def start(folder, **how):
        fsspec.register_implementation("plain", PlainHttp, clobber=True)
        servers.append(Server(folder, **how))
        return servers[-1]

    yield start
    for server in servers:
        server.go.set()
        server.shutdown()
        server.server_close()


def start(*words: object, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [*before, sys.executable, "-c", CHILD, *map(str, words)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def place(source: Path, cache: Path) -> Path:
    """Expected folder of the copy."""
    return cache / f"mine-{hashlib.sha256((source / 'manifest.json').read_bytes()).hexdigest()[:12]}"


def copied(text: str) -> int:
    """Bytes that the only stager in ``text`` reports as copied."""
    (number,) = re.findall(r"staged .*: ([\d,]+) bytes in", text)
    return int(number.replace(",", ""))


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def same(copy: Path, source: Path) -> None:
    """The copy has the bytes of manifest, index and shards, and nothing else."""
    files = {path.name: path.read_bytes() for path in source.iterdir() if path.suffix != ".idx"}
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == files
    assert verify(copy) == []


def test_one_of_four_processes_copies_and_all_use_the_copy(source, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    copy = place(source, cache)
    with (cache / f".{copy.name}.lock").open("w") as lock:  # until all four wait for it
        fcntl.flock(lock, fcntl.LOCK_EX)
        ranks = [start(source, cache) for _ in range(4)]
        for rank in ranks:
            assert f"waiting for the process of this node that stages {copy}" in rank.stderr.readline()
    ends = [rank.communicate(timeout=60) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * 4
    assert {out for out, _ in ends} == {f"{copy}\n"}
    assert copied("".join(err for _, err in ends)) == sum(sizes(copy).values()) - sizes(copy)["manifest.json"]
    same(copy, source)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_without_file_system_locks_every_process_copies_for_itself(source, tmp_path):
    no_locks = ("strace", "-f", "-qq", "-e", "trace=flock", "-e", "inject=flock:error=ENOLCK", "-o", os.devnull)
    ranks = [start(source, tmp_path / "cache", before=no_locks) for _ in range(3)]
    ends = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * 3, ends
    same(place(source, tmp_path / "cache"), source)


def test_a_copy_continues_in_the_middle_of_a_file_after_a_kill(source, tmp_path):
    copy = place(source, tmp_path / "cache")
    there = sizes(source)
    reach = (there[TEST] + there[TRAIN]) // 2
    assert there[TEST] < reach < there[TRAIN]
    killed = start(f"file://{source}", tmp_path / "cache", reach)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGXFSZ
    assert sizes(copy) == {"index.parquet": there["index.parquet"], TEST: there[TEST], f"{TRAIN}.part": reach}
    before = {name: (copy / name).stat() for name in ("index.parquet", TEST)}
    part = (copy / f"{TRAIN}.part").stat()

    second = start(f"file://{source}", tmp_path / "cache")
    _, output = second.communicate(timeout=60)
    assert second.returncode == 0, output
    assert copied(output) == there[TRAIN] - reach + there[VAL]
    assert f"{there['index.parquet'] + there[TEST] + reach:,} bytes were already copied" in output
    for name, stat in before.items():
        assert (copy / name).stat().st_ino == stat.st_ino
        assert (copy / name).stat().st_mtime_ns == stat.st_mtime_ns
    assert (copy / TRAIN).stat().st_ino == part.st_ino
    same(copy, source)


def test_without_seek_a_file_is_copied_from_the_start(source, tmp_path, serve):
    server = serve(source, stalled=TRAIN)
    copy, there = place(source, tmp_path / "cache"), sizes(source)
    first = start(server.url, tmp_path / "cache")
    part, limit = copy / f"{TRAIN}.part", time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and first.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    assert 0 < part.stat().st_size <= there[TRAIN] // 2
    assert not (copy / "manifest.json").exists()
    server.go.set()
    second = start(server.url, tmp_path / "cache")
    _, output = second.communicate(timeout=60)
    assert second.returncode == 0, output
    assert copied(output) == there[TRAIN] + there[VAL]
    same(copy, source)


def test_a_file_that_arrives_damaged_is_copied_again(source, tmp_path, serve, capfd):
    server = serve(source, flipped=VAL)
    copy = stage(server.url, str(tmp_path / "cache"))
    assert [server.requests.count(name) for name in (TEST, TRAIN, VAL)] == [1, 1, 2]
    assert copied(capfd.readouterr().err) == sum(sizes(copy).values()) - sizes(copy)["manifest.json"] + sizes(copy)[VAL]
    same(copy, source)


@pytest.mark.parametrize("name", [TRAIN, "index.parquet"])
def test_a_file_damaged_at_the_source_is_an_error_and_the_copy_is_incomplete(source, tmp_path, name):
    good = (source / name).read_bytes()
    bad = bytearray(good)
    bad[len(bad) // 3] ^= 4
    (source / name).write_bytes(bad)
    message = rf"{name} is damaged: .* {hashlib.sha256(bad).hexdigest()}, .* says {hashlib.sha256(good).hexdigest()}"
    with pytest.raises(Fault, match=message):
        stage(str(source), str(tmp_path / "cache"))
    copy = place(source, tmp_path / "cache")
    assert not {name, f"{name}.part", "manifest.json"} & set(sizes(copy))
    (source / name).write_bytes(good[: len(good) // 2])
    with pytest.raises(Fault, match=f"{name} is damaged"):
        stage(str(source), str(tmp_path / "cache"))
    (source / name).write_bytes(good)
    same(stage(str(source), str(tmp_path / "cache")), source)


def test_a_shard_that_the_source_lacks(source, tmp_path):
    (source / VAL).unlink()
    with pytest.raises(UserError, match=rf"source lacks {VAL}, which its manifest\.json lists"):
        stage(f"file://{source}", str(tmp_path / "cache"))
    assert sizes(place(source, tmp_path / "cache")).keys() == {"index.parquet", TEST, TRAIN}


def test_a_complete_copy_is_used_and_a_damaged_one_is_repaired(source, tmp_path, capfd):
    copy = stage(str(source), str(tmp_path / "cache"))
    before = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
    capfd.readouterr()
    (source / TRAIN).rename(source / "away")
    assert stage(str(source), str(tmp_path / "cache")) == copy
    assert {path: path.stat().st_mtime_ns for path in copy.iterdir()} == before
    assert capfd.readouterr().err == ""
    (source / "away").rename(source / TRAIN)
    (copy / VAL).unlink()
    os.truncate(copy / TEST, 1000)
    assert stage(str(source), str(tmp_path / "cache")) == copy
    assert copied(capfd.readouterr().err) == sizes(source)[TEST] + sizes(source)[VAL]
    same(copy, source)


def test_samples_are_read_from_the_copy_of_an_archive_within_an_archive(source, tmp_path):
    shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path, "source")
    copy = stage(f"zip://source::file://{tmp_path}/all.zip", str(tmp_path / "cache"))
    same(copy, source)
    dataset, origin = open_dataset(copy), open_dataset(source)
    assert dataset.version == origin.version
    one, other = ShardReader(dataset), ShardReader(origin)
    assert all(one.read(row) == other.read(row) for row in range(len(origin)))


def test_the_folder_of_the_copy(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert stage("source", None) == Path("source")
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "slurm"))
    assert stage("source", "off") == Path("source")
    assert not (tmp_path / "slurm").exists()
    inside = stage("source", None)
    assert inside == place(source, tmp_path / "slurm")
    assert stage(str(inside), None) == inside
    for text in ("$SLURM_TMPDIR/$USER_OF_IT", "${SLURM_TMPDIR}/${USER_OF_IT}"):
        with pytest.raises(UserError, match=r"data\.cache_dir=.* the variable USER_OF_IT is not set"):
            stage("source", text)
        monkeypatch.setenv("USER_OF_IT", "me")
        assert stage("source", text) == place(source, tmp_path / "slurm" / "me")
        monkeypatch.delenv("USER_OF_IT")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert stage("source", "~/cache") == place(source, tmp_path / "home" / "cache")
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("url", "cache", "message"),
    [
        ("file:///data/mine", None, "is a URL: set data.cache_dir"),
        ("s3://bucket/mine", "off", "is a URL: set data.cache_dir"),
        ("s3://bucket/mine", "cache", r"s3://bucket/mine: .* needs another package \(.*s3fs.*\)"),
        ("nosuch://mine", "cache", "nosuch://mine cannot be opened .Protocol not known: nosuch"),
        ("zip://mine::file:///absent.zip", "cache", "cannot be opened .No such file"),
        ("absent", "cache", r"absent does not exist or is not a complete shard folder \(no manifest.json\)"),
        ("file:///dev/null", "cache", "/dev/null does not exist or is not a complete"),
        ("source", "s3://bucket/cache", "data.cache_dir=s3://bucket/cache is a URL"),
        ("source", "/dev/null/cache", "data.cache_dir: .*cannot be written .Not a directory.*or to off"),
    ],
)
def test_sources_and_caches_that_cannot_be_used(source, tmp_path, monkeypatch, url, cache, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        stage(url, cache)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m["shards"][0].update(name="../outside.tar"),
            "name '../outside.tar', which is not a plain file",
        ),
        (lambda m: m["shards"][0].update(name="/tmp/outside.tar"), "the name '/tmp/outside.tar'"),
        (lambda m: m["shards"][0].update(name="..tar"), "the name '..tar'"),
        (lambda m: m["shards"][0].update(name="manifest.json"), "the name 'manifest.json'"),
        (lambda m: m["shards"][0].update(name="a\nb.tar"), "not a plain file name"),
        (lambda m: m.update(name="../outside"), "the name '../outside'"),
        (lambda m: m["shards"][0].update(name=m["shards"][1]["name"]), "lists a shard twice"),
        (lambda m: m["shards"][0].update(size=-1), "impossible sha256 or size"),
        (lambda m: m["shards"][0].update(sha256="x"), "impossible sha256 or size"),
        (lambda m: m["shards"][0].pop("size"), r"manifest\.json: shards\.0\.size: Field required"),
        (lambda m: m.update(shards=7), r"manifest\.json: shards: Input should be a valid array"),
        (lambda m: m.update(format=99), "has format version 99"),
        (lambda m: m.update(sources=[]), "joins other shard folders"),
    ],
)
def test_a_manifest_is_not_trusted(source, tmp_path, change, message):
    manifest = json.loads((source / "manifest.json").read_text())
    change(manifest)
    (source / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=message):
        stage(str(source), str(tmp_path / "cache"))
    (source / "manifest.json").write_text("[")
    with pytest.raises(UserError, match="not valid JSON"):
        stage(str(source), str(tmp_path / "cache"))
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def on_disk(options: str, disk: Path, then: str, source: Path) -> subprocess.CompletedProcess[str]:
    """Run the shell script ``then`` with a small disk of its own, to which STAGE stages the source."""
    disk.mkdir()
    lines = f'STAGE() {{ "$0" -c "$1" "$2" "$3"; echo "exit $?"; }}\nmount -t tmpfs -o {options} disk "$3" || exit 9\n'
    words = ["unshare", "--map-root-user", "--mount", "sh", "-c", lines + then.replace("STAGE", 'STAGE "$@"')]
    words += [sys.executable, CHILD, str(source), str(disk)]
    return subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False)


def test_a_disk_that_is_too_small(source, tmp_path):
    done = on_disk("size=24k", tmp_path / "disk", 'STAGE; ls "$3"', source)
    needed = sum(size for name, size in sizes(source).items() if name.endswith(".tar"))
    assert f"has 24,576 bytes free, {source} needs {needed:,} more" in done.stderr
    assert done.stdout.splitlines() == ["exit 2", place(source, tmp_path).name]
    assert done.stderr.count("\n") == 1


def test_a_disk_that_fills_up_and_is_enlarged(source, tmp_path):
    # five inodes: two folders, the lock, the index and one shard
    then = 'STAGE; ls "$3"/*; mount -o remount,nr_inodes=99 "$3"; STAGE; ls "$3"/*'
    done = on_disk("nr_inodes=5", tmp_path / "disk", then, source)
    copy = place(source, tmp_path / "disk")
    full, staged = done.stderr.splitlines()
    assert f"{copy} cannot be written (No space left on device); free some space and start again" in full
    first = ["exit 2", "index.parquet", TEST]
    assert done.stdout.splitlines() == [*first, str(copy), "exit 0", "index.parquet", "manifest.json", TEST, TRAIN, VAL]
    assert copied(staged) == sizes(source)[TRAIN] + sizes(source)[VAL]


def test_a_cache_that_is_read_only(source, tmp_path):
    done = on_disk("ro", tmp_path / "disk", "STAGE", source)
    assert done.stdout == "exit 2\n"
    assert "cannot be written (Read-only file system); set data.cache_dir to a writable folder" in done.stderr
    assert done.stderr.count("\n") == 1
