"""What a network costs: parameters, operations, latency, throughput, memory and energy of its predictions."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from brain_dist.config import Config
from brain_dist.networks.create import create_network
from brain_dist.profiling.calibration import SMALLEST_CPU_SHARE, calibrate
from brain_dist.profiling.flops import counted_flops
from brain_dist.profiling.power import measure_power
from brain_dist.profiling.rapl import ProcessorEnergy
from brain_dist.profiling.stopwatch import Stopwatch
from brain_dist.ranks.device import is_out_of_memory, peak_memory

if TYPE_CHECKING:
    import torch

WARMUP = 10  # forward passes before a measurement, or fewer if they take longer than it
REPEATS = 100  # measured forward passes, or fewer if they take longer than SECONDS, but at least FEWEST
FEWEST = 5
SECONDS = 1.5
ENERGY_SECONDS = 2.0
LONGEST = 1.0  # seconds of a forward pass beyond which larger batches are not tried
LARGEST_BATCH = 256
GAIN = 1.03  # a larger batch counts as better if its rate is larger by this factor


def measure_costs(config: Config, classes: int, device: torch.device) -> dict[str, Any]:
    """Measure the costs of a network's predictions.

    Args:
        config: settings of a run: the network, the size of its input, and the precision.
        classes: number of classes.
        device: where to measure.

    Returns:
        ``parameters``; ``gmacs``: 10⁹ multiply-accumulates of one image's forward pass, by torch's flop counter;
        ``latency_ms`` and ``latency_p95_ms`` of a batch of one image; ``best_batch``, the size with the most images a
        second, with ``batch_ms``, ``batch_p95_ms`` and ``images_per_s``; ``peak_memory_mb`` at that batch: of tensors
        on a GPU, of the process on a CPU; ``joules_per_image``: of the GPU by NVML, of the processor by RAPL (with what
        other programs use), None if it cannot be measured; ``size``, ``precision``, ``device``, ``threads``,
        ``torch``; ``cpu_share``: see :func:`brain_dist.profiling.calibration.calibrate`; ``busy``: whether other
        work disturbed the measurement.
    """
    import torch

    model = create_network(config.model, classes, seed=0, load_weights=False).to(device).eval()
    sixteen = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.train.precision)
    model = model.to(sixteen) if sixteen else model
    autocast: Any = torch.autocast(device.type, torch.bfloat16) if config.train.precision == "amp" else nullcontext()

    def images(batch: int) -> torch.Tensor:
        shape = (batch, config.model.in_chans, config.data.size, config.data.size)
        return torch.rand(shape, device=device, dtype=sixteen or torch.float32)

    with torch.inference_mode(), autocast:
        gmacs = count_gmacs(model, images(1))
        before = calibrate(device, config.train.precision)
        single = _times(model, images(1), device)
        best = _best_batch(model, images, device)
        energy = _energy(model, images(best["batch"]), device)
        after = calibrate(device, config.train.precision)
    share = min(before["cpu_share"], after["cpu_share"])
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gmacs": gmacs,
        "latency_ms": 1e3 * statistics.median(single),
        "latency_p95_ms": 1e3 * percentile_95(single),
        "best_batch": best["batch"],
        "batch_ms": 1e3 * statistics.median(best["times"]),
        "batch_p95_ms": 1e3 * percentile_95(best["times"]),
        "images_per_s": best["rate"],
        "peak_memory_mb": best["memory"],
        "joules_per_image": energy,
        "size": config.data.size,
        "precision": config.train.precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cpu_share": share,
        "busy": share < SMALLEST_CPU_SHARE,
    }


def count_gmacs(model: torch.nn.Module, images: torch.Tensor) -> float:
    """10⁹ multiply-accumulates per image of a forward pass of ``images`` [B, C, H, W]: half of torch's count of FLOPs.

    Convolutions and matrix products count; normalisation, activations and pooling do not.
    """
    with counted_flops() as counter:
        model(images)
    return counter.get_total_flops() / 2e9 / len(images)


def percentile_95(times: list[float]) -> float:
    """The 95th percentile, between measured values."""
    return statistics.quantiles(times, n=20, method="inclusive")[-1]


def _times(model: torch.nn.Module, images: torch.Tensor, device: torch.device) -> list[float]:
    """Seconds of each of several forward passes, each of which waits for the device, after some to warm up."""
    watch = Stopwatch(device)
    times: list[float] = []
    for count, seconds in ((WARMUP, SECONDS / 3), (REPEATS, SECONDS)):
        times.clear()
        start = end = watch.now()
        while len(times) < count and (len(times) < FEWEST or end - start < seconds):
            begin = end
            model(images)
            end = watch.now()
            times.append(end - begin)
    return times


def _best_batch(model: torch.nn.Module, images: Callable[[int], torch.Tensor], device: torch.device) -> dict[str, Any]:
    """The batch size with the most images a second: doubled until two larger ones in a row are not faster."""
    import torch

    best: dict[str, Any] = {"rate": 0.0}
    batch, worse, longest = 1, 0, 0.0
    while batch <= LARGEST_BATCH and worse < 2 and longest < LONGEST:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            times = _times(model, images(batch), device)
        except RuntimeError as error:
            if best["rate"] and is_out_of_memory(error):
                break
            raise
        longest, rate = max(times), batch / statistics.median(times)
        worse += 1
        if rate > GAIN * best["rate"]:
            memory = 1024 * peak_memory(device)
            best, worse = {"batch": batch, "rate": rate, "times": times, "memory": memory}, 0
        batch *= 2
    return best


def _energy(model: torch.nn.Module, images: torch.Tensor, device: torch.device) -> float | None:
    """Joules per image while the model predicts ``images`` [B, C, H, W] again and again; None if not measurable."""
    watch, processor = Stopwatch(device), ProcessorEnergy()
    if device.type != "cuda" and processor.joules() is None:
        return None
    batches = 0
    with measure_power(device) as power:
        start, processor = watch.now(), ProcessorEnergy()
        while watch.now() - start < ENERGY_SECONDS:
            model(images)
            batches += 1
        seconds, joules = watch.now() - start, processor.joules()
    if device.type == "cuda":
        joules = power["watts"] * seconds if power.get("watts") else None
    return None if joules is None else joules / (batches * len(images))


def cpu_name() -> str:
    """The processor's name as Linux gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()
