"""The training loop by hand, and the generalist's alternation of weights and map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nofe_lab import Dataset, Experiment, InvalidInput, Specialties
from nofe_lab.data import Batch, Batches, Resident, Source
from nofe_lab.data.preprocess import Augmentation, ImageNetwork, Preprocess
from nofe_lab.machine import Machine
from nofe_lab.networks import CNN, backbone
from nofe_lab.recipes import NetworkConfig, Recipe
from nofe_lab.specialties import affinity_matrix
from nofe_lab.stages import GeneralistStage
from nofe_lab.stages.generalist import GeneralistConfig, RunningAffinity, SpecialtyLearning
from nofe_lab.stages.stage import Trained, Work
from nofe_lab.training.events import (
    EpochDone,
    Event,
    MapUpdated,
    Progress,
    StageBegun,
    StageEnded,
    StepDone,
)
from nofe_lab.training.loop import fit, sgd
from nofe_lab.training.tasks import Classification, Distillation, Task, TrainingDiverged

CPU = torch.device("cpu")

# --- learning rates


def rates(recipe: Recipe, steps: int) -> list[float]:
    return [recipe.rate(step, steps) for step in range(steps)]


def test_steps_divide_the_rate_by_ten_at_each_drop() -> None:
    recipe = Recipe(1, 1.0, drops=(0.6, 0.8))
    assert rates(recipe, 5) == pytest.approx([1, 1, 1, 0.1, 0.01])


def test_drops_scale_with_the_length_of_the_stage() -> None:
    recipe = Recipe(1, 1.0, drops=(0.8,))
    assert rates(recipe, 10) == pytest.approx([1] * 8 + [0.1] * 2)
    assert rates(recipe, 20) == pytest.approx([1] * 16 + [0.1] * 4)


def test_one_cycle_rises_for_a_fifth_of_the_steps_and_falls_to_zero() -> None:
    recipe = Recipe(1, 0.8, schedule="one_cycle")
    # the peak is at step 2: up by thirds, down by eighths
    expected = [0.8 / 3, 1.6 / 3, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert rates(recipe, 10) == pytest.approx(expected)
    assert recipe.rate(10, 10) == 0


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 1000])
def test_one_cycle_stays_above_zero_and_at_most_at_its_peak(steps: int) -> None:
    found = rates(Recipe(1, 0.8, schedule="one_cycle"), steps)
    assert all(0 < rate <= 0.8 + 1e-12 for rate in found)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"epochs": 0}, "epochs must be a whole number from 1 to 1000000; got 0"),
        ({"epochs": 2.0}, "epochs must be a whole number from 1 to 1000000; got 2.0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1; got 0"),
        ({"learning_rate": 0}, "learning_rate must be a number above 0; got 0"),
        ({"learning_rate": -1}, "learning_rate must be a number above 0; got -1"),
        ({"learning_rate": float("inf")}, "learning_rate must be a number .*; got inf"),
        ({"momentum": 2}, "momentum must be a number from 0 to 1; got 2"),
        ({"weight_decay": -1}, "weight_decay must be a number of at least 0; got -1"),
        ({"schedule": "step"}, r"schedule 'step' is unknown \(did you mean 'steps'"),
        ({"drops": (0.5, 1.5)}, "a drop of the learning rate must be .* from 0 to 1; got 1.5"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        Recipe(**{"epochs": 1, "learning_rate": 0.1, **change})


# --- the loop


class Weighted(nn.Module):
    """Logits (w, 0) for every image: the gradient of w for label 0 is p - 1, 1/2 - 1 at w = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor, flips: Tensor | None = None) -> Tensor:
        return torch.stack([self.w, torch.zeros(())]).expand(len(images), 2)


class Knowing(Weighted):
    """Says an image's class, which stands in its pixels, and learns nothing from it."""

    def forward(self, images: Tensor, flips: Tensor | None = None) -> Tensor:
        classes = images[:, 0, 0, 0].long()
        return 20 * nn.functional.one_hot(classes, 2).float() + 0 * self.w


