"""The look of images: exact tables, and randomisations that do what their names say."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from brain_dist.augmentation.random_network import apply_networks
from brain_dist.augmentation.skull import remove_rim
from brain_dist.augmentation.style import Style, apply_style, draw_style, look_up, quantisation, stretch
from brain_dist.config import AugmentConfig, DataConfig
from brain_dist.store.dataset import open_dataset
from brain_dist.stream.batches import batches, open_loader, training_jobs
from brain_dist.stream.plan import TrainingPlan

EVERY = AugmentConfig(curves=1, resolution=1, blur=1, bias=1, noise=1, jpeg=1, rim=1, network=1)
ROWS = np.arange(64, dtype=np.int64)


def drawn(config: AugmentConfig, rows: np.ndarray = ROWS, epoch: int = 0) -> Style:
    style = draw_style(config, rows, seed=7, epoch=epoch, visit=rows)
    assert style is not None
    return style


def pictures(count: int, size: int = 64) -> torch.Tensor:
    """Smooth shapes with sharp edges on black, uint8 [count, 1, size, size]."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    images = [
        np.where(np.hypot(x, y) < 0.8, 120 + 60 * np.sin(4 * x + i) * np.cos(3 * y), 0)
        + 60 * (np.hypot(x - 0.2, y) < 0.2)
        for i in range(count)
    ]
    return torch.from_numpy(np.stack(images).clip(0, 255).astype(np.uint8))[:, None]


def test_curves_are_exact_rising_tables_from_black_to_white() -> None:
    tables = drawn(AugmentConfig(curves=1.0)).table
    assert tables.dtype == np.uint8
    assert (np.diff(tables.astype(int), axis=1) >= 0).all()
    assert (tables[:, 0] == 0).all()
    assert (tables[:, 255] == 255).all()
    assert np.abs(tables.astype(int) - np.arange(256)).max(axis=1).mean() > 20
    assert len(np.unique(tables, axis=0)) == len(tables)
    image = pictures(64)
    changed = apply_style(drawn(AugmentConfig(curves=1.0)), image)
    for table, before, after in zip(tables, image.numpy(), changed.numpy(), strict=True):
        np.testing.assert_array_equal(after, table[before])


def test_a_probability_is_the_share_of_visits() -> None:
    rows = np.arange(4000, dtype=np.int64)
    style = drawn(AugmentConfig(curves=0.3, noise=0.6, jpeg=0.1), rows)
    assert (style.table != np.arange(256)).any(axis=1).mean() == pytest.approx(0.3, abs=0.03)
    assert (style.noise > 0).mean() == pytest.approx(0.6, abs=0.03)
    assert (style.quality > 0).mean() == pytest.approx(0.1, abs=0.02)
    assert not style.bias.any()
    assert (style.factor == 1).all()
    assert (style.sigma == 0).all()
    assert draw_style(AugmentConfig(), rows, seed=7, epoch=0, visit=rows) is None


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(64)), st.integers(0, 3))
def test_a_style_depends_on_seed_epoch_and_visit_alone(order: list[int], epoch: int) -> None:
    whole, moved = drawn(EVERY, epoch=epoch), drawn(EVERY, ROWS[order], epoch)
    for name, values in vars(whole).items():
        np.testing.assert_array_equal(getattr(moved, name), values[order])
    assert not np.array_equal(whole.table, drawn(EVERY, epoch=epoch + 1).table)


def test_an_image_has_the_same_pixels_in_any_batch(device: torch.device) -> None:
    image = pictures(64).to(device)
    style = drawn(EVERY)
    whole = apply_style(style, image)
    parts = torch.cat([apply_style(style.part(i, i + 8), image[i : i + 8]) for i in range(0, 64, 8)])
    difference = (whole.float() - parts.float()).abs()
    assert (difference > 0).float().mean() < 1e-3, "but for sums in another order, at a border between two gray levels"
    three = apply_style(style, image.expand(-1, 3, -1, -1))
    assert (three.float() - whole.float()).abs().gt(0).float().mean() < 1e-3


def test_blur_and_resolution_remove_detail_and_keep_the_mean() -> None:
    image = pictures(64)
    edges = (image.float().diff(dim=3).abs().mean((1, 2, 3)), image.float().mean((1, 2, 3)))
    for config in (AugmentConfig(blur=1.0), AugmentConfig(resolution=1.0)):
        changed = apply_style(drawn(config), image).float()
        assert (changed.diff(dim=3).abs().mean((1, 2, 3)) < edges[0]).all()
        assert ((changed.mean((1, 2, 3)) - edges[1]).abs() < 2).all()


