"""The loader for GPUs: one NVIDIA DALI graph, which also runs on the CPU.

DALI cannot decode a JPEG at a fraction of its size, so the graph decodes whole pixels of the region and halves them.

The graph is fed with the encoded bytes of the planned samples. DALI's own readers are not used: their order depends on
the number of shards and ranks, and restoring one on another number gives wrong data without an error. Feeding costs one
``pread`` per sample, on threads that read ahead, and makes the step number the whole state of the loader.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.augmentation.augment import Frames, pixel_boxes
from brain_dist.config import DataConfig
from brain_dist.errors import Fault
from brain_dist.ranks.device import is_out_of_memory
from brain_dist.store.dataset import Dataset
from brain_dist.store.reader import read_ahead
from brain_dist.stream.batch import Batch, Job
from brain_dist.stream.decoding import EncodedImages
from brain_dist.stream.pixels import max_reduction

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
    """Batches of ``jobs``, prepared ``config.prefetch`` ahead by DALI's threads or on the GPU.

    Raises:
        Fault: a shard or one of its images is damaged, or DALI fails.
    """
    import torch

    source = _JobSource(dataset, jobs, config, augmented=augmented)
    gpu = device.type == "cuda"
    pipeline = _graph(source, config, gpu=gpu)(
        batch_size=micro_batch,
        num_threads=config.threads,
        device_id=(device.index or 0) if gpu else None,
        prefetch_queue_depth=config.prefetch,
    )
    try:
        while True:
            try:
                # On a GPU, DALI orders its work in torch's stream: the copy below runs before the buffer is used again
                (output,) = pipeline.run(torch.cuda.current_stream(device)) if gpu else pipeline.run()
            except StopIteration:
                return
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                raise Fault(
                    f"DALI cannot prepare the images ({_reason(error)}); try data.loader=opencv, which names an image"
                    " that it cannot decode"
                ) from error
            # The next run may overwrite DALI's buffer, so the images are copied
            image = torch.from_dlpack(output.as_tensor()).permute(0, 3, 1, 2)
            image = image.clone(memory_format=torch.preserve_format)
            yield source.pending.popleft().batch(image, dataset.columns["label"])
    finally:
        source.samples.close()


def _reason(error: RuntimeError) -> str:
    """What DALI says after the place in the graph and its traceback."""
    return str(error).rpartition("encountered:")[2].strip().partition("\n")[0].rstrip(" :")


class _JobSource:
    """DALI's external source: returns the bytes and arguments of the next job, and queues the job in ``pending``."""

    def __init__(self, dataset: Dataset, jobs: Iterator[Job], config: DataConfig, *, augmented: bool) -> None:
        encoded = EncodedImages(dataset, config.size, color=config.color == "rgb")
        self.samples = read_ahead(encoded.read, jobs, config.prefetch)
        self.size = config.size
        self.augmented = augmented
        frames = Frames.of(dataset.columns, head=config.head_crop)
        self.halvings = max_reduction(frames, config.size).bit_length() - 1
        self.pending: deque[Job] = deque()

    def __call__(self) -> tuple[Any, ...]:
        job, encoded = next(self.samples)  # StopIteration ends the pipeline, after the batches that it has begun
        self.pending.append(job)
        decisions, sampling = job.decisions, encoded.sampling
        images = [np.frombuffer(image, dtype=np.uint8) for image in encoded.images]
        reduction = sampling.reduction[:, None]
        start = sampling.region[:, :2] * reduction
        extent = np.minimum(sampling.region[:, 2:] * reduction, encoded.sides) - start
        arguments = [start, extent, *_halve(extent, reduction, self.halvings), sampling.matrix.astype(np.float32)]
        if self.augmented:
            erase = pixel_boxes(decisions.erase, self.size).astype(np.float32)
            arguments += [decisions.gain, decisions.shift, erase[:, :2], erase[:, 2:] - erase[:, :2]]
        return images, *(np.ascontiguousarray(argument) for argument in arguments)


