"""Verb ``dicom``: a DICOM node that receives MR series and answers each with a Structured Report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from brain_dist.common.commands import Command, checkpoint_step, parse_command
from brain_dist.errors import leave

EXAMPLES = """\
examples:
  brain-dist dicom listen runs/NAME --store /var/lib/brain_dist
  brain-dist dicom listen runs/NAME --store /var/lib/brain_dist --to pacs.example:104:PACS --sender SCANNER1
"""


@dataclass
class Listen:
    """Receive MR images by C-STORE and send a Structured Report about each series.

    It listens on this machine alone unless --host says otherwise: DICOM has neither passwords nor encryption.

    Args:
        model: the folder of a run or of an export
        store: folder that keeps received images until they are evaluated and reports until they are sent
        host: address to listen on
        port: port to listen on
        aet: the node's application entity title; senders must call it
        to: the peer that gets the reports, HOST:PORT:AET (default: they stay in the folder reports of --store)
        sender: title of an entity that may send; may be repeated (default: all may)
        queue: images that may wait; further ones are refused with status 0xA700 until there is room
        max_mb: size of an image in MB; a larger one is refused. Each of 16 associations may need twice that in memory
        batch: images per forward pass
        step: step of the run's checkpoint, best or newest (default: best if the run sets train.best, else newest)
        device: auto, cpu or cuda
        grace: seconds after a stop signal for the work that is left; the rest waits for the next start
    """

    model: Path
    store: Path = field(kw_only=True)
    host: str = "127.0.0.1"
    port: int = 11112
    aet: str = "BRAIN_DIST"
    to: str | None = None
    sender: list[str] = field(default_factory=list)
    queue: int = 4000
    max_mb: int = 1000
    batch: int = 32
    step: str | None = None
    device: str = "auto"
    grace: float = 30.0

    def run(self) -> int:
        """Run the node until a stop signal."""
        from brain_dist.dicomnode.node import listen

        options = vars(self) | {"step": None if self.step is None else checkpoint_step(self.step)}
        options["senders"] = options.pop("sender")
        return listen(**options)


COMMANDS: dict[str, type[Command]] = {"listen": Listen}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    description = "Receive MR images from scanners and a PACS, and answer with Structured Reports."
    return parse_command("brain-dist dicom", description, COMMANDS, argv, epilog=EXAMPLES).run()


if __name__ == "__main__":
    leave(main)