def test_a_bias_field_is_smooth_and_leaves_black_black() -> None:
    flat = torch.full((64, 1, 64, 64), 100, dtype=torch.uint8)
    field = apply_style(drawn(AugmentConfig(bias=1.0)), flat).float()
    assert field.std((1, 2, 3)).mean() > 8
    assert field.diff(dim=2).abs().max() <= 12
    assert not apply_style(drawn(AugmentConfig(bias=1.0)), torch.zeros_like(flat)).any()


def test_noise_has_the_drawn_deviation() -> None:
    style = drawn(AugmentConfig(noise=1.0))
    noisy = apply_style(style, torch.full((64, 1, 128, 128), 128, dtype=torch.uint8)).float()
    assert noisy.std((1, 2, 3)).numpy() == pytest.approx(style.noise, rel=0.1)
    assert (noisy[0] != noisy[1]).any()


def heads(y: float, x: float, size: int = 64) -> torch.Tensor:
    """A head with textured tissue and the given half axes as shares of the image's side, uint8 [1, 1, size, size]."""
    place = (np.arange(size) + 0.5) / size - 0.5
    inside = np.hypot(place[:, None] / y, place / x) < 1
    tissue = 100 + 60 * np.sin(40 * place[:, None]) * np.cos(30 * place)
    return torch.from_numpy((tissue * inside).astype(np.uint8))[None, None]


@pytest.mark.parametrize("axes", [(0.45, 0.35), (0.5, 0.5)])
def test_the_rim_of_a_head_becomes_black(axes: tuple[float, float], device: torch.device) -> None:
    head = heads(*axes)
    width = np.array([0.08])
    changed = remove_rim(width, head.to(device)).cpu()
    inner, outer = (heads(*(value - rim for value in axes)) > 0 for rim in (0.14, 0.06))
    assert torch.equal(changed[inner], head[inner])
    assert not changed[~outer].any(), "also where the head touches an edge of the image"
    holed = head.clone()
    holed[:, :, 28:36, 28:36] = 0
    assert torch.equal(remove_rim(width, holed)[inner], holed[inner]), "dark tissue inside the head is not its outside"


def test_a_crop_inside_the_head_and_a_black_image_lose_nothing() -> None:
    inside = heads(0.45, 0.45)[:, :, 20:44, 20:44]
    black = torch.zeros_like(inside)
    assert torch.equal(remove_rim(np.array([0.08, 0.08]), torch.cat([inside, black])), torch.cat([inside, black]))


