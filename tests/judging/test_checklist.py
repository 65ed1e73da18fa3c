"""The reporting checklists: every item once, and answers that follow what is at hand."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout

from helpers import ROOT

from brain_dist.judging import checklist as module
from brain_dist.judging.checklist import checklist, tally
from brain_dist.judging.checklist_rules import ANSWERED, NOT_APPLICABLE, PARTLY, UNKNOWN, Facts, known_patients


def answer_of(facts: Facts, claim: str) -> str:
    return next(item.answer for item in checklist(facts) if item.claim == claim)


def test_every_item_of_both_checklists_occurs() -> None:
    items = checklist(Facts())
    assert [int(item.claim) for item in items if item.claim] == list(range(1, 45))
    tripod = {int(number) for item in items for number in re.findall(r"\d+", item.tripod)}
    assert tripod == set(range(1, 28))
    assert all(item.topic and item.where for item in items)
    assert {item.answer for item in items} == {ANSWERED, PARTLY, UNKNOWN, NOT_APPLICABLE}
    assert sum(tally(items).values()) == len(items)


def test_answers_follow_what_is_at_hand() -> None:
    assert answer_of(Facts(), "33") == UNKNOWN
    assert answer_of(Facts(external=True), "33") == ANSWERED
    assert answer_of(Facts(external=True, external_compared=False), "33") == PARTLY
    assert answer_of(Facts(), "32") == ANSWERED
    assert answer_of(Facts(internal=False, external=True), "32") == UNKNOWN
    assert answer_of(Facts(), "29") == PARTLY
    assert answer_of(Facts(seeds=3), "29") == PARTLY
    assert answer_of(Facts(seeds=3, compared=True), "29") == ANSWERED
    assert answer_of(Facts(), "20") == PARTLY
    assert answer_of(Facts(patients="all"), "20") == ANSWERED
    assert answer_of(Facts(patients="some"), "20") == PARTLY
    assert answer_of(Facts(patients="all", shared=True), "20") == PARTLY
    assert [answer_of(Facts(patients=each), "35") for each in ("none", "some")] == [PARTLY, ANSWERED]
    assert [known_patients(each) for each in (["a", None], ["a"], [None])] == ["some", "all", "none"]
    assert answer_of(Facts(), "24") == UNKNOWN
    assert answer_of(Facts(pretrained=False), "24") == ANSWERED
    assert answer_of(Facts(), "22") == ANSWERED
    assert answer_of(Facts(trained_here=False), "22") == UNKNOWN
    for always in ("11", "14", "44"):  # nothing at hand can answer these
        full = Facts(True, True, "all", 3, True, True, True, True, True, True)
        assert answer_of(full, always) == UNKNOWN


def test_the_documented_table_is_up_to_date() -> None:
    out = io.StringIO()
    with redirect_stdout(out):
        module.main()
    assert (ROOT / "docs" / "checklist.md").read_text() == out.getvalue(), "run `make docs`"
