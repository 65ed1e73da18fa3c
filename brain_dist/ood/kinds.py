"""Made-up pictures that are not slices like those of the training, to choose a score by."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Picture = np.ndarray  # uint8 [H, W]


def inverted(gray: Picture, rng: np.random.Generator) -> Picture:
    """Black and white exchanged."""
    return 255 - gray


def shuffled(gray: Picture, rng: np.random.Generator) -> Picture:
    """The picture cut into 4 × 4 pieces in another order."""
    height, width = (side - side % 4 for side in gray.shape)
    pieces = (
        gray[:height, :width].reshape(4, height // 4, 4, width // 4).swapaxes(1, 2).reshape(16, height // 4, width // 4)
    )
    return pieces[rng.permutation(16)].reshape(4, 4, height // 4, width // 4).swapaxes(1, 2).reshape(height, width)


def noise(gray: Picture, rng: np.random.Generator) -> Picture:
    """Independent uniform gray values."""
    return rng.integers(0, 256, gray.shape, dtype=np.uint8)


def text(gray: Picture, rng: np.random.Generator) -> Picture:
    """A white page with lines of letters."""
    from PIL import Image, ImageDraw

    page = Image.new("L", (gray.shape[1], gray.shape[0]), 255)
    draw = ImageDraw.Draw(page)
    for y in range(4, gray.shape[0] - 8, 14):
        letters = "".join(chr(97 + int(number)) for number in rng.integers(0, 26, gray.shape[1] // 7))
        draw.text((6, y), letters, fill=0)
    return np.asarray(page)


KINDS: dict[str, Callable[[Picture, np.random.Generator], Picture]] = {
    "inverted": inverted, "shuffled": shuffled, "noise": noise, "text": text,
}  # fmt: skip
