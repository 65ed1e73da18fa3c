"""What CLAIM 2024 and TRIPOD+AI ask of a study, by item: answered here, not applicable, or not known.

CLAIM 2024: Tejani et al., Radiology: Artificial Intelligence 2024, 6(4):e240300. TRIPOD+AI: Collins et al., BMJ 2024,
385:e078378. The topics are in our own words: read the items there. A page can answer what its files hold. The reasons
for a study, and who took the images of whom, only its authors can tell.

    python -m brain_dist.judging.checklist          the table of docs/checklist.md
"""

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


@dataclass(frozen=True)
class Item:
    """An item of the checklists.

    Attributes:
        claim: its number in CLAIM 2024, "" if it has none.
        tripod: its number in TRIPOD+AI, "" if it has none.
        topic: what it asks for, in our words.
        answer: :data:`ANSWERED`, :data:`PARTLY`, :data:`UNKNOWN` or :data:`NOT_APPLICABLE`.
        where: where the answer is, what is missing, or why the item does not apply.
    """

    claim: str
    tripod: str
    topic: str
    answer: str
    where: str


Rule = Callable[[Facts], tuple[str, str]]


def checklist(facts: Facts) -> list[Item]:
    """All items, in CLAIM's order; those of TRIPOD+AI alone are at the end."""
    return [Item(claim, tripod, topic, *rule(facts)) for claim, tripod, topic, rule in _ITEMS]


def known_patients(patients: Iterable[str | None]) -> Literal["all", "some", "none"]:
    """Of how many test images the patient is known; None is a patient who is not known."""
    known = {patient is not None for patient in patients}
    return "some" if len(known) > 1 else "all" if known == {True} else "none"


def tally(items: list[Item]) -> dict[str, int]:
    """Number of items with each answer."""
    answers = (ANSWERED, PARTLY, UNKNOWN, NOT_APPLICABLE)
    return {answer: sum(item.answer == answer for item in items) for answer in answers}


def _always(where: str) -> Rule:
    return lambda facts: (ANSWERED, where)


def _partly(where: str) -> Rule:
    return lambda facts: (PARTLY, where)


def _authors(where: str = "for the authors to say") -> Rule:
    return lambda facts: (UNKNOWN, where)


def _if(fact: str, yes: str, no: str, otherwise: str = UNKNOWN) -> Rule:
    return lambda facts: (ANSWERED, yes) if getattr(facts, fact) else (otherwise, no)


def _if_partly(fact: str, yes: str, no: str) -> Rule:
    return lambda facts: (PARTLY, yes) if getattr(facts, fact) else (UNKNOWN, no)


def _run(where: str) -> Rule:
    """An answer that the folder of a run has."""
    missing = "predictions adopted from a file, which says nothing of their model"
    return lambda facts: (ANSWERED, where) if facts.trained_here else (UNKNOWN, missing)


def _start(facts: Facts) -> tuple[str, str]:
    if facts.pretrained is None:
        return UNKNOWN, "the configuration of the training is not at hand"
    return ANSWERED, "pretrained weights, named in the configuration" if facts.pretrained else "random, from the seed"


def _uncertainty(facts: Facts) -> tuple[str, str]:
    if facts.compared and facts.seeds > 1:
        return ANSWERED, f"intervals over patients and copies; spread over {facts.seeds} seeds; paired differences"
    missing = "one training of each model" if facts.seeds < 2 else "models are not compared"
    return PARTLY, f"intervals over patients and copies; {missing}"


def _level(facts: Facts) -> tuple[str, str]:
    levels = {
        "all": "patient and copies",
        "some": "copies, and patients where they are known",
        "none": "copies; patients are not known",
    }
    where = levels[facts.patients]
    if facts.shared:
        where += "; results with test images that share them with the training are shown, too"
    return (ANSWERED if facts.patients == "all" and not facts.shared else PARTLY), where


