"""The Containerfiles: what they copy exists, what they install is pinned, and the serving image's steps work."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest
from helpers import ROOT, command, environment, free_ports, in_process
from pictures import draw

FILES = sorted((ROOT / "containers").glob("Containerfile.*"))
INSTRUCTIONS = {
    "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "RUN", "STOPSIGNAL", "USER", "VOLUME",
    "WORKDIR",
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """An instruction and what follows it."""

    name: str
    text: str


def steps(path: Path) -> list[Step]:
    """The instructions of a Containerfile."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [Step(*line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def in_context(path: str) -> bool:
    """Whether .dockerignore lets a path of the checkout into the build."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.lstrip("!")
        if line and not line.startswith("#") and (fnmatch(path, pattern) or path.startswith(f"{pattern}/")):
            kept = line.startswith("!")
    return kept


def pins(lock: Path) -> set[str]:
    return set(re.findall(r"^[\w.-]+==[^\s;]+", lock.read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix[1:])
def test_instructions_are_complete_and_closed(path: Path) -> None:
    own = steps(path)
    assert {step.name for step in own} <= INSTRUCTIONS
    assert own[0].name == "FROM"
    assert "://" not in " ".join(step.text for step in own if step.name in ("FROM", "RUN", "ENV", "COPY"))
    for step in own:
        if step.name == "FROM":
            assert re.fullmatch(r"[a-z/]+:(?!latest)\S+( AS \w+)?", step.text)
        if step.name == "COPY" and not step.text.startswith("--from="):
            for source in step.text.split()[:-1]:
                assert (ROOT / source).exists(), f"{path.name} copies {source}"
                assert in_context(source), f".dockerignore leaves out {source}"
        if step.name == "RUN" and "pip install" in step.text:
            assert "--require-hashes" in step.text or "--no-deps" in step.text
    users = [step.text for step in own if step.name == "USER"]
    assert users[-1] not in ("0", "root")
    last = max(n for n, step in enumerate(own) if step.name == "USER")
    assert not [step for step in own[last:] if step.name in ("RUN", "COPY")]


def test_training_image_has_what_compiled_networks_need() -> None:
    """Triton compiles its driver in C against Python.h."""
    own = steps(ROOT / "containers" / "Containerfile.train")
    (packages,) = [step.text.split() for step in own if step.name == "RUN" and "apt-get" in step.text]
    assert {"gcc", "libc6-dev", "python3-dev"} <= set(packages)


def test_serving_image_has_the_versions_of_the_tests() -> None:
    assert pins(ROOT / "containers" / "serve.lock") <= pins(ROOT / "requirements.lock")
    assert not [pin for pin in pins(ROOT / "containers" / "serve.lock") if pin.startswith(("torch", "nvidia"))]
    wanted = (ROOT / "containers" / "serve.in").read_text().split()
    assert set(wanted) <= {pin.partition("==")[0] for pin in pins(ROOT / "containers" / "serve.lock")}


@pytest.mark.slow
@pytest.mark.timeout(1200)  # pip installs 40 packages
def test_steps_of_the_serving_image_give_a_program_without_torch(
    trained_run: Path, onnx_export: Path, tmp_path: Path
) -> None:
    """Each RUN step of the image's first stage that is not apt's, in another folder."""
    prefix, build = tmp_path / "opt", tmp_path / "build"
    build.mkdir()
    for step in steps(ROOT / "containers" / "Containerfile.serve")[1:]:
        if step.name == "FROM":
            break
        if step.name == "COPY":
            *sources, target = step.text.split()
            place = build / Path(target).relative_to("/build")
            for source in map(ROOT.joinpath, sources):
                if source.is_dir():
                    shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(source, place)
        elif "apt-get" not in step.text:
            text = step.text.replace("/opt/brain_dist", str(prefix)).replace("/build", str(build))
            text = text.replace("python3 -m venv", f"{sys.executable} -m venv")
            subprocess.run(["sh", "-ec", text], check=True, timeout=400)
    program = str(prefix / "bin" / "brain-dist")
    assert command([program, "--version"]).out.strip()
    python = str(prefix / "bin" / "python")
    assert "No module named 'torch'" in command([python, "-c", "import torch"], expect=1).err
    draw(1).save(tmp_path / "slice.png")
    code = f"import brain_dist; print(brain_dist.load('{onnx_export}').predict('{tmp_path}/slice.png')[0])"
    alone = command([python, "-c", code]).out
    assert alone.strip().rpartition(" ")[0] in in_process("predict", str(trained_run), str(tmp_path / "slice.png")).out
    assert "--store" in command([program, "dicom", "listen", "--help"]).out
    check_health(program, onnx_export, tmp_path)


def check_health(program: str, model: Path, folder: Path) -> None:
    """Start the service as the image does, and ask for its health as the image does."""
    own = {step.name: step.text for step in steps(ROOT / "containers" / "Containerfile.serve")}
    (port,) = free_ports(1)
    (folder / "token").write_text("0123456789abcdef")
    places = {"/model": str(model), "/run/token": str(folder / "token"), "8000": str(port)}
    arguments = [places.get(word, word) for word in json.loads(own["CMD"])]
    health = json.loads(own["HEALTHCHECK"].partition("CMD")[2])
    health[0] = sys.executable
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        manager.settimeout(120)
        variables = environment(NOTIFY_SOCKET=str(folder / "notify"))
        process = subprocess.Popen([program, *arguments], env=variables, stdout=subprocess.DEVNULL)
        try:
            assert manager.recv(64) == b"READY=1"
            command([word.replace("8000", str(port)) for word in health])
            process.terminate()
            assert process.wait(60) == 0
            assert manager.recv(64) == b"STOPPING=1"
        finally:
            process.kill()
    command([word.replace("8000", str(port)) for word in health], expect=1)
