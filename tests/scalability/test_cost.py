"""The cost model on steps made from known numbers, and its formulas against numbers worked out by hand."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest

from brain_dist.scalability import cost, cost_fit
from brain_dist.scalability.cost import Compute, Link, Measured, Model, StepCase, Traffic

MB = 1_000_000
# 10 ms a micro-batch and 2 ms an image, two thirds of it backward; 3 ns a parameter and 1 ms; 0.5 ms
TRUTH = Compute(fixed=0.010, per_image=0.002, backward=2 / 3, per_parameter=3e-9, per_step=0.001, other=0.0005)
ALPHA, BETA = 150e-6, 40e6


def case(ranks: int = 1, *, nodes: int = 1, stage: int = 0, micro_batch: int = 8, micros: int = 2) -> StepCase:
    """A network of a million parameters in fp32, on nodes of eight cores."""
    sent = Traffic.expected(stage, micros, MB, "fp32") if ranks > 1 else Traffic()
    sent = replace(sent, gathered=(3 * sent.gathered[0], sent.gathered[1]))  # short messages tell α from β
    return StepCase(
        model="a", size=64, precision="fp32", zero_stage=stage, ranks=ranks, nodes=nodes, micro_batch=micro_batch,
        micros=micros, parameters=MB, traffic=sent, cores=8, threads=1,
    )  # fmt: skip


def truth(**links: Link | None) -> Model:
    """What makes the rows, at every stage."""
    keys = [case(stage=stage).key for stage in range(4)]
    found = {"link": Link(ALPHA, BETA), "network": Link(10 * ALPHA, BETA / 10), **links}
    loader = {(key, "synthetic"): 1e-4 for key in keys}
    return Model(dict.fromkeys(keys, TRUTH), **found, waiting=0.05, loader=loader)  # type: ignore[arg-type]


def row(of: StepCase, *, noise: float = 0.0, seed: int = 0, alone: bool = True) -> Measured:
    """The step that the true model takes, each part off by a random share up to ``noise``."""
    draw = random.Random(f"{of}{seed}")
    parts = truth().parts(of)
    off = {name: 1 + draw.uniform(-noise, noise) for name in ("forward", "backward", "optimiser", "wires", "other")}
    forward, backward = parts.compute * off["forward"] / 3, parts.compute * off["backward"] * 2 / 3
    wires = (parts.communication + parts.waiting) * off["wires"]
    optimiser, other = parts.optimiser * off["optimiser"], parts.other * off["other"]
    link = truth().network if of.nodes > 1 else truth().link
    assert link is not None
    all_reduce = link.seconds(2 * (of.ranks - 1), 2 * (of.ranks - 1) / of.ranks * 4 * MB)
    step = max(parts.loader, forward + backward + wires + optimiser + other)
    return Measured(of, forward, backward, optimiser, wires, other, step, loader=parts.loader,
                    all_reduce=all_reduce if alone and of.ranks > 1 else None)  # fmt: skip


MANY = [case(ranks, stage=stage, micro_batch=size) for ranks in (1, 2, 4) for stage in (0, 2) for size in (4, 8)]


def test_a_ring_sends_what_is_worked_out_by_hand() -> None:
    # four ranks, 100 bytes: three quarters of it there and three quarters back, in 3 + 3 steps
    assert (cost.ring_bytes("all_reduce", 100, 4), cost.ring_hops("all_reduce", 4)) == (150, 6)
    assert (cost.ring_bytes("all_gather_into_tensor", 100, 4), cost.ring_hops("all_gather_into_tensor", 4)) == (75, 3)
    assert cost.ring_bytes("reduce_scatter_tensor", 100, 2) == 50
    assert cost.ring_bytes("reduce_scatter_tensor", 100, 2, "cpu") == 100  # gloo reduces it all
    assert cost.ring_bytes("all_reduce", 100, 1) == cost.ring_hops("all_reduce", 1) == 0
    assert cost.ring_bytes("all_reduce", 100, 10**6) == pytest.approx(200, rel=2e-6)


def test_the_papers_own_example() -> None:
    # Rajbhandari et al. 2020, figure 1: Ψ = 7.5 billion, N_d = 64, K = 12; in GB
    told = [(15.0, 15.0, 90.0), (15.0, 15.0, 1.41), (15.0, 0.234, 1.41), (0.234, 0.234, 1.41)]
    totals = [120.0, 31.4, 16.6, 1.88]
    for stage, (parts, total) in enumerate(zip(told, totals, strict=True)):
        found = cost.zero(stage, 7.5e9, 64, "bf16")
        assert [found.weights / 1e9, found.gradients / 1e9, found.optimiser / 1e9] == pytest.approx(parts, rel=0.01)
        assert (found.weights + found.gradients + found.optimiser) / 1e9 == pytest.approx(total, rel=0.01)


def test_traffic_and_memory_of_four_byte_weights_and_the_limits() -> None:
    assert [cost.zero(stage, 100, 4, "fp32").traffic for stage in (0, 1, 2, 3)] == [600, 600, 600, 900]
    assert cost.zero(0, 100, 2, "fp32").optimiser == 800
    assert cost.zero(1, 100, 2, "fp32", master=True).optimiser == 600
    alone = [cost.zero(stage, 100, 1, "bf16") for stage in (0, 1, 2, 3)]
    assert {(z.weights, z.gradients, z.optimiser, z.traffic) for z in alone} == {(200, 200, 1200, 0)}
    held = [cost.zero(3, 100, 2**n, "bf16") for n in range(6)]
    assert all(a.weights == 2 * b.weights and a.traffic < b.traffic for a, b in itertools.pairwise(held))
    with pytest.raises(ValueError, match="stage 4"):
        cost.zero(4, 100, 2, "bf16")


def test_deepspeed_sends_half_as_much_again_as_the_paper_counts() -> None:
    # at two ranks half of what goes around goes over each rank's wire; gloo reduces all before it scatters
    assert [case(2, stage=stage, micros=1).wire for stage in (0, 1, 2, 3)] == [4 * MB, 6 * MB, 6 * MB, 6 * MB]
    assert replace(case(2, stage=3, micros=1), device="cuda").wire == 4 * MB
    assert case(2, stage=1, micros=3).wire == 6 * MB
    assert case(2, stage=2, micros=3).wire == 14 * MB  # three times reduced, once gathered
    # autocast's gradients have two bytes where ZeRO sends them
    assert [Traffic.expected(stage, 2, MB, "amp").wire(2, "cpu") for stage in (0, 1, 2, 3)] == [
        4 * MB, 4 * MB, 6 * MB, 6 * MB
    ]  # fmt: skip


def test_counted_collectives_keep_how_often_a_ring_carries_each() -> None:
    counted = {"all_gather_into_tensor": [94, 7e6], "reduce_scatter_tensor": [4, 8e6], "all_reduce": [2, 16.0]}
    sent = Traffic.of(counted)
    assert (sent.gathered, sent.scattered, sent.reduced) == ((94, 7e6), (4, 8e6), (2, 16))
    assert (sent.hops(3, "cuda"), sent.hops(3, "cpu")) == (2 * (94 + 4 + 4), 2 * (94 + 8 + 4))
    assert sent.wire(2, "cpu") == (7e6 + 2 * 8e6 + 32) / 2
    assert sent.of_gradients("cpu") == pytest.approx(16e6 / 23e6, rel=1e-5)
    twice = sent.with_gradients(2)
    assert (twice.gathered, twice.scattered, twice.reduced) == ((94, 7e6), (8, 16e6), (4, 32))


def test_fit_finds_the_numbers_that_made_the_rows() -> None:
    found = cost_fit.fit([row(each) for each in MANY])
    own = found.compute[case(stage=2).key]
    for name, value in vars(TRUTH).items():
        assert getattr(own, name) == pytest.approx(value, rel=1e-6), name
    assert found.link is not None
    assert found.link.latency == pytest.approx(ALPHA, rel=1e-6)
    assert found.link.bandwidth == pytest.approx(BETA, rel=1e-6)
    assert found.waiting == pytest.approx(0.05, rel=1e-6)
    assert found.network is None
    assert found.loader[case().key, "synthetic"] == pytest.approx(1e-4)
    # at stage 0 every rank steps all parameters, so nothing tells what one costs from what a step does
    plain = found.compute[case().key]
    assert (plain.per_step, plain.per_parameter) == pytest.approx((0, 3e-9 + 0.001 / MB), rel=1e-6)


def test_a_stage_is_fitted_by_itself() -> None:
    slower = [replace(row(each), forward=2 * row(each).forward) if each.zero_stage else row(each) for each in MANY]
    plain, sharded = (cost_fit.fit(slower).compute[case(stage=stage).key] for stage in (0, 2))
    assert sharded.per_image == pytest.approx(TRUTH.per_image * 4 / 3)
    assert plain.per_image == pytest.approx(TRUTH.per_image)


def test_both_kinds_of_wires_are_told_apart() -> None:
    between = [case(ranks, nodes=ranks // 2, stage=2) for ranks in (4, 8, 16)]
    found = cost_fit.fit([row(each) for each in [*MANY, *between]])
    assert found.link is not None
    assert found.network is not None
    assert [found.link.latency, found.network.latency] == pytest.approx([ALPHA, 10 * ALPHA], rel=1e-6)
    assert [found.link.bandwidth, found.network.bandwidth] == pytest.approx([BETA, BETA / 10], rel=1e-6)


def test_noise_moves_the_fit_by_no_more_than_itself() -> None:
    found = cost_fit.fit([row(each, noise=0.05, seed=seed) for each in MANY for seed in range(10)])
    own = found.compute[case().key]
    assert own.per_image == pytest.approx(TRUTH.per_image, rel=0.05)
    assert found.link is not None
    assert found.link.bandwidth == pytest.approx(BETA, rel=0.05)
    assert found.waiting == pytest.approx(0.05, rel=0.5)


def test_waiting_does_not_pass_for_a_slow_network_once_an_all_reduce_was_measured_alone() -> None:
    same = [case(2, micros=micros) for micros in (1, 2)]  # what waits and what is sent would grow together
    with_it = cost_fit.fit([row(each) for each in same])
    assert with_it.link is not None
    wires = with_it.link.seconds(2, 4 * MB)
    assert wires == pytest.approx(Link(ALPHA, BETA).seconds(2, 4 * MB), rel=1e-3)
    assert with_it.waiting == pytest.approx(0.05, rel=0.05)


def test_one_micro_batch_puts_all_on_the_images() -> None:
    own = cost_fit.fit([row(case(1)), row(case(2))]).compute[case().key]
    assert own.fixed == 0
    assert own.per_image == pytest.approx(TRUTH.per_image + TRUTH.fixed / 8)


def test_no_coefficient_is_negative_where_rows_would_have_it_so() -> None:
    rows = [row(case(1, micro_batch=size)) for size in (4, 8, 16)]
    bent = [replace(each, forward=each.forward * each.case.micro_batch**2 / 16) for each in rows]
    own = cost_fit.fit(bent).compute[case().key]
    assert own.fixed >= 0
    assert own.per_image > 0
    assert cost_fit.nnls([[1.0, 2.0]], [-1.0, -2.0]) == [0.0]


def test_processes_that_share_a_core_take_turns() -> None:
    few, many = (replace(case(ranks), cores=2) for ranks in (2, 8))
    assert (few.crowd, many.crowd) == (1, 4)
    assert replace(few, threads=None, ranks=1).crowd == 0.5  # launch/local.py gives it both cores
    assert replace(many, device="cuda").crowd == 1
    assert replace(many, nodes=4).crowd == 1
    assert truth().parts(many).compute == pytest.approx(4 * truth().parts(few).compute)


def test_the_largest_number_of_ranks_is_held_back() -> None:
    rows = [row(each) for each in MANY]
    tested = cost_fit.held_back(rows)
    assert "largest number of ranks, 4" in tested.how
    assert len(tested.errors) == 4
    assert max(tested.errors) < 1e-6
    # the fit has not seen them: a step of four ranks that is twice as long is off by half, and changes no other
    slow = [replace(each, step=2 * each.step) if each.case.ranks == 4 else each for each in rows]
    assert cost_fit.held_back(slow).errors == pytest.approx([0.5] * 4, rel=1e-5)


def test_with_two_numbers_of_ranks_each_configuration_is_held_back_with_its_repeats() -> None:
    rows = [row(each, seed=seed) for each in MANY if each.ranks < 4 for seed in range(2)]
    tested = cost_fit.held_back(rows)
    assert "each configuration" in tested.how
    assert len(tested.errors) == len(rows) == 16
    assert max(tested.errors) < 1e-6
    bare = cost_fit.held_back([row(case(1)), row(case(2))])
    assert (len(bare.errors), bare.untold) == (1, 1)  # nothing is left to tell of the wires
    assert cost_fit.held_back([row(case(1))]).untold == 1


def test_overlap_hides_no_more_than_backward_and_no_less_than_a_bucket_remains() -> None:
    for wires in (0.01, 0.1, 1.0):
        for backward in (0.01, 0.1, 1.0):
            shown = [cost.overlapped(wires, backward, buckets) for buckets in (1, 2, 4, 8, 1000)]
            assert shown[0] == wires  # one bucket is full only when backward is over
            assert shown == sorted(shown, reverse=True)
            assert all(max(wires / n, wires - backward) <= s <= wires for n, s in zip((1, 2, 4, 8, 1000), shown,
                                                                                      strict=True))  # fmt: skip
    assert cost.overlapped(0.4, 1.0, 4) == 0.1
    assert cost.overlapped(2.0, 1.0, 4) == 1.25  # it starts after a quarter and then never rests


def test_only_gradients_overlap_and_a_step_is_its_parts() -> None:
    of = case(4, nodes=2, stage=2, micros=1)
    plain, hidden = truth().parts(of), truth().parts(of, buckets=1000)
    assert plain.exposed == plain.communication == hidden.communication
    assert plain.communication / 3 <= hidden.exposed < plain.exposed  # a third gathers the weights
    assert plain.step == pytest.approx(
        plain.compute + plain.exposed + plain.waiting + plain.optimiser + plain.other, rel=1e-12
    )
    slow = replace(truth(), loader={(of.key, "synthetic"): 1.0})
    assert slow.parts(of).step == slow.parts(of).loader == of.images * 1.0


def test_more_ranks_slower_wires_and_longer_messages_never_shorten_a_step() -> None:
    steps = [truth().parts(case(2).on(ranks=ranks, nodes=max(1, ranks // 8), micro_batch=8, micros=2)).step
             for ranks in (2, 4, 8, 16, 64, 512)]  # fmt: skip
    assert steps == sorted(steps)
    of = case(4)
    for slower in (Link(2 * ALPHA, BETA), Link(ALPHA, BETA / 2)):
        assert truth(link=slower).parts(of).step > truth().parts(of).step
    assert truth().parts(replace(of, traffic=of.traffic.with_gradients(2))).step > truth().parts(of).step
    assert truth(link=Link(0.0, math.inf)).parts(of).communication == 0
    assert truth(link=None).parts(case(1)).communication == 0  # alone it needs no wires
    with pytest.raises(KeyError, match="wires inside"):
        truth(link=None).parts(of)


def test_other_ranks_send_what_the_stage_sends() -> None:
    one = case(1, stage=2).on(ranks=4, nodes=2, micro_batch=8, micros=1)
    assert one.traffic == Traffic(gathered=(1, 4 * MB), reduced=(1, 4 * MB))
    three = case(2, stage=2, micros=1).on(ranks=8, nodes=2, micro_batch=4, micros=3)
    assert three.traffic == Traffic(gathered=(3, 4 * MB), reduced=(3, 12 * MB))
    plain = case(2, stage=0, micros=1).on(ranks=8, nodes=2, micro_batch=4, micros=3)
    assert plain.traffic == Traffic(reduced=(1, 4 * MB))


def test_latency_with_a_known_bandwidth() -> None:
    rows = [(hops, wire / BETA, ALPHA * hops + wire / BETA) for hops, wire in ((2, 4e6), (6, 6e6), (300, 1e6))]
    assert cost_fit.latency(rows) == pytest.approx(ALPHA, rel=1e-9)
    assert cost_fit.latency([(2, 1.0, 0.5)]) == 0
