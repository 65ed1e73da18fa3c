"""Ring and ZeRO formulas against numbers worked out by hand, and DeepSpeed's traffic."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from known_steps import MILLION, case

from brain_dist.scalability.traffic import Traffic, ring_bytes, ring_hops, zero_footprint


def test_ring_bytes_and_hops() -> None:
    # all-reduce of 100 bytes on four ranks: three quarters out and three quarters back, in 3 + 3 hops
    assert (ring_bytes("all_reduce", 100, 4), ring_hops("all_reduce", 4)) == (150, 6)
    assert (ring_bytes("all_gather_into_tensor", 100, 4), ring_hops("all_gather_into_tensor", 4)) == (75, 3)
    assert ring_bytes("reduce_scatter_tensor", 100, 2) == 50
    assert ring_bytes("reduce_scatter_tensor", 100, 2, "cpu") == 100  # gloo uses an all-reduce
    assert ring_bytes("all_reduce", 100, 1) == ring_hops("all_reduce", 1) == 0
    assert ring_bytes("all_reduce", 100, 10**6) == pytest.approx(200, rel=2e-6)


def test_zero_footprint_matches_the_example_of_the_paper() -> None:
    # Rajbhandari et al. 2020, figure 1: Ψ = 7.5 billion, N_d = 64, K = 12; in GB
    expected = [(15.0, 15.0, 90.0), (15.0, 15.0, 1.41), (15.0, 0.234, 1.41), (0.234, 0.234, 1.41)]
    totals = [120.0, 31.4, 16.6, 1.88]
    for stage, (parts, total) in enumerate(zip(expected, totals, strict=True)):
        memory = zero_footprint(stage, 7.5e9, 64, "bf16")
        assert [memory.weights / 1e9, memory.gradients / 1e9, memory.optimiser / 1e9] == pytest.approx(parts, rel=0.01)
        assert (memory.weights + memory.gradients + memory.optimiser) / 1e9 == pytest.approx(total, rel=0.01)


def test_zero_footprint_in_fp32_on_one_rank_and_on_many() -> None:
    assert [zero_footprint(stage, 100, 4, "fp32").traffic for stage in (0, 1, 2, 3)] == [600, 600, 600, 900]
    assert zero_footprint(0, 100, 2, "fp32").optimiser == 800
    assert zero_footprint(1, 100, 2, "fp32", master_weights=True).optimiser == 600
    alone = [zero_footprint(stage, 100, 1, "bf16") for stage in (0, 1, 2, 3)]
    assert {(z.weights, z.gradients, z.optimiser, z.traffic) for z in alone} == {(200, 200, 1200, 0)}
    doubled = [zero_footprint(3, 100, 2**power, "bf16") for power in range(6)]
    assert all(a.weights == 2 * b.weights and a.traffic < b.traffic for a, b in itertools.pairwise(doubled))
    with pytest.raises(ValueError, match="stage 4"):
        zero_footprint(4, 100, 2, "bf16")


def test_expected_traffic_of_deepspeed() -> None:
    # on two ranks half of every message is sent by each rank; gloo implements reduce-scatter as all-reduce
    sent = [case(2, stage=stage, micros=1).wire_bytes for stage in (0, 1, 2, 3)]
    assert sent == [4 * MILLION, 6 * MILLION, 6 * MILLION, 6 * MILLION]
    assert replace(case(2, stage=3, micros=1), device="cuda").wire_bytes == 4 * MILLION
    assert case(2, stage=1, micros=3).wire_bytes == 6 * MILLION
    assert case(2, stage=2, micros=3).wire_bytes == 14 * MILLION  # reduced three times, gathered once
    # gradients under autocast have two bytes at stages 1 to 3
    sent = [Traffic.expected(stage, 2, MILLION, "amp").wire_bytes(2, "cpu") for stage in (0, 1, 2, 3)]
    assert sent == [4 * MILLION, 4 * MILLION, 6 * MILLION, 6 * MILLION]


def test_traffic_from_counted_collectives() -> None:
    counts = {"all_gather_into_tensor": [94, 7e6], "reduce_scatter_tensor": [4, 8e6], "all_reduce": [2, 16.0]}
    traffic = Traffic.from_counts(counts)
    assert (traffic.gathered, traffic.scattered, traffic.reduced) == ((94, 7e6), (4, 8e6), (2, 16))
    assert (traffic.hops(3, "cuda"), traffic.hops(3, "cpu")) == (2 * (94 + 4 + 4), 2 * (94 + 8 + 4))
    assert traffic.wire_bytes(2, "cpu") == (7e6 + 2 * 8e6 + 32) / 2
    assert traffic.gradient_share("cpu") == pytest.approx(16e6 / 23e6, rel=1e-5)
    twice = traffic.scale_gradients(2)
    assert (twice.gathered, twice.scattered, twice.reduced) == ((94, 7e6), (8, 16e6), (4, 32))


def test_a_case_on_other_ranks_sends_what_its_stage_sends() -> None:
    from_one_rank = case(1, stage=2).on(ranks=4, nodes=2, micro_batch=8, micros=1)
    assert from_one_rank.traffic == Traffic(gathered=(1, 4 * MILLION), reduced=(1, 4 * MILLION))
    three_micros = case(2, stage=2, micros=1).on(ranks=8, nodes=2, micro_batch=4, micros=3)
    assert three_micros.traffic == Traffic(gathered=(3, 4 * MILLION), reduced=(3, 12 * MILLION))
    stage_0 = case(2, stage=0, micros=1).on(ranks=8, nodes=2, micro_batch=4, micros=3)
    assert stage_0.traffic == Traffic(reduced=(1, 4 * MILLION))
