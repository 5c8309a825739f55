"""Windows, flips and padding by hand: from the pixels of a split to what a network sees."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nofe_lab import Dataset, InvalidInput
from nofe_lab.data import Batch, Resident
from nofe_lab.data.batches import Augmentation, Batches, Window
from nofe_lab.data.preprocess import ImageNetwork, Preprocess
from nofe_lab.networks import CNN, backbone
from nofe_lab.recipes import Recipe
from nofe_lab.training.loop import fit
from nofe_lab.training.tasks import Classification

CPU = torch.device("cpu")
HEIGHT, WIDTH = 6, 8

Draw = dict[int, tuple[bool, tuple[int, int]]]
"""Of each image: is it mirrored, and where does its window begin."""


def random_split(n: int) -> Resident:
    """Images of noise, 6 rows and 8 columns, labelled with their index."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, 3, HEIGHT, WIDTH), generator=generator)
    return Resident(pixels.to(torch.uint8), torch.arange(n))


def preprocess(window: Window | None = None) -> Preprocess:
    """Subtracts a mean image that is nowhere the same and 0 nowhere, and halves."""
    mean = 1.0 + torch.arange(3 * HEIGHT * WIDTH).reshape(3, HEIGHT, WIDTH)
    return Preprocess(mean, torch.tensor([[[0.5]]]), window)


def by_hand(
    image: Tensor, flipped: bool, corner: tuple[int, int], padding: int, window: Window
) -> Tensor:
    """What a network sees of an image [3, 6, 8] whose window begins at `corner`."""
    padded = torch.zeros(3, HEIGHT + 2 * padding, WIDTH + 2 * padding)
    inner = padded[:, padding : padding + HEIGHT, padding : padding + WIDTH]
    inner[:] = preprocess()(image[None])[0]
    top, left = corner[0] + padding, corner[1] + padding
    seen = padded[:, top : top + window[0], left : left + window[1]]
    return seen.flip(2) if flipped else seen


def batches_of(
    n: int = 40,
    batch_size: int = 8,
    seed: int = 0,
    padding: int = 0,
    window: Window | None = None,
    flips: bool = True,
) -> Batches:
    recipe = Recipe(1, 0.1, batch_size=batch_size, flips=flips, padding=padding)
    return Batches(random_split(n), recipe, seed, CPU, window)


def draws(batches: Batches, epoch: int) -> Draw:
    return {
        int(label): (bool(flip), (int(corner[0]), int(corner[1])))
        for batch in batches.epoch(epoch)
        for label, flip, corner in zip(
            batch.labels, batch.drawn.flips, batch.drawn.corners, strict=True
        )
    }


def corners(batches: Batches, epochs: int) -> list[tuple[int, int]]:
    return [corner for e in range(epochs) for _, corner in draws(batches, e).values()]


# --- from pixels to what a network sees


def test_a_whole_image_is_only_shifted_and_scaled() -> None:
    images = random_split(2).images
    expected = (images.float() - preprocess().mean) / 2
    for window in (None, (HEIGHT, WIDTH)):
        torch.testing.assert_close(preprocess(window)(images), expected)
        torch.testing.assert_close(preprocess(window)(images, Augmentation()), expected)


@pytest.mark.parametrize(
    ("window", "corner"),
    [((4, 4), (1, 2)), ((3, 5), (1, 1)), ((6, 2), (0, 3)), ((1, 8), (2, 0)), ((5, 7), (0, 0))],
)
def test_outside_training_a_network_sees_the_middle_of_an_image(
    window: Window, corner: tuple[int, int]
) -> None:
    images = random_split(2).images
    for image, found in zip(images, preprocess(window)(images), strict=True):
        torch.testing.assert_close(found, by_hand(image, False, corner, 0, window))


def test_each_image_has_a_window_of_its_own() -> None:
    window, places = (4, 5), [(0, 0), (2, 3), (1, 2)]
    images = random_split(3).images
    seen = preprocess(window)(images, Augmentation(corners=torch.tensor(places)))
    for image, corner, found in zip(images, places, seen, strict=True):
        torch.testing.assert_close(found, by_hand(image, False, corner, 0, window))