def _numbers(facts: Facts) -> tuple[str, str]:
    if facts.patients == "none":
        return PARTLY, "images and groups; patients are not known"
    return ANSWERED, "images, groups and known patients of each part; images left out"


def _external(facts: Facts) -> tuple[str, str]:
    if facts.external:
        return ANSWERED, "other collections; images and patients that training knew are left out and counted"
    return UNKNOWN, "no test images of another collection"


_ITEMS: tuple[tuple[str, str, str, Rule], ...] = (
    ("1", "1", "title says that it is a study of machine learning, and which", _authors()),
    ("2", "2", "structured abstract", _authors()),
    ("3", "3a, 3b", "background, intended use and role of the method", _authors("the model card states research only")),
    ("4", "4", "aims and hypotheses", _authors()),
    ("5", "5a", "prospective or retrospective", _partly("retrospective: images that others published")),
    ("6", "", "goal of the study", _authors()),
    (
        "7",
        "5a, 5b",
        "sources and dates of the data",
        _partly("source, licence and citation in the manifest; dates are not known"),
    ),
    (
        "8",
        "6a, 6b",
        "who and what was included and excluded",
        _partly("images left out, with reasons; patients: not known"),
    ),
    ("9", "7", "preprocessing", _always("manifest and configuration; docs/design.md defines the pixels")),
    ("10", "7", "selection of subsets of the data", _always("recipe in the manifest; split, seed and left-out images")),
    (
        "11",
        "17",
        "removal of identifying information; ethics approval",
        _authors("for the publishers of the images to say"),
    ),
    ("12", "11", "missing data", _partly("damaged and blank images are listed; unknown patients are counted")),
    ("13", "", "how the images were acquired", _authors("collections of pictures do not say")),
    ("14", "8a", "what the true class rests on", _authors("for the publishers of the images to say")),
    ("15", "8a", "why this reference was chosen", _authors("for the publishers of the images to say")),
    ("16", "8b", "who labelled the images", _authors("for the publishers of the images to say")),
    ("17", "8b", "how test images were labelled", _authors("for the publishers of the images to say")),
    (
        "18",
        "8c",
        "agreement between those who labelled",
        _if_partly("audit", "copies with contradicting labels are counted", "for the publishers of the images to say"),
    ),
    (
        "19",
        "12a",
        "how images were assigned to training, validation and test",
        _always("method, shares and seed in the manifest"),
    ),
    (
        "20",
        "12a",
        "level at which the parts are disjoint",
        _level,
    ),
    (
        "21",
        "10",
        "intended sample size",
        _partly("the smallest difference that these images could show, where models are compared"),
    ),
    ("22", "12c, 22", "the model in full", _run("name in timm and configuration; the weights are in the run's folder")),
    ("23", "18f", "software and versions", _run("environment.json of the run")),
    ("24", "12c", "initial weights", _start),
    (
        "25",
        "12c",
        "training: augmentation, settings, number of models",
        _run("configuration of the run; number of trainings"),
    ),
    (
        "26",
        "12d",
        "how the final model was selected",
        _run("train.best in the configuration; on validation images only"),
    ),
    ("27", "", "ensembles", lambda facts: (NOT_APPLICABLE, "single networks")),
    ("28", "12e", "metrics", _always("accuracy, balanced accuracy, F1, AUC, MCC, calibration; by class")),
    ("29", "12e", "uncertainty and significance", _uncertainty),
    (
        "30",
        "12f",
        "robustness and sensitivity",
        _if(
            "shortcuts",
            "shortcut baselines: what can be guessed without the disease",
            "shortcut baselines were not measured",
        ),
    ),
    (
        "31",
        "",
        "explanations",
        _if(
            "explained",
            "maps measured against outlines of tumours, beside those of an untrained network",
            "maps in the report of each run, not measured against outlines of tumours; `brain-dist explain` does that",
            PARTLY,
        ),
    ),
    ("32", "12g", "test on internal data", _always("test part of the training collection")),
    ("33", "12g, 16", "test on external data, and how it differs", _external),
    (
        "34",
        "18d",
        "registration of the trial",
        lambda facts: (NOT_APPLICABLE, "no trial: images that others published"),
    ),
    (
        "35",
        "20a",
        "numbers of patients and images in and out",
        _numbers,
    ),
    (
        "36",
        "20b, 20c",
        "age, sex and other properties of the patients by part",
        _if("subgroups", "results by attribute", "the collections do not say"),
    ),
    ("37", "23a", "performance with its uncertainty", _always("table of metrics with intervals")),
    (
        "38",
        "23a",
        "diagnostic accuracy with its precision",
        _always("sensitivity and specificity by class with intervals"),
    ),
    (
        "39",
        "",
        "analysis of the errors",
        _if(
            "errors",
            "confusion matrix and most confident errors",
            "confusion by class in the report of each run",
            PARTLY,
        ),
    ),
    ("40", "26", "limitations", _always("“What this does not show”, and the model card")),
    ("41", "25, 27a-c", "what it means for practice", _authors("nothing here supports use on patients")),
    (
        "42",
        "18c",
        "protocol and further details",
        _partly("resolved configuration; a protocol written beforehand is not known"),
    ),
    (
        "43",
        "18e, 18f",
        "availability of software, model and data",
        _partly("software: this project; data: their publishers; model: for the authors to say"),
    ),
    ("44", "18a, 18b", "funding and interests", _authors()),
    (
        "",
        "3c, 14",
        "fairness and health inequalities",
        _if("subgroups", "results by attribute", "not known without attributes of the patients"),
    ),
    (
        "",
        "13",
        "classes of unequal size",
        _always("balanced accuracy and results by class; train.balance in the configuration"),
    ),
    ("", "15", "what the output is", _always("probabilities of the classes; calibration beside them")),
    ("", "9a-c", "predictors", _always("the pixels of one slice, nothing else")),
    ("", "19", "involvement of patients and the public", _authors()),
    ("", "21", "numbers of participants in each analysis", _always("images and groups beside each result")),
    (
        "",
        "23b",
        "differences between sites",
        _if("external", "results by collection", "one collection, or results are not by site"),
    ),
    ("", "24", "updating of the model", lambda facts: (NOT_APPLICABLE, "no model is updated")),
)


