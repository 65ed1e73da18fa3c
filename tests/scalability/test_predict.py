"""Predictions from tables of real profiles, and what the user is told who gets something wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, TINY, in_process, launch

from brain_dist.config import load
from brain_dist.scalability import machines, results
from brain_dist.scalability.cases import Case

MACHINES = ROOT / "configs" / "machines"
GIVEN = sorted(MACHINES.glob("*.yaml"))


@pytest.fixture(scope="module")
def out(phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scaling.parquet of real profiles, on one rank and on two."""
    folder = tmp_path_factory.mktemp("scaling")
    rows = []
    for ranks, micro_batch in ((1, 8), (2, 8), (2, 4)):
        path = folder / f"{ranks}x{micro_batch}.json"
        words = ["--data.shards", str(phantom_shards), "--run.dir", str(folder), "--data.loader", "synthetic"]
        words += ["--train.global_batch", str(8 * ranks), "--train.micro_batch", str(micro_batch)]
        words += ["--train.precision", "fp32", "--train.zero_stage", "1", "--run.device", "cpu"]
        launch(ranks, "profile", *TINY, *words, "--steps", "3", "--out", str(path))
        case = Case("weak", nodes=ranks, ranks_per_node=1, repeat=0, config=load([*TINY, *words], "profile"))
        rows.append(results.row(case, json.loads(path.read_text())))
    results.write(folder / "scaling.parquet", rows)
    return folder


def predict(out: Path, machine: Path, *words: str, expect: int = 0) -> Any:
    return in_process("scaling_predict", str(out), "--machine", str(machine), *words, expect=expect)


def test_real_profiles_count_what_the_model_reads(out: Path) -> None:
    one, two, accumulated = pq.read_table(out / "scaling.parquet").to_pylist()
    assert (one["messages"], one["bytes_sent"]) == (0, 0)
    # stage 1: gradients and weights, once, and the gradient's norm
    assert 2 * 4 * two["parameters"] <= two["bytes_sent"] < 2.01 * 4 * two["parameters"]
    assert two["messages"] >= 3
    assert accumulated["bytes_sent"] == two["bytes_sent"]
    assert {r["hosts"] for r in (one, two)} == {1}
    assert {r["threads"] for r in (one, two)} == {1}
    assert one["cores"] >= 1


@pytest.mark.parametrize("machine", GIVEN, ids=lambda path: path.stem)
def test_every_machine_of_the_project_is_predicted_and_says_that_it_is_a_guess(
    out: Path, tmp_path: Path, machine: Path
) -> None:
    done = predict(out, machine, "--nodes", "1,2,8", "--out", str(tmp_path))
    told = machines.load(machine)
    assert "extrapolations, not measurements" in done.out
    assert told.source[:60] in " ".join(done.out.split())
    assert "held-back error of the step time: median" in done.out
    found = pq.read_table(tmp_path / "predict.parquet").to_pylist()
    assert {(r["nodes"], r["ranks"]) for r in found} == {(n, n * told.ranks_per_node) for n in (1, 2, 8)}
    for r in found:
        parts = sum(r[name] for name in ("compute", "exposed", "waiting", "optimiser", "other"))
        assert r["step"] == pytest.approx(max(parts, r["alone_loader"]))
        assert r["images_per_s"] == pytest.approx(r["global_batch"] / r["step"])
        assert r["efficiency"] == pytest.approx(r["speedup"] / r["nodes"])
    assert (tmp_path / "predict.png").read_bytes().startswith(b"\x89PNG")


def test_a_described_device_computes_as_fast_as_its_file_says(out: Path, tmp_path: Path) -> None:
    predict(out, MACHINES / "dgx_h100.yaml", "--nodes", "1", "--micro-batch", "16", "--out", str(tmp_path))
    flops = pq.read_table(out / "scaling.parquet").to_pylist()[0]["flops_per_image"]
    for found in pq.read_table(tmp_path / "predict.parquet").to_pylist():
        assert found["compute"] == pytest.approx(found["micros"] * 16 * flops / (67e12 * 0.3))
        assert found["waiting"] == found["alone_loader"] == 0