class Convolutions(TorchDispatchMode):
    """Records for each convolution whether cuDNN would time its kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.timed: list[bool] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        if function is torch.ops.aten.convolution.default:
            self.timed.append(torch.backends.cudnn.benchmark)
        return function(*arguments, **(keywords or {}))


def test_cudnn_does_not_time_kernels_for_each_number_of_random_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)  # as training sets it
    with Convolutions() as convolutions:
        apply_style(drawn(AugmentConfig(network=1.0), ROWS[:4]), pictures(4))
    assert convolutions.timed == [False] * 4
    assert torch.backends.cudnn.benchmark


def test_a_random_network_keeps_mean_deviation_and_gray() -> None:
    style = drawn(AugmentConfig(network=1.0))
    assert ((style.network[:, 0] >= 0.3) & (style.network[:, 0] < 1)).all()
    assert len(np.unique(style.network, axis=0)) == 64
    image = pictures(64).float().mul(0.5).add(60).to(torch.uint8)  # far from the ends, so that nothing is clipped
    changed = apply_style(style, image.expand(-1, 3, -1, -1)).float()
    assert torch.equal(changed[:, 0], changed[:, 1])
    for value in (torch.mean, torch.std):
        difference = (value(changed[:, 0], dim=(1, 2)) - value(image[:, 0].float(), dim=(1, 2))).abs()
        assert difference.median() < 1
    assert (changed[:, :1] - image.float()).abs().mean((1, 2, 3)).median() > 3
    few = drawn(AugmentConfig(network=0.25), np.arange(400, dtype=np.int64)).network
    assert (few[:, 0] < 1).mean() == pytest.approx(0.25, abs=0.06)
    assert not few[few[:, 0] == 1, 1:].any()


def standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std(ddof=1)


def test_a_random_network_is_four_small_convolutions() -> None:
    """Computed once more, pixel by pixel, without a library of convolutions."""
    networks, image, size = drawn(AugmentConfig(network=1.0)).network[:6], pictures(6, 12), 12
    changed = apply_networks(networks, image)[:, 0].numpy()
    for (share, *row), before, after in zip(networks.astype(float), image[:, 0].numpy(), changed, strict=True):
        values, numbers = [standardised(before)], np.array(row)
        for count in (2, 2, 2, 1):
            padded = [np.pad(each, 1, "edge") for each in values]
            kernels, bias, numbers = np.split(numbers, [9 * count * len(values), (9 * len(values) + 1) * count])
            assert set(np.count_nonzero(kernels.reshape(-1, 9), axis=1)) <= {1, 9}
            kernels = kernels.reshape(count, len(values), 3, 3)
            values = [np.full((size, size), each) for each in bias]
            for out, part, y, x in itertools.product(range(count), range(len(padded)), range(3), range(3)):
                values[out] += kernels[out, part, y, x] * padded[part][y : y + size, x : x + size]
            output = values[0]
            values = [np.where(each > 0, each, 0.01 * each) for each in values]
        assert not len(numbers)
        mixture = standardised(share * standardised(before) + (1 - share) * standardised(output))
        expected = np.clip(before.mean() + before.std(ddof=1) * mixture, 0, 255)
        assert np.abs(expected - after).max() < 0.51


@pytest.mark.parametrize("quality", [10, 30, 50, 75, 95])
def test_jpeg_loses_what_libjpeg_loses(quality: int) -> None:
    image = pictures(4, 61)
    style = replace(drawn(AugmentConfig(jpeg=1.0), ROWS[:4]), quality=np.full(4, quality))
    changed = apply_style(style, image).numpy()
    for before, after in zip(image[:, 0].numpy(), changed[:, 0], strict=True):
        buffer = io.BytesIO()
        Image.fromarray(before).save(buffer, "JPEG", quality=quality)
        expected = np.asarray(Image.open(buffer)).astype(float)
        assert Image.open(buffer).quantization[0] == quantisation(quality).astype(int).ravel().tolist()
        assert np.abs(after - expected).mean() < 0.5
        assert np.abs(expected - before).mean() > np.abs(after - expected).mean()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_the_stretch_equals_percentiles_of_the_tissue(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = (rng.random((2, 1, 40, 40)) ** rng.uniform(0.5, 4) * rng.uniform(30, 255)).astype(np.uint8)
    for before, after in zip(image, stretch(torch.from_numpy(image)).numpy(), strict=True):

        def percentile(values: np.ndarray, percent: int) -> int:
            return int(np.sort(values)[-(-percent * len(values) // 100) - 1])

        tissue = before[10 * before.astype(int) > percentile(before.ravel(), 99)]
        low, high = percentile(tissue, 1), percentile(tissue, 99)
        expected = before if high <= low else np.clip((before.astype(float) - low) / (high - low), 0, 1) * 255
        assert np.abs(after - expected).max() <= 0.5 + 1e-9


def test_the_stretch_undoes_a_change_of_brightness_and_keeps_a_black_image(device: torch.device) -> None:
    image = (pictures(8).float() * 0.9).to(torch.uint8).to(device)
    darker = (image.float() * 0.5 + 10 * (image > 0)).to(torch.uint8)
    assert (stretch(image).float() - stretch(darker).float()).abs().mean() < 2
    black = torch.zeros(2, 3, 8, 8, dtype=torch.uint8, device=device)
    assert torch.equal(stretch(black), black)


def test_a_table_is_looked_up_for_each_image() -> None:
    tables = torch.stack([torch.arange(256), 255 - torch.arange(256)]).to(torch.uint8)
    image = torch.tensor([[[[0, 7]]], [[[0, 7]]]], dtype=torch.uint8)
    assert look_up(tables, image).flatten().tolist() == [0, 7, 255, 248]


def test_all_loaders_have_the_same_look(phantom_shards: Path, device: torch.device) -> None:
    dataset = open_dataset(phantom_shards)
    rows = dataset.rows("train")
    config = DataConfig(size=64, threads=1, stretch=True)
    images = []
    for loader in ("opencv", "dali", "torch"):
        plan = TrainingPlan(
            rows=rows, shard=rows * 0, label=rows * 0, seed=1, epochs=1, global_batch=16, micro_batch=16
        )
        jobs = training_jobs(dataset, config, EVERY, itertools.islice(plan.micro_batches(0, 1), 2), seed=1)
        used = replace(config, loader=loader)  # type: ignore[arg-type]
        loaded = open_loader(used, dataset, jobs, augmented=True, micro_batch=16, device=device)
        images.append(torch.cat([batch.image.cpu().float() for batch in loaded]))
    for first, second in itertools.combinations(images, 2):
        difference = (first - second).abs()
        assert difference.mean() < 1.0, "small differences of decoders grow where the look adds contrast"
        assert torch.quantile(difference[:16].flatten(), 0.99) <= 8


def test_the_stretch_is_also_there_in_use(phantom_shards: Path) -> None:
    dataset = open_dataset(phantom_shards)
    plain, looked = (
        next(batches(dataset, "test", normalize=False, size=64, threads=1, stretch=on)).image for on in (False, True)
    )
    assert torch.equal(looked, stretch(plain))
    assert not torch.equal(looked, plain)
