"""Exactly one OpenCV: the wheels opencv-python, -headless and -contrib all write into the same folder ``cv2``."""

from __future__ import annotations

import re
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-bench.lock"])
def test_one_opencv_is_pinned(lock: str) -> None:
    names = re.findall(r"^(opencv[a-z-]*)==", (ROOT / lock).read_text(), re.MULTILINE)
    assert names == ["opencv-python-headless"]


def test_one_opencv_is_installed_and_grad_cam_imports_with_it() -> None:
    assert packages_distributions()["cv2"] == ["opencv-python-headless"]
    import pytorch_grad_cam

    assert pytorch_grad_cam.GradCAM