def markdown(facts: Facts) -> str:
    """The table of docs/checklist.md."""
    lines = ["| CLAIM | TRIPOD+AI | topic | answer | where, or what is missing |", "|---|---|---|---|---|"]
    lines += [f"| {i.claim} | {i.tripod} | {i.topic} | {i.answer} | {i.where} |" for i in checklist(facts)]
    return "\n".join(lines)


_INTRODUCTION = """\
<!-- made by `make docs` from brain_dist/judging/checklist.py; edit that -->

# Reporting checklists

What CLAIM 2024 (Tejani et al., Radiology: Artificial Intelligence 2024, 6(4):e240300) and TRIPOD+AI (Collins et al.,
BMJ 2024, 385:e078378) ask of a study, and what a benchmark made here answers. Item numbers are theirs, as far as we
know them; the words are ours, because their texts are copyrighted: read the items there. “Not known” is what only the
authors of a study or the publishers of the images can say.

The report of a run and the page of a benchmark have this table for what was measured. Below: a benchmark with seeds, an
audit, shortcut baselines, known patients and another collection ({counted}).

"""


def main() -> None:
    """Print docs/checklist.md."""
    facts = Facts(external=True, patients="all", seeds=3, compared=True, audit=True, shortcuts=True, pretrained=False)
    counted = ", ".join(f"{count} {answer}" for answer, count in tally(checklist(facts)).items())
    print(_INTRODUCTION.format(counted=counted) + markdown(facts))


if __name__ == "__main__":
    main()
