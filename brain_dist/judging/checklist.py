"""What CLAIM 2024 and TRIPOD+AI ask of a study, by item: answered here, not applicable, or not known.

CLAIM 2024: Tejani et al., Radiology: Artificial Intelligence 2024, 6(4):e240300. TRIPOD+AI: Collins et al., BMJ 2024,
385:e078378. The topics are in our own words: read the items there. A page can answer what its files hold. The reasons
for a study, and who took the images of whom, only its authors can tell.

    python -m brain_dist.judging.checklist          the table of docs/checklist.md
"""

from __future__ import annotations

from dataclasses import dataclass

from brain_dist.judging.checklist_rules import (
    ANSWERED,
    NOT_APPLICABLE,
    PARTLY,
    UNKNOWN,
    Facts,
    Rule,
    answered,
    answered_if,
    external_test,
    for_authors,
    from_run,
    initial_weights,
    level,
    not_applicable,
    numbers,
    partly,
    partly_if,
    uncertainty,
)

_ITEMS: tuple[tuple[str, str, str, Rule], ...] = (
    ("1", "1", "title says that it is a study of machine learning, and which", for_authors()),
    ("2", "2", "structured abstract", for_authors()),
    (
        "3",
        "3a, 3b",
        "background, intended use and role of the method",
        for_authors("the model card states research only"),
    ),
    ("4", "4", "aims and hypotheses", for_authors()),
    ("5", "5a", "prospective or retrospective", partly("retrospective: images that others published")),
    ("6", "", "goal of the study", for_authors()),
    (
        "7",
        "5a, 5b",
        "sources and dates of the data",
        partly("source, licence and citation in the manifest; dates are not known"),
    ),
    (
        "8",
        "6a, 6b",
        "who and what was included and excluded",
        partly("images left out, with reasons; patients: not known"),
    ),
    ("9", "7", "preprocessing", answered("manifest and configuration; docs/design.md defines the pixels")),
    (
        "10",
        "7",
        "selection of subsets of the data",
        answered("recipe in the manifest; split, seed and left-out images"),
    ),
    (
        "11",
        "17",
        "removal of identifying information; ethics approval",
        for_authors("for the publishers of the images to say"),
    ),
    ("12", "11", "missing data", partly("damaged and blank images are listed; unknown patients are counted")),
    ("13", "", "how the images were acquired", for_authors("collections of pictures do not say")),
    ("14", "8a", "what the true class rests on", for_authors("for the publishers of the images to say")),
    ("15", "8a", "why this reference was chosen", for_authors("for the publishers of the images to say")),
    ("16", "8b", "who labelled the images", for_authors("for the publishers of the images to say")),
    ("17", "8b", "how test images were labelled", for_authors("for the publishers of the images to say")),
    (
        "18",
        "8c",
        "agreement between those who labelled",
        partly_if("audit", "copies with contradicting labels are counted", "for the publishers of the images to say"),
    ),
    (
        "19",
        "12a",
        "how images were assigned to training, validation and test",
        answered("method, shares and seed in the manifest"),
    ),
    (
        "20",
        "12a",
        "level at which the parts are disjoint",
        level,
    ),
    (
        "21",
        "10",
        "intended sample size",
        partly("the smallest difference that these images could show, where models are compared"),
    ),
    (
        "22",
        "12c, 22",
        "the model in full",
        from_run("name in timm and configuration; the weights are in the run's folder"),
    ),
    ("23", "18f", "software and versions", from_run("environment.json of the run")),
    ("24", "12c", "initial weights", initial_weights),
    (
        "25",
        "12c",
        "training: augmentation, settings, number of models",
        from_run("configuration of the run; number of trainings"),
    ),
    (
        "26",
        "12d",
        "how the final model was selected",
        from_run("train.best in the configuration; on validation images only"),
    ),
    ("27", "", "ensembles", not_applicable("single networks")),
    ("28", "12e", "metrics", answered("accuracy, balanced accuracy, F1, AUC, MCC, calibration; by class")),
    ("29", "12e", "uncertainty and significance", uncertainty),
    (
        "30",
        "12f",
        "robustness and sensitivity",
        answered_if(
            "shortcuts",
            "shortcut baselines: what can be guessed without the disease",
            "shortcut baselines were not measured",
        ),
    ),
    (
        "31",
        "",
        "explanations",
        answered_if(
            "explained",
            "maps measured against outlines of tumours, beside those of an untrained network",
            "maps in the report of each run, not measured against outlines of tumours; `brain-dist explain` does that",
            PARTLY,
        ),
    ),
    (
        "32",
        "12g",
        "test on internal data",
        answered_if(
            "internal", "test part of the training collection", "no test images known to be of that collection"
        ),
    ),
    ("33", "12g, 16", "test on external data, and how it differs", external_test),
    (
        "34",
        "18d",
        "registration of the trial",
        not_applicable("no trial: images that others published"),
    ),
    (
        "35",
        "20a",
        "numbers of patients and images in and out",
        numbers,
    ),
    (
        "36",
        "20b, 20c",
        "age, sex and other properties of the patients by part",
        answered_if("subgroups", "results by attribute", "the collections do not say"),
    ),
    ("37", "23a", "performance with its uncertainty", answered("table of metrics with intervals")),
    (
        "38",
        "23a",
        "diagnostic accuracy with its precision",
        answered("sensitivity and specificity by class with intervals"),
    ),
    (
        "39",
        "",
        "analysis of the errors",
        answered_if(
            "errors",
            "confusion matrix and most confident errors",
            "confusion by class in the report of each run",
            PARTLY,
        ),
    ),
    ("40", "26", "limitations", answered("“What this does not show”, and the model card")),
    ("41", "25, 27a-c", "what it means for practice", for_authors("nothing here supports use on patients")),
    (
        "42",
        "18c",
        "protocol and further details",
        partly("resolved configuration; a protocol written beforehand is not known"),
    ),
    (
        "43",
        "18e, 18f",
        "availability of software, model and data",
        partly("software: this project; data: their publishers; model: for the authors to say"),
    ),
    ("44", "18a, 18b", "funding and interests", for_authors()),
    (
        "",
        "3c, 14",
        "fairness and health inequalities",
        answered_if("subgroups", "results by attribute", "not known without attributes of the patients"),
    ),
    (
        "",
        "13",
        "classes of unequal size",
        answered("balanced accuracy and results by class; train.balance in the configuration"),
    ),
    ("", "15", "what the output is", answered("probabilities of the classes; calibration beside them")),
    ("", "9a-c", "predictors", answered("the pixels of one slice, nothing else")),
    ("", "19", "involvement of patients and the public", for_authors()),
    ("", "21", "numbers of participants in each analysis", answered("images and groups beside each result")),
    (
        "",
        "23b",
        "differences between sites",
        answered_if("external", "results by collection", "one collection, or results are not by site"),
    ),
    ("", "24", "updating of the model", not_applicable("no model is updated")),
)


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


def checklist(facts: Facts) -> list[Item]:
    """All items, in CLAIM's order; those of TRIPOD+AI alone are at the end."""
    return [Item(claim, tripod, topic, *rule(facts)) for claim, tripod, topic, rule in _ITEMS]


def tally(items: list[Item]) -> dict[str, int]:
    """Number of items with each answer."""
    answers = (ANSWERED, PARTLY, UNKNOWN, NOT_APPLICABLE)
    return {answer: sum(item.answer == answer for item in items) for answer in answers}


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
