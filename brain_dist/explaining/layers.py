"""Which layer of a network an attribution map is made from, for all of timm's networks that list their stages.

A map is as coarse as the layer, and a layer near the input knows little of the class. Which layer and method show the
tumour best was measured on phantoms, whose tumours are known: :data:`CHOICES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brain_dist.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Choice:
    """The method and layers of a family of networks.

    Attributes:
        method: the method of maps that are shown without being asked for, such as those of the report.
        cells: method that uses a layer → its map has at least so many cells per side, if the network has such a layer.
    """

    method: str
    cells: dict[str, int]


# Name of timm's class → the choice for it, measured by `python -m benchmarks.explanations` (results/explanations.md).
# GradientSHAP needs no layer, so other families take it, too.
CHOICES = {
    "ResNet": Choice("gradientshap", {"gradcam": 8, "gradcam++": 4, "layercam": 32, "hirescam": 32}),
    "ConvNeXt": Choice("gradientshap", {"gradcam": 16, "gradcam++": 8, "layercam": 8, "hirescam": 16}),
    "EfficientNet": Choice("gradientshap", {"gradcam": 8, "gradcam++": 16, "layercam": 16, "hirescam": 32}),
    "MobileNetV3": Choice("gradientshap", {"gradcam": 16, "gradcam++": 32, "layercam": 32, "hirescam": 32}),
    "VGG": Choice("gradcam++", {"gradcam": 16, "gradcam++": 16, "layercam": 16, "hirescam": 16}),
    "DenseNet": Choice("gradientshap", {"gradcam": 8, "gradcam++": 16, "layercam": 16, "hirescam": 32}),
    "SwinTransformer": Choice("gradientshap", {"gradcam": 8, "gradcam++": 8, "layercam": 8, "hirescam": 16}),
    "VisionTransformer": Choice("gradientshap", {"gradcam": 8, "gradcam++": 8, "layercam": 8, "hirescam": 8}),
}
OTHERS = Choice("gradientshap", {"gradcam": 8, "gradcam++": 8, "layercam": 8, "hirescam": 8})


@dataclass(frozen=True)
class Layer:
    """A module whose output is a feature map.

    Attributes:
        name: path of the module in the network.
        reduction: pixels of the input per cell of the map.
        prefix: number of tokens before those of the picture; None if the output is not a sequence of tokens.
        channels_last: whether the output is [B, H, W, C].
    """

    name: str
    reduction: int
    prefix: int | None = None
    channels_last: bool = False

    def as_map(self, output: torch.Tensor) -> torch.Tensor:
        """The module's output, [B, C, H, W], [B, H, W, C] or [B, prefix + H · H, C], as [B, C, H, W]."""
        if self.prefix is not None:
            tokens = output[:, self.prefix :]
            side = round(tokens.shape[1] ** 0.5)
            return tokens.reshape(len(tokens), side, side, -1).permute(0, 3, 1, 2)
        return output.permute(0, 3, 1, 2) if self.channels_last else output


def layers(model: Any) -> list[Layer]:
    """The layers of a network that maps can be made from, from the input to the output.

    Raises:
        UserError: timm does not list the stages of this network.
    """
    stages = getattr(model, "feature_info", None)
    if not stages:
        raise UserError(f"attribution maps need a network whose stages timm lists, unlike {type(model).__name__}")
    if hasattr(model, "num_prefix_tokens"):
        # The output of the last block reaches the class only by the class token, so the picture's tokens have no
        # gradient there. At the first normalisation of a block all of them have one.
        return [Layer(f"{stage['module']}.norm1", stage["reduction"], model.num_prefix_tokens) for stage in stages]
    channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    return [Layer(stage["module"], stage["reduction"], None, channels_last) for stage in stages]


def choice(model: Any) -> Choice:
    """The method and layers that were measured to be best for this family of networks."""
    return CHOICES.get(type(model).__name__, OTHERS)


def choose_layer(model: Any, size: int, method: str) -> Layer:
    """The deepest layer whose map has the number of cells that ``method`` needs for this family of networks.

    If no layer has so many, the deepest of those with most cells.

    Args:
        model: the network.
        size: pixels per side of its input.
        method: a method that makes maps from a layer.

    Raises:
        UserError: timm does not list the stages of this network.
    """
    known, cells = layers(model), choice(model).cells[method]
    enough = [layer for layer in known if size // layer.reduction >= cells]
    finest = min(layer.reduction for layer in known)
    return (enough or [layer for layer in known if layer.reduction == finest])[-1]
