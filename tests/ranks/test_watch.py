"""What counts as progress."""

from brain_dist.ranks.watch import Watch
from brain_dist.ranks.world import discover


def test_each_batch_of_a_long_evaluation_is_progress() -> None:
    watch = Watch(discover({}), timeout=1.0)
    before = watch.moved
    passed = [watch.progress for _ in watch.along("abc", "evaluating after step 7")]
    assert passed == [1, 2, 3]
    assert watch.where == "evaluating after step 7"
    assert watch.moved > before
