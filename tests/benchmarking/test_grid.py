"""The cells of a benchmark: their names, and the conditions that they must share."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

from brain_dist.benchmarking.grid import (
    Cell,
    Grid,
    Source,
    differences,
    plan,
    require_unified,
)
from brain_dist.benchmarking.keys import cell_key, flattened, settings_key
from brain_dist.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, to_dict
from brain_dist.errors import UserError

BASE = Config(data=DataConfig(shards="shards"), train=TrainConfig(precision="fp32"))
SOURCE = Source("phantom", "0" * 64, ("a", "b"), BASE.data)


def with_model(name: str, **optim: Any) -> Config:
    return dataclasses.replace(BASE, model=ModelConfig(name=name), optim=dataclasses.replace(BASE.optim, **optim))


def grid(*, folds: int | None = None, out: str = "out", sources: tuple[Source, ...] = (SOURCE,)) -> Grid:
    variants = {"resnet18": with_model("resnet18"), "vgg11": with_model("vgg11", lr=3e-4)}
    return plan(variants, [0, 1], folds, sources, Path(out))


def test_cells_are_models_by_seeds_by_folds_by_shards() -> None:
    other = Source("other", "1" * 64, ("a", "b"), DataConfig(shards="others"))
    cells = grid(folds=3, sources=(SOURCE, other)).cells
    assert len({cell.key for cell in cells}) == len(cells) == 2 * 2 * 3 * 2
    for cell in cells:
        config = cell.config
        assert (config.run.name, config.run.dir) == (cell.key, "out/cells")
        assert (config.run.seed, config.data.fold, config.model.name) == (cell.seed, cell.fold, cell.model)
        assert config.data.shards == {"phantom": "shards", "other": "others"}[cell.source]
    # an unfinished benchmark has all models at the same number of seeds
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    assert [cell.model for cell in cells[:2]] == ["resnet18", "vgg11"]


@pytest.mark.parametrize("folds", [0, 1, -1])
def test_fewer_than_two_folds_are_refused(folds: int) -> None:
    with pytest.raises(UserError, match=rf"--folds {folds}: must be ≥ 2; leave it out"):
        grid(folds=folds)


def test_two_names_of_the_same_settings_are_refused() -> None:
    variants = {"resnet18": with_model("resnet18"), "copy": with_model("resnet18")}
    with pytest.raises(UserError, match="resnet18 and copy have the same settings; leave one of them out"):
        plan(variants, [0, 1], None, [SOURCE], Path("out"))


def test_joined_shards_are_one_source() -> None:
    joined = Source("joined", "1" * 64, ("a", "b"), DataConfig(sources=("x", "y"), leave_out="x"))
    for cell in grid(sources=(joined,)).cells:
        assert (cell.config.data.shards, cell.config.data.sources, cell.config.data.leave_out) == ("", ("x", "y"), "x")


def test_a_cells_name_depends_on_its_settings_only(tmp_path: Path) -> None:
    keys = [cell.key for cell in grid().cells]
    moved = Source("renamed", SOURCE.version, SOURCE.classes, DataConfig(shards="/elsewhere/shards"))
    assert keys == [cell.key for cell in grid(out=str(tmp_path), sources=(moved,)).cells]
    rebuilt = dataclasses.replace(SOURCE, version="2" * 64)
    assert not set(keys) & {cell.key for cell in grid(sources=(rebuilt,)).cells}
    program = (
        "from brain_dist.benchmarking.keys import cell_key\n"
        "from brain_dist.config import load\n"
        "words = ['--model.name', 'resnet18', '--data.shards', 'x', '--model.options', '{b: 1, a: 2}']\n"
        "print(cell_key(load(words), 'v'))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(printed) == 1


def every_other_value() -> dict[str, Config]:
    """For each setting a configuration that differs from BASE in it alone."""
    configs = {}
    for section in dataclasses.fields(Config):
        values = getattr(BASE, section.name)
        for setting in dataclasses.fields(values):
            for value in candidates(getattr(values, setting.name)):
                try:
                    part = dataclasses.replace(values, **{setting.name: value})
                    config = dataclasses.replace(BASE, **{section.name: part})
                except (UserError, TypeError):
                    continue
                if flattened(to_dict(config)) != flattened(to_dict(BASE)):
                    configs[f"{section.name}.{setting.name}"] = config
                    break
    return configs


def candidates(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value + 2, value / 2, 0, 0.5]
    if isinstance(value, tuple):
        return [tuple(number / 2 for number in value)] if value else [("a", "b")]
    if isinstance(value, dict):
        return [{"a": 1}]
    return ["cpu", "never", "off", "rgb", "opencv", "amp", "adam", "weights", "loss", "other", 3, 0.5]


OTHERS = every_other_value()
OF_CELL = {"run.name", "run.dir", "run.seed", "data.shards", "data.sources", "data.fold", "data.leave_out"}
OF_CELL = {name for name in OF_CELL if name in OTHERS}


def test_the_test_changes_nearly_every_setting() -> None:
    assert len(OTHERS) >= len(flattened(to_dict(BASE))) - 6


@pytest.mark.parametrize("setting", OTHERS)
def test_conditions_are_unified(setting: str) -> None:
    cells = [Cell("a", "one", 0, None, "phantom", BASE), Cell("b", "two", 0, None, "phantom", OTHERS[setting])]
    if setting.startswith(("model.", "optim.lr")) or setting in OF_CELL:
        require_unified(cells)
        return
    ((_, before, now),) = differences(BASE, OTHERS[setting])
    with pytest.raises(UserError) as error:
        require_unified(cells)
    assert f"not unified: {setting} is {before} for one and {now} for two" in str(error.value)


@pytest.mark.parametrize("setting", ["model.name", "optim.lr"])
def test_cells_of_one_model_are_alike(setting: str) -> None:
    other = OTHERS[setting]
    with pytest.raises(UserError, match=f"{setting} is .* for one with seed 0 and .* for one with seed 1"):
        require_unified([Cell("a", "one", 0, None, "s", BASE), Cell("b", "one", 1, None, "s", other)])


def test_a_precision_that_depends_on_the_network_is_refused() -> None:
    config = dataclasses.replace(BASE, train=TrainConfig(precision="auto"))
    with pytest.raises(UserError, match=r"train\.precision=auto: networks with and without BatchNorm"):
        plan({"resnet18": config}, [0], None, [SOURCE], Path("out"))


@pytest.mark.parametrize(
    "change",
    [
        lambda config: dataclasses.replace(config, optim=OptimConfig(lr=3e-4)),
        lambda config: dataclasses.replace(config, train=TrainConfig(precision="amp")),
        lambda config: dataclasses.replace(config, run=dataclasses.replace(config.run, seed=1)),
    ],
)
def test_another_setting_is_another_cell(change: Callable[[Config], Config]) -> None:
    assert cell_key(change(BASE), "v") != cell_key(BASE, "v")
    assert cell_key(BASE, "v") == cell_key(BASE, "v")


def test_the_files_that_settings_name_count_by_their_contents(tmp_path: Path) -> None:
    """The same settings with another file are another cell, whatever the path; without such files keys stay."""
    weights, deepspeed = tmp_path / "weights.pth", tmp_path / "deepspeed.json"

    def key(weights: Path, deepspeed: Path) -> str:
        config = dataclasses.replace(
            BASE,
            model=ModelConfig(name="resnet18", weights=str(weights)),
            train=TrainConfig(precision="fp32", deepspeed=str(deepspeed)),
        )
        (cell,) = plan({"resnet18": config}, [0], None, [SOURCE], tmp_path).cells
        assert cell.config.model.weights == str(weights)
        return cell.key

    with pytest.raises(UserError, match=r"train\.deepspeed=.*deepspeed\.json cannot be read \(No such file"):
        key(weights, deepspeed)
    deepspeed.write_text("{}")
    with pytest.raises(UserError, match=r"model\.weights=.*weights\.pth cannot be read \(No such file"):
        key(weights, deepspeed)
    weights.write_bytes(b"one")
    first = key(weights, deepspeed)
    assert key(weights, deepspeed) == first
    moved = weights.rename(tmp_path / "moved.pth")
    assert key(moved, deepspeed) == first
    moved.write_bytes(b"two")
    second = key(moved, deepspeed)
    deepspeed.write_text('{"gradient_clipping": 1.0}')
    assert len({first, second, key(moved, deepspeed)}) == 3
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "config.json").write_text("{}")
    (hub / "model.safetensors").write_bytes(b"one")
    deepspeed.write_text("{}")
    assert key(hub, deepspeed) == first
    assert cell_key(BASE, "v") == "8e5a0815b7833e76", "trained cells would not be found again"


def test_a_setting_that_is_off_does_not_count() -> None:
    settings = {"optim.lr": 0.1, "augment.curves": 0.0, "data.fold": None, "train.keep": 1}
    assert settings_key(settings) == settings_key({"optim.lr": 0.1, "train.keep": 1})
    assert settings_key(settings) != settings_key({**settings, "augment.curves": 0.1})
