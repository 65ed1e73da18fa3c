"""Exactly one OpenCV, without threads of its own.

The wheels opencv-python, -headless and -contrib all write into the same folder ``cv2``.
"""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import cv2
import pytest
import torch.utils.data
from helpers import command

import brain_dist
from brain_dist.common.workers import worker_pool
from brain_dist.config import DataConfig
from brain_dist.store.dataset import open_dataset
from brain_dist.stream.decoding import EncodedImages
from brain_dist.stream.torch_loader import _start_loading_process

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-bench.lock"])
def test_one_opencv_is_pinned(lock: str) -> None:
    names = re.findall(r"^(opencv[a-z-]*)==", (ROOT / lock).read_text(), re.MULTILINE)
    assert names == ["opencv-python-headless"]


def test_one_opencv_is_installed_and_grad_cam_imports_with_it() -> None:
    assert packages_distributions()["cv2"] == ["opencv-python-headless"]
    import pytorch_grad_cam

    assert pytorch_grad_cam.GradCAM


@pytest.fixture
def four_threads() -> Iterator[None]:
    """OpenCV as it starts on a machine with four cores."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(4)
    yield
    cv2.setNumThreads(before)


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize("workers", [1, 2])
def test_the_processes_of_a_build_leave_opencv_one_thread(workers: int) -> None:
    with worker_pool(workers) as run:
        assert set(run(operator.call, [cv2.getNumThreads] * 4, 1)) == {1}


@pytest.mark.usefixtures("four_threads")
def test_loaders_and_predictors_leave_opencv_one_thread(phantom_shards: Path, trained_run: Path) -> None:
    EncodedImages(open_dataset(phantom_shards), DataConfig().size, color=False)
    assert cv2.getNumThreads() == 1
    cv2.setNumThreads(4)
    brain_dist.load(trained_run, device="cpu")
    assert cv2.getNumThreads() == 1


LATE = """
import operator
from brain_dist.common.workers import start_worker_server, worker_pool

def threads(number):
    import cv2
    return cv2.getNumThreads()

def main():
    start_worker_server()  # as the loader of torch does: it imports no image library for its workers
    for workers in (2, 1):
        with worker_pool(workers) as run:
            print(*run(threads, range(2), 1))

if __name__ == "__main__":
    main()
"""


def test_processes_that_import_opencv_late_leave_it_one_thread(tmp_path: Path) -> None:
    script = tmp_path / "late.py"
    script.write_text(LATE)
    assert command([sys.executable, str(script)]).out.split() == ["1"] * 4


class Threads(torch.utils.data.Dataset[int]):
    """The threads of OpenCV in a loading process."""

    def __getitem__(self, index: int) -> int:
        return cv2.getNumThreads()


@pytest.mark.slow
def test_the_loading_processes_of_torch_leave_opencv_one_thread() -> None:
    options = {"batch_size": None, "sampler": [0], "num_workers": 1, "multiprocessing_context": "forkserver"}
    loader = torch.utils.data.DataLoader(Threads(), worker_init_fn=_start_loading_process, **options)
    assert list(loader) == [1]
