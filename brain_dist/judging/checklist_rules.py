"""What answers an item of a reporting checklist: rules from facts about a study to an answer, for :mod:`.checklist`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

ANSWERED, PARTLY, UNKNOWN, NOT_APPLICABLE = "answered", "partly", "not known", "not applicable"


@dataclass(frozen=True)
class Facts:
    """What is at hand of a study; the default is a single evaluated run.

    Attributes:
        trained_here: whether the run's configuration is at hand; False for adopted predictions.
        external: whether the results include images from another collection than the training images.
        patients: of how many test images the patient is known: "all", "some" or "none".
        seeds: trainings of each model.
        compared: whether models were compared, with the uncertainty of their differences.
        audit: whether the copies within and between the collections were counted.
        shortcuts: whether shortcut baselines were measured.
        subgroups: whether there are results by age, sex, scanner or another attribute.
        errors: whether misclassified images are shown.
        pretrained: whether training began with other weights; None if unknown.
        explained: whether maps of what the network looked at were measured against outlines of tumours.
        shared: whether results count test images that share a patient or a copy with the training images.
        internal: whether the results are known to include test images of the training collection.
        external_compared: whether images from another collection were compared with the training images.
    """

    trained_here: bool = True
    external: bool = False
    patients: Literal["all", "some", "none"] = "none"
    seeds: int = 1
    compared: bool = False
    audit: bool = False
    shortcuts: bool = False
    subgroups: bool = False
    errors: bool = False
    pretrained: bool | None = None
    explained: bool = False
    shared: bool = False
    internal: bool = True
    external_compared: bool = True


Rule = Callable[[Facts], tuple[str, str]]
"""Facts → the answer, and where it is, what is missing, or why the item does not apply."""


def known_patients(patients: Iterable[str | None]) -> Literal["all", "some", "none"]:
    """Of how many test images the patient is known; None is a patient who is not known."""
    known = {patient is not None for patient in patients}
    return "some" if len(known) > 1 else "all" if known == {True} else "none"


def answered(where: str) -> Rule:
    """Every study that is made here answers the item."""
    return lambda facts: (ANSWERED, where)


def partly(where: str) -> Rule:
    """Every study that is made here answers a part of the item."""
    return lambda facts: (PARTLY, where)


def for_authors(where: str = "for the authors to say") -> Rule:
    """Nothing at hand answers the item."""
    return lambda facts: (UNKNOWN, where)


def not_applicable(where: str) -> Rule:
    """The item does not concern studies that are made here."""
    return lambda facts: (NOT_APPLICABLE, where)


def answered_if(fact: str, yes: str, no: str, otherwise: str = UNKNOWN) -> Rule:
    """A fact, an attribute of :class:`Facts`, answers the item; without it the answer is ``otherwise``."""
    return lambda facts: (ANSWERED, yes) if getattr(facts, fact) else (otherwise, no)


def partly_if(fact: str, yes: str, no: str) -> Rule:
    """A fact, an attribute of :class:`Facts`, answers a part of the item."""
    return lambda facts: (PARTLY, yes) if getattr(facts, fact) else (UNKNOWN, no)


def from_run(where: str) -> Rule:
    """An answer that the folder of a run has."""
    missing = "predictions adopted from a file, which says nothing of their model"
    return lambda facts: (ANSWERED, where) if facts.trained_here else (UNKNOWN, missing)


def initial_weights(facts: Facts) -> tuple[str, str]:
    """With which weights training began."""
    if facts.pretrained is None:
        return UNKNOWN, "the configuration of the training is not at hand"
    return ANSWERED, "pretrained weights, named in the configuration" if facts.pretrained else "random, from the seed"


def uncertainty(facts: Facts) -> tuple[str, str]:
    """Which intervals, seeds and paired differences the results have."""
    if facts.compared and facts.seeds > 1:
        return ANSWERED, f"intervals over patients and copies; spread over {facts.seeds} seeds; paired differences"
    missing = "one training of each model" if facts.seeds < 2 else "models are not compared"
    return PARTLY, f"intervals over patients and copies; {missing}"


def level(facts: Facts) -> tuple[str, str]:
    """What the training and the test images do not share."""
    levels = {
        "all": "patient and copies",
        "some": "copies, and patients where they are known",
        "none": "copies; patients are not known",
    }
    where = levels[facts.patients]
    if facts.shared:
        where += "; results with test images that share them with the training are shown, too"
    return (ANSWERED if facts.patients == "all" and not facts.shared else PARTLY), where


def numbers(facts: Facts) -> tuple[str, str]:
    """Whether images, groups and patients are counted."""
    if facts.patients == "none":
        return PARTLY, "images and groups; patients are not known"
    return ANSWERED, "images, groups and known patients of each part; images left out"


def external_test(facts: Facts) -> tuple[str, str]:
    """Whether other collections were tested."""
    if not facts.external:
        return UNKNOWN, "no test images of another collection"
    if not facts.external_compared:
        return PARTLY, "other collections; whether training knew some of their images was not checked"
    return ANSWERED, "other collections; images and patients that training knew are counted"
