"""Configuration: files and flags, a round trip through YAML, and errors of one line with exit code 2."""

import dataclasses
import math
import re
import sys
from pathlib import Path

import pytest
import yaml
from damage import DAMAGES, damage
from helpers import ROOT, command, verb

from brain_dist import config
from brain_dist.config.checks import Range
from brain_dist.errors import UserError

CONFIGS = sorted([*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs" / "paper").glob("*.yaml")])
PAPER = (ROOT / "configs" / "paper" / "README.md").read_text()


def test_flags_override_yaml_and_yaml_overrides_defaults(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("optim: {lr: 0.5, weight_decay: 0.1}\ndata: {size: 64}\n")
    loaded = config.load(["--config", str(file), "--optim.lr", "0.25"])
    assert (loaded.optim.lr, loaded.optim.weight_decay, loaded.data.size) == (0.25, 0.1, 64)
    assert loaded.train.epochs == config.TrainConfig().epochs


def test_paths_may_begin_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "a.yaml"
    file.write_text("run: {dir: ~/runs}\ndata: {sources: [~/a, s3://b/~c]}\ntrain: {deepspeed: ~/zero.json}\n")
    loaded = config.load(["--config", str(file), "--model.weights=~/w.pth"])
    assert loaded.run.dir == f"{tmp_path}/runs"
    assert loaded.data.sources == (f"{tmp_path}/a", "s3://b/~c")
    assert (loaded.model.weights, loaded.train.deepspeed) == (f"{tmp_path}/w.pth", f"{tmp_path}/zero.json")


def test_a_dumped_configuration_is_read_back_unchanged(tmp_path: Path) -> None:
    loaded = config.load(["--augment.scale", "[0.3, 0.9]", "--model.weights", "w.pth", "--optim.betas", "[0.8, 0.9]"])
    (tmp_path / "config.yaml").write_text(config.dump(loaded))
    assert config.read(tmp_path / "config.yaml") == loaded


def test_the_first_versions_configuration_is_read_and_settings_added_later_have_their_defaults() -> None:
    file = Path(__file__).parent / "first_version.yaml"
    loaded = config.read(file)
    assert config.to_dict(loaded)["train"].keys() > yaml.safe_load(file.read_text())["train"].keys()
    assert loaded == dataclasses.replace(
        config.Config(),
        data=config.DataConfig(shards="shards/built/a", loader="dali"),
        train=config.TrainConfig(precision="bf16"),
    )


def test_a_folder_without_a_configuration_is_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"config\.yaml does not exist; {tmp_path} is not a run folder"):
        config.read(tmp_path / "config.yaml")


def test_a_mistake_in_the_configuration_of_a_run_names_a_command_that_exists(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run:\n  nmae: x\n")
    with pytest.raises(UserError, match=r"config.yaml:2: unknown setting run.nmae .*; docs/configuration.md lists"):
        config.read(tmp_path / "config.yaml")


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_configuration_of_a_run_is_named(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(config.dump(config.Config()))
    assert config.read_sections(file, "copy it")["track"]["wandb"] == config.Config().track.wandb
    damage(file, kind)
    for read in (config.read, lambda path: config.read_sections(path, "copy it from where the run was trained")):
        with pytest.raises(UserError) as caught:
            read(file)
        message = str(caught.value)
        assert message.startswith((f"{file} is damaged (", f"{file}:"))
        advice = ("; copy it from where the run was trained", "; docs/configuration.md lists all settings")
        assert message.endswith(advice)
        assert "\n" not in message


def test_settings_that_were_cut_off_do_not_become_defaults(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    text = config.dump(config.load(["--train.best", "accuracy"]))
    file.write_text(text[: text.index("train:")])  # valid YAML of valid settings
    with pytest.raises(UserError, match=rf"^{file} is damaged \(it has no section train\); copy it from where the run"):
        config.read(file)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads_and_names_a_timm_model(file: Path) -> None:
    import timm

    loaded = config.load(["--config", str(file)])
    assert timm.is_model(loaded.model.name)


def test_the_robust_recipe_is_what_the_ablation_measured() -> None:
    base = ["--config", "configs/external/base.yaml", "--config"]
    assert config.load([*base, "configs/robust.yaml"]) == config.load([*base, "configs/external/erased_pasted.yaml"])


def test_the_published_protocol_shows_every_image_whole_and_unchanged_in_training() -> None:
    """The protocol has no augmentation: whatever the plan draws, an image is only resized."""
    import numpy as np

    from brain_dist.augmentation.augment import Frames, decide, mix, no_augmentation

    protocol = config.load(["--config", str(ROOT / "configs" / "paper" / "protocol.yaml")])
    sides = np.array([512, 224, 630, 301])
    frames = Frames(np.zeros(4, dtype=int), np.zeros(4, dtype=int), sides, sides[::-1].copy())
    rows = np.arange(4)
    for epoch in range(3):
        drawn = decide(protocol.augment, frames, rows, seed=0, epoch=epoch)
        for name, expected in vars(no_augmentation(frames, rows)).items():
            np.testing.assert_array_equal(getattr(drawn, name), expected, err_msg=name)
    assert mix(protocol.augment, rows, np.ones(4, dtype=bool), seed=0, step=0) is None


@pytest.mark.parametrize("name", re.findall(r"`([a-z0-9_]+\.[a-z0-9_]+)`", PAPER.split("## Its defects")[0]))
def test_the_networks_of_the_published_comparison_have_pretrained_weights(name: str) -> None:
    import timm

    if not name.endswith(".yaml"):
        assert name in timm.list_models(name.split(".")[0] + "*", pretrained=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optim.lr", "fast"], "optim.lr"),
        (["--optim.lr", "-1"], "optim.lr=-1.0: must be in (0, 100]"),
        (["--optim.lr", ".inf"], "optim.lr=inf: must be in (0, 100]\n"),
        (["--optim.warmup_epochs", ".inf"], "optim.warmup_epochs=inf: must be ≥ 0 and < 2**63"),
        (["--data.std", "[0.2, .nan, 0.2]"], "data.std=[0.2, nan, 0.2]: must be in [0.001, 1]\n"),
        (["--run.seed", "18446744073709551616"], "run.seed=18446744073709551616: must be ≥ 0 and < 2**63"),
        (["--train.timeout", ".inf"], "train.timeout=inf: must be in [1, 1000000]\n"),
        (["--model.options", "{ls_init_value: .inf}"], "model.options={'ls_init_value': inf}: must be finite"),
        (["--augment.scale", "[0.9, 0.3]"], "augment.scale=[0.9, 0.3]: must be [smallest, largest]"),
        (["--optim.speed", "3"], "unknown option --optim.speed"),
        (["--data.shard", "x"], "unknown option --data.shard (did you mean --data.shards?)"),
        (["--data", "{shard: x}"], "unknown setting data.shard (did you mean data.shards?)"),
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--train.zero_stage", "5"], "train.zero_stage"),
        (["--run.name", "a/b"], "run.name=a/b"),
        (["--train.zero_stage", "3", "--optim.ema", "0.9"], "optim.ema=0.9 needs whole weights"),
        (["--train.patience", "3"], "train.patience=3 needs train.best"),
        (["--train.best", "f1"], "train.best"),
        (["--optim.layer_decay", "1.2"], "optim.layer_decay=1.2: must be in (0, 1]"),
        (["--model.compile", "true", "--train.zero_stage", "3"], "set train.zero_stage=2 or model.compile=false"),
        (["--train.micro_batch", "3", "--augment.mixup", "0.2"], "even micro-batch"),
        (["--data.color", "rgb", "--model.in_chans", "1"], "data.color=rgb"),
        (["--model.pretrained", "true", "--model.weights", "x"], "keep one of them"),
        ([], "data.shards is not set"),
        (["--data.shards", "absent"], "absent"),
    ],
)
def test_an_invalid_setting_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    result = verb("train", *arguments, expect=2)
    assert message in result.err
    assert result.err.startswith("brain-dist: error: ")
    assert len(result.err.strip().splitlines()) == 1


def test_no_number_may_be_infinite_or_nan_or_exceed_64_bits() -> None:
    checked = 0
    for section in vars(config.Config()).values():
        for name, value in vars(section).items():
            if isinstance(value, bool) or not isinstance(value, int | float | tuple):
                continue
            for number in (math.nan, math.inf, -math.inf, 2**64, -(2**64)):
                replacement = (*value[1:], number) if isinstance(value, tuple) else number
                with pytest.raises(UserError, match=rf"\.{name}=.*: must be "):
                    dataclasses.replace(section, **{name: replacement})
                checked += 1
    assert checked > 200


@pytest.mark.parametrize(
    ("limits", "inside", "outside"),
    [
        (Range(0, 1, "[)"), [0, 0.0, 0.999], [-1e-9, 1]),
        (Range(0, 1, "(]"), [1e-300, 1], [0, 1.001]),
        (Range(1), [1, 2**63 - 1], [0, 2**63, math.inf, math.nan]),
        (Range(), [-(2**63), 0.5], [-(2**64), math.nan]),
    ],
)
def test_a_range_contains_its_closed_ends(limits: Range, inside: list[float], outside: list[float]) -> None:
    assert all(number in limits for number in inside)
    assert not any(number in limits for number in outside)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  nmae: resnet50\n", ":2: unknown setting model.nmae (did you mean model.name?); "),
        ("# comment\nmodle:\n  name: resnet50\n", ":3: unknown setting modle.name (did you mean model.name?); "),
        ("data: {size: 64}\noptim:\n  lr: fast\n", ":3: optim.lr=fast: must be a number; "),
        ("optim:\n  lr: -1\n", ":2: optim.lr=-1.0: must be in (0, 100]"),
        ("optim:\n  lr:\n", ":2: optim.lr=null: must be a number"),
        ("optim:\n  betas: 0.9\n", ":2: optim.betas=0.9: must be a list of 2 numbers; "),
        ("data:\n  std: [1, 2]\n", ":2: data.std=[1, 2]: must be a list of 3 numbers; "),
        ("train:\n  zero_stage: 7\n", ":2: train.zero_stage=7: must be one of 0, 1, 2, 3; "),
        ("data:\n  fold: first\n", ":2: data.fold=first: must be an integer or null; "),
        ("model:\n  compile: perhaps\n", ":2: model.compile=perhaps: must be true or false; "),
        ("model:\n  options: 5\n", ":2: model.options=5: must be a mapping, such as {key: value}; "),
        ("model: resnet50\n", ":1: model=resnet50: must be a mapping, such as {key: value}; "),
        ("train:\n  zero_stage: 3\noptim: {ema: 0.9}\n", ":3: optim.ema=0.9 needs whole weights"),
        ("model:\n  name: a\n  name: b\n", ":3: 'name' is given twice"),
        ("model: {name: [\ntrain: 3\n", ":3: not valid YAML: expected ',' or ']'"),
        ("model:\n\tname: a\n", ":2: not valid YAML: found character"),
        ("- 1\n", ": must be a mapping of settings, such as `model: {name: resnet50}`"),
        ("", ": must be a mapping of settings, such as `model: {name: resnet50}`"),
    ],
)
def test_a_mistake_in_a_file_names_the_file_the_line_and_what_is_allowed(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=f"^{re.escape(f'{file}{message}')}") as caught:
        config.load(["--config", str(file)])
    assert "\n" not in str(caught.value)


def test_a_value_from_a_flag_is_not_looked_for_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("optim: {lr: 0.1, clip: -1}\n")
    with pytest.raises(UserError, match=r"^optim\.lr=-1\.0"):
        config.load([f"--config={file}", "--optim.lr", "-1", "--optim.clip=1"])
    with pytest.raises(UserError, match=r"settings\.yaml:1: optim\.clip=-1\.0"):
        config.load(["--optim.clip", "1", "--config", str(file)])


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"model: \xff\n")
    for name in ("latin.yaml", "absent.yaml", "."):
        with pytest.raises(UserError, match=rf"^--config {tmp_path / name} cannot be read"):
            config.load(["--config", str(tmp_path / name)])


@pytest.mark.parametrize(
    "name", ["shard", "train", "evaluate", "shortcut", "report", "profile", "scaling run", "sync", "weights"]
)
def test_help_imports_nothing_heavy(name: str) -> None:
    name, *words = name.split()
    heavy = "{'torch', 'deepspeed', 'timm', 'nvidia', 'scipy', 'sklearn', 'matplotlib', 'pyarrow', 'wandb', 'nilearn'}"
    script = (
        "import sys, contextlib\n"
        f"from brain_dist.{name} import main\n"
        "with contextlib.suppress(SystemExit):\n"
        f"    main([*{words}, '--help'])\n"
        f"imported = {heavy} & set(sys.modules)\n"
        "sys.exit(f'imported {imported}' if imported else 0)"
    )
    result = command([sys.executable, "-c", script])
    assert "usage:" in result.out
    assert len(result.out.splitlines()) > 5


def test_the_command_lists_its_verbs_and_rejects_unknown_ones() -> None:
    assert "evaluate" in command([sys.executable, "-m", "brain_dist", "--help"]).out
    result = command([sys.executable, "-m", "brain_dist", "tran"], expect=2)
    assert result.err.startswith("brain-dist: error: unknown command 'tran' (did you mean train?); choose from")