def test_zeros_are_padded_after_the_subtraction() -> None:
    images = random_split(2).images
    shifted = preprocess()(images)
    drawn = Augmentation(corners=torch.tensor([[-1, -2], [1, 2]]), padding=2)
    first, second = preprocess()(images, drawn)
    assert not first[:, 0].any()
    assert not first[:, :, :2].any()
    torch.testing.assert_close(first[:, 1:, 2:], shifted[0, :, :-1, :-2])
    assert not second[:, -1].any()
    assert not second[:, :, -2:].any()
    torch.testing.assert_close(second[:, :-1, :-2], shifted[1, :, 1:, 2:])


def test_a_window_is_mirrored_after_it_was_cut_out() -> None:
    images = random_split(1).images.repeat(2, 1, 1, 1)
    shifted = preprocess()(images)[0]
    drawn = Augmentation(torch.tensor([True, False]), torch.tensor([[0, 1], [0, 1]]))
    mirrored, plain = preprocess((HEIGHT, 3))(images, drawn)
    torch.testing.assert_close(mirrored, shifted[:, :, [3, 2, 1]])
    torch.testing.assert_close(plain, shifted[:, :, [1, 2, 3]])


def test_the_middle_of_an_image_can_be_mirrored() -> None:
    images = random_split(1).images
    found = preprocess((HEIGHT, 4))(images, Augmentation(flips=torch.tensor([True])))
    torch.testing.assert_close(found, preprocess()(images)[:, :, :, [5, 4, 3, 2]])


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize(
    ("window", "padding"), [((4, 5), 0), ((4, 5), 3), (None, 1), ((6, 8), 2), ((6, 5), 0)]
)
def test_a_training_epoch_shows_the_images_that_were_drawn(
    window: Window | None, padding: int, flips: bool
) -> None:
    batches = batches_of(padding=padding, window=window, flips=flips)
    split = random_split(40)
    for batch in batches.epoch(3):
        images, labels, drawn = batch.images, batch.labels, batch.drawn
        assert torch.equal(images, split.images[labels])
        assert torch.equal(batch.index, labels)
        assert drawn.padding == padding
        mirrored = drawn.flips if drawn.flips is not None else torch.zeros(len(labels))
        seen = preprocess(window)(images, drawn)
        for image, flipped, corner, found in zip(
            images, mirrored.bool().tolist(), drawn.corners.tolist(), seen, strict=True
        ):
            expected = by_hand(image, flipped, corner, padding, window or (HEIGHT, WIDTH))
            torch.testing.assert_close(found, expected)


def pixel_by_pixel(
    pixels: np.ndarray, mean: np.ndarray, scale: np.ndarray, corner: list[int], flipped: bool
) -> np.ndarray:
    """A window of 26 x 26 of one image [3, 32, 32]: 0 outside of it, else shifted and scaled."""
    seen = np.zeros((3, 26, 26))
    for c, i, j in np.ndindex(seen.shape):
        row, column = corner[0] + i, corner[1] + (25 - j if flipped else j)
        if 0 <= row < 32 and 0 <= column < 32:
            seen[c, i, j] = (pixels[c, row, column] - mean[c, row, column]) * scale[c]
    return seen


@pytest.mark.parametrize("inputs", ["standardised", "mean_image"])
def test_each_pixel_comes_from_its_place_in_the_image(tiny: Dataset, inputs: str) -> None:
    every = tiny.train.images.numpy().astype(np.float64)
    mean, scale = every.mean(axis=0), np.ones(3)
    if inputs == "standardised":
        mean = np.broadcast_to(mean.mean(axis=(1, 2), keepdims=True), mean.shape)
        scale = 1 / every.std(axis=(0, 2, 3))
    window, recipe = (26, 26), Recipe(1, 0.1, batch_size=8, flips=True, padding=4)
    batch = next(Batches(tiny.train, recipe, 0, CPU, window).epoch(0))
    images, drawn = batch.images, batch.drawn
    seen = Preprocess.measure(tiny, inputs, window)(images, drawn)
    assert 0 < drawn.flips.sum() < 8
    assert drawn.corners.min() < 0
    assert drawn.corners.max() > 6
    for image, corner, flipped, found in zip(
        images.numpy().astype(np.float64), drawn.corners.tolist(), drawn.flips, seen, strict=True
    ):
        expected = pixel_by_pixel(image, mean, scale, corner, bool(flipped))
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-4)


# --- where windows begin


