"""Predictions from tables of real profiles, and their error messages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from helpers import ROOT, TINY, in_process, launch

from brain_dist.config import load
from brain_dist.scalability import results
from brain_dist.scalability.cases import Case
from brain_dist.scalability.machines import read_machine

MACHINES = ROOT / "configs" / "machines"


@pytest.fixture(scope="module")
def out(phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scaling.parquet of real profiles on one and on two ranks."""
    folder = tmp_path_factory.mktemp("scaling")
    rows = []
    for ranks, micro_batch in ((1, 8), (2, 8), (2, 4)):
        path = folder / f"{ranks}x{micro_batch}.json"
        settings = ["--data.shards", str(phantom_shards), "--run.dir", str(folder), "--data.loader", "synthetic"]
        settings += ["--train.global_batch", str(8 * ranks), "--train.micro_batch", str(micro_batch)]
        settings += ["--train.precision", "fp32", "--train.zero_stage", "1", "--run.device", "cpu"]
        launch(ranks, "profile", *TINY, *settings, "--steps", "3", "--out", str(path))
        case = Case("weak", nodes=ranks, ranks_per_node=1, repeat=0, config=load([*TINY, *settings], "profile"))
        rows.append(results.profile_row(case, json.loads(path.read_text())))
    results.write(folder / "scaling.parquet", rows)
    return folder


def predict(out: Path, machine: Path, *arguments: str, expect: int = 0) -> Any:
    return in_process("scaling", "predict", str(out), "--machine", str(machine), *arguments, expect=expect)


def predicted(folder: Path) -> list[dict[str, Any]]:
    """Rows of the prediction in ``folder``."""
    return pq.read_table(folder / "predict.parquet").to_pylist()


def test_profiles_have_the_counts_that_the_cost_model_uses(out: Path) -> None:
    one, two, accumulated = pq.read_table(out / "scaling.parquet").to_pylist()
    assert (one["messages"], one["bytes_sent"]) == (0, 0)
    # stage 1: gradients and weights once, and the gradient norm
    assert 2 * 4 * two["parameters"] <= two["bytes_sent"] < 2.01 * 4 * two["parameters"]
    assert two["messages"] >= 3
    assert accumulated["bytes_sent"] == two["bytes_sent"]
    assert {row["hosts"] for row in (one, two)} == {1}
    assert {row["threads"] for row in (one, two)} == {1}
    assert one["cores"] >= 1


