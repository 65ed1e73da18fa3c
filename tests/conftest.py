"""Fixtures of all tests: real collections, small phantom collections, and a process group."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fork_server import ForkServer
from helpers import ROOT, TINY, fork_server, in_process, verb

from brain_dist.common.locks import locked

if TYPE_CHECKING:
    import torch

    from brain_dist.ranks.world import World

# A shell starts `make test &` with SIGINT ignored, nohup with SIGHUP, and every process inherits that
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)

# The slowest files start first, so that no worker begins one of them when the others have finished
SLOWEST = ("test_slurm.py", "test_faults.py", "test_train.py", "test_elastic.py", "test_hosts.py", "test_scaling.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use a GPU if there is one, and move the slowest files to the front."""
    for item in items:
        if "device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gpu)
    items.sort(key=lambda item: SLOWEST.index(item.path.name) if item.path.name in SLOWEST else len(SLOWEST))


def build_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], None]) -> Path:
    """A folder that ``build`` fills once for all workers: the first one that needs it builds, the others wait.

    Tests must not change files in it.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # common to all workers
    folder, marker = base / name, base / f"{name}.complete"
    with locked(base / f"{name}.lock"):
        if not marker.exists():
            shutil.rmtree(folder, ignore_errors=True)  # left by a build that failed
            folder.mkdir()
            build(folder)
            marker.touch()
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real collections beside the checkout."""
    path = Path(os.environ.get("BRAIN_DIST_DATA", ROOT.parent / "shared" / "data"))
    if not (path / "cheng").is_dir():
        pytest.skip(f"no real collections in {path}; set BRAIN_DIST_DATA to their folder")
    return path


@pytest.fixture(scope="session")
def phantom_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 144 phantom slices of 48 patients; the images are in the folder ``images`` beside them."""

    def build(folder: Path) -> None:
        size = ["--patients", "48", "--slices", "3", "--size", "96", "--seed", "0"]
        in_process("shard", "phantom", "--out", str(folder / "images"), *size)
        in_process("shard", "build", "--source", str(folder / "images"), "--out", str(folder / "shards"))

    return build_once(tmp_path_factory, "phantoms", build) / "shards"


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """102 training phantoms in several tars."""
    from soak import build_phantom_shards

    return build_once(tmp_path_factory, "small", build_phantom_shards) / "shards"


@pytest.fixture(scope="session")
def trained_run(phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated run on phantoms, whose images are cropped to the head."""

    def build(folder: Path) -> None:
        batch = ["--train.global_batch", "24", "--train.micro_batch", "24", "--train.epochs", "1", "--optim.lr", "3e-3"]
        output = ["--data.shards", str(phantom_shards), "--run.dir", str(folder), "--run.name", "run"]
        verb("train", *TINY, *batch, *output, "--data.head_crop", "true", "--train.precision", "fp32")
        verb("evaluate", str(folder / "run"), "--split", "val")
        in_process("calibrate", str(folder / "run"), "--alpha", "0.3")

    return build_once(tmp_path_factory, "predicting", build) / "run"


@pytest.fixture(scope="session")
def onnx_export(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of ``trained_run`` to ONNX."""

    def build(folder: Path) -> None:
        verb("export", str(trained_run), "--to", "onnx", "--out", str(folder / "out"))

    return build_once(tmp_path_factory, "onnx", build) / "out" / "onnx"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """A GPU if there is one, else the CPU. The tests that use it have the marker ``gpu``."""
    import torch

    from brain_dist.ranks.device import choose_device
    from brain_dist.ranks.world import discover

    # cuBLAS reads it at its first use, which may be before the test of deterministic mode
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.allow_tf32 = False  # tolerances are those of fp32
    return choose_device(discover({}), "auto")


@pytest.fixture(scope="module")
def world(device: torch.device) -> Iterator[World]:
    """A process group of this process alone."""
    import torch

    from brain_dist.ranks.group import process_group
    from brain_dist.ranks.world import discover

    world = discover({})
    with process_group(world, device):
        torch.set_num_threads(1)  # as helpers.environment() sets
        yield world


@pytest.fixture(scope="session")
def server() -> ForkServer:
    """The fork server of this worker."""
    return fork_server()
