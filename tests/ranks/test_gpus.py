"""What `make setup` says about DALI and the driver."""

from __future__ import annotations

import pytest

from brain_dist.ranks.gpus import describe, driver, installed_dali

DALI12, DALI13 = "nvidia-dali-cuda120 2.4.0", "nvidia-dali-cuda130 2.4.0"


@pytest.mark.parametrize(
    ("dali", "torch_cuda", "found", "expected"),
    [
        (DALI12, "13.0", None, f"{DALI12}; no NVIDIA driver: networks and loaders run on the CPU"),
        (DALI13, "13.0", ("580.65.06", 13000), f"{DALI13}; NVIDIA driver 580.65.06 for CUDA 13.0"),
        (DALI12, "13.0", ("580.65.06", 13010), f"{DALI12}; NVIDIA driver 580.65.06 for CUDA 13.1; `make dali130`"),
        (DALI12, "13.0", ("550.54", 12040), "driver 550.54 for CUDA 12.4 is too old for torch, which needs CUDA 13.0"),
        (DALI12, None, ("550.54", 12040), "torch is built for the CPU only"),
    ],
)
def test_the_driver_must_suit_torch(
    dali: str, torch_cuda: str | None, found: tuple[str, int] | None, expected: str
) -> None:
    assert expected in describe(dali, torch_cuda, found)


def test_this_machine_is_described() -> None:
    assert installed_dali().startswith("nvidia-dali-cuda1")
    found = driver()
    assert found is None or (found[0] and found[1] >= 11000)
