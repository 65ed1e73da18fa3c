"""Cache ImageNet weights: ``python -m brain_dist.weights convnext_base`` on a login node, for offline compute nodes."""

from __future__ import annotations

from collections.abc import Sequence

from brain_dist.common.commands import ArgumentParser
from brain_dist.errors import leave
from brain_dist.networks.create import cache_weights


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and store the weights of models."""
    parser = ArgumentParser("brain-dist weights", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="names in timm, such as convnext_base resnet50")
    cache_weights(parser.parse_args(argv).models)
    return 0


if __name__ == "__main__":
    leave(main)