def test_a_slower_network_costs_time_and_overlap_gives_some_back(out: Path, tmp_path: Path) -> None:
    plain = (MACHINES / "a100_200gbit.yaml").read_text()
    slow = tmp_path / "slow.yaml"
    slow.write_text(plain.replace("25.0e+9", "2.5e+6").replace("mfu: 0.3", "mfu: 1.0e-5"))
    settings = tmp_path / "zero1.json"
    settings.write_text('{"zero_optimization": {"stage": 1, "overlap_comm": true, "reduce_bucket_size": 20000}}')
    steps = {}
    for name, machine, words in (
        ("fast", MACHINES / "a100_200gbit.yaml", []), ("slow", slow, []),
        ("overlapped", slow, ["--deepspeed", str(settings)]),
    ):  # fmt: skip
        predict(out, machine, "--nodes", "4", "--out", str(tmp_path), *words)
        steps[name] = pq.read_table(tmp_path / "predict.parquet").to_pylist()[0]
    assert steps["slow"]["communication"] > 50 * steps["fast"]["communication"]
    assert steps["slow"]["exposed"] == steps["slow"]["communication"] == steps["overlapped"]["communication"]
    hidden = steps["slow"]["exposed"] - steps["overlapped"]["exposed"]
    assert steps["slow"]["step"] - steps["overlapped"]["step"] == pytest.approx(hidden)
    # backward, a part of the computing, hides gradients: two of the three things that a ring carries around
    assert 0 < hidden < steps["slow"]["compute"]
    assert hidden < 2 / 3 * steps["slow"]["communication"]


def test_strong_scaling_takes_the_micro_batch_that_divides_and_leaves_out_what_does_not(
    out: Path, tmp_path: Path
) -> None:
    row = pq.read_table(out / "scaling.parquet").to_pylist()[1]  # two ranks of one micro-batch of 8
    pq.write_table(pa.Table.from_pylist([{**row, "mode": "strong", "micros": 3}]), tmp_path / "scaling.parquet")
    predict(tmp_path, MACHINES / "cpu_2_cores.yaml", "--nodes", "1,2,4,5", "--out", str(tmp_path))
    found = pq.read_table(tmp_path / "predict.parquet").to_pylist()
    assert [(r["ranks"], r["micro_batch"], r["micros"]) for r in found] == [(2, 8, 3), (4, 6, 2), (8, 6, 1)]


