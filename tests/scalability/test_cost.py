"""The cost model and its fit, on steps made from known coefficients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from known_steps import ALPHA, BETA, COMPUTE, MILLION, case, measure, true_model

from brain_dist.scalability.cost import Link, overlapped
from brain_dist.scalability.cost_fit import fit, fit_latency, held_back, nnls

CASES = [case(ranks, stage=stage, micro_batch=size) for ranks in (1, 2, 4) for stage in (0, 2) for size in (4, 8)]


def test_fit_recovers_the_coefficients() -> None:
    model = fit([measure(each) for each in CASES])
    compute = model.compute[case(stage=2).key]
    for name, value in vars(COMPUTE).items():
        assert getattr(compute, name) == pytest.approx(value, rel=1e-6), name
    assert model.link is not None
    assert model.link.latency == pytest.approx(ALPHA, rel=1e-6)
    assert model.link.bandwidth == pytest.approx(BETA, rel=1e-6)
    assert model.waiting == pytest.approx(0.05, rel=1e-6)
    assert model.network is None
    assert model.loader[case().key, "synthetic"] == pytest.approx(1e-4)
    # at stage 0 every rank steps all parameters, so the cost per parameter and per step cannot be separated
    stage_0 = model.compute[case().key]
    assert (stage_0.per_step, stage_0.per_parameter) == pytest.approx((0, 3e-9 + 0.001 / MILLION), rel=1e-6)


def test_each_stage_is_fitted_by_itself() -> None:
    steps = [measure(each) for each in CASES]
    slower = [replace(step, forward=2 * step.forward) if step.case.zero_stage else step for step in steps]
    stage_0, stage_2 = (fit(slower).compute[case(stage=stage).key] for stage in (0, 2))
    assert stage_2.per_image == pytest.approx(COMPUTE.per_image * 4 / 3)
    assert stage_0.per_image == pytest.approx(COMPUTE.per_image)


def test_the_link_and_the_network_are_fitted_separately() -> None:
    between = [case(ranks, nodes=ranks // 2, stage=2) for ranks in (4, 8, 16)]
    model = fit([measure(each) for each in [*CASES, *between]])
    assert model.link is not None
    assert model.network is not None
    assert [model.link.latency, model.network.latency] == pytest.approx([ALPHA, 10 * ALPHA], rel=1e-6)
    assert [model.link.bandwidth, model.network.bandwidth] == pytest.approx([BETA, BETA / 10], rel=1e-6)


def test_noise_changes_the_fit_by_at_most_the_noise() -> None:
    model = fit([measure(each, noise=0.05, seed=seed) for each in CASES for seed in range(10)])
    assert model.compute[case().key].per_image == pytest.approx(COMPUTE.per_image, rel=0.05)
    assert model.link is not None
    assert model.link.bandwidth == pytest.approx(BETA, rel=0.05)
    assert model.waiting == pytest.approx(0.05, rel=0.5)


def test_an_all_reduce_by_itself_separates_waiting_from_a_slow_network() -> None:
    steps = [measure(case(2, micros=micros)) for micros in (1, 2)]  # waiting and bytes sent would grow together
    model = fit(steps)
    assert model.link is not None
    assert model.link.seconds(2, 4 * MILLION) == pytest.approx(Link(ALPHA, BETA).seconds(2, 4 * MILLION), rel=1e-3)
    assert model.waiting == pytest.approx(0.05, rel=0.05)


def test_with_one_micro_batch_all_cost_is_per_image() -> None:
    compute = fit([measure(case(1)), measure(case(2))]).compute[case().key]
    assert compute.fixed == 0
    assert compute.per_image == pytest.approx(COMPUTE.per_image + COMPUTE.fixed / 8)


def test_no_coefficient_is_negative() -> None:
    steps = [measure(case(1, micro_batch=size)) for size in (4, 8, 16)]
    bent = [replace(step, forward=step.forward * step.case.micro_batch**2 / 16) for step in steps]
    compute = fit(bent).compute[case().key]
    assert compute.fixed >= 0
    assert compute.per_image > 0
    assert nnls([[1.0, 2.0]], [-1.0, -2.0]) == [0.0]


def test_cpu_factor_of_ranks_that_share_cores() -> None:
    few, many = (replace(case(ranks), cores=2) for ranks in (2, 8))
    assert (few.cpu_factor, many.cpu_factor) == (1, 4)
    assert replace(few, threads=None, ranks=1).cpu_factor == 0.5  # launch/local.py gives it both cores
    assert replace(many, device="cuda").cpu_factor == 1
    assert replace(many, nodes=4).cpu_factor == 1
    assert true_model().parts(many).compute == pytest.approx(4 * true_model().parts(few).compute)


def test_the_largest_number_of_ranks_is_held_back() -> None:
    steps = [measure(each) for each in CASES]
    result = held_back(steps)
    assert "largest number of ranks, 4" in result.method
    assert len(result.errors) == 4
    assert max(result.errors) < 1e-6
    # the fit does not use them: if a step on four ranks takes twice as long, its error is a half and no other changes
    slow = [replace(step, step=2 * step.step) if step.case.ranks == 4 else step for step in steps]
    assert held_back(slow).errors == pytest.approx([0.5] * 4, rel=1e-5)


def test_with_two_numbers_of_ranks_each_configuration_is_held_back_with_its_repeats() -> None:
    steps = [measure(each, seed=seed) for each in CASES if each.ranks < 4 for seed in range(2)]
    result = held_back(steps)
    assert "each configuration" in result.method
    assert len(result.errors) == len(steps) == 16
    assert max(result.errors) < 1e-6
    two_steps = held_back([measure(case(1)), measure(case(2))])
    assert (len(two_steps.errors), two_steps.unpredictable) == (1, 1)  # no other step used the link
    assert held_back([measure(case(1))]).unpredictable == 1


def test_overlap_leaves_at_least_one_bucket_and_hides_at_most_backward() -> None:
    counts = (1, 2, 4, 8, 1000)
    for communication in (0.01, 0.1, 1.0):
        for backward in (0.01, 0.1, 1.0):
            exposed = [overlapped(communication, backward, buckets) for buckets in counts]
            assert exposed[0] == communication  # a single bucket is full when backward ends
            assert exposed == sorted(exposed, reverse=True)
            for buckets, seconds in zip(counts, exposed, strict=True):
                assert max(communication / buckets, communication - backward) <= seconds <= communication
    assert overlapped(0.4, 1.0, 4) == 0.1
    assert overlapped(2.0, 1.0, 4) == 1.25  # starts after a quarter of backward and then never pauses


def test_only_gradients_overlap_and_a_step_is_the_sum_of_its_parts() -> None:
    of = case(4, nodes=2, stage=2, micros=1)
    plain, overlapping = true_model().parts(of), true_model().parts(of, buckets=1000)
    assert plain.exposed == plain.communication == overlapping.communication
    assert plain.communication / 3 <= overlapping.exposed < plain.exposed  # a third gathers the weights
    assert plain.step == pytest.approx(
        plain.compute + plain.exposed + plain.waiting + plain.optimiser + plain.other, rel=1e-12
    )
    slow_loader = replace(true_model(), loader={(of.key, "synthetic"): 1.0})
    assert slow_loader.parts(of).step == slow_loader.parts(of).loader == of.images * 1.0


def test_more_ranks_slower_links_and_longer_messages_never_shorten_a_step() -> None:
    cases = [case(2).on(ranks=ranks, nodes=max(1, ranks // 8), micro_batch=8, micros=2)
             for ranks in (2, 4, 8, 16, 64, 512)]  # fmt: skip
    steps = [true_model().parts(each).step for each in cases]
    assert steps == sorted(steps)
    of = case(4)
    for slower in (Link(2 * ALPHA, BETA), Link(ALPHA, BETA / 2)):
        assert true_model(link=slower).parts(of).step > true_model().parts(of).step
    longer = replace(of, traffic=of.traffic.scale_gradients(2))
    assert true_model().parts(longer).step > true_model().parts(of).step
    assert true_model(link=Link(0.0, math.inf)).parts(of).communication == 0
    assert true_model(link=None).parts(case(1)).communication == 0  # one rank needs no link
    with pytest.raises(KeyError, match="links inside"):
        true_model(link=None).parts(of)


def test_latency_with_a_known_bandwidth() -> None:
    messages = [(hops, wire / BETA, ALPHA * hops + wire / BETA) for hops, wire in ((2, 4e6), (6, 6e6), (300, 1e6))]
    assert fit_latency(messages) == pytest.approx(ALPHA, rel=1e-9)
    assert fit_latency([(2, 1.0, 0.5)]) == 0
