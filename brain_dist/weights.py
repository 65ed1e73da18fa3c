"""Cache ImageNet weights: ``python -m brain_dist.weights convnext_base`` on a login node, offline on the others."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from brain_dist.errors import leave


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch each model's weights into the hub's cache, unless they lie there."""
    parser = argparse.ArgumentParser("brain-dist weights", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="timm's names, such as convnext_base resnet50")
    arguments = parser.parse_args(argv)

    from brain_dist.config import ModelConfig
    from brain_dist.networks.create import create_network

    for name in arguments.models:
        model = create_network(ModelConfig(name=name, pretrained=True), 1000, seed=0)
        settings = getattr(model, "pretrained_cfg", {})
        where = settings.get("hf_hub_id") or settings.get("url")
        count = sum(p.numel() for p in model.parameters())
        print(f"{name}: {count / 1e6:.1f} M parameters from {where}")
    cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
    print(f"cached under {cache}; on compute nodes set HF_HUB_OFFLINE=1 and the same HF_HOME")
    return 0


if __name__ == "__main__":
    leave(main)
