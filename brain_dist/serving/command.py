"""`brain-dist serve`: open the model, measure it, and answer requests until a signal."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from brain_dist.common.limits import allow_many_connections, forbid_core_dumps
from brain_dist.errors import UserError
from brain_dist.prediction.predictor import Predictor, load
from brain_dist.ranks.group import clear_faults
from brain_dist.ranks.threads import limit_torch
from brain_dist.serving.maps import map_method
from brain_dist.serving.settings import Settings, is_loopback, make_settings

_CARDS = ("report/MODEL_CARD.md", "README.md")
_SWITCH = 0.0005  # seconds that the event loop waits for a thread that decodes; Python's default is ten times as long
_MAX_CARD = 2**18  # bytes
_RUNS = 2  # of each batch size, when the speed is measured


def serve(model: Path, *, step: int | str | None, device: str, **options: Any) -> int:
    """Serve a model until SIGTERM or SIGINT; returns the exit code.

    Args:
        model: the folder of a run or of an export.
        step: see :func:`brain_dist.prediction.predictor.load`.
        device: auto, cpu or cuda.
        options: arguments of :func:`brain_dist.serving.settings.make_settings`.

    Raises:
        UserError: an option, the model, or the address cannot be used, or a package is missing.
        Fault: the model's weights are damaged, its outputs are not finite, or the memory of the device is full.
    """
    settings = make_settings(**options)
    forbid_core_dumps()
    allow_many_connections()
    try:
        from brain_dist.serving.app import create_app
        from brain_dist.serving.server import Server, open_socket
        from brain_dist.serving.service import Service
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; run `pip install 'brain_dist[serve]'`") from None
    listener = open_socket(settings)
    with clear_faults(f"lower --max-batch {settings.max_batch}"):
        predictor = open_predictor(model, step, device, settings)
        speed = measure(predictor, settings.max_batch)
    about = {"name": model.resolve().name, "speed": speed, "maps": map_method(predictor.model), "card": _card(model)}
    service = Service(predictor, settings)
    service.metrics.seconds_per_image = 1 / speed["images_per_second"]
    server = Server(create_app(service, about), service)
    print(
        f"{about['name']}: {', '.join(predictor.contract.classes)}; one image {speed['milliseconds']:.1f} ms,"
        f" batches of {speed['batch']:.0f} {speed['images_per_second']:.0f} images/s"
    )
    print(f"{_address(listener, settings)}: Not a medical device. Ctrl-C ends it", flush=True)
    sys.setswitchinterval(_SWITCH)
    server.run(sockets=[listener])
    return 0


def open_predictor(model: Path, step: int | str | None, device: str, settings: Settings) -> Predictor:
    """The model, with the threads that it is to compute with.

    One thread by default for torch: its threads wait for each other, so a second service or the decoding of images
    beside it can make it ten times slower.
    """
    if settings.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    predictor = load(model, step=step, device=device)
    import nibabel  # noqa: F401 (the first DICOM and NIfTI files shall not wait for their readers)
    import pydicom.pixels  # noqa: F401

    limit_torch(settings.threads or 1)
    return predictor


def measure(predictor: Predictor, max_batch: int) -> dict[str, float]:
    """Milliseconds of one image, and the fastest of three batch sizes up to ``max_batch`` with its rate."""
    size = predictor.contract.size
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (size, size), dtype=np.uint8) for _ in range(max_batch)]
    sizes = sorted({1, max(1, max_batch // 4), max_batch})
    seconds = {}
    for count in sizes:
        times = []
        for _ in range(_RUNS):
            start = time.perf_counter()
            predictor.outputs(images[:count])
            times.append(time.perf_counter() - start)
        seconds[count] = min(times)
    best = max(sizes, key=lambda count: count / seconds[count])
    return {"milliseconds": 1000 * seconds[1], "batch": best, "images_per_second": best / seconds[best]}


def _card(model: Path) -> str | None:
    """The model card in the folder of a run or of an export."""
    for name in _CARDS:
        try:
            return (model / name).read_bytes()[:_MAX_CARD].decode("utf-8", "replace")
        except OSError:
            continue
    return None


def _address(listener: socket.socket, settings: Settings) -> str:
    host, port = listener.getsockname()[:2]
    shown = settings.host if is_loopback(settings.host) else host
    return f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"
