"""Nothing that a user was handed is run, and no key is written down."""

from __future__ import annotations

import ast
from pathlib import Path

from conftest import ROOT, TINY, verb

KEY = "0123456789abcdef0123456789abcdef01234567"


def test_the_wandb_key_reaches_no_file_of_a_run_and_no_output(phantom_shards: Path, tmp_path: Path) -> None:
    settings = ["--data.shards", str(phantom_shards), "--run.dir", str(tmp_path), "--run.name", "run"]
    words = [*TINY, *settings, "--train.epochs", "1", "--train.precision", "fp32", "--track.wandb", "offline"]
    done = verb("train", *words, WANDB_API_KEY=KEY, HOME=str(tmp_path))
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"environment.json", "config.yaml", "metrics.jsonl", "COMPLETE"} <= {path.name for path in written}
    assert any(path.suffix == ".wandb" for path in written)
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []
    assert KEY not in done.out + done.err


def test_every_file_of_tensors_is_read_without_unpickling() -> None:
    """torch.load with weights_only, and no pickle, DeepSpeed checkpoint or numpy object array is read anywhere."""
    loads, others = [], []
    for path in sorted((ROOT / "brain_dist").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            called = ast.unparse(node.func)
            safe = {k.arg: ast.unparse(k.value) for k in node.keywords}
            objects = called in ("np.load", "numpy.load") and safe.get("allow_pickle", "False") != "False"
            if called == "torch.load":
                loads.append(safe.get("weights_only"))
            elif objects or called.startswith(("pickle.load", "joblib.load")) or node.func.attr == "load_checkpoint":
                others.append((path.name, called))
    assert loads
    assert set(loads) == {"True"}
    assert others == []
