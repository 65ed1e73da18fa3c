"""The mappings in a part of a recipe: tables and their columns, slices of a volume, masks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FileTable:
    """A CSV file with a row for each image file, and the names of its columns.

    Attributes:
        file: the CSV file, relative to the part's root.
        path: column of the image's path, relative to the part's root.
        label: column of the class, or of a common spelling of it.
        patient: column of the patient.
        split: column of the published split.
    """

    file: str
    path: str
    label: str
    patient: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class PatientTable:
    """A CSV file that maps image files to patients, and the names of its columns.

    Attributes:
        file: the CSV file, relative to the part's root.
        id: column of the image file's name, stem or path.
        patient: column of the patient; an empty cell means unknown.
        partial: whether images without a row are allowed; their patient is unknown.
    """

    file: str
    id: str
    patient: str
    partial: bool = False


@dataclass(frozen=True)
class SliceRange:
    """Which slices of a NIfTI volume are used.

    Attributes:
        axis: axis that the slices are perpendicular to, in RAS+ order: 0 sagittal, 1 coronal, 2 axial.
        from_: start of the range as a fraction of the axis.
        to: end of the range as a fraction of the axis.
        step: every ``step``-th slice of the range is used.
        volume: which volume of a file of several ones is used, from 0.
    """

    axis: int = 2
    from_: float = 0.0
    to: float = 1.0
    step: int = 1
    volume: int | None = None

    def __post_init__(self) -> None:
        if self.axis not in (0, 1, 2):
            raise ValueError(f"axis must be 0 (sagittal), 1 (coronal) or 2 (axial), got {self.axis}")
        if self.step < 1:
            raise ValueError(f"step must be ≥ 1, got {self.step}")
        if self.volume is not None and self.volume < 0:
            raise ValueError(f"volume must be ≥ 0, got {self.volume}")
        if not 0 <= self.from_ < self.to <= 1:
            raise ValueError(
                f"from and to must be fractions of the axis, 0 ≤ from < to ≤ 1, got {self.from_} and {self.to}"
            )


@dataclass(frozen=True)
class BoxTable:
    """A CSV file with a row for each box around a lesion, and the names of its columns.

    Centre and size are fractions of the image, as YOLO's labels have them. A file may have several rows, or none if no
    box of it is known.

    Attributes:
        file: the CSV file, relative to the part's root.
        id: column of the image file's name, stem or path.
        center_x: column of the box's centre, from the left.
        center_y: column of the box's centre, from the top.
        width: column of the box's width.
        height: column of the box's height.
        optional: whether the CSV file may be absent.
    """

    file: str
    id: str
    center_x: str
    center_y: str
    width: str
    height: str
    optional: bool = False


@dataclass(frozen=True)
class MaskFiles:
    """Where the mask of an image is: an image of the same size that is not 0 where the lesion is.

    Attributes:
        folder: folder of the masks, relative to the part's root; None: each mask is beside its image.
        suffix: what the stem of the mask's name has at its end that the image's has not, such as ``_mask``.
        lesion: class of the images with a lesion in their mask; None: masks do not give classes.
        empty: class of the images whose mask is empty; None leaves them out.

    Raises:
        ValueError: a mask would have the name of its image, or ``empty`` is set without ``lesion``.
    """

    folder: str | None = None
    suffix: str = ""
    lesion: str | None = None
    empty: str | None = None

    def __post_init__(self) -> None:
        if self.folder is None and not self.suffix:
            raise ValueError("set folder, suffix, or both: without them a mask would have the name of its image")
        if self.empty is not None and self.lesion is None:
            raise ValueError("empty needs lesion, the class of the images with a lesion in their mask")

    @property
    def classes(self) -> list[str]:
        """The classes that masks give."""
        return [name for name in (self.lesion, self.empty) if name is not None]