@pytest.mark.parametrize("machine", sorted(MACHINES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_described_machine_is_predicted_with_its_source_and_error(
    out: Path, tmp_path: Path, machine: Path
) -> None:
    done = predict(out, machine, "--nodes", "1,2,8", "--out", str(tmp_path))
    description = read_machine(machine)
    assert "extrapolations, not measurements" in done.out
    assert description.source[:60] in " ".join(done.out.split())
    assert "held-back error of the step time: median" in done.out
    rows = predicted(tmp_path)
    assert {(r["nodes"], r["ranks"]) for r in rows} == {(n, n * description.ranks_per_node) for n in (1, 2, 8)}
    for row in rows:
        parts = sum(row[name] for name in ("compute", "exposed", "waiting", "optimiser", "other"))
        assert row["step"] == pytest.approx(max(parts, row["alone_loader"]))
        assert row["images_per_s"] == pytest.approx(row["global_batch"] / row["step"])
        assert row["efficiency"] == pytest.approx(row["speedup"] / row["nodes"])
    assert (tmp_path / "predict.png").read_bytes().startswith(b"\x89PNG")


def test_the_held_back_error_includes_overlap(out: Path, tmp_path: Path) -> None:
    table = pq.read_table(out / "scaling.parquet")
    on_gpus = table.set_column(table.schema.get_field_index("device"), "device", pa.array(["cuda"] * table.num_rows))
    pq.write_table(on_gpus, tmp_path / "scaling.parquet")
    errors = []
    for overlap in ("true", "false"):
        settings = tmp_path / f"{overlap}.json"
        settings.write_text(f'{{"zero_optimization": {{"overlap_comm": {overlap}, "reduce_bucket_size": 1000}}}}')
        done = predict(tmp_path, MACHINES / "dgx_h100.yaml", "--deepspeed", str(settings))
        errors += re.findall(r"held-back error of the step time: .*", done.out)
    assert len(set(errors)) == 2


def test_a_described_device_computes_at_its_described_rate(out: Path, tmp_path: Path) -> None:
    predict(out, MACHINES / "dgx_h100.yaml", "--nodes", "1", "--micro-batch", "16", "--out", str(tmp_path))
    flops = pq.read_table(out / "scaling.parquet").to_pylist()[0]["flops_per_image"]
    for row in predicted(tmp_path):
        assert row["compute"] == pytest.approx(row["micros"] * 16 * flops / (67e12 * 0.3))
        assert row["waiting"] == row["alone_loader"] == 0


def test_measured_images_per_s_of_a_device_take_precedence_over_its_rate(out: Path, tmp_path: Path) -> None:
    machine = tmp_path / "machine.yaml"
    text = (MACHINES / "dgx_h100.yaml").read_text()
    machine.write_text(text.replace("  mfu:", "  images_per_s: {test_convnext: 250}\n  mfu:"))
    predict(out, machine, "--nodes", "1", "--out", str(tmp_path))
    for row in predicted(tmp_path):
        assert row["compute"] == pytest.approx(row["micros"] * row["micro_batch"] / 250)


def test_a_slower_network_costs_time_and_overlap_hides_part_of_it(out: Path, tmp_path: Path) -> None:
    fast = MACHINES / "a100_200gbit.yaml"
    slow = tmp_path / "slow.yaml"
    slow.write_text(fast.read_text().replace("25.0e+9", "2.5e+6").replace("mfu: 0.3", "mfu: 1.0e-5"))
    settings = tmp_path / "zero1.json"
    settings.write_text('{"zero_optimization": {"stage": 1, "overlap_comm": true, "reduce_bucket_size": 20000}}')
    rows = {}
    for name, machine, arguments in (
        ("fast", fast, []), ("slow", slow, []), ("overlapped", slow, ["--deepspeed", str(settings)]),
    ):  # fmt: skip
        predict(out, machine, "--nodes", "4", "--out", str(tmp_path), *arguments)
        rows[name] = predicted(tmp_path)[0]
    assert rows["slow"]["communication"] > 50 * rows["fast"]["communication"]
    assert rows["slow"]["exposed"] == rows["slow"]["communication"] == rows["overlapped"]["communication"]
    hidden = rows["slow"]["exposed"] - rows["overlapped"]["exposed"]
    assert rows["slow"]["step"] - rows["overlapped"]["step"] == pytest.approx(hidden)
    # only backward, a part of compute, hides gradients, which are two thirds of the bytes on the wire
    assert 0 < hidden < rows["slow"]["compute"]
    assert hidden < 2 / 3 * rows["slow"]["communication"]


def test_strong_scaling_takes_a_micro_batch_that_divides_and_skips_other_numbers_of_ranks(
    out: Path, tmp_path: Path
) -> None:
    row = pq.read_table(out / "scaling.parquet").to_pylist()[1]  # two ranks with one micro-batch of 8
    pq.write_table(pa.Table.from_pylist([{**row, "mode": "strong", "micros": 3}]), tmp_path / "scaling.parquet")
    predict(tmp_path, MACHINES / "cpu_2_cores.yaml", "--nodes", "1,2,4,5", "--out", str(tmp_path))
    batches = [(row["ranks"], row["micro_batch"], row["micros"]) for row in predicted(tmp_path)]
    assert batches == [(2, 8, 3), (4, 6, 2), (8, 6, 1)]


def test_a_described_loader_limits_the_rate(out: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow.yaml"
    slow.write_text((MACHINES / "cpu_2_cores.yaml").read_text() + "loader_images_per_s: 10\n")
    predict(out, slow, "--nodes", "1", "--out", str(tmp_path))
    assert {round(row["images_per_s"], 6) for row in predicted(tmp_path)} == {10}


def test_strong_scaling_keeps_the_global_batch_while_every_rank_has_an_image(out: Path, tmp_path: Path) -> None:
    measured = pq.read_table(out / "scaling.parquet").to_pylist()
    pq.write_table(pa.Table.from_pylist([{**r, "mode": "strong"} for r in measured]), tmp_path / "scaling.parquet")
    predict(tmp_path, MACHINES / "cpu_2_cores.yaml", "--nodes", "1,2,4,8,16", "--out", str(tmp_path))
    rows = predicted(tmp_path)
    assert {row["global_batch"] for row in rows} == {8, 16}
    largest = [row for row in rows if row["global_batch"] == 16]
    assert {row["nodes"] for row in largest} == {1, 2, 4, 8}  # 16 nodes have 32 ranks
    assert all(row["micro_batch"] * row["micros"] * row["ranks"] == 16 for row in largest)
    done = predict(tmp_path, MACHINES / "dgx_h100.yaml", "--nodes", "64", expect=2)
    assert "gets an image" in done.err


MISTAKES = [
    ("ranks_per_node: 4", "ranks_per_node: 0", "ranks_per_node=0: must be finite and > 0"),
    ("ranks_per_node: 4", "ranks_per_node: 1.5", "ranks_per_node must be an integer, got 1.5"),
    ("mfu: 0.3", "mfu: 30", "compute.mfu=30: must be ≤ 1"),
    ("  mfu: 0.3\n", "", "compute.mfu is missing"),
    ("  latency: 5.0e-6\n", "", "link: the key 'latency' is missing"),
    ("network:\n", "wires:\n", "unknown key 'wires'; known keys: name, source,"),
    ("bandwidth: 25.0e+9", "bandwidth: fast", "network: bandwidth must be a number, got 'fast'"),
    ("device: cuda", "device: tpu", "device must be one of cpu, cuda, got 'tpu'"),
    ("device: cuda", "device: cuda\nspeed: 3", "unknown key 'speed'; known keys: name, source,"),
    ("fp32: 19.5e+12", "fp8: 19.5e+12", "compute.rate.fp8: unknown precision; allowed: fp32, amp, bf16, fp16"),
    ("fp32: 19.5e+12", "fp32: -1", "compute.rate.fp32=-1: must be finite and > 0"),
    ("name: 4 × A100 with 200 Gbit/s", "name: ''", "name must be text, got ''"),
    ("network:\n  bandwidth: 25.0e+9\n  latency: 15.0e-6\n", "network: fast\n",
     "network must be measured or a mapping of keys, got 'fast'"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES, ids=[message for *_, message in MISTAKES])
def test_a_mistake_in_a_machine_file_is_one_line(out: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (MACHINES / "a100_200gbit.yaml").read_text()
    assert old in text
    path = tmp_path / "machine.yaml"
    path.write_text(text.replace(old, new, 1))
    done = predict(out, path, "--out", str(tmp_path), expect=2)
    assert message in done.err
    assert re.search(rf"{path}(:\d+)?: ", done.err)
    assert done.err.count("\n") == 1


def test_other_mistakes_are_one_line(out: Path, tmp_path: Path) -> None:
    machine = MACHINES / "cpu_2_cores.yaml"
    table = pq.read_table(out / "scaling.parquet")
    damaged = bytearray((out / "scaling.parquet").read_bytes())
    damaged[8:40] = bytes(255 - byte for byte in damaged[8:40])
    tables: dict[str, bytes | pa.Table] = {
        "text": b"no", "damaged": bytes(damaged), "lacking": table.drop_columns(["t_other"]),
        "empty": table.slice(0, 0), "one_rank": table.filter(pc.equal(table["ranks"], 1)),
    }  # fmt: skip
    for name, content in tables.items():
        (tmp_path / name).mkdir()
        if isinstance(content, bytes):
            (tmp_path / name / "scaling.parquet").write_bytes(content)
        else:
            pq.write_table(content, tmp_path / name / "scaling.parquet")
    no_object, gpu, bracket = tmp_path / "no_object.json", tmp_path / "gpu.yaml", tmp_path / "bracket.yaml"
    no_object.write_text('{"zero_optimization": true}')
    gpu.write_text(machine.read_text().replace("device: cpu", "device: cuda"))
    bracket.write_text("[")
    no_rate = tmp_path / "no_rate.yaml"
    no_rate.write_text((MACHINES / "a100_200gbit.yaml").read_text().replace("    fp32: 19.5e+12\n", ""))
    for folder, file, arguments, message in (
        (tmp_path, machine, [], "does not exist; create it with"),
        (tmp_path / "text", machine, [], "is not a valid Parquet file"),
        (tmp_path / "lacking", machine, [], "it lacks t_other"),
        (tmp_path / "damaged", machine, [], "is not a valid Parquet file"),
        (tmp_path / "empty", machine, [], "has no rows"),
        (tmp_path / "one_rank", machine, [], "two or more ranks"),
        (out, gpu, [], "measured on a cpu"),
        (out, no_rate, [], "the machine's compute.rate has no fp32"),
        (out, bracket, [], "bracket.yaml:1: not valid YAML"),
        (out, tmp_path / "none.yaml", [], "No such file"),
        (out, machine, ["--nodes", "1,two"], "--nodes 1,two: must be integers"),
        (out, machine, ["--nodes", "0"], "--nodes 0: must be ≥ 1"),
        (out, machine, ["--micro-batch", "0"], "--micro-batch 0: must be ≥ 1"),
        (out, machine, ["--deepspeed", str(tmp_path / "no.json")], "No such file"),
        (out, machine, ["--deepspeed", str(bracket)], "is not valid JSON"),
        (out, machine, ["--deepspeed", str(no_object)], "'zero_optimization' must be an object"),
    ):
        done = predict(folder, file, *arguments, expect=2)
        assert message in done.err
        assert done.err.count("\n") == 1
