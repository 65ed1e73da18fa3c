"""What counts as a complete checkpoint."""

import dataclasses
import json
from pathlib import Path

import pytest

from brain_dist.checkpoints.layout import (
    MARKER,
    checkpoint_folder,
    complete_steps,
    marker_text,
    optimizer_file,
    verify_checkpoint,
)
from brain_dist.checkpoints.newest import newest_checkpoint
from brain_dist.common.files import sha256_file
from brain_dist.config import Config
from brain_dist.errors import Fault, UserError
from brain_dist.ranks.agreement import run_on_main
from brain_dist.ranks.world import discover
from brain_dist.training.resume import resume_step, settings_to_match

ALONE = discover({})


def made(root: Path, step: int, facts: dict[str, int] | None = None) -> Path:
    """A completed checkpoint of two small files."""
    path = checkpoint_folder(root, step)
    path.mkdir(parents=True)
    listing = {}
    for name in ("model.safetensors", optimizer_file(0, 1)):
        (path / name).write_bytes(name.encode() * step)
        listing[name] = {"size": (path / name).stat().st_size, "sha256": sha256_file(path / name)}
    about = {"step": step, "facts": facts or {}, "files": listing}
    (path / MARKER).write_bytes(marker_text(about))
    return path


def test_the_newest_complete_one_is_taken(tmp_path: Path) -> None:
    made(tmp_path, 10)
    made(tmp_path, 20, {"seed": 1})
    (made(tmp_path, 30) / MARKER).unlink()  # the process died before the last write
    (tmp_path / ".partial-00000040").mkdir()
    assert complete_steps(tmp_path) == [10, 20]
    assert newest_checkpoint(tmp_path, ALONE) == (20, {"seed": 1})


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "does not match its checksum": lambda path: flip(path / "model.safetensors"),
    "bytes instead of": lambda path: (path / optimizer_file(0, 1)).write_bytes(b"short"),
    "is missing": lambda path: (path / optimizer_file(0, 1)).unlink(),
    "does not match its own checksum": lambda path: flip(path / MARKER),
    "is unreadable": lambda path: (path / MARKER).write_text(""),
}


@pytest.mark.parametrize("says", DAMAGE)
def test_a_damaged_one_is_named_and_the_one_before_is_taken(tmp_path: Path, says: str) -> None:
    made(tmp_path, 10)
    DAMAGE[says](made(tmp_path, 20))
    assert says in verify_checkpoint(checkpoint_folder(tmp_path, 20))[0]
    with pytest.warns(UserWarning, match="checkpoint 20 is damaged"):
        assert newest_checkpoint(tmp_path, ALONE) == (10, {})


def test_none_intact_is_a_fault_and_not_a_new_beginning(tmp_path: Path) -> None:
    flip(made(tmp_path, 10) / "model.safetensors")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(Fault, match=r"no checkpoint .* is intact"):
        newest_checkpoint(tmp_path, ALONE)


def test_nothing_there_is_a_beginning(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "absent", ALONE) is None


def test_a_full_disk_is_one_line_on_every_rank(tmp_path: Path) -> None:
    def work() -> None:
        raise OSError(28, "No space left on device", "model.safetensors")

    with pytest.raises(Fault, match=r"model\.safetensors could not be written: No space left on device"):
        run_on_main(ALONE, work)


def test_only_settings_that_matter_hold_a_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config()
    now = settings_to_match(config, "v", 2)
    made(tmp_path, 5, json.loads(json.dumps(now)))
    assert resume_step(config, tmp_path, now, ALONE) == 5
    free = dataclasses.replace(config, data=dataclasses.replace(config.data, threads=7, prefetch=3))
    assert resume_step(free, tmp_path, settings_to_match(free, "v", 2), ALONE) == 5
    assert not capsys.readouterr().err
    elastic = dataclasses.replace(config, train=dataclasses.replace(config.train, zero_stage=3, micro_batch=8))
    assert resume_step(elastic, tmp_path, settings_to_match(elastic, "v", 3), ALONE) == 5
    said = capsys.readouterr().err
    for change in ("the number of ranks 2 → 3", "train.zero_stage 2 → 3", "train.micro_batch 32 → 8"):
        assert change in said
    for changed, name in [
        (settings_to_match(config, "w", 2), "the version of data.shards"),
        (
            settings_to_match(dataclasses.replace(config, run=dataclasses.replace(config.run, seed=9)), "v", 2),
            "run.seed",
        ),
    ]:
        with pytest.raises(UserError, match=f"with {name}="):
            resume_step(config, tmp_path, changed, ALONE)