@pytest.mark.parametrize(
    ("window", "padding", "rows", "columns"),
    [
        ((4, 5), 0, range(3), range(4)),
        (None, 1, range(-1, 2), range(-1, 2)),
        ((5, 8), 2, range(-2, 4), range(-2, 3)),
        ((6, 5), 0, range(1), range(4)),
        ((1, 8), 0, range(6), range(1)),
    ],
)
def test_windows_begin_at_every_place_alike(
    window: Window | None, padding: int, rows: range, columns: range
) -> None:
    found = corners(batches_of(padding=padding, window=window), epochs=50)
    expected = 2000 / (len(rows) * len(columns))
    counts = {(row, column): found.count((row, column)) for row in rows for column in columns}
    assert sum(counts.values()) == 2000
    for count in counts.values():
        assert count == pytest.approx(expected, abs=5 * expected**0.5)


@pytest.mark.parametrize("window", [None, (HEIGHT, WIDTH)])
def test_no_corners_are_drawn_where_there_is_one_place(window: Window | None) -> None:
    for batch in batches_of(window=window).epoch(0):
        assert batch.drawn.corners is None
        assert batch.drawn.flips is not None


def test_without_flips_only_corners_are_drawn() -> None:
    for batch in batches_of(window=(4, 4), flips=False).epoch(0):
        assert batch.drawn.flips is None
        assert batch.drawn.corners.shape == (8, 2)


def test_what_is_drawn_for_an_image_does_not_depend_on_the_batch_size() -> None:
    expected = draws(batches_of(window=(4, 4), padding=1), 2)
    assert len(expected) == 40
    for batch_size in (1, 5, 20):
        assert draws(batches_of(window=(4, 4), padding=1, batch_size=batch_size), 2) == expected


def test_what_is_drawn_does_not_depend_on_what_was_drawn_before() -> None:
    used = batches_of(window=(4, 4))
    for epoch in range(3):
        draws(used, epoch)
    torch.manual_seed(1)
    assert draws(used, 3) == draws(batches_of(window=(4, 4)), 3)


