"""No file from a user can run code, and no key is written to a file."""

from __future__ import annotations

import ast
from pathlib import Path

from helpers import ROOT, TINY, verb

KEY = "0123456789abcdef0123456789abcdef01234567"


def test_the_wandb_key_is_in_no_file_of_a_run_and_in_no_output(phantom_shards: Path, tmp_path: Path) -> None:
    settings = ["--data.shards", str(phantom_shards), "--run.dir", str(tmp_path), "--run.name", "run"]
    arguments = [*TINY, *settings, "--train.epochs", "1", "--train.precision", "fp32", "--track.wandb", "offline"]
    result = verb("train", *arguments, WANDB_API_KEY=KEY, HOME=str(tmp_path))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"environment.json", "config.yaml", "metrics.jsonl", "COMPLETE"} <= {path.name for path in files}
    assert any(path.suffix == ".wandb" for path in files)
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in result.out + result.err


def test_tensors_are_read_without_unpickling() -> None:
    """torch.load only with weights_only; no pickles, DeepSpeed checkpoints or numpy object arrays."""
    loads, others = [], []
    for path in sorted((ROOT / "brain_dist").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            function = ast.unparse(node.func)
            arguments = {k.arg: ast.unparse(k.value) for k in node.keywords}
            objects = function in ("np.load", "numpy.load") and arguments.get("allow_pickle", "False") != "False"
            if function == "torch.load":
                loads.append(arguments.get("weights_only"))
            elif objects or function.startswith(("pickle.load", "joblib.load")) or node.func.attr == "load_checkpoint":
                others.append((path.name, function))
    assert loads
    assert set(loads) == {"True"}
    assert others == []
