"""NVIDIA DALI: one graph, on the GPU where there is one and on the CPU where there is none.

DALI is fed the encoded bytes of the planned samples instead of using a reader of its own: its readers' order depends on
the number of shards and ranks, and restoring one with another number gives wrong data without an error. Feeding costs a
``pread`` a sample and makes the step number the whole state.
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

LAST_ROW = np.array([[0, 0, 1]], dtype=np.float32)  # makes an affine matrix a perspective one


def _to_pixels(affine: np.ndarray, size: int) -> np.ndarray:
    """[-1, 1] coordinates about the centre → pixel coordinates with the origin at the corner: float32 [B, 2, 3]."""
    linear = affine[:, :, :2]
    offset = affine[:, :, 2] * size / 2 + (1 - linear.sum(axis=2)) * size / 2
    return np.concatenate([linear, offset[:, :, None]], axis=2).astype(np.float32)


class _Feed:
    """Hands DALI the next job's bytes and arguments, and remembers which job it was."""

    def __init__(self, dataset: Dataset, jobs: Iterator[Job], size: int, *, augmented: bool) -> None:
        self.augmented = augmented
        self.reader = ShardReader(dataset)
        self.jobs = jobs
        self.size = size
        self.pending: deque[Job] = deque()

    def __call__(self) -> tuple[Any, ...]:
        job = next(self.jobs)  # StopIteration ends the pipeline, after what is already in flight
        self.pending.append(job)
        what = job.decisions
        encoded = [np.frombuffer(self.reader.read(int(row)), dtype=np.uint8) for row in job.micro.rows]
        arguments: list[np.ndarray] = [what.crop[:, :2], what.crop[:, 2:]]
        if self.augmented:
            erase = pixel_boxes(what.erase, self.size).astype(np.float32)
            arguments += [_to_pixels(what.affine, self.size), what.gain, what.shift]
            arguments += [erase[:, :2], erase[:, 2:] - erase[:, :2]]
        return encoded, *(np.ascontiguousarray(argument) for argument in arguments)


def _graph(feed: _Feed, config: DataConfig, *, gpu: bool, augmented: bool, batch: int, device_id: int | None) -> Any:
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def
    def graph() -> Any:
        image: Any
        kinds = [types.UINT8, types.INT32, types.INT32] + [types.FLOAT] * 5
        dimensions = [1, 1, 1, 2, 0, 0, 1, 1]
        count = len(kinds) if augmented else 3
        encoded, start, shape, *more = fn.external_source(
            source=feed, num_outputs=count, batch=True, dtype=kinds[:count], ndim=dimensions[:count]
        )
        image = fn.decoders.image_slice(
            encoded,
            start=start,
            shape=shape,
            axis_names="WH",
            device="mixed" if gpu else "cpu",
            output_type=types.GRAY if config.color == "gray" else types.RGB,
            jpeg_fancy_upsampling=True,  # as libjpeg does; the GPU's default differs
            adjust_orientation=False,  # the shard builder stores pictures upright
        )
        image = fn.resize(
            image, resize_x=config.size, resize_y=config.size, interp_type=types.INTERP_LINEAR, antialias=True
        )
        if augmented:
            affine, gain, shift, erase_at, erase_size = more
            linear: dict[str, Any] = {"interp_type": types.INTERP_LINEAR, "fill_value": 0}
            if gpu:
                image = fn.warp_affine(image, matrix=affine, **linear)
            else:
                # The same arithmetic by OpenCV's vector code: a tenth of warp_affine's time on the CPU, where it was
                # half of the whole graph's
                image = fn.experimental.warp_perspective(
                    image, matrix=fn.cat(affine, LAST_ROW, axis=0), pixel_origin="corner", **linear
                )
            image = fn.brightness_contrast(
                # gain * pixel + shift, with DALI's own names; its uint8 range is 255, and it saturates as it stores
                image,
                brightness=1.0,
                brightness_shift=shift,
                contrast=gain,
                contrast_center=0.0,
                dtype=types.UINT8,
            )
            image = fn.erase(image, anchor=erase_at, shape=erase_size, axis_names="WH", fill_value=0)
        return image

    made = graph(
        batch_size=batch,
        num_threads=config.threads,
        device_id=device_id,
        prefetch_queue_depth=config.prefetch,
    )
    made.build()
    return made


def batches(
    dataset: Dataset, config: DataConfig, jobs: Iterator[Job], *, augmented: bool, batch: int, device: torch.device
) -> Iterator[Batch]:
    """Decode, cut, resize and augment on DALI's threads or on the GPU, a few batches ahead."""
    import torch

    feed = _Feed(dataset, jobs, config.size, augmented=augmented)
    gpu = device.type == "cuda"
    graph = _graph(
        feed, config, gpu=gpu, augmented=augmented, batch=batch, device_id=(device.index or 0) if gpu else None
    )
    labels = dataset.columns["label"].astype(np.int64)
    while True:
        try:
            # On a GPU DALI's work joins torch's stream, so the copy below comes before the buffer's next use
            (made,) = graph.run(torch.cuda.current_stream(device)) if gpu else graph.run()
        except StopIteration:
            return
        # DALI may use the buffer again as soon as it is run again, so the copy is needed
        image = torch.from_dlpack(made.as_tensor()).permute(0, 3, 1, 2).clone(memory_format=torch.preserve_format)
        yield Batch.of(image, feed.pending.popleft().micro, labels)
