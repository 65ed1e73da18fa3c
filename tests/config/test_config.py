"""Configuration: what is written is what is read, and every mistake is one line and exit code 2."""

import sys
from pathlib import Path

import pytest
from conftest import ROOT, command, verb

from brain_dist import config
from brain_dist.errors import UserError

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def test_flags_win_over_yaml_and_yaml_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("optim: {lr: 0.5, weight_decay: 0.1}\ndata: {size: 64}\n")
    made = config.load(["--config", str(file), "--optim.lr", "0.25"])
    assert (made.optim.lr, made.optim.weight_decay, made.data.size) == (0.25, 0.1, 64)
    assert made.train.epochs == config.TrainConfig().epochs


def test_a_dumped_configuration_reads_back_the_same(tmp_path: Path) -> None:
    made = config.load(["--augment.scale", "[0.3, 0.9]", "--model.weights", "w.pth", "--optim.betas", "[0.8, 0.9]"])
    (tmp_path / "config.yaml").write_text(config.dump(made))
    assert config.read(tmp_path / "config.yaml") == made


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads_and_names_a_model_of_timm(file: Path) -> None:
    import timm

    made = config.load(["--config", str(file)])
    assert timm.is_model(made.model.name)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--optim.lr", "fast"], "optim.lr"),
        (["--optim.lr", "-1"], "optim.lr=-1.0: must be positive"),
        (["--optim.speed", "3"], "--optim.speed"),
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--train.zero_stage", "5"], "train.zero_stage"),
        (["--run.name", "a/b"], "run.name=a/b"),
        (["--train.zero_stage", "3", "--optim.ema", "0.9"], "optim.ema needs whole weights"),
        (["--train.patience", "3"], "train.patience=3 needs train.best"),
        (["--train.best", "f1"], "train.best"),
        (["--optim.layer_decay", "1.2"], "optim.layer_decay=1.2: needs 0 < value"),
        (["--model.compile", "true", "--train.zero_stage", "3"], "set train.zero_stage=2 or model.compile=false"),
        (["--train.micro_batch", "3", "--augment.mixup", "0.2"], "even micro-batch"),
        (["--data.color", "rgb", "--model.in_chans", "1"], "data.color=rgb"),
        (["--model.pretrained", "true", "--model.weights", "x"], "keep one of them"),
        ([], "data.shards is not set"),
        (["--data.shards", "absent"], "absent"),
    ],
)
def test_each_mistake_is_one_line_and_exit_code_2(words: list[str], says: str) -> None:
    done = verb("train", *words, expect=2)
    assert says in done.err
    assert done.err.startswith("brain-dist: error: ")
    assert len(done.err.strip().splitlines()) == 1


def test_an_unknown_key_in_yaml_is_named(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("optim: {lrr: 1.0}\n")
    with pytest.raises(UserError, match="lrr"):
        config.load(["--config", str(file)])


@pytest.mark.parametrize("name", ["shard", "train", "evaluate", "shortcut", "report", "scaling run", "weights"])
def test_help_reads_well_and_imports_nothing_heavy(name: str) -> None:
    name, *words = name.split()
    heavy = "{'torch', 'deepspeed', 'timm', 'nvidia', 'scipy', 'sklearn', 'matplotlib', 'pyarrow', 'wandb', 'nilearn'}"
    script = (
        "import sys, contextlib\n"
        f"from brain_dist.{name} import main\n"
        "with contextlib.suppress(SystemExit):\n"
        f"    main([*{words}, '--help'])\n"
        f"found = {heavy} & set(sys.modules)\n"
        "sys.exit(f'imported {found}' if found else 0)"
    )
    done = command([sys.executable, "-c", script])
    assert "usage:" in done.out
    assert len(done.out.splitlines()) > 5


def test_the_command_lists_its_verbs_and_refuses_others() -> None:
    assert "evaluate" in command([sys.executable, "-m", "brain_dist", "--help"]).out
    done = command([sys.executable, "-m", "brain_dist", "tran"], expect=2)
    assert done.err.startswith("brain-dist: error: no verb 'tran'")
