"""The production loader: one NVIDIA DALI graph, on the GPU if there is one, else on the CPU.

The graph is fed with the encoded bytes of the planned samples. DALI's own readers are not used: their order depends on
the number of shards and ranks, and restoring one on another number gives wrong data without an error. Feeding costs one
``pread`` per sample, and makes the step number the whole state of the loader.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.config import DataConfig
from brain_dist.store.dataset import Dataset
from brain_dist.store.reader import ShardReader
from brain_dist.stream.augment import pixel_boxes
from brain_dist.stream.batch import Batch, Job

if TYPE_CHECKING:
    import torch

LAST_ROW = np.array([[0, 0, 1]], dtype=np.float32)  # extends an affine matrix to a perspective matrix


def batches(
    dataset: Dataset,
    config: DataConfig,
    jobs: Iterator[Job],
    *,
    augmented: bool,
    micro_batch: int,
    device: torch.device,
) -> Iterator[Batch]:
    """Batches of ``jobs``, prepared ``config.prefetch`` ahead by DALI's threads or on the GPU."""
    import torch

    source = _JobSource(dataset, jobs, config.size, augmented=augmented)
    gpu = device.type == "cuda"
    pipeline = _graph(source, config, gpu=gpu)(
        batch_size=micro_batch,
        num_threads=config.threads,
        device_id=(device.index or 0) if gpu else None,
        prefetch_queue_depth=config.prefetch,
    )
    pipeline.build()
    while True:
        try:
            # On a GPU, DALI orders its work in torch's stream: the copy below runs before the buffer is used again
            (output,) = pipeline.run(torch.cuda.current_stream(device)) if gpu else pipeline.run()
        except StopIteration:
            return
        # The next run may overwrite DALI's buffer, so the images are copied
        image = torch.from_dlpack(output.as_tensor()).permute(0, 3, 1, 2).clone(memory_format=torch.preserve_format)
        yield Batch.of(image, source.pending.popleft().micro, dataset.columns["label"])


class _JobSource:
    """DALI's external source: returns the bytes and arguments of the next job, and queues the job in ``pending``."""

    def __init__(self, dataset: Dataset, jobs: Iterator[Job], size: int, *, augmented: bool) -> None:
        self.reader = ShardReader(dataset)
        self.jobs = jobs
        self.size = size
        self.augmented = augmented
        self.pending: deque[Job] = deque()

    def __call__(self) -> tuple[Any, ...]:
        job = next(self.jobs)  # StopIteration ends the pipeline, after the batches that it has begun
        self.pending.append(job)
        encoded = [np.frombuffer(self.reader.read(int(row)), dtype=np.uint8) for row in job.micro.rows]
        decisions = job.decisions
        arguments: list[np.ndarray] = [decisions.crop[:, :2], decisions.crop[:, 2:]]
        if self.augmented:
            erase = pixel_boxes(decisions.erase, self.size).astype(np.float32)
            arguments += [_to_pixels(decisions.affine, self.size), decisions.gain, decisions.shift]
            arguments += [erase[:, :2], erase[:, 2:] - erase[:, :2]]
        return encoded, *(np.ascontiguousarray(argument) for argument in arguments)


def _to_pixels(affine: np.ndarray, size: int) -> np.ndarray:
    """From [-1, 1] coordinates about the centre to pixels with the origin in the corner: float32 [B, 2, 3]."""
    linear = affine[:, :, :2]
    offset = affine[:, :, 2] * size / 2 + (1 - linear.sum(axis=2)) * size / 2
    return np.concatenate([linear, offset[:, :, None]], axis=2).astype(np.float32)


def _graph(source: _JobSource, config: DataConfig, *, gpu: bool) -> Any:
    """The DALI graph: decode and crop, resize, and, if ``source.augmented``, augment."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def
    def graph() -> Any:
        kinds = [types.UINT8, types.INT32, types.INT32] + [types.FLOAT] * 5
        dimensions = [1, 1, 1, 2, 0, 0, 1, 1]
        count = len(kinds) if source.augmented else 3
        encoded, corner, extent, *augmentation = fn.external_source(
            source=source, num_outputs=count, batch=True, dtype=kinds[:count], ndim=dimensions[:count]
        )
        image = fn.decoders.image_slice(
            encoded,
            start=corner,
            shape=extent,
            axis_names="WH",
            device="mixed" if gpu else "cpu",
            output_type=types.GRAY if config.color == "gray" else types.RGB,
            jpeg_fancy_upsampling=True,  # as libjpeg does; the default of the GPU decoder differs
            adjust_orientation=False,  # the shards store upright images
        )
        image = fn.resize(
            image, resize_x=config.size, resize_y=config.size, interp_type=types.INTERP_LINEAR, antialias=True
        )
        return _augment(image, *augmentation, gpu=gpu) if augmentation else image

    return graph


def _augment(image: Any, affine: Any, gain: Any, shift: Any, erase_corner: Any, erase_extent: Any, *, gpu: bool) -> Any:
    """Flip and rotation, brightness and contrast, random erasing; all arguments are nodes of the graph."""
    from nvidia.dali import fn, types

    linear: dict[str, Any] = {"interp_type": types.INTERP_LINEAR, "fill_value": 0}
    if gpu:
        image = fn.warp_affine(image, matrix=affine, **linear)
    else:
        # The same arithmetic in OpenCV's vector code. It takes a tenth of warp_affine's time on the CPU, which was half
        # of the time of the whole graph
        perspective = fn.cat(affine, LAST_ROW, axis=0)
        image = fn.experimental.warp_perspective(image, matrix=perspective, pixel_origin="corner", **linear)
    # gain * pixel + shift in DALI's terms: shift is relative to the range of uint8, and the result saturates
    image = fn.brightness_contrast(
        image, brightness=1.0, brightness_shift=shift, contrast=gain, contrast_center=0.0, dtype=types.UINT8
    )
    return fn.erase(image, anchor=erase_corner, shape=erase_extent, axis_names="WH", fill_value=0)
