"""Evaluation is exact over any number of ranks, and refuses changed shards and damaged weights."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fork_server import Ranks
from helpers import ROOT, TINY, environment, fork_server, free_ports, in_process, launch, verb
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score, roc_auc_score

from brain_dist.checkpoints.choice import weights_file
from brain_dist.checkpoints.layout import MARKER, complete_steps, encode_marker, read_marker
from brain_dist.common.files import write_together
from brain_dist.errors import Fault, UserError
from brain_dist.inference.logits import predict_logits
from brain_dist.inference.run import load_run
from brain_dist.judging.predictions import read_predictions
from brain_dist.ranks.world import discover
from brain_dist.store.dataset import open_dataset


@pytest.fixture(scope="module")
def run(phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    batch = ["--train.global_batch", "24", "--train.micro_batch", "24", "--train.epochs", "2", "--optim.lr", "3e-3"]
    output = ["--data.shards", str(phantom_shards), "--run.dir", str(runs), "--run.name", "run"]
    verb("train", *TINY, *batch, *output, "--train.precision", "fp32", "--optim.ema", "0.5", "--train.best", "accuracy")
    return runs / "run"


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_each_sample_of_the_split_counts_once_on_any_number_of_ranks(
    run: Path, phantom_shards: Path, ranks: int
) -> None:
    # the split is not divisible by 5 images per rank, so there is padding to leave out
    launch(ranks, "evaluate", str(run), "--split", "train", "--batch", "5", "--name", f"ranks{ranks}")
    predictions = read_predictions(run / "predictions" / f"ranks{ranks}.parquet")
    dataset = open_dataset(phantom_shards)
    assert np.array_equal(predictions.row, dataset.rows("train"))
    assert np.array_equal(predictions.label, dataset.columns["label"][predictions.row])
    assert predictions.dataset_version == dataset.version
    np.testing.assert_allclose(predictions.prob.sum(1), 1, atol=1e-5)

    loaded = load_run(run)
    with torch.inference_mode():
        logits = loaded.model(loaded.images(predictions.row[:7].tolist())).numpy()
    np.testing.assert_allclose(predictions.logit[:7], logits, atol=1e-4)

    metrics = json.loads((run / "predictions" / f"ranks{ranks}.json").read_text())
    predicted = predictions.prob.argmax(1)
    assert metrics["n"] == len(dataset.rows("train"))
    assert metrics["accuracy"] == pytest.approx(accuracy_score(predictions.label, predicted))
    assert metrics["kappa"] == pytest.approx(cohen_kappa_score(predictions.label, predicted), abs=1e-6)
    assert metrics["f1_macro"] == pytest.approx(f1_score(predictions.label, predicted, average="macro"), abs=1e-6)
    assert metrics["auc_macro"] == pytest.approx(
        roc_auc_score(predictions.label, predictions.prob, multi_class="ovr"), abs=1e-5
    )


def test_the_moving_average_of_the_weights_is_evaluated(run: Path) -> None:
    ema, plain = load_run(run).model.state_dict(), load_run(run, weights="model").model.state_dict()
    assert any(not torch.equal(ema[name], plain[name]) for name in ema)


def test_images_can_be_displayed(run: Path) -> None:
    loaded = load_run(run)
    images = loaded.display(loaded.images([0, 1]))
    assert images.shape == (2, 32, 32)
    assert images.dtype == np.uint8
    assert images.std() > 10


def test_a_row_that_is_missing_or_occurs_twice_is_a_fault(run: Path) -> None:
    loaded, alone = load_run(run), discover({})
    rows = loaded.dataset.rows("test")
    with pytest.raises(Fault, match=f"instead of {len(rows) - 1}"):
        predict_logits(
            loaded.model, loaded.normalize, loaded.batches(rows, micro_batch=4, world=alone), rows[1:], alone
        )
    twice = np.concatenate([rows, rows[:1]])
    with pytest.raises(Fault, match=f"{len(rows)} distinct"):
        predict_logits(loaded.model, loaded.normalize, loaded.batches(twice, micro_batch=4, world=alone), rows, alone)


def copy_of(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def test_rebuilt_shards_are_refused(run: Path, tmp_path: Path) -> None:
    """Their split may have changed, so that training patients would be evaluated as unseen."""
    copy = copy_of(run, tmp_path)
    environment = json.loads((copy / "environment.json").read_text())
    (copy / "environment.json").write_text(json.dumps(environment | {"dataset_version": "0" * 64}))
    with pytest.raises(UserError, match="was rebuilt since"):
        load_run(copy)


def edit_config(copy: Path, **data: object) -> None:
    settings = yaml.safe_load((copy / "config.yaml").read_text())
    settings["data"] |= data
    (copy / "config.yaml").write_text(yaml.safe_dump(settings))


def test_shards_are_found_from_another_folder_or_at_another_place(
    run: Path, phantom_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_of(run, tmp_path)
    edit_config(copy, shards="a/relative/path")  # as of a training that was started elsewhere
    monkeypatch.chdir(tmp_path)
    assert load_run(copy).dataset.root == phantom_shards
    environment = json.loads((copy / "environment.json").read_text())
    (copy / "environment.json").write_text(json.dumps(environment | {"shards": str(tmp_path / "gone")}))
    message = r"the data of .*run: a/relative/path is not a complete shard folder .* add --shards FOLDER"
    with pytest.raises(UserError, match=message):
        load_run(copy)
    moved = shutil.copytree(phantom_shards, tmp_path / "moved")
    in_process("evaluate", str(copy), "--shards", str(moved), "--batch", "16")  # without --name: they are its own
    assert read_predictions(copy / "predictions" / "test.parquet").shards == str(moved)


@pytest.mark.slow
def test_a_run_does_not_decide_where_shards_are_copied(run: Path, phantom_shards: Path, tmp_path: Path) -> None:
    copy = copy_of(run, tmp_path)
    edit_config(copy, cache_dir=str(tmp_path / "theirs"))
    other = tmp_path / "other"
    images = str(phantom_shards.parent / "images")
    in_process("shard", "build", "--source", images, "--out", str(other), "--seed", "1")
    in_process("evaluate", str(copy))
    name = ["--name", "other", "--allow-known"]
    in_process("evaluate", str(copy), "--shards", str(other), *name)
    assert not (tmp_path / "theirs").exists()
    in_process("evaluate", str(copy), "--shards", str(other), *name, "--cache-dir", str(tmp_path / "mine"))
    assert not (tmp_path / "theirs").exists()
    assert len(list((tmp_path / "mine").glob("*/manifest.json"))) == 2  # the training's images are compared with them


def test_damaged_weights_are_refused(run: Path, tmp_path: Path) -> None:
    copy = copy_of(run, tmp_path)
    file = weights_file(copy).parent / "ema.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(Fault, match=r"ema\.safetensors does not match its checksum"):
        load_run(copy)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--step", "best"]])
def test_one_rank_chooses_the_checkpoint(run: Path, tmp_path: Path, options: list[str]) -> None:
    """While a run trains, ranks that looked for checkpoints themselves would find different ones."""
    behind = copy_of(run, tmp_path)  # what rank 1 sees: the checkpoint that rank 0 chooses is not there yet
    chosen = load_run(run, step=options[-1] if options else None).step
    shutil.rmtree(behind / "checkpoints" / f"{chosen:08d}")
    assert complete_steps(behind / "checkpoints")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "brain_dist.evaluate", str(folder), "--name", "mixed", *options, "--device", "cpu"],
            cwd=ROOT,
            env=environment(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
            ),
        )
        for port in free_ports(1)
        for rank, folder in enumerate((run, behind))
    ]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    predictions = read_predictions(run / "predictions" / "mixed.parquet")
    assert predictions.step == chosen
    alone = load_run(run, step=chosen).predict("test")
    np.testing.assert_allclose(predictions.logit, alone.logit, atol=1e-4)


@pytest.mark.parametrize("name", ["ema.safetensors", "model.safetensors", "optimizer-00000-of-00001.safetensors"])
def test_a_checkpoint_with_a_missing_file_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    """Without its moving average, a checkpoint would give other numbers."""
    copy = copy_of(run, tmp_path)
    (weights_file(copy).parent / name).unlink()
    result = in_process("evaluate", str(copy), "--name", "lost", expect=1)
    assert f"{name} is missing; use another --step" in result.err
    assert result.err.count("\n") == 1
    assert not (copy / "predictions" / "lost.parquet").exists()


def test_a_rank_that_is_killed_ends_the_others_with_one_line(run: Path) -> None:
    killed = {"rank": 1, "place": "forward", "count": 5}
    result = launch(2, "evaluate", str(run), "--name", "killed", "--device", "cpu", inject=killed, expect=1)
    assert result.err == "brain-dist: error: lost contact: another rank or the network to it ended\n"
    assert not (run / "predictions" / "killed.parquet").exists()


@pytest.mark.slow
def test_other_output_folder(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    result = in_process("evaluate", str(run), "--out", str(out), "--name", "mine")
    assert sorted(path.name for path in out.iterdir()) == ["mine.json", "mine.parquet"]
    assert f"predictions: {out / 'mine.parquet'}" in result.out
    in_process("report", str(run), "--predictions", str(out), "--name", "mine", "--out", str(tmp_path / "page.html"))
    assert "Summary" in (tmp_path / "page.html").read_text()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB; needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("this user cannot mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, *, leave: int = 0) -> None:
    """Leave ``leave`` bytes on a disk."""
    with contextlib.suppress(OSError), (folder / "fill").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    if leave:
        os.truncate(folder / "fill", (folder / "fill").stat().st_size - leave)


def test_full_disk_and_read_only_folder(run: Path, small_disk: Path, phantom_shards: Path) -> None:
    """One line, before the work if possible; earlier predictions stay, and nothing is left behind."""
    copy = Path(shutil.copytree(run, small_disk / "run", ignore=shutil.ignore_patterns("predictions", "optimizer*")))
    marker = copy / "checkpoints" / weights_file(run).parent.name / MARKER
    content = read_marker(marker.parent)
    content["files"] = {name: entry for name, entry in content["files"].items() if not name.startswith("optimizer")}
    marker.write_bytes(encode_marker(content))
    in_process("evaluate", str(copy))
    in_process("report", str(copy))

    def snapshot() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in copy.rglob("*") if path.is_file()}

    before = snapshot()
    fill(small_disk)
    arguments = {"evaluate": ("predictions", "--out"), "report": ("report", "--out"), "shortcut": ("", "--json")}
    for name, (folder, advice) in arguments.items():
        target = [str(phantom_shards), "--json", str(copy / "s.json")] if name == "shortcut" else [str(copy)]
        error = in_process(name, *target, expect=2).err.splitlines()[-1]
        assert f"{copy / folder} cannot be written (No space left on device); choose another" in error
        assert advice in error
    assert snapshot() == before
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for name in ("evaluate", "report"):
        result = in_process(name, str(copy), expect=2)
        assert "cannot be written (Read-only file system)" in result.err
        assert len(result.err.splitlines()) == 1
    in_process("evaluate", str(copy), "--out", str(run.parent / "elsewhere"))


def test_the_table_and_its_metrics_are_written_together_or_not_at_all(run: Path, small_disk: Path) -> None:
    out = small_disk / "out"
    in_process("evaluate", str(run), "--out", str(out))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    fill(small_disk, leave=80 << 10)
    with pytest.raises(OSError, match="No space left on device"):
        write_together({out / "test.json": b"{}", out / "test.parquet": bytes(1 << 20)})
    assert sorted((path.name, path.read_bytes()) for path in out.iterdir()) == sorted(before.items())


@pytest.mark.slow
def test_links_in_a_run_of_someone_else_are_not_followed(run: Path, tmp_path: Path) -> None:
    copy = copy_of(run, tmp_path)
    shutil.rmtree(copy / "predictions", ignore_errors=True)
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("test.json", "test.parquet", "index.html"):
        (mine / name).write_text("my thesis")
    for folder, names in (("predictions", ("test.json", "test.parquet")), ("report", ("index.html",))):
        (copy / folder).mkdir()
        for name in names:
            (copy / folder / name).symlink_to(mine / name)
    in_process("evaluate", str(copy))
    in_process("report", str(copy))
    assert not any(path.is_symlink() for folder in ("predictions", "report") for path in (copy / folder).iterdir())
    for folder, name in (("predictions", "evaluate"), ("report", "report")):
        shutil.move(copy / folder, tmp_path / f"real-{folder}")
        (copy / folder).symlink_to(mine)
        error = in_process(name, str(copy), "--name", "test", expect=2).err
        assert f"{copy / folder} is a symbolic link" in error
        (copy / folder).unlink()
        shutil.move(tmp_path / f"real-{folder}", copy / folder)
    assert [path.read_text() for path in mine.iterdir()] == ["my thesis"] * 3


@pytest.mark.parametrize("name", ["../../escaped", "a/b", ".hidden", "", "shortcut"])
def test_names_that_leave_the_folder_or_are_reserved_are_refused(run: Path, name: str) -> None:
    result = in_process("evaluate", str(run), "--name", name, expect=2)
    assert f"--name {name}: must consist of letters" in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "absent"),
        (["RUN", "--split", "train", "--name", "test"], "--name test: these are the predictions of split test"),
        (["RUN", "--step", "7"], "no checkpoint of step 7"),
        (["RUN", "--shards", "OTHER"], "--shards needs a --name"),
        (["RUN", "--shards", "absent", "--name", "x"], "absent"),
        (["RUN", "--shards", "OTHER", "--name", "test"], "--shards needs a --name other than train, val and test"),
        (["RUN", "--shards", "TESTS", "--name", "x", "--split", "val"], "has no val split"),
        (["RUN", "--step", "seven"], "--step seven: must be a number of optimiser steps, best or newest"),
        (["RUN", "--batch", "0"], "--batch 0: must be ≥ 1"),
    ],
)
def test_mistakes_are_one_line(
    run: Path, phantom_shards: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    source = ["--source", str(phantom_shards.parent / "images")]
    places = {"RUN": str(run), "OTHER": str(tmp_path / "other"), "TESTS": str(tmp_path / "tests")}
    for name, options in (("OTHER", ["--seed", "1"]), ("TESTS", ["--split", "test"])):
        if name in arguments:
            in_process("shard", "build", *source, "--out", places[name], *options)
    result = in_process("evaluate", *(places.get(argument, argument) for argument in arguments), expect=2)
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("victim", "cause"),
    [
        pytest.param(0, "rank 0, which serves the rendezvous", marks=pytest.mark.slow),
        (1, "no heartbeat from rank 1"),
    ],
)
def test_a_rank_that_stops_answering_ends_the_evaluation(run: Path, tmp_path: Path, victim: int, cause: str) -> None:
    frozen = {"rank": victim, "place": "forward", "count": 20, "action": "SIGSTOP"}
    arguments = [str(run), "--split", "train", "--timeout", "2", "--out", str(tmp_path)]
    ranks = Ranks(fork_server(), 2, "evaluate", arguments, tmp_path / "log", inject=frozen)
    try:
        deadline = time.monotonic() + 120
        while ranks.running() and ranks.codes[1 - victim] is None:
            assert time.monotonic() < deadline, ranks.log.read_text()
            time.sleep(0.1)
    finally:
        ranks.signal(victim, signal.SIGKILL)
        codes = ranks.wait(20)
    log = ranks.log.read_text()
    assert codes[1 - victim] == 1, log
    assert re.search(f"error on rank {1 - victim}: no progress for .* while predicting: {cause}", log), log
    assert not list(tmp_path.glob("*.parquet"))


def test_timeout_must_be_a_number_of_seconds(run: Path) -> None:
    result = in_process("evaluate", str(run), "--timeout", "nan", expect=2)
    assert "--timeout nan: must be a number of seconds between 1" in result.err
