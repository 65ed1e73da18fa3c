"""The command ``shard phantom``: its options."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from brain_dist.common.cores import cpu_cores
from brain_dist.common.progress import show_progress


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """Generate a collection of phantoms: synthetic slices with known truth.

    Write a folder of synthetic brain-MRI slices with classes, patients and tumour masks, as input of build. They test
    the software; they say nothing about medicine.

    Args:
        out: the collection to write
        patients: number of patients
        slices: slices of each patient
        size: pixels a side
        seed: seed of everything that is random
        planes: planes of the slices, separated by commas
        plant: planted copies as a share of the images: changed in many ways, in another class, across the split
        published: divide the patients between Training/ and Testing/, as published collections do
        workers: number of processes
    """

    out: Path
    patients: int = 40
    slices: int = 8
    size: int = 256
    seed: int = 0
    planes: str = "axial,coronal,sagittal"
    plant: float = 0.0
    published: bool = False
    workers: int = field(default_factory=cpu_cores)

    def run(self) -> int:
        """Generate the collection; return the exit code."""
        from brain_dist.phantom.generate import PhantomSettings, generate

        settings = {**vars(self), "planes": tuple(self.planes.split(","))}
        out, workers = settings.pop("out"), settings.pop("workers")
        with show_progress() as progress:
            generate(out, PhantomSettings(**settings), workers=workers, progress=progress)
        return 0