def two_classes(n: int) -> Resident:
    labels = torch.arange(n) % 2
    return Resident(labels.to(torch.uint8)[:, None, None, None].expand(n, 1, 2, 2), labels)


def groups(model: nn.Module, rate_multiplier: float = 1, decay: float = 0) -> list[dict[str, Any]]:
    parameters = list(model.parameters())
    return [{"params": parameters, "rate_multiplier": rate_multiplier, "weight_decay": decay}]


def task_of(recipe: Recipe, val: Source | None = None) -> Classification:
    return Classification(recipe, two_classes(8)[:0] if val is None else val)


def fit_two_classes(
    model: nn.Module, epochs: int, task: type[Task] = Classification, **options: Any
) -> list[dict[str, float]]:
    """Two steps of four images an epoch."""
    recipe = Recipe(epochs, 0.1, batch_size=4, momentum=0)
    batches = Batches(two_classes(8), recipe, 0, CPU)
    taught = task(recipe, two_classes(8)[:0])
    return fit(model, groups(model), taught, batches, recipe, **options)


@pytest.mark.parametrize(("multiplier", "w"), [(1, 0.05), (2, 0.1)])
def test_a_step_goes_down_the_gradient_by_rate_times_multiplier(
    multiplier: float, w: float
) -> None:
    model = Weighted()
    recipe = Recipe(1, 0.1, batch_size=8, momentum=0)
    only_first = Resident(two_classes(8).images, torch.zeros(8, dtype=torch.int64))
    batches = Batches(only_first, recipe, 0, CPU)
    fit(model, groups(model, multiplier), task_of(recipe), batches, recipe)
    assert model.w.item() == pytest.approx(w)


def test_the_decay_of_a_group_is_added_to_its_gradient() -> None:
    model = Weighted()
    model.w.data.fill_(2.0)
    recipe = Recipe(1, 0.1, batch_size=8, momentum=0)
    batches = Batches(two_classes(8), recipe, 0, CPU)
    fit(model, groups(model, decay=0.5), task_of(recipe), batches, recipe)
    gradient = torch.tensor(2.0).sigmoid().item() - 0.5  # half of the labels are 0
    assert model.w.item() == pytest.approx(2 - 0.1 * (gradient + 0.5 * 2))


def test_events_arrive_in_order() -> None:
    events: list[Event] = []
    history = fit_two_classes(Weighted(), epochs=2, listeners=[events.append])
    assert events == [
        StepDone(1, 4),
        StepDone(2, 4),
        EpochDone(1, 2, history[0]),
        StepDone(3, 4),
        StepDone(4, 4),
        EpochDone(2, 2, history[1]),
    ]


def test_the_history_has_one_row_an_epoch() -> None:
    rows = fit_two_classes(Knowing(), epochs=2)
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        assert row["train_accuracy"] == 1
        assert row["train_loss"] == pytest.approx(0, abs=1e-6)
        assert row["learning_rate"] == 0.1
        assert "val_accuracy" not in row


def test_figures_of_the_validation_join_the_row() -> None:
    class Validated(Classification):
        def validate(self, model: nn.Module) -> dict[str, float]:
            return {"val_accuracy": 0.25}

    rows = fit_two_classes(Weighted(), 2, Validated)
    assert [row["val_accuracy"] for row in rows] == [0.25, 0.25]


def test_a_network_is_validated_on_the_images_of_val() -> None:
    model, recipe = Knowing(), Recipe(1, 0.1, batch_size=4, momentum=0)
    batches = Batches(two_classes(8), recipe, 0, CPU)
    swapped = Resident(two_classes(3).images, 1 - two_classes(3).labels)
    for val, accuracy in ((two_classes(3), 1), (swapped, 0)):
        (row,) = fit(model, groups(model), task_of(recipe, val), batches, recipe)
        assert row["val_accuracy"] == accuracy
        assert row["val_loss"] == pytest.approx(0 if accuracy else 20, abs=1e-3)


