"""Which exports are called ready."""

from __future__ import annotations

import numpy as np
import pytest

from brain_dist.errors import Fault
from brain_dist.exporting.certificate import certify
from brain_dist.exporting.table import difference_text
from brain_dist.prediction.outputs import Outputs

GROUPS, PER_GROUP, CLASSES = 60, 4, 3


def compared(flipped_groups: int, groups: int = GROUPS, *, exact: bool = False, shift: float = 0.0):
    """The certificate of an export that gets one image wrong in each of ``flipped_groups`` groups."""
    label = np.repeat(np.arange(groups) % CLASSES, PER_GROUP)
    logits = 4 * np.eye(CLASSES, dtype=np.float32)[label]
    changed = logits + np.float32(shift)
    wrong = PER_GROUP * np.arange(flipped_groups)
    changed[wrong] = np.roll(changed[wrong], 1, axis=1)
    features = np.zeros((len(label), 2), dtype=np.float32)
    group = np.repeat([f"patient{number}" for number in range(groups)], PER_GROUP)
    return certify("int8", Outputs(changed, features), Outputs(logits, features), label, group, 1000, exact=exact)


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
    assert "only 9 groups" in str(certificate.reason)
    assert difference_text(certificate.difference["accuracy"]) == "-2.78 (no interval)"


def test_an_exact_export_may_not_differ() -> None:
    with pytest.raises(Fault, match=r"a logit differs by 4 .* 1 of 240 images get another class"):
        compared(1, exact=True)
    with pytest.raises(Fault, match=r"a logit differs by 0\.01 "):
        compared(0, exact=True, shift=0.01)
