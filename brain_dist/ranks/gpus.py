"""Which DALI and which NVIDIA driver there is. `make setup` ends with ``python -m brain_dist.ranks.gpus``."""

from __future__ import annotations

from contextlib import suppress
from importlib import metadata

DALI = ("nvidia-dali-cuda120", "nvidia-dali-cuda130")


def driver() -> tuple[str, int] | None:
    """Version of the NVIDIA driver, and the newest CUDA that it runs as 1000 · major + 10 · minor; None without one."""
    import pynvml

    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        try:
            return pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlSystemGetCudaDriverVersion()
        finally:
            pynvml.nvmlShutdown()
    return None


def installed_dali() -> str:
    """Name and version of the installed DALI."""
    names = {distribution.metadata["Name"]: distribution.version for distribution in metadata.distributions()}
    return ", ".join(f"{name} {names[name]}" for name in DALI if name in names) or "no DALI"


def describe(dali: str, torch_cuda: str | None, found: tuple[str, int] | None) -> str:
    """One line.

    Args:
        dali: what :func:`installed_dali` returns.
        torch_cuda: the CUDA that torch was built for, such as "13.0"; None: for the CPU only.
        found: what :func:`driver` returns.
    """
    if found is None:
        return f"{dali}; no NVIDIA driver: networks and loaders run on the CPU"
    version, cuda = found
    text = f"{dali}; NVIDIA driver {version} for CUDA {cuda // 1000}.{cuda % 1000 // 10}"
    if torch_cuda is None:
        return f"{text}; torch is built for the CPU only"
    if cuda // 1000 < int(torch_cuda.split(".")[0]):
        return f"{text} is too old for torch, which needs CUDA {torch_cuda}: update the driver"
    if "cuda120" in dali:
        text += "; `make dali130` installs DALI for CUDA 13, see docs/install.md"
    return text


def main() -> None:
    """Print the line."""
    import torch

    print(describe(installed_dali(), torch.version.cuda, driver()))


if __name__ == "__main__":
    main()