class Swapping(Classification):
    """Takes each class for the other one after a step."""

    after = 3

    def __init__(self, recipe: Recipe, val: Source) -> None:
        super().__init__(recipe, val)
        self.map = torch.arange(2)
        self.validated: list[list[int]] = []

    def targets(self, batch: Batch) -> Tensor:
        return self.map[batch.labels]

    def validate(self, model: nn.Module) -> dict[str, float]:
        return {"first": float(self.map[0])}

    def after_step(self, step: int) -> None:
        if step == self.after:
            self.map = torch.tensor([1, 0])


def test_what_a_task_changes_after_a_step_counts_from_the_next_step_on() -> None:
    rows = fit_two_classes(Knowing(), 3, Swapping)
    # steps 1 to 3 with the first map, 4 to 6 with the swapped one
    assert [row["train_accuracy"] for row in rows] == [1, 0.5, 0]
    assert [row["first"] for row in rows] == [0, 1, 1]


def test_after_the_last_step_of_an_epoch_a_task_changes_behind_the_validation() -> None:
    class Later(Swapping):
        after = 4

    assert [row["first"] for row in fit_two_classes(Knowing(), 3, Later)] == [0, 0, 1]


def test_metrics_see_the_logits_of_every_step_and_the_classes_whatever_their_targets() -> None:
    seen: list[tuple[Tensor, Batch]] = []

    class Seeing(Swapping):
        after = 1

        def metrics(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
            seen.append((logits, batch))
            return {**super().metrics(logits, batch), "images": torch.tensor(len(logits))}

    rows = fit_two_classes(Knowing(), 2, Seeing)
    assert [row["train_accuracy"] for row in rows] == [0.5, 0]
    assert [row["train_images"] for row in rows] == [1, 1]
    assert len(seen) == 4
    for logits, batch in seen:
        assert logits.shape == (4, 2)
        assert not logits.requires_grad
        assert logits.argmax(1).tolist() == batch.labels.tolist()
    assert sorted(torch.cat([batch.index for _, batch in seen[:2]]).tolist()) == list(range(8))


def test_a_network_learns_the_answers_that_it_is_given_for_each_image() -> None:
    class Table(nn.Module):
        """Logits of its own for each of two kinds of image."""

        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(2, 2))

        def forward(self, images: Tensor, drawn: object = None) -> Tensor:
            return self.logits[images[:, 0, 0, 0].long()]

    model, recipe = Table(), Recipe(200, 1.0, batch_size=8, momentum=0)
    split = two_classes(8)
    answers = torch.tensor([[0.3, 0.7], [0.9, 0.1]])
    task = Distillation(recipe, split, answers[split.labels])
    history = fit(model, groups(model), task, Batches(split, recipe, 0, CPU), recipe)
    torch.testing.assert_close(model.logits.softmax(1).detach(), answers, atol=1e-3, rtol=0)
    assert history[-1]["train_agreement"] == 1  # with the answers
    assert history[-1]["train_accuracy"] == history[-1]["val_accuracy"] == 0  # of the labels


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), "0.5", None])
def test_a_figure_that_is_not_finite_stops_at_the_epoch_that_made_it(figure: Any) -> None:
    """A checkpoint with it would be refused when training is resumed."""

    class Undefined(Classification):
        def validate(self, model: nn.Module) -> dict[str, float]:
            return {"val_auc": figure}

    with pytest.raises(TrainingDiverged, match="val_auc of epoch 1 must be a finite number; got"):
        fit_two_classes(Weighted(), 2, Undefined)


