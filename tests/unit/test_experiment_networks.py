"""Any network in an experiment: widths, starts and identities, and data that is uneven or moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from nofe_lab import Backbone, Dataset, Experiment, InvalidInput, NofE
from nofe_lab.machine import Machine
from nofe_lab.networks.counting import count_macs, count_parameters

Make = Callable[..., Experiment]


class Own(nn.Module):
    """A network of somebody's own: three stages and an fc layer."""

    def __init__(self, classes: int = 9) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.stage2 = nn.Sequential(nn.Conv2d(4, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.stage3 = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.out = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.stage3(self.stage2(self.stage1(x))).mean((2, 3)))
        return logits


class OwnBackbone(Backbone):
    """A backbone of somebody's own: the contract and no more."""

    name = "own"
    input_shape = (3, 24, 24)

    def make_trunk(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU())

    def make_head(self, n: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(4 * 6 * 6, n))

    def make_branch(self, n: int, width: float = 1.0) -> nn.Module:
        return nn.Sequential(nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4 * 4 * 4, n))


@pytest.mark.parametrize(
    "network", [Own, Own(), OwnBackbone()], ids=["class", "module", "contract"]
)
def test_a_network_of_one_s_own_trains_and_loads(network: Any, tiny_experiment: Make) -> None:
    experiment = tiny_experiment(backbone=network)
    stages = {"base": experiment.base(), "nofe": experiment.nofe()}
    first = experiment.final_report(stages)
    again = tiny_experiment(backbone=network).final_report(stages)
    assert first.table["run"].tolist() == again.table["run"].tolist()
    assert np.array_equal(first.predictions[1].logits, again.predictions[1].logits)


def test_a_class_begins_afresh_with_every_seed_and_a_module_with_its_weights(
    tiny_experiment: Make,
) -> None:
    def first_weights(network: Any, seed: int) -> Tensor:
        base = tiny_experiment(backbone=network, split="stage3", seed=seed).base()
        weights: Tensor = base.network().state_dict()["trunk.stage1.0.weight"]
        return weights

    own = Own()
    assert not torch.equal(first_weights(Own, 0), first_weights(Own, 1))
    for seed in (0, 1):
        assert torch.equal(first_weights(own, seed), own.stage1[0].weight)


def test_weights_are_part_of_a_run_s_identity(tiny_experiment: Make) -> None:
    one, other = Own(), Own()
    ids = [tiny_experiment(backbone=network).base().id for network in (one, one, other, Own, Own)]
    assert ids[0] == ids[1]
    assert ids[3] == ids[4]
    assert len(set(ids)) == 3


def test_split_and_width_are_part_of_a_run_s_identity(tiny_experiment: Make) -> None:
    def ids(**changes: Any) -> tuple[str, str]:
        experiment = tiny_experiment(backbone=Own, **{"split": "stage3", **changes})
        return experiment.base().id, experiment.nofe("random", "scratch").id

    base, nofe = ids()
    assert ids(split="stage2")[0] != base
    assert ids(branch_width=0.5)[0] == base
    assert ids(branch_width=0.5)[1] != nofe
    assert ids(stem="small")[0] != base


def test_narrow_branches_cost_less(tiny_experiment: Make) -> None:
    def cost(width: float) -> tuple[int, int]:
        experiment = tiny_experiment(backbone=Own, split="stage3", branch_width=width)
        network = experiment.nofe("random", "scratch").network()
        return count_parameters(network), count_macs(network, (3, 32, 32))

    trunk_parameters = (3 * 4 * 9 + 4 + 8) + (4 * 8 * 9 + 8 + 16)
    # three branches: a convolution to 16 or 8 channels, batch normalisation, an fc layer of two
    assert cost(1.0)[0] == trunk_parameters + 3 * ((8 * 16 * 9 + 16) + 32 + (16 * 2 + 2))
    assert cost(0.5)[0] == trunk_parameters + 3 * ((8 * 8 * 9 + 8) + 16 + (8 * 2 + 2))
    trunk_macs = 3 * 4 * 9 * 8 * 8 + 4 * 8 * 9 * 8 * 8
    assert cost(0.5)[1] == trunk_macs + 3 * (8 * 8 * 9 * 4 * 4 + 8 * 2)


def test_a_width_that_changes_nothing_stops_before_training(tiny_experiment: Make) -> None:
    with pytest.raises(
        InvalidInput, match=r"branch_width 0\.5 changes nothing behind 'out' of 'Own'"
    ):
        tiny_experiment(backbone=Own, split="out", branch_width=0.5).nofe()