def _halve(extent: np.ndarray, reduction: np.ndarray, halvings: int) -> list[np.ndarray]:
    """Sizes of the images before and after each halving, or the same size twice where an image is not halved.

    float32 [B, 2] (height, width) each. A size before is even, one more than the image's if that is odd: DALI repeats
    its last row or column.
    """
    arguments = []
    for number in range(1, halvings + 1):
        factor = np.where(reduction >= 2**number, 2, 1)
        extent = -(-extent // factor)
        arguments += [extent[:, ::-1] * factor, extent[:, ::-1]]
    return [sizes.astype(np.float32) for sizes in arguments]


def _graph(source: _JobSource, config: DataConfig, *, gpu: bool) -> Any:
    """The DALI graph: decode the region, halve it, sample it and, if ``source.augmented``, augment."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def
    def graph() -> Any:
        halvings = 2 * source.halvings
        kinds = [types.UINT8, types.INT32, types.INT32] + [types.FLOAT] * (halvings + 5)
        dimensions = [1, 1, 1, *[1] * halvings, 2, 0, 0, 1, 1]
        count = len(kinds) if source.augmented else len(kinds) - 4
        encoded, start, extent, *arguments = fn.external_source(
            source=source, num_outputs=count, batch=True, dtype=kinds[:count], ndim=dimensions[:count]
        )
        image = fn.decoders.image_slice(
            encoded,
            start=start,
            shape=extent,
            axis_names="WH",
            device="mixed" if gpu else "cpu",
            output_type=types.GRAY if config.color == "gray" else types.RGB,
            # The share of the hardware decoder goes by an image's place in the batch, and it may round differently.
            # With one decoder for all images, pixels depend on neither the micro-batch nor the number of ranks
            hw_decoder_load=0.0,
            # As libjpeg does. Gray output ignores chroma, and nvJPEG before 13.2 refuses to decode a region with it,
            # so that the CPU would decode
            jpeg_fancy_upsampling=config.color == "rgb",
            adjust_orientation=False,  # the shards store upright images
        )
        for before, after in zip(arguments[0:halvings:2], arguments[1:halvings:2], strict=True):
            # linear interpolation at half of the size is the mean of two by two pixels
            image = fn.resize(
                image, roi_start=(0, 0), roi_end=before, size=after, interp_type=types.INTERP_LINEAR, antialias=False
            )
        image = _sample(image, arguments[halvings], config.size, gpu=gpu)
        return _augment(image, *arguments[halvings + 1 :]) if source.augmented else image

    return graph


def _sample(image: Any, matrix: Any, size: int, *, gpu: bool) -> Any:
    """Crop, resize, flip and rotate in one warp; all arguments but ``size`` are nodes of the graph."""
    from nvidia.dali import fn, types

    options: dict[str, Any] = {"size": (size, size), "interp_type": types.INTERP_LINEAR, "fill_value": 0}
    if gpu:
        return fn.warp_affine(image, matrix=matrix, **options)
    # The same arithmetic in OpenCV's vector code, which takes a tenth of the time of warp_affine on the CPU
    perspective = fn.cat(matrix, LAST_ROW, axis=0)
    return fn.experimental.warp_perspective(image, matrix=perspective, pixel_origin="corner", **options)


def _augment(image: Any, gain: Any, shift: Any, erase_corner: Any, erase_extent: Any) -> Any:
    """Brightness and contrast, random erasing; all arguments are nodes of the graph."""
    from nvidia.dali import fn, types

    # gain * pixel + shift in DALI's terms: shift is relative to the range of uint8, and the result saturates
    image = fn.brightness_contrast(
        image, brightness=1.0, brightness_shift=shift, contrast=gain, contrast_center=0.0, dtype=types.UINT8
    )
    return fn.erase(image, anchor=erase_corner, shape=erase_extent, axis_names="WH", fill_value=0)
