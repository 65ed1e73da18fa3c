"""Stage ``facts``: the GPU, the machine, the versions, and the rates that other stages are compared with."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.frame import Check

PACKAGES = (
    "torch", "torchvision", "timm", "torchmetrics", "accelerate", "deepspeed", "numpy", "pyarrow", "pillow", "pydantic",
    "jsonargparse", "safetensors", "triton", "nvidia-ml-py", "nvidia-cudnn-cu13", "nvidia-nccl-cu13",
)  # fmt: skip
GPU_FIELDS = (
    "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit,ecc.mode.current,mig.mode.current"
)


def run_facts(check: Check) -> None:
    """Describe the machine, measure it, and import what the other stages need."""
    if not check.dry:
        check.attempt("smi", describe_gpu)
        check.attempt("identity", identify_gpu)
    check.attempt("machine", describe_machine)
    check.attempt("versions", package_versions)
    check.attempt("ceilings", lambda: measure_ceilings(check))
    check.attempt("dali", import_dali)
    check.attempt("product", import_product)


def describe_gpu() -> dict[str, str]:
    """What nvidia-smi says about the GPU."""
    command = ["nvidia-smi", f"--query-gpu={GPU_FIELDS}", "--format=csv,noheader"]
    return {"gpu": subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()}


def identify_gpu() -> dict[str, str]:
    """How a run tells this GPU from others."""
    import torch

    from brain_dist.ranks.device import gpu_identity

    node, uuid = gpu_identity(torch.device("cuda", 0))
    return {"node": node, "uuid": uuid}


def describe_machine() -> dict[str, Any]:
    """CPU, memory, and the commit of the checkout."""
    processor = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in processor if "model name" in line]
    kibibytes = int(Path("/proc/meminfo").read_text().split()[1])
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": names[0] if names else "",
        "mem_gib": kibibytes / 2**20,
        "commit": git.stdout.strip(),
    }


def package_versions() -> dict[str, str | None]:
    """Version of each package; None if it is not installed."""
    from importlib import metadata

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    return {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}}


def measure_ceilings(check: Check) -> dict[str, float]:
    """Rates of a large bf16 matrix product, of a copy in device memory, and of a copy from pinned host memory.

    A copy in device memory counts the bytes read and written.
    """
    import torch

    device = check.device()
    side = 256 if check.dry else 8192
    left, right = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    products = [2 * side**3 / _seconds(check, lambda: left @ right) for _ in range(5 if check.dry else 30)]
    source = torch.empty((1 if check.dry else 2048) * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copies = [2 * source.numel() / _seconds(check, lambda: target.copy_(source)) for _ in range(6)]
    rates = {
        "matmul_tflops": statistics.median(products[2:]) / 1e12,
        "matmul_best": max(products) / 1e12,
        "copy_tb_s": statistics.median(copies) / 1e12,
    }
    if not check.dry:
        host = torch.empty(256 * 2**20, dtype=torch.uint8, pin_memory=True)
        seconds = _seconds(check, lambda: [host.to(device, non_blocking=True) for _ in range(4)])
        rates["pinned_gb_s"] = 4 * host.numel() / seconds / 1e9
    return rates


def _seconds(check: Check, action: Any) -> float:
    start = check.now()
    action()
    return check.now() - start


def import_dali() -> dict[str, str]:
    """Version of DALI and where it is imported from."""
    import nvidia.dali

    return {"dali": nvidia.dali.__version__, "from": nvidia.dali.__file__}


def import_product() -> dict[str, str]:
    """Import the training loop; version of the product."""
    import brain_dist
    import brain_dist.training.start

    return {"product": brain_dist.__version__}
