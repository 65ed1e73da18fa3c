"""Serve a trained run or an export over HTTP, with a page for the browser.

    brain-dist serve runs/NAME                     # then open http://127.0.0.1:8000/
    curl --data-binary @slice.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/v1/predict

Nothing of an image, its name or its patient is logged or stored. Not a medical device.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from brain_dist.common.commands import STEP, ArgumentParser, checkpoint_step
from brain_dist.errors import leave


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and serve until a signal."""
    about, _, more = __doc__.partition("\n\n")
    parser = ArgumentParser("brain-dist serve", description=about, epilog=more.rpartition("\n\n")[2])
    parser.add_argument("model", type=Path, help="the folder of a run or of an export, such as runs/NAME")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0 takes a free one (default: 8000)")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="requests need the bearer token in this file")
    parser.add_argument(
        "--allow-anonymous", action="store_true", help="let other machines ask without a token: a proxy checks who asks"
    )
    parser.add_argument(
        "--reuse-port", action="store_true", help="share the port with the process that this one replaces"
    )
    parser.add_argument("--step", type=checkpoint_step, help=STEP)
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one"
    )
    numbers = [
        ("--threads", int, None, "threads of a forward pass (default: one for torch, all cores for ONNX)"),
        ("--max-batch", int, 16, "images of a forward pass"),
        ("--max-wait-ms", float, 5.0, "wait so long for images of requests that are being decoded"),
        ("--queue", int, 64, "requests in the service at once; more get 503"),
        ("--max-mb", float, 20.0, "million bytes of a file"),
        ("--max-mp", float, 50.0, "million pixels of a file, all its slices together"),
        ("--max-frames", int, 512, "slices of a file"),
        ("--deadline", float, 30.0, "seconds until a request is given up"),
        ("--grace", float, 20.0, "seconds for requests in progress after SIGTERM"),
        ("--linger", float, 0.0, "seconds that new connections are accepted after SIGTERM, for a load balancer"),
    ]
    for flag, kind, default, text in numbers:
        shown = "" if default is None else f" (default: {default:g})"
        parser.add_argument(flag, type=kind, default=default, metavar="N", help=text + shown)
    arguments = parser.parse_args(argv)
    from brain_dist.serving.command import serve

    return serve(**vars(arguments))


if __name__ == "__main__":
    leave(main)