def test_branches_can_begin_with_the_tail_of_their_generalist(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(backbone=Own, split="stage3", branch_start="tail")
    stage = experiment.nofe()
    (run,) = experiment.run(experiment.generalist())
    network = stage.untrained_network()
    stage.start_from(run, network)
    prefix = "network.head."
    head = {n.removeprefix(prefix): t for n, t in run.weights().items() if n.startswith(prefix)}
    assert isinstance(network, NofE)
    for branch in network.branches.values():
        found = branch.state_dict()
        assert all(torch.equal(found[n], head[n]) for n in head if n.startswith("stage3"))
        assert found["out.weight"].shape == (2, 16)
    assert stage.id != tiny_experiment(backbone=Own, split="stage3").nofe().id


def test_published_branches_are_no_tails(tiny_experiment: Make) -> None:
    with pytest.raises(
        InvalidInput, match="'alexnet_quick' has branches of its own, which start 'fr"
    ):
        tiny_experiment(branch_start="tail").nofe()


def test_what_was_chosen_is_said_before_training(
    tiny_experiment: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tiny_experiment(backbone="mobilenet_v3_small", branch_width=0.25)
    experiment.run(experiment.base())
    said = capsys.readouterr().out
    split, stem, train = (
        said.index(text)
        for text in ("the branches begin at 'features.", "its stem keeps", "To train")
    )
    assert split < stem < train


def test_images_larger_than_the_network_s_input_are_cropped(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(backbone="nin_c100")
    model = experiment.base().image_network(experiment.base().network(), Machine.pick("cpu"))
    assert model.preprocess.window == (26, 26)
    images = experiment.data.test.images[:2]
    moved = images.clone()
    moved[..., :3] = 0  # outside the window in the middle
    assert torch.equal(model.eval()(images), model(moved))


def test_a_backbone_s_own_name_stands_in_a_command(tiny_experiment: Make) -> None:
    command = tiny_experiment(backbone=Own, split="stage3").command("03_finetune_nofe")
    assert "-p backbone Own " in command
    assert "-p split stage3" in command


def test_flips_can_be_asked_for_in_every_stage(tiny_experiment: Make) -> None:
    recipes = tiny_experiment(flips=True).recipes
    assert (recipes.flat.flips, recipes.generalist.flips, recipes.nofe.flips) == (True, True, True)
    assert not tiny_experiment().recipes.flat.flips


class Viewing(nn.Module):
    """Flattens with `view`, which channels-last maps do not have, and uses a buffer in between."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("centre", torch.tensor([0.1, 0.2, 0.3]))
        self.conv1 = nn.Conv2d(3, 4, 3, 4, 1)
        self.conv2 = nn.Conv2d(4, 8, 3, 1, 1)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(8 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.centre.view(1, 3, 1, 1)) * self.scale
        x = self.pool(self.conv2(torch.relu(self.conv1(x))))
        logits: Tensor = self.fc(x.view(x.size(0), -1))
        return logits


@pytest.mark.parametrize("network", [Viewing, Viewing()], ids=["class", "module"])
def test_views_and_buffers_survive_training(network: Any, tiny_experiment: Make) -> None:
    experiment = tiny_experiment(backbone=network, split="conv2", branch_width=0.5)
    _, run = experiment.run(experiment.base(), experiment.nofe())
    weights = run.weights()
    assert weights["network.branches.0.fc.weight"].shape == (2, 4 * 4 * 4)
    assert torch.equal(weights["network.trunk.centre"], torch.tensor([0.1, 0.2, 0.3]))


def test_a_network_of_one_s_own_that_was_edited_is_another(tiny_experiment: Make) -> None:
    class Edited(Viewing):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    Edited.__name__ = "Viewing"
    requests = [Viewing, lambda: Viewing(2.0), lambda: Viewing(-1.0), Edited]
    ids = [tiny_experiment(backbone=network, split="conv2").base().id for network in requests]
    assert len(set(ids)) == len(ids)


def test_names_of_one_place_make_one_run(tiny_experiment: Make) -> None:
    names = ("stage3", "stage3.0")
    ids = {tiny_experiment(backbone=Own, split=name).nofe("random").id for name in names}
    assert len(ids) == 1


class Weighted(OwnBackbone):
    """Its makers have set the weights themselves."""

    def make_trunk(self) -> nn.Module:
        trunk = super().make_trunk()
        nn.init.constant_(trunk[0].weight, 7.0)  # type: ignore[index]
        return trunk


def test_a_backbone_s_own_weights_are_left_alone(tiny_experiment: Make) -> None:
    network = tiny_experiment(backbone=Weighted).base().network()
    assert (network.state_dict()["trunk.0.weight"] == 7).all()
    ids = {tiny_experiment(backbone=kind()).base().id for kind in (OwnBackbone, Weighted)}
    assert len(ids) == 2


def test_notebook_4_leaves_scratch_trunks_their_fresh_branches(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(backbone=Own, split="stage3", branch_start="tail")
    starts = {
        name: stage.config.branch_start
        for name, stage in experiment.opponents().items()
        if name.startswith("NofE")
    }
    assert {name for name, start in starts.items() if start == "fresh"} == {
        "NofE learned, scratch",
        "NofE random, scratch",
    }


def test_a_trunk_that_begins_with_given_weights_is_not_called_scratch(
    tiny_experiment: Make,
) -> None:
    assert "scratch" in tiny_experiment(backbone=Own).nofe("random", "scratch").title
    assert "pretrained" in tiny_experiment(backbone=Own()).nofe("random", "scratch").title


def test_a_window_that_sees_less_than_half_of_an_image_is_said() -> None:
    backbone = OwnBackbone()
    assert backbone.for_images((3, 32, 32)) is backbone
    (note,) = backbone.for_images((3, 64, 64)).notes
    assert note == "own sees windows of 24 x 24 of the 64 x 64 images, less than half of each."


def test_experiments_of_several_seeds_share_a_traced_network(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(backbone="resnet18")
    assert experiment.base().backbone is experiment.with_seed(1).base().backbone


# --- the table before training


def test_the_layer_table_has_all_three_networks_with_their_totals(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(backbone="alexnet_c100")
    table = experiment.layer_table()
    assert table["network"].unique().tolist() == ["base CNN", "generalist", "network of experts"]
    stages = (experiment.base(), experiment.generalist(), experiment.nofe())
    for stage, (_, rows) in zip(stages, table.groupby("network", sort=False), strict=True):
        network = stage.untrained_network()
        counts = {
            "parameters": count_parameters(network),
            "multiply-accumulates": count_macs(network, (3, 32, 32)),
        }
        for column, count in counts.items():
            assert rows[column].iloc[-1] == count
            assert rows[column].iloc[:-1].sum() == count
    nofe = table[table["network"] == "network of experts"].set_index("layers")
    assert nofe["part"].tolist() == ["trunk"] * 3 + ["3 branches"] * 2 + ["total"]
    assert nofe.loc["conv4", "multiply-accumulates"] == 3 * 64 * 64 * 25 * 4 * 4
    assert nofe.loc["conv1", "output"] == "32 x 32 x 32"


class Scaling(Own):
    """Has a parameter and a matrix product that belong to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.eye(16))

    def forward(self, x: Tensor) -> Tensor:
        features = self.stage3(self.stage2(self.stage1(x))).mean((2, 3))
        logits: Tensor = self.out(features @ self.mix)
        return logits


def test_the_layer_table_adds_up_where_a_forward_has_numbers_of_its_own(
    tiny_experiment: Make,
) -> None:
    table = tiny_experiment(backbone=Scaling, split="stage3").layer_table("base CNN")
    for column in ("parameters", "multiply-accumulates"):
        assert table[column].iloc[:-1].sum() == table[column].iloc[-1]
    assert 16 * 16 in table["parameters"].tolist()


def test_a_class_that_needs_arguments_is_refused() -> None:
    class Needy(nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()

    with pytest.raises(InvalidInput, match=r"must make a torch module when it is called without"):
        Experiment(backbone=Needy)


def test_the_layer_table_of_one_network(tiny_experiment: Make) -> None:
    table = tiny_experiment().layer_table("generalist")
    assert set(table["network"]) == {"generalist"}
    with pytest.raises(InvalidInput, match="network 'base' is unknown"):
        tiny_experiment().layer_table("base")


# --- uneven data, and data that changes


def test_accuracy_is_reported_per_class_where_classes_differ_in_size(
    tiny: Dataset, tiny_experiment: Make
) -> None:
    uneven = replace(tiny, test=tiny.test[torch.tensor([0, 1, 2, 3, 4, 5, 10])])
    experiment = tiny_experiment(dataset=uneven)
    report = experiment.final_report({"base": experiment.base()})
    counts = report.per_class.set_index("class")["images"]
    assert counts.tolist() == [5, 1, 1, 0, 0, 0]
    shares = report.per_class["base"][:3]
    assert report.table["test_class_accuracy"][0] == pytest.approx(shares.mean())
    differs = not np.isclose(shares.mean(), report.table["test_accuracy"][0])
    assert ("mean of classes" in report.shown.columns) == differs


def test_the_mean_of_classes_is_shown_only_where_it_differs(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    report = experiment.final_report({"base": experiment.base()})
    assert "mean of classes" not in report.shown.columns
    changed = report.table.assign(test_class_accuracy=report.table["test_accuracy"] + 0.1)
    assert "mean of classes" in replace(report, table=changed).shown.columns


def test_pictures_that_change_between_two_experiments_are_another_data_set(
    tmp_path: Path, runs_dir: Path
) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{i}.png")

    def asked() -> str:
        experiment = Experiment(
            f"folder:{tmp_path}/pets", K=2, batch_size=4, runs_dir=str(runs_dir)
        )
        return experiment.base().id

    before = asked()
    assert asked() == before
    Image.fromarray(np.zeros((50, 40, 3), dtype=np.uint8)).save(tmp_path / "pets" / "dog" / "3.png")
    assert asked() != before