def test_a_described_loader_is_as_fast_as_its_file_says(out: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow.yaml"
    slow.write_text((MACHINES / "cpu_2_cores.yaml").read_text() + "loader_images_per_s: 10\n")
    predict(out, slow, "--nodes", "1", "--out", str(tmp_path))
    assert {round(r["images_per_s"], 6) for r in pq.read_table(tmp_path / "predict.parquet").to_pylist()} == {10}


def test_strong_scaling_keeps_the_global_batch_until_a_rank_gets_no_image(out: Path, tmp_path: Path) -> None:
    table = pq.read_table(out / "scaling.parquet").to_pylist()
    pq.write_table(pa.Table.from_pylist([{**r, "mode": "strong"} for r in table]), tmp_path / "scaling.parquet")
    predict(tmp_path, MACHINES / "cpu_2_cores.yaml", "--nodes", "1,2,4,8,16", "--out", str(tmp_path))
    found = pq.read_table(tmp_path / "predict.parquet").to_pylist()
    assert {r["global_batch"] for r in found} == {8, 16}
    largest = [r for r in found if r["global_batch"] == 16]
    assert {r["nodes"] for r in largest} == {1, 2, 4, 8}  # 16 nodes have 32 ranks
    assert all(r["micro_batch"] * r["micros"] * r["ranks"] == 16 for r in largest)
    done = predict(tmp_path, MACHINES / "dgx_h100.yaml", "--nodes", "64", expect=2)
    assert "gets an image" in done.err


MISTAKES = [
    ("ranks_per_node: 4", "ranks_per_node: 0", "ranks_per_node=0 is no number above 0"),
    ("ranks_per_node: 4", "ranks_per_node: 1.5", "no whole number"),
    ("mfu: 0.3", "mfu: 30", "at most 1"),
    ("  mfu: 0.3\n", "", "'compute.mfu' is missing"),
    ("  latency: 5.0e-6\n", "", "'link.latency' is missing"),
    ("bandwidth: 25.0e+9", "bandwidth: fast", "network.bandwidth='fast'"),
    ("device: cuda", "device: tpu", "cpu or cuda"),
    ("device: cuda", "device: cuda\nspeed: 3", "no key 'speed'"),
    ("fp32: 19.5e+12", "fp8: 19.5e+12", "no key 'compute.rate.fp8'"),
    ("    fp32: 19.5e+12\n", "", "has no fp32"),
    ("name: 4 × A100 with 200 Gbit/s", "name: ''", "must say it in words"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), MISTAKES, ids=[said for *_, said in MISTAKES])
def test_a_mistake_in_a_machines_file_is_one_line(out: Path, tmp_path: Path, old: str, new: str, said: str) -> None:
    text = (MACHINES / "a100_200gbit.yaml").read_text()
    assert old in text
    path = tmp_path / "machine.yaml"
    path.write_text(text.replace(old, new, 1))
    done = predict(out, path, "--out", str(tmp_path), expect=2)
    assert said in done.err
    assert done.err.count("\n") == 1


def test_other_mistakes_are_one_line(out: Path, tmp_path: Path) -> None:
    machine = MACHINES / "cpu_2_cores.yaml"
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "scaling.parquet").write_bytes(b"no")
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    table = pq.read_table(out / "scaling.parquet")
    pq.write_table(table.drop_columns(["t_other"]), lacking / "scaling.parquet")
    flipped = tmp_path / "flipped"
    flipped.mkdir()
    damaged = bytearray((out / "scaling.parquet").read_bytes())
    damaged[8:40] = bytes(255 - byte for byte in damaged[8:40])
    (flipped / "scaling.parquet").write_bytes(damaged)
    no_object = tmp_path / "no_object.json"
    no_object.write_text('{"zero_optimization": true}')
    empty = tmp_path / "empty"
    empty.mkdir()
    pq.write_table(table.slice(0, 0), empty / "scaling.parquet")
    alone = tmp_path / "alone"
    alone.mkdir()
    pq.write_table(table.filter(pc.equal(table["ranks"], 1)), alone / "scaling.parquet")
    text = machine.read_text()
    gpu = tmp_path / "gpu.yaml"
    gpu.write_text(text.replace("device: cpu", "device: cuda"))
    words = tmp_path / "words.yaml"
    words.write_text("[")
    for folder, file, more, said in (
        (tmp_path, machine, [], "is not there: make it with"),
        (bad, machine, [], "is no Parquet file"),
        (lacking, machine, [], "it lacks t_other"),
        (flipped, machine, [], "is no Parquet file"),
        (out, machine, ["--deepspeed", str(no_object)], "is no object"),
        (empty, machine, [], "has no row"),
        (alone, machine, [], "two or more ranks"),
        (out, gpu, [], "measured on a cpu"),
        (out, words, [], "is not YAML"),
        (out, tmp_path / "none.yaml", [], "No such file"),
        (out, machine, ["--nodes", "1,two"], "--nodes 1,two"),
        (out, machine, ["--nodes", "0"], "at least 1"),
        (out, machine, ["--micro-batch", "0"], "--micro-batch 0"),
        (out, machine, ["--deepspeed", str(tmp_path / "no.json")], "No such file"),
        (out, machine, ["--deepspeed", str(words)], "is not JSON"),
    ):
        done = predict(folder, file, *more, expect=2)
        assert said in done.err
        assert done.err.count("\n") == 1
