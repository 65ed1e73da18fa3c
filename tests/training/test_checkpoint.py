"""Which checkpoints are complete and intact, and which settings must match on resume."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from brain_dist.checkpoints.layout import (
    MARKER,
    checkpoint_folder,
    complete_steps,
    encode_marker,
    optimizer_file,
    verify_checkpoint,
)
from brain_dist.common.files import sha256_file
from brain_dist.config import Config
from brain_dist.errors import Fault, UserError
from brain_dist.ranks.group import run_on_main
from brain_dist.ranks.world import discover
from brain_dist.training.resume import newest_checkpoint, resume_step, settings_to_match

SINGLE = discover({})


def write_checkpoint(root: Path, step: int, settings: dict[str, Any] | None = None) -> Path:
    """A complete checkpoint of two small files."""
    path = checkpoint_folder(root, step)
    path.mkdir(parents=True)
    files = {}
    for name in ("model.safetensors", optimizer_file(0, 1)):
        (path / name).write_bytes(name.encode() * step)
        files[name] = {"size": (path / name).stat().st_size, "sha256": sha256_file(path / name)}
    (path / MARKER).write_bytes(encode_marker({"step": step, "facts": settings or {}, "files": files}))
    return path


def test_newest_complete_checkpoint_is_taken(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 10)
    write_checkpoint(tmp_path, 20, {"seed": 1})
    (write_checkpoint(tmp_path, 30) / MARKER).unlink()  # the process died before it wrote the marker
    (tmp_path / ".partial-00000040").mkdir()
    assert complete_steps(tmp_path) == [10, 20]
    assert newest_checkpoint(tmp_path, SINGLE) == (20, {"seed": 1})


def flip_first_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "does not match its checksum": lambda path: flip_first_byte(path / "model.safetensors"),
    "bytes instead of": lambda path: (path / optimizer_file(0, 1)).write_bytes(b"short"),
    "is missing": lambda path: (path / optimizer_file(0, 1)).unlink(),
    "does not match its own checksum": lambda path: flip_first_byte(path / MARKER),
    "is unreadable": lambda path: (path / MARKER).write_text(""),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damaged_checkpoint_is_reported_and_the_previous_one_taken(tmp_path: Path, message: str) -> None:
    write_checkpoint(tmp_path, 10)
    DAMAGE[message](write_checkpoint(tmp_path, 20))
    assert message in verify_checkpoint(checkpoint_folder(tmp_path, 20))[0]
    with pytest.warns(UserWarning, match="checkpoint 20 is damaged"):
        assert newest_checkpoint(tmp_path, SINGLE) == (10, {})


def test_only_damaged_checkpoints_are_a_fault(tmp_path: Path) -> None:
    flip_first_byte(write_checkpoint(tmp_path, 10) / "model.safetensors")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(Fault, match=r"all checkpoints .* are damaged"):
        newest_checkpoint(tmp_path, SINGLE)


def test_no_checkpoint_is_not_an_error(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "absent", SINGLE) is None


def test_full_disk_is_one_line_on_every_rank(tmp_path: Path) -> None:
    def work() -> None:
        raise OSError(28, "No space left on device", "model.safetensors")

    with pytest.raises(Fault, match=r"model\.safetensors could not be written: No space left on device"):
        run_on_main(SINGLE, work)


def with_settings(config: Config, section: str, **values: Any) -> Config:
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})


def test_only_settings_that_matter_must_match_on_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config()
    settings = settings_to_match(config, "v", 2)
    write_checkpoint(tmp_path, 5, json.loads(json.dumps(settings)))
    assert resume_step(config, tmp_path, settings, SINGLE) == 5

    free = with_settings(config, "data", threads=7, prefetch=3)
    assert resume_step(free, tmp_path, settings_to_match(free, "v", 2), SINGLE) == 5
    assert not capsys.readouterr().err

    elastic = with_settings(config, "train", zero_stage=3, micro_batch=8)
    assert resume_step(elastic, tmp_path, settings_to_match(elastic, "v", 3), SINGLE) == 5
    message = capsys.readouterr().err
    for change in ("the number of ranks 2 → 3", "train.zero_stage 2 → 3", "train.micro_batch 32 → 8"):
        assert change in message

    other_seed = settings_to_match(with_settings(config, "run", seed=9), "v", 2)
    other_data = settings_to_match(config, "w", 2)
    for changed, name in ((other_data, "the version of data.shards"), (other_seed, "run.seed")):
        with pytest.raises(UserError, match=f"with {name}="):
            resume_step(config, tmp_path, changed, SINGLE)


# settings that must match on resume as the first version of the program stored them, and its other settings' defaults
FIRST_VERSION: dict[str, Any] = {
    **{"run.seed": 0, "data.loader": "dali", "data.size": 224, "data.color": "gray", "data.head_crop": False},
    **{"data.window": 0, "data.mean": [0.485, 0.456, 0.406], "data.std": [0.229, 0.224, 0.225]},
    **{"augment.scale": [0.7, 1.0], "augment.ratio": [0.8, 1.25], "augment.flip": 0.5, "augment.rotate": 15.0},
    **{"augment.brightness": 0.2, "augment.contrast": 0.2, "augment.erase": 0.0, "augment.mixup": 0.0},
    **{"augment.cutmix": 0.0, "model.name": "convnext_base", "model.pretrained": False, "model.weights": None},
    **{"model.in_chans": 3, "model.drop_path": 0.0, "model.drop": 0.0, "model.grad_checkpointing": False},
    **{"optim.name": "adamw", "optim.lr": 0.0001, "optim.min_lr": 0.0, "optim.warmup_epochs": 1.0},
    **{"optim.weight_decay": 0.05, "optim.betas": [0.9, 0.999], "optim.clip": 1.0, "optim.label_smoothing": 0.1},
    **{"optim.ema": 0.0, "train.epochs": 20, "train.global_batch": 64, "train.micro_batch": 32},
    **{"train.precision": "bf16", "train.zero_stage": 2, "train.deepspeed": None},
    **{"the version of data.shards": "v", "the number of ranks": 2},
}


def test_a_setting_that_a_checkpoint_does_not_name_had_its_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_settings(
        with_settings(Config(), "data", loader="dali"), "train", precision="bf16"
    )  # which auto keeps
    assert set(settings_to_match(config, "v", 2)) - set(FIRST_VERSION), "settings were added since"
    write_checkpoint(tmp_path, 5, FIRST_VERSION)
    assert resume_step(config, tmp_path, settings_to_match(config, "v", 2), SINGLE) == 5
    assert not capsys.readouterr().err
    changed = with_settings(config, "train", balance="weights")
    with pytest.raises(UserError, match=r"with train\.balance=none, now it is weights"):
        resume_step(changed, tmp_path, settings_to_match(changed, "v", 2), SINGLE)


def test_resume_never_rejects_a_folder_with_a_run(tmp_path: Path) -> None:
    config = with_settings(Config(), "run", resume="never", dir=str(tmp_path))
    checkpoints = config.run.path / "checkpoints"
    assert resume_step(config, checkpoints, {}, SINGLE) is None
    write_checkpoint(checkpoints, 5)
    with pytest.raises(UserError, match="already contains a run"):
        resume_step(config, checkpoints, {}, SINGLE)
