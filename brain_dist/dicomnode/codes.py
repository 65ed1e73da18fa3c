"""The codes of a report: DICOM's own where they exist, and the private coding scheme 99BRAIN for everything else."""

from __future__ import annotations

import hashlib
import re
import uuid
from typing import Any

SCHEME = "99BRAIN"  # designators that begin with 99 are private (PS3.16, section 8)
MAX_VALUE, MAX_MEANING = 16, 64  # characters of a Short String, a Long String


def private_code(value: str, meaning: str) -> Any:
    """A code of the scheme 99BRAIN."""
    from highdicom.sr import CodedConcept

    return CodedConcept(value=value, meaning=meaning[:MAX_MEANING], scheme_designator=SCHEME)


def class_code(name: str, prefix: str = "", meaning: str = "") -> Any:
    """The code of a class: the same name always has the same code, also in another model.

    Args:
        name: the class.
        prefix: what the code's value begins with.
        meaning: the code's meaning, by default the name.
    """
    value = prefix + re.sub(r"[^A-Z0-9]+", "_", name.upper()).strip("_")
    if len(value) > MAX_VALUE or not value.isascii() or value == prefix:
        value = f"{value[: MAX_VALUE - 7]}_{hashlib.sha256(name.encode()).hexdigest()[:6].upper()}"
    return private_code(value, meaning or name)


EVALUATION = ("EVALUATION", "Evaluation")
EVALUATED = ("EVALUATED", "Evaluated")
NOT_EVALUATED = ("NOT_EVALUATED", "Not evaluated")
CLASS = ("CLASS", "Class with the largest probability")
SET = ("SET", "Set of classes")
VERDICT = ("VERDICT", "Verdict")
REASON = ("REASON", "Reason")
NOTICE = ("NOTICE", "Notice")
P_VALUE = ("P_VALUE", "p-value of being like the images of the training")
VERDICTS = {
    "ok": ("OK", "One class is in the set"),
    "unsure": ("UNSURE", "Several classes or none are in the set"),
}


def derived_uid(*parts: str) -> str:
    """A UID that depends on ``parts`` alone: 2.25 and a name-based UUID (PS3.5, annex B.2)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, chr(0).join(parts)).int}"
