"""Export the network of a run to other formats, each compared with the run on its test images.

    brain-dist export runs/NAME --to hf,onnx,int8 --out exported

Each format gets a folder with the model, preprocess.json and parity.json; `brain-dist predict` accepts it like a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from brain_dist.common.commands import STEP, ArgumentParser, checkpoint_step
from brain_dist.errors import leave


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and export a run."""
    parser = ArgumentParser("brain-dist export", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path, help="the run's folder, such as runs/NAME")
    parser.add_argument(
        "--to",
        required=True,
        metavar="FORMAT,…",
        help="hf (Hugging Face hub, timm), onnx, int8, pt2 (torch.export), triton, web (a page with the network in it)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the exports")
    parser.add_argument("--step", type=checkpoint_step, help=STEP)
    parser.add_argument(
        "--npm", type=Path, metavar="DIR", help="folder in which npm installed the libraries that `--to web` needs"
    )
    parser.add_argument("--shards", help="where the run's own shards are now")
    parser.add_argument(
        "--batch", dest="micro_batch", metavar="N", type=int, default=32, help="images per forward pass (default: 32)"
    )
    arguments = parser.parse_args(argv)
    from brain_dist.exporting.export import export

    options = {name: value for name, value in vars(arguments).items() if name != "to"}
    export(targets=arguments.to.split(","), **options)
    return 0


if __name__ == "__main__":
    leave(main)
