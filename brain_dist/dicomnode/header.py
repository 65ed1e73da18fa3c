"""What a report takes over from a DICOM image: patient, study, and the references to the image."""

from __future__ import annotations

import logging
import re
import warnings
from dataclasses import dataclass
from typing import Any

from brain_dist.collection import dicom
from brain_dist.collection.decoding import BadImage
from brain_dist.collection.slicefiles import errors_as_bad_image, file_of

UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
# elements that every report has, if only empty (type 2)
PATIENT_AND_STUDY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
OPTIONAL = ("IssuerOfPatientID", "StudyDescription", "PatientAge")
ABOUT_THE_IMAGE = (
    "Modality",
    "SeriesNumber",
    "InstanceNumber",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BurnedInAnnotation",
)
_SEXES = ("M", "F", "O")


@dataclass(frozen=True)
class Header:
    """The header of an image, as far as a report needs it.

    Attributes:
        evidence: patient, study and identifiers, a ``pydicom.Dataset`` in UTF-8 that a report inherits from.
        series_number: number of the series in its study; 1 if it states none.
        number: number of the image in its series; 0 if it states none.
        modality: such as MR; empty if it states none.
        refusal: why the header alone forbids an answer about the image; None if it does not.
    """

    evidence: Any
    series_number: int
    number: int
    modality: str
    refusal: str | None

    @property
    def series(self) -> tuple[str, str]:
        """Study and series instance UID."""
        return str(self.evidence.StudyInstanceUID), str(self.evidence.SeriesInstanceUID)


def read_header(data: bytes) -> Header:
    """The header of a DICOM file.

    Args:
        data: bytes of the file.

    Raises:
        BadImage: it is not a DICOM file, or lacks an identifier without which no report can refer to it.
    """
    with errors_as_bad_image():
        keywords = (*UIDS, *PATIENT_AND_STUDY, *OPTIONAL, *ABOUT_THE_IMAGE, "SpecificCharacterSet")
        dataset = dicom.read_header(file_of(data), keywords)
        texts = {keyword: _text(dataset, keyword) for keyword in keywords}
        return _header_of(texts)


def _header_of(texts: dict[str, str]) -> Header:
    from pydicom import Dataset
    from pydicom.valuerep import DA, TM

    missing = [keyword for keyword in UIDS if not re.fullmatch(r"[0-9.]{1,64}", texts[keyword])]
    if missing:
        raise BadImage(f"has no valid {missing[0]}, so a report cannot refer to it")
    evidence = Dataset()
    evidence.SpecificCharacterSet = "ISO_IR 192"
    for keyword in (*UIDS, *PATIENT_AND_STUDY, *OPTIONAL):
        if texts[keyword] or keyword in PATIENT_AND_STUDY:
            setattr(evidence, keyword, texts[keyword])
    if texts["PatientSex"] not in _SEXES:
        evidence.PatientSex = ""
    for keyword, kind in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        try:
            kind(texts[keyword])
        except ValueError:
            setattr(evidence, keyword, "")
    frames = _number(texts["NumberOfFrames"])
    if frames > 1:
        evidence.NumberOfFrames = frames
    evidence.Rows, evidence.Columns = _number(texts["Rows"]), _number(texts["Columns"])
    return Header(
        evidence, max(1, _number(texts["SeriesNumber"])), _number(texts["InstanceNumber"]), texts["Modality"],
        _refusal(texts["Modality"], texts["BurnedInAnnotation"]),
    )  # fmt: skip


def _refusal(modality: str, burned_in: str) -> str | None:
    if modality != "MR":
        return f"the modality of the image is {modality or 'not stated'}, not MR"
    if burned_in.upper() == "YES":
        return "the image has burned-in annotation"
    return None


def _text(dataset: Any, keyword: str) -> str:
    """An element as text, decoded by the file's own character set; empty if it is missing.

    Several values, where only one is allowed, stay as they are in the file, so that a report has the image's patient;
    of several names, which no report can have, it is the first.
    """
    from pydicom.multival import MultiValue
    from pydicom.valuerep import PersonName

    try:
        value = dataset.get(keyword)
    except (TypeError, ValueError):
        return ""
    if isinstance(value, MultiValue):
        value = str(value[0]) if isinstance(value[0], PersonName) else "\\".join(map(str, value))
    return "" if value is None else str(value).encode("utf-8", "replace").decode().strip(" \0")


def _number(text: str) -> int:
    return min(int(text), 2**31 - 1) if re.fullmatch(r"\d{1,12}", text) else 0


def silence() -> None:
    """Suppress the messages of pydicom, highdicom and pynetdicom for good: they quote elements such as names."""
    warnings.simplefilter("ignore")
    for name in ("pydicom", "highdicom", "pynetdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
