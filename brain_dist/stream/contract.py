"""The preprocessing contract of a run: everything that turns an image file into the network's input and its answer.

It is the file ``preprocess.json`` in the folder of a run and in each of its exports. Whoever follows it sees the pixels
of the evaluation: the file is stored as a build stores it (:mod:`brain_dist.collection.pixels`) and then decoded,
cropped and resized as the loaders do (:mod:`brain_dist.stream.pixels`). Neither needs torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from brain_dist.collection.decoding import BadImage
from brain_dist.collection.pixels import JPEG_QUALITY, Smaller, StoredImage
from brain_dist.collection.window import DEFAULT_WINDOW, Window
from brain_dist.common.records import read_record
from brain_dist.common.schema import Location, read_dataclass
from brain_dist.config import Config
from brain_dist.errors import UserError
from brain_dist.stream.image import evaluation_pixels, stretched

if TYPE_CHECKING:
    from brain_dist.store.dataset import Dataset

FILE = "preprocess.json"
SCHEMA = 1


@dataclass(frozen=True)
class WeightsEntry:
    """The checkpoint that is used: optimiser steps, and sha256 (hex) of its file of weights."""

    step: int
    sha256: str


@dataclass(frozen=True)
class CalibrationEntry:
    """What `brain-dist calibrate` fitted on validation images for the checkpoint of ``step``.

    Attributes:
        step: optimiser steps of the checkpoint.
        temperature: the probabilities are softmax(logit / temperature).
        alpha: wanted share of sets without the true class.
        threshold: a class is in the set if 1 - softmax(logit) is at most this; None if no threshold could be fitted.
    """

    step: int
    temperature: float
    alpha: float
    threshold: float | None = None


@dataclass(frozen=True)
class Contract:
    """How an image file becomes the network's input, and what its outputs mean.

    Attributes:
        schema: version of this format.
        size: pixels per side of the input, S.
        color: gray decodes one channel, rgb three.
        head_crop: whether the image is cropped to the box around the head.
        stretch: whether gray levels are stretched (``data.stretch``).
        channels: channels of the network's input; a gray image is repeated.
        mean: of each of three channels, subtracted from pixels in [0, 1]; one channel takes their average.
        std: pixels are then divided by it.
        window: maps 16-bit and float values to gray, with the keys of a recipe's ``window``.
        slice_axis: axis (RAS+) that slices of a NIfTI volume are perpendicular to.
        channel: which channel of a colour image is used, from 0, as the recipe chose it; None uses the image.
        max_side: a larger image is first reduced to this many pixels on the longer side; None keeps it.
        jpeg_quality: quality of the JPEGs among the reduced images.
        classes: names of the outputs.
        dataset_version: sha256 of the manifest of the shards of the training.
        weights: the weights that these outputs come from; None if no checkpoint is complete yet.
        calibration: None if the run is not calibrated.
    """

    schema: int
    size: int
    color: Literal["gray", "rgb"]
    head_crop: bool
    stretch: bool
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    dataset_version: str
    window: Window = DEFAULT_WINDOW
    slice_axis: int = 2
    channel: int | None = None
    max_side: int | None = None
    jpeg_quality: int = JPEG_QUALITY
    weights: WeightsEntry | None = None
    calibration: CalibrationEntry | None = None

    @classmethod
    def of(cls, config: Config, classes: tuple[str, ...], version: str, dataset: Dataset | None = None) -> Contract:
        """The contract of a run.

        Args:
            config: its configuration.
            classes: its classes.
            version: version of its shards.
            dataset: these shards, which say how their images were stored; None takes the defaults of a build.
        """
        data = config.data
        storing = {} if dataset is None else _storing(dataset)
        return cls(
            schema=SCHEMA,
            size=data.size,
            color=data.color,
            head_crop=data.head_crop,
            stretch=data.stretch,
            channels=config.model.in_chans,
            mean=data.mean,
            std=data.std,
            classes=classes,
            dataset_version=version,
            **storing,
        )

    @property
    def smaller(self) -> Smaller | None:
        """How large images are made smaller."""
        return None if self.max_side is None else Smaller(self.max_side, self.jpeg_quality)

    def pixels(self, stored: StoredImage, head: tuple[int, int, int, int]) -> np.ndarray:
        """The pixels that the network sees in evaluation: uint8 [S, S], or [S, S, 3] of a colour image.

        Args:
            stored: the image.
            head: its head's box, see :func:`brain_dist.collection.measures.head_and_thumbnails`.

        Raises:
            BadImage: OpenCV cannot decode the image.
        """
        height, width = stored.pixels.shape
        shown = head if self.head_crop else None
        pixels = evaluation_pixels(stored.encoded, width, height, shown, self.size, color=self.color == "rgb")
        if pixels is None:
            raise BadImage("cannot be decoded by OpenCV")
        return stretched(pixels) if self.stretch else pixels

    def to_json(self) -> str:
        """The text of ``preprocess.json``."""
        return json.dumps({**asdict(self), "window": self.window.as_dict()}, indent=1, allow_nan=False) + "\n"


def read_contract(folder: Path) -> Contract | None:
    """The contract in a folder, or None if it has none.

    Raises:
        UserError: the file cannot be read, or has another version.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    advice = "copy or export the model again"
    content = read_record(path, advice, {"schema": int})
    if content["schema"] != SCHEMA:
        raise UserError(f"{path} has schema {content['schema']}, this program reads {SCHEMA}; {advice}")
    try:
        return read_dataclass(Contract, content, Location(str(path)))
    except UserError as error:
        raise UserError(f"{error}; {advice}") from None


def _storing(dataset: Dataset) -> dict[str, Any]:
    """How the images of a dataset were stored, as far as all of its sources agree."""
    from brain_dist.store.manifest import BuiltManifest, load_manifest

    manifests = [load_manifest(source)[0] for source in dataset.sources] or [dataset.manifest]
    built = [manifest for manifest in manifests if isinstance(manifest, BuiltManifest)]
    parts = [part for manifest in built for part in manifest.recipe.get("parts", [])]
    choices: dict[str, list[Any]] = {
        "window": [part["window"] for part in parts if "window" in part],
        "slice_axis": [part["slices"]["axis"] for part in parts if part.get("format") == "nifti"],
        "channel": [part.get("channel") for part in parts if part.get("format", "images") == "images"],
        "max_side": [manifest.options.get("max_side") for manifest in built],
        "jpeg_quality": [manifest.options.get("jpeg_quality") for manifest in built],
    }
    agreed = {name: values[0] for name, values in choices.items() if values and all(v == values[0] for v in values)}
    if "window" in agreed:
        agreed["window"] = read_dataclass(Window, agreed["window"], Location("the manifest: window"))
    return {name: value for name, value in agreed.items() if value is not None}