def test_epochs_and_seeds_differ_in_their_windows() -> None:
    found = [
        draws(batches_of(window=(4, 4), seed=seed), epoch)
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    windows = {tuple(corner for _, (_, corner) in sorted(draw.items())) for draw in found}
    assert len(windows) == 3


def test_rows_columns_and_flips_are_drawn_independently() -> None:
    found = draws(batches_of(n=4000, window=(5, 7)), 0).values()
    counts = [
        sum((flip, corner) == (f, (row, column)) for flip, corner in found)
        for f in (False, True)
        for row in (0, 1)
        for column in (0, 1)
    ]
    assert counts == pytest.approx([500] * 8, abs=105)  # 5 standard deviations


def test_an_image_s_window_does_not_depend_on_its_place_in_the_order() -> None:
    first_quarter = [*draws(batches_of(n=4000, window=(5, 7)), 0).values()][:1000]
    for axis in (0, 1):
        begun = sum(corner[axis] for _, corner in first_quarter)
        assert begun == pytest.approx(500, abs=80)  # 5 standard deviations


def test_drawing_windows_leaves_torch_s_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    draws(batches_of(window=(4, 4), padding=1), 0)
    assert torch.equal(torch.get_rng_state(), before)


# --- networks that see windows


def test_a_network_for_26_pixels_sees_windows_of_an_image_of_32(tiny: Dataset) -> None:
    maker = backbone("nin_c100")
    window = maker.for_images(tiny.image_shape).input_shape[1:]
    assert window == (26, 26)
    model = ImageNetwork(
        Preprocess.measure(tiny, "mean_image", window), CNN(maker, tiny.C, "kaiming", seed=0)
    )
    model.eval()
    recipe = Recipe(1, 0.1, batch_size=4, flips=True)
    batch = next(Batches(tiny.train, recipe, 0, CPU, window).epoch(0))
    images, drawn = batch.images, batch.drawn
    with torch.no_grad():
        in_training, in_the_middle = model(images, drawn), model(images)
    assert in_training.shape == in_the_middle.shape == (4, tiny.C)
    assert not torch.equal(in_training, in_the_middle)
    centre = (images.float() - model.preprocess.mean)[:, :, 3:29, 3:29]
    with torch.no_grad():
        torch.testing.assert_close(in_the_middle, model.network(centre))


# --- dropout


class WatchedDropout(nn.Dropout):
    """Keeps what it left out in each call."""

    def __init__(self) -> None:
        super().__init__(0.5)
        self.masks: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.masks.append(super().forward(torch.ones_like(x)))
            return x * self.masks[-1]
        return x


def with_dropout(data: Dataset) -> ImageNetwork:
    """A network of two linear layers on windows of 8 x 8, always with the same weights."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.ReLU(), WatchedDropout(), nn.Linear(16, data.C)
    )
    return ImageNetwork(Preprocess.measure(data, "standardised", (8, 8)), network)


def train(model: ImageNetwork, data: Dataset, seed: int = 0) -> list[Tensor]:
    """Two epochs of three steps; returns what was left out."""
    recipe = Recipe(2, 0.1, batch_size=40, flips=True, padding=2)
    batches = Batches(data.train, recipe, seed, CPU, model.preprocess.window)
    parameters = {"params": [*model.parameters()], "rate_multiplier": 1, "weight_decay": 0.0}
    fit(model, [parameters], Classification(recipe, data.train[:0]), batches, recipe)
    dropout = model.network.get_submodule("3")
    assert isinstance(dropout, WatchedDropout)
    return dropout.masks


def test_training_with_dropout_twice_gives_the_same_weights(tiny: Dataset) -> None:
    first, second = with_dropout(tiny), with_dropout(tiny)
    torch.manual_seed(1)
    masks = train(first, tiny)
    torch.manual_seed(2)
    assert torch.equal(torch.stack(masks), torch.stack(train(second, tiny)))
    begun, weights = with_dropout(tiny).state_dict(), second.state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
        assert name.startswith("preprocess") or not torch.equal(tensor, begun[name]), name


def test_dropout_is_drawn_anew_in_every_step_and_for_every_seed(tiny: Dataset) -> None:
    masks = [mask for seed in (0, 1) for mask in train(with_dropout(tiny), tiny, seed)]
    assert len(masks) == 12
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 12


def test_training_with_dropout_leaves_torch_s_global_random_state_alone(tiny: Dataset) -> None:
    model = with_dropout(tiny)
    before = torch.get_rng_state()
    train(model, tiny)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_drawn_while_a_thread_trains_stays_drawn(
    tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The states were set back when the training ended, so that a kernel drew the same again."""
    began, drew = threading.Event(), threading.Event()
    epochs = Batches.epoch

    def between_steps(self: Batches, epoch: int, first: int = 0) -> Iterator[Batch]:
        for batch in epochs(self, epoch, first):
            began.set()
            drew.wait(10)
            yield batch

    monkeypatch.setattr(Batches, "epoch", between_steps)
    thread = threading.Thread(target=train, args=(with_dropout(tiny), tiny))
    thread.start()
    began.wait(10)
    kernel = (torch.rand(2), random.random(), np.random.rand())  # noqa: NPY002
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # noqa: NPY002
    drew.set()
    thread.join()
    assert kernel
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002


# --- several processes


@pytest.mark.parametrize("world", [2, 3])
def test_the_ranks_of_a_world_share_each_batch_and_draw_alike(world: int) -> None:
    recipe = Recipe(1, 0.1, batch_size=8, flips=True)
    split = random_split(20)
    whole = list(Batches(split, recipe, 0, CPU).epoch(3, first=1))
    ranks = [
        list(Batches(split, recipe, 0, CPU, rank=rank, world=world).epoch(3, first=1))
        for rank in range(world)
    ]
    for step, batch in enumerate(whole):
        for rank in range(world):
            part, mine = ranks[rank][step], slice(rank, None, world)
            assert torch.equal(part.index, batch.index[mine])
            assert torch.equal(part.images, batch.images[mine])
            assert torch.equal(part.labels, batch.labels[mine])
            assert torch.equal(part.drawn.flips, batch.drawn.flips[mine])


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0), (0, 9)])
def test_a_rank_outside_its_world_or_without_images_is_refused(rank: int, world: int) -> None:
    recipe = Recipe(1, 0.1, batch_size=8)
    with pytest.raises(InvalidInput, match=f"got rank {rank} of {world}"):
        Batches(random_split(20), recipe, 0, CPU, rank=rank, world=world)
