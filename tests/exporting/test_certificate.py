"""Which exports are called ready."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brain_dist.errors import Fault
from brain_dist.exporting.certificate import Certificate, certify
from brain_dist.exporting.speed import Speed
from brain_dist.exporting.table import difference_text, print_table
from brain_dist.prediction.outputs import Outputs

GROUPS, PER_GROUP, CLASSES = 60, 4, ("glioma", "meningioma", "pituitary")


def compared(flipped_groups: int, groups: int = GROUPS, *, exact: bool = False, shift: float = 0.0) -> Certificate:
    """The certificate of an export that gets one image wrong in each of ``flipped_groups`` groups."""
    of_group = np.arange(groups) % len(CLASSES)
    return judged(of_group, np.arange(flipped_groups), exact=exact, shift=shift)


def judged(of_group: np.ndarray, flipped: np.ndarray, *, exact: bool = False, shift: float = 0.0) -> Certificate:
    """The certificate of an export that gets the first image of the groups ``flipped`` wrong, and the run none.

    ``of_group`` is the class of each group of four images.
    """
    label = np.repeat(of_group, PER_GROUP)
    logits = 4 * np.eye(len(CLASSES), dtype=np.float32)[label]
    changed = logits + np.float32(shift)
    wrong = PER_GROUP * flipped
    changed[wrong] = np.roll(changed[wrong], 1, axis=1)
    return certified(changed, logits, label, exact=exact)


def certified(changed: np.ndarray, logits: np.ndarray, label: np.ndarray, *, exact: bool = False) -> Certificate:
    features = np.zeros((len(label), 2), dtype=np.float32)
    group = np.repeat([f"patient{number}" for number in range(len(label) // PER_GROUP)], PER_GROUP)
    outputs = Outputs(changed, features), Outputs(logits, features)
    return certify("int8", *outputs, label, group, CLASSES, 1000, exact=exact)


def test_an_export_that_keeps_every_label_is_ready() -> None:
    certificate = compared(0, shift=0.3)
    assert (certificate.ready, certificate.reason, certificate.other_labels) == (True, None, 0)
    assert certificate.max_logit == pytest.approx(0.3)
    assert difference_text(certificate.difference["accuracy"]) == "0"


def test_a_loss_that_may_be_more_than_a_point_is_not_ready() -> None:
    certificate = compared(12)  # 5 points of 240 images
    assert not certificate.ready
    assert certificate.reason is not None
    assert certificate.reason.startswith(
        "it may lose more than 1 point of balanced accuracy: -5.0 points, 95 % interval"
    )
    balanced = certificate.difference["balanced_accuracy"]
    assert balanced.interval is not None
    assert balanced.interval[0] < -0.05 < balanced.interval[1] < 0
    # a single wrong image of 240 costs less than a point, but the interval over patients reaches further
    single = compared(1)
    assert single.difference["balanced_accuracy"].value == pytest.approx(-1 / 240)
    assert not single.ready


def test_few_patients_cannot_show_that_it_is_ready() -> None:
    certificate = compared(1, groups=9)
    assert not certificate.ready
    assert (certificate.judged_by, certificate.limitation) == (None, None)
    assert certificate.reason == (
        "its loss of accuracy cannot be judged: only 9 groups; an interval over groups needs 10"
    )
    assert difference_text(certificate.difference["accuracy"]) == "-2.78 (no interval)"


def test_a_rare_class_leaves_accuracy_to_judge(capsys: pytest.CaptureFixture[str]) -> None:
    of_group = np.repeat([0, 1, 2], [200, 200, 9])
    kept = judged(of_group, np.array([0, 408]))  # an image of glioma and one of pituitary
    balanced, accuracy = kept.difference["balanced_accuracy"], kept.difference["accuracy"]
    assert balanced.value == pytest.approx(-(1 / 800 + 1 / 36) / 3)
    assert (balanced.interval, balanced.refused) == (
        None,
        "only 9 groups of pituitary; an interval over groups needs 10",
    )
    assert accuracy.interval is not None
    assert (kept.judged_by, kept.ready, kept.reason) == ("accuracy", True, None)
    low, high = (100 * limit for limit in accuracy.interval)
    assert kept.limitation == (
        "balanced accuracy cannot be judged here (only 9 groups of pituitary; an interval over groups needs 10);"
        f" accuracy was judged instead (-0.1 points, 95 % interval {low:+.1f} to {high:+.1f}), which says little"
        " about a class with few images"
    )
    speeds = {name: [Speed(1, 3, 0.01, 0.02, 0.01)] for name in ("run", "int8")}
    print_table(Path("runs/one"), [kept], speeds)
    printed = capsys.readouterr().out.splitlines()
    assert f"int8: {kept.limitation}" in printed
    assert not [line for line in printed if "not ready" in line]
    lost = judged(of_group, np.arange(40))
    assert (lost.judged_by, lost.ready) == ("accuracy", False)
    assert str(lost.reason).startswith("it may lose more than 1 point of accuracy: -2.4 points, 95 % interval")
    # a tenth group of the class is enough, and its loss counts
    enough = judged(np.repeat([0, 1, 2], [200, 200, 10]), np.array([0, 409]))
    assert (enough.judged_by, enough.limitation, enough.ready) == ("balanced_accuracy", None, False)


def test_another_wrong_class_for_an_image_that_was_wrong_loses_nothing() -> None:
    label = np.repeat(np.arange(GROUPS) % 3, PER_GROUP)
    logits = 4 * np.eye(3, dtype=np.float32)[label]
    changed = logits.copy()
    logits[0], changed[0] = (0, 4, 0), (0, 0, 4)  # the image is a glioma
    certificate = certified(changed, logits, label)
    assert (certificate.other_labels, certificate.ready, certificate.judged_by) == (1, True, "balanced_accuracy")
    assert {difference_text(difference) for difference in certificate.difference.values()} == {"0"}


def test_an_exact_export_may_not_differ() -> None:
    with pytest.raises(Fault, match=r"a logit differs by 4 .* 1 of 240 images get another class"):
        compared(1, exact=True)
    with pytest.raises(Fault, match=r"a logit differs by 0\.01 "):
        compared(0, exact=True, shift=0.01)