def test_a_metric_called_loss_does_not_hide_the_loss() -> None:
    class Named(Classification):
        def metrics(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
            return {"loss": torch.tensor(1000.0)}

    (row,) = fit_two_classes(Weighted(), 1, Named)
    assert row["train_loss"] == pytest.approx(np.log(2), abs=0.1)
    assert "train_accuracy" not in row
    Progress()(EpochDone(1, 1, row))  # shows what there is


@pytest.mark.parametrize(("device", "fused"), [("cpu", True), ("cuda:1", True), ("mps", False)])
def test_the_optimiser_is_one_kernel_where_the_device_has_it(device: str, fused: bool) -> None:
    recipe = Recipe(1, 0.2, momentum=0.8, nesterov=True)
    optimiser = sgd(groups(Weighted(), decay=0.1), recipe, torch.device(device))
    (group,) = optimiser.param_groups
    assert group["fused"] is fused
    assert (group["lr"], group["momentum"], group["nesterov"]) == (0.2, 0.8, True)
    assert group["weight_decay"] == 0.1


def test_a_task_that_evaluates_the_model_leaves_the_loop_in_training_mode() -> None:
    modes: list[bool] = []

    class Watched(Weighted):
        def forward(self, images: Tensor, flips: Tensor | None = None) -> Tensor:
            modes.append(self.training)
            return super().forward(images, flips)

    model = Watched()

    class Evaluating(Classification):
        def after_step(self, step: int) -> None:
            model.eval()

    fit_two_classes(model, 2, Evaluating)
    assert modes == [True] * 4


def fit_tiny(tiny: Dataset) -> tuple[nn.Module, list[dict[str, float]]]:
    maker = backbone("alexnet_quick")
    recipe = Recipe(4, 0.005, batch_size=20, nesterov=True, schedule="one_cycle", flips=True)
    model = ImageNetwork(
        Preprocess.measure(tiny, "standardised"), CNN(maker, tiny.C, "kaiming", seed=1)
    )
    batches = Batches(tiny.train, recipe, 1, CPU)
    parameters = maker.parameter_groups(model, recipe)
    history = fit(model, parameters, Classification(recipe, tiny.val), batches, recipe)
    return model, history


def test_a_cnn_learns_the_tiny_data_set_and_twice_the_same(tiny: Dataset) -> None:
    first, history = fit_tiny(tiny)
    second, _ = fit_tiny(tiny)
    assert history[-1]["train_accuracy"] > 0.6  # chance: 1/6
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    weights = second.state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_progress_prints_a_line_an_epoch_and_a_map_update_where_nobody_watches(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nofe_lab.training.events.watched", lambda: False)
    progress = Progress()
    progress(StageBegun("base", 4, 2))
    progress(StepDone(1, 4))
    row = {"train_loss": 1.5, "train_accuracy": 0.25, "val_accuracy": 0.5, "seconds": 3.2}
    progress(EpochDone(1, 2, row))
    progress(MapUpdated(1, {"moved": 4, "objective_before": 0.2, "objective_after": 0.3}, (0, 1)))
    progress(StageEnded("base", finished=True))
    assert capsys.readouterr().out.splitlines() == [
        "base: epoch 1/2: loss 1.500, train 25.0%, val 50.0%, 3 s",
        "base: map update 1: 4 classes moved, objective 0.200 -> 0.300",
    ]


# --- the generalist


def stage_of(data: Dataset, epochs: int, batch_size: int = 40, **changes: Any) -> GeneralistStage:
    recipe = Recipe(epochs, 0.005, batch_size=batch_size, nesterov=True)
    config = GeneralistConfig(NetworkConfig(), recipe, K=3, seed=1)
    return GeneralistStage(data, backbone("alexnet_quick"), replace(config, **changes))


@pytest.mark.parametrize(
    ("every", "epochs", "updates"),
    [
        (2, 8, [8, 16, 24]),  # after epochs 2, 4, 6 of 4 steps each; none after 8
        (3, 8, [12, 24]),
        (0.5, 2, [2, 4, 6]),
        (1.3, 3, [5, 10]),  # 5.2, 10.4
    ],
)
def test_the_map_is_updated_after_every_interval_but_the_last(
    tiny: Dataset, every: float, epochs: int, updates: list[int]
) -> None:
    assert stage_of(tiny, epochs, batch_size=30, update_every=every).updates == updates


@pytest.mark.parametrize(
    ("number", "epochs", "updates"),
    [
        (1, 8, [16]),  # of 32 steps
        (3, 8, [8, 16, 24]),
        (2, 1, [1, 3]),  # 1.33, 2.67
        (3, 1, [1, 2, 3]),
    ],
)
def test_so_many_updates_as_are_asked_for_follow_intervals_of_one_length(
    tiny: Dataset, number: int, epochs: int, updates: list[int]
) -> None:
    assert stage_of(tiny, epochs, batch_size=30, map_updates=number).updates == updates


def test_more_updates_than_there_are_steps_between_are_refused(tiny: Dataset) -> None:
    sentence = r"map_updates must be at most 3, one after each of the 4 steps but the last; got 4\."
    with pytest.raises(InvalidInput, match=sentence):
        stage_of(tiny, 1, batch_size=30, map_updates=4)


@pytest.mark.parametrize("every", [1, 100])
def test_an_interval_that_leaves_no_room_for_an_update_is_refused(
    tiny: Dataset, every: float
) -> None:
    with pytest.raises(InvalidInput, match=f"leave room for an update .* got {every} epochs"):
        stage_of(tiny, 1, update_every=every)


def test_a_random_map_is_never_updated(tiny: Dataset) -> None:
    assert stage_of(tiny, 8, rule="random").updates == []


def test_more_specialties_than_classes_are_refused(tiny: Dataset) -> None:
    with pytest.raises(InvalidInput, match="K must be at most the 6 classes of tiny; got 7"):
        stage_of(tiny, 1, K=7)


def table(trained: Trained, name: str) -> pd.DataFrame:
    return pd.read_csv(StringIO(trained.files[name]))


@pytest.fixture(scope="module")
def alternation(tiny: Dataset) -> tuple[Trained, list[Event]]:
    """A generalist of four epochs of three steps, its map updated after each but the last."""
    events: list[Event] = []
    stage = stage_of(tiny.with_val(0, 0), 4, affinity="probability")
    return stage.train(Work({}, Machine(CPU), [events.append])), events


def maps(trained: Trained) -> list[list[int]]:
    history = table(trained, "map_history.csv")
    return [group["specialty"].tolist() for _, group in history.groupby("update")]


def test_the_map_begins_as_the_random_balanced_one_of_the_seed(
    tiny: Dataset, alternation: tuple[Trained, list[Event]]
) -> None:
    first = maps(alternation[0])[0]
    assert first == list(Specialties.random(tiny.class_names, 3, seed=1).of)
    assert np.bincount(first).tolist() == [2, 2, 2]


def test_the_final_specialties_are_the_last_map_of_the_history(
    tiny: Dataset, alternation: tuple[Trained, list[Event]]
) -> None:
    trained, _ = alternation
    final = Specialties.from_json(trained.files["specialties.json"])
    assert final.class_names == tiny.class_names
    assert list(final.of) == maps(trained)[-1]


def test_the_map_history_names_every_class_of_every_update(
    tiny: Dataset, alternation: tuple[Trained, list[Event]]
) -> None:
    history = table(alternation[0], "map_history.csv")
    assert history["class"].tolist() == list(range(6)) * 4
    assert history["class_name"].tolist() == list(tiny.class_names) * 4
    assert history.groupby("update")["epoch"].first().tolist() == [0, 1, 2, 3]


def test_moved_counts_and_sizes_agree_with_the_map_history(
    alternation: tuple[Trained, list[Event]],
) -> None:
    trained, _ = alternation
    updates, way = table(trained, "map_updates.csv"), maps(trained)
    assert updates["update"].tolist() == [1, 2, 3]
    assert updates["step"].tolist() == [3, 6, 9]
    moved = [sum(a != b for a, b in zip(old, new, strict=True)) for old, new in pairwise(way)]
    assert updates["moved"].tolist() == moved
    assert sum(moved) > 0
    assert updates["sizes"].tolist() == ["2 2 2"] * 3


def test_an_optimal_update_never_lowers_the_objective_on_the_same_images(
    alternation: tuple[Trained, list[Event]],
) -> None:
    updates = table(alternation[0], "map_updates.csv")
    assert (updates["objective_after"] >= updates["objective_before"] - 1e-12).all()


def test_listeners_hear_of_an_update_after_the_epoch_that_it_ends(
    alternation: tuple[Trained, list[Event]],
) -> None:
    trained, events = alternation
    names = [type(event).__name__ for event in events]
    epoch = ["StepDone"] * 3 + ["EpochDone", "MapUpdated"]
    assert names == epoch * 3 + ["StepDone"] * 3 + ["EpochDone"]
    heard = [event.row for event in events if isinstance(event, MapUpdated)]
    pd.testing.assert_frame_equal(pd.DataFrame(heard), table(trained, "map_updates.csv"))


def test_the_affinity_of_the_trained_generalist_is_kept_with_its_objective(
    alternation: tuple[Trained, list[Event]],
) -> None:
    trained, _ = alternation
    A = table(trained, "affinity.csv").set_index("class").to_numpy()
    np.testing.assert_allclose(A.sum(axis=1), 1)
    final = maps(trained)[-1]
    expected = np.mean([A[c, k] for c, k in enumerate(final)])
    assert trained.result["objective"] == pytest.approx(expected)


def test_the_map_is_learned_from_training_images_only(
    tiny: Dataset, alternation: tuple[Trained, list[Event]]
) -> None:
    noise = torch.randint(256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    other = Resident(noise.to(torch.uint8), torch.arange(12) % 6)
    stage = stage_of(replace(tiny, val=other, test=other), 4, affinity="probability")
    found = stage.train(Work({}, Machine(CPU), []))
    assert found.files["map_history.csv"] == alternation[0].files["map_history.csv"]


def test_with_the_rule_random_the_map_stays(tiny: Dataset) -> None:
    trained = stage_of(tiny, 2, rule="random").train(Work({}, Machine(CPU), []))
    assert len(maps(trained)) == 1
    assert table(trained, "map_updates.csv").empty
    assert maps(trained)[0] == list(Specialties.random(tiny.class_names, 3, seed=1).of)


def test_the_affinity_is_measured_on_as_many_images_as_asked(
    tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_of(tiny, 2, affinity_images=17)
    seen: list[Resident] = []

    def watch(self: Task, model: nn.Module, split: Resident) -> Any:
        seen.append(split)
        raise InterruptedError

    monkeypatch.setattr(Task, "predict", watch)
    learning = SpecialtyLearning(stage, Weighted(), Machine(CPU), [])
    for _ in range(2):
        with pytest.raises(InterruptedError):
            learning.affinity()
        learning.maps.append(learning.maps[0])
    assert [len(split) for split in seen] == [17, 17]
    assert not torch.equal(seen[0].labels, seen[1].labels)  # drawn anew for each update


# --- the affinity of training's own predictions


def outputs(seed: int, C: int = 5, K: int = 3, n: int = 40) -> tuple[Tensor, Tensor]:
    """Logits and classes of n images; the last class has none."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(C - 1, (n,), generator=generator)
    return 3 * torch.randn(n, K, generator=generator), classes


@pytest.mark.parametrize("kind", ["counts", "probability"])
def test_batches_add_up_to_the_affinity_of_all_their_images(kind: str) -> None:
    seen = RunningAffinity(5, 3, kind, CPU)
    for first, last in ((0, 3), (3, 4), (4, 9)):
        batches = [outputs(seed) for seed in range(first, last)]
        for batch in batches:
            seen.add(*batch)
        logits, classes = (torch.cat(parts) for parts in zip(*batches, strict=True))
        expected = affinity_matrix(logits.softmax(1).numpy(), classes.numpy(), 5, kind)
        found = seen.affinity
        seen.begin_anew()
        np.testing.assert_allclose(found, expected, atol=1e-6)
        np.testing.assert_allclose(found[:4].sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("kind", ["counts", "probability"])
def test_a_class_that_training_has_not_seen_leans_nowhere(kind: str) -> None:
    seen = RunningAffinity(5, 3, kind, CPU)
    assert not seen.affinity.any()
    seen.add(*outputs(0))
    assert seen.affinity.any(axis=1).tolist() == [True] * 4 + [False]
    seen.begin_anew()
    assert not seen.affinity.any()


def test_the_map_can_be_learned_without_an_evaluation(
    tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[float] = []
    measured = RunningAffinity.affinity.fget

    def watch(self: RunningAffinity) -> Any:
        taken.append(self.images.sum().item())
        return measured(self)  # type: ignore[misc]

    def refuse(*_: object) -> None:
        pytest.fail("the affinity is measured by a pass of its own")

    monkeypatch.setattr(RunningAffinity, "affinity", property(watch))
    monkeypatch.setattr(Task, "predict", refuse)
    events: list[Event] = []
    stage = stage_of(tiny.with_val(0, 0), 4, affinity="probability", affinity_from="training")
    trained = stage.train(Work({}, Machine(CPU), [events.append]))
    updates = table(trained, "map_updates.csv")
    assert updates["step"].tolist() == [3, 6, 9]
    assert updates["moved"].sum() > 0
    assert len(maps(trained)) == 4
    assert [event.update for event in events if isinstance(event, MapUpdated)] == [1, 2, 3]
    assert taken == [3 * 40] * 4  # those of an interval, thrice, and of what is left at the end


def test_the_affinity_of_the_last_interval_is_kept(
    tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed: list[tuple[Tensor, Tensor]] = []
    add = RunningAffinity.add

    def watch(self: RunningAffinity, logits: Tensor, classes: Tensor) -> None:
        observed.append((logits, classes))
        add(self, logits, classes)

    monkeypatch.setattr(RunningAffinity, "add", watch)
    stage = stage_of(tiny.with_val(0, 0), 2, affinity_from="training")
    trained = stage.train(Work({}, Machine(CPU), []))
    logits, classes = (torch.cat(parts) for parts in zip(*observed[3:], strict=True))
    expected = affinity_matrix(logits.softmax(1).numpy(), classes.numpy(), 6)
    A = table(trained, "affinity.csv").set_index("class").to_numpy()
    np.testing.assert_allclose(A, expected, atol=1e-6)


def test_only_a_pass_of_its_own_counts_as_images_evaluated(tiny: Dataset) -> None:
    changes: dict[str, Any] = {"batch_size": 30, "update_every": 1}
    assert stage_of(tiny, 3, **changes, affinity_images=50).images_evaluated == 3 * 50
    assert stage_of(tiny, 3, **changes).images_evaluated == 3 * 120
    assert stage_of(tiny, 3, **changes, affinity_from="training").images_evaluated == 0
    with_val = tiny.with_val(0.1, 0)
    assert stage_of(with_val, 3, **changes, affinity_from="training").images_evaluated == 3 * 12


# --- a fine head: the classes are learned in the same stage


def test_a_fine_head_adds_the_classes_cross_entropy_and_the_map_reads_the_specialties(
    tiny: Dataset,
) -> None:
    stage = stage_of(tiny, 2, affinity_from="training", fine_head=True)
    learning = SpecialtyLearning(stage, stage.untrained_network(), Machine(CPU), [])
    coarse, labels = outputs(0, C=6)
    fine = 20 + torch.randn(40, 6)  # larger than all logits of specialties
    batch = Batch(torch.empty(0), labels, torch.arange(40), Augmentation())
    both = cross_entropy(coarse, learning.map[labels]) + cross_entropy(fine, labels)
    logits = torch.cat([coarse, fine], 1)
    assert learning.loss(logits, batch).item() == pytest.approx(both.item())
    right = coarse.argmax(1) == learning.map[labels]
    assert learning.metrics(logits, batch)["accuracy"] == right.sum()
    expected = affinity_matrix(coarse.softmax(1).numpy(), labels.numpy(), 6)
    np.testing.assert_allclose(learning.affinity(), expected, atol=1e-6)


@pytest.mark.parametrize("affinity_from", ["evaluation", "training"])
def test_a_generalist_with_a_fine_head_answers_with_specialties(
    affinity_from: str, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: list[ImageNetwork] = []
    learn = SpecialtyLearning.__init__

    def watch(self: SpecialtyLearning, stage: Any, model: ImageNetwork, *more: Any) -> None:
        taught.append(model)
        learn(self, stage, model, *more)

    monkeypatch.setattr(SpecialtyLearning, "__init__", watch)
    data = tiny.with_val(0.2, 0)
    found = stage_of(data, 4, affinity_from=affinity_from, fine_head=True)
    trained = found.train(Work({}, Machine(CPU), []))
    images = data.test.sample(range(30))
    with torch.no_grad():
        kept = trained.model.eval()(images)
        assert taught[0].train()(images).shape == (30, 3 + 6)
        torch.testing.assert_close(taught[0].eval()(images), kept, rtol=0, atol=1e-4)
        classes = taught[0].train()(images)[:, 3:].argmax(1)
    assert kept.shape == (30, 3)
    assert type(trained.model.network) is CNN
    assert (classes == data.test.labels).float().mean() > 0.4  # of six: it learned them
    assert trained.history[-1]["val_accuracy"] > 0.5
    assert len(maps(trained)) == len(found.updates) + 1
    assert table(trained, "affinity.csv").shape == (6, 1 + 3)


def test_a_fine_head_s_training_counts_its_outputs(tiny: Dataset) -> None:
    plain, fine = (stage_of(tiny, 2, fine_head=each) for each in (False, True))
    images = 3 * plain.steps * 40 + plain.images_evaluated
    assert fine.training_macs - plain.training_macs == 64 * tiny.C * images


def test_a_head_that_cannot_be_divided_is_refused_a_fine_head(tiny: Dataset) -> None:
    class Mixing(type(backbone("alexnet_quick"))):  # type: ignore[misc]
        def make_head(self, n: int) -> nn.Module:
            return nn.Sequential(super().make_head(n), nn.Linear(n, n))

    recipe = Recipe(2, 0.005, batch_size=40)
    config = GeneralistConfig(NetworkConfig(), recipe, K=3, fine_head=True)
    with pytest.raises(InvalidInput, match="fine_head needs a head whose classifier has one row"):
        GeneralistStage(tiny, Mixing(), config)
    GeneralistStage(tiny, Mixing(), replace(config, fine_head=False))


@pytest.mark.parametrize("stage", ["base", "generalist", "nofe"])
@pytest.mark.parametrize("val_fraction", [0.0, 0.2])
def test_training_that_diverges_stops_with_a_sentence_and_keeps_nothing(
    stage: str, val_fraction: float, tiny_experiment: Callable[..., Experiment], runs_dir: Path
) -> None:
    experiment = tiny_experiment(
        learning_rate=1e6, epochs=2, map_updates=3, val_fraction=val_fraction, trunk="scratch"
    )
    with pytest.raises(TrainingDiverged, match=r"learning_rate below 1e\+06"):
        experiment.run(getattr(experiment, stage)())
    assert not [path for path in runs_dir.glob("*") if path.name != ".locks"]


@pytest.mark.parametrize("kind", ["counts", "probability"])
def test_predictions_that_are_no_numbers_stay_so(kind: str) -> None:
    seen = RunningAffinity(2, 3, kind, CPU)
    seen.add(torch.tensor([[0.0, 1.0, 2.0], [0.0, float("nan"), 1.0]]), torch.tensor([0, 1]))
    found = seen.affinity
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).any()


def test_the_time_that_is_left_is_said_while_it_trains(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was announced before, from four steps on a busy machine, was never revised."""
    clock = [0.0]
    monkeypatch.setattr("nofe_lab.training.events.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("nofe_lab.training.events.watched", lambda: False)
    progress = Progress()
    progress(StageBegun("it", 100, 5))
    for step in range(1, 41):
        clock[0] = 10.0 * step
        progress(StepDone(step, 100))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "it: step 7 of 100, about 15.5 min left"
    assert len(lines) == 5
    row = {"train_loss": 1.0, "train_accuracy": 0.5, "seconds": 400.0}
    progress(EpochDone(2, 5, row))
    assert capsys.readouterr().out.endswith("400 s, about 10.0 min left\n")
    progress(EpochDone(5, 5, row))
    assert "left" not in capsys.readouterr().out
