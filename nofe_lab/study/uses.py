"""Three comparisons for maintainers: what experts are for, beside accuracy.

Classes that are added to a trained network; one expert alone; and twins, halves of one class, which
a good map puts into one specialty.  Trained stages are loaded where they are finished; what is
trained for added classes is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from nofe_lab.bench.tables import save_table
from nofe_lab.config import InvalidInput, derive_seed, one_of
from nofe_lab.data import Batches, Dataset, Source
from nofe_lab.data.dataset import stratified_draw
from nofe_lab.data.preprocess import ImageNetwork
from nofe_lab.evaluation import Predictions, class_means, predict
from nofe_lab.files import writable_path
from nofe_lab.inference import Classifier, load_specialties
from nofe_lab.knobs import default
from nofe_lab.log import log
from nofe_lab.networks import CNN, NofE
from nofe_lab.networks.counting import count_macs, count_parameters
from nofe_lab.recipes import Recipe
from nofe_lab.runs import Run
from nofe_lab.specialties import Specialties, balanced_clusters, feature_clusters
from nofe_lab.stages.experiment import OF_FILES, Experiment
from nofe_lab.stages.flat import FlatStage
from nofe_lab.stages.nofe import NofEStage
from nofe_lab.stages.stage import Stage
from nofe_lab.statistics import inside_by_chance
from nofe_lab.study.queue import RESULTS
from nofe_lab.study.tables import ALONE, MASKED, RETRAINED
from nofe_lab.training.loop import fit
from nofe_lab.training.tasks import Classification

DRAWN = 0.1
"""Share of the classes that are new, or split into twins."""
FEWEST = 5
"""Classes of which 2 can be new and 3 have specialties."""

Rows = list[dict[str, Any]]
Kept = tuple[nn.Parameter, Tensor]
"""A parameter, and its first rows, which stay as they are."""


def compare(
    use: str, experiment: Experiment, seeds: Sequence[int], results: str | None, command: str
) -> None:
    """Make one of the comparisons `USES` with every seed; print the table and save it.

    results: a CSV file for the table, by default data/results/<use>.csv; its first line is
    `command`.
    Raises InvalidInput before any training if the data do not allow it.
    """
    rows_of = USES[one_of("use", use, USES)]
    target = RESULTS.with_name(f"{use}.csv")
    if results is not None:
        target = writable_path("results", results)
    data = experiment.data
    if experiment.overlap > 1 and use != "twins":
        raise InvalidInput(
            f"{use} is of experts that share no class; got overlap={experiment.overlap}."
        )
    if experiment.sparse is not None and use == "added_classes":
        raise InvalidInput(
            "added_classes is of experts without a gate, which would have to learn the new classes "
            f"too; got sparse={experiment.sparse}."
        )
    if not len(data.test):
        raise InvalidInput(f"{use} needs test images; {data.name} has none.")
    about = {"dataset": data.name, "backbone": experiment.backbone, "preset": experiment.preset}
    rows = [
        {**about, "seed": seed, **row}
        for seed in seeds
        for row in rows_of(experiment.with_seed(seed))
    ]
    machine = experiment.runner.machine
    save_table(pd.DataFrame(rows), target, command, machine, precision=machine.precision)


def _on(experiment: Experiment, data: Dataset) -> Experiment:
    """The experiment on a data set that was made of its own."""
    read = {name: default(name) for name in (*OF_FILES, "train_per_class")}
    return replace(experiment, dataset=data, val_fraction=0.0, **read)


def drawn_classes(data: Dataset, least: int, seed: int) -> list[int]:
    """A share `DRAWN` of the classes, but at least `least`, drawn by `seed`."""
    rng = np.random.default_rng(derive_seed(seed, "drawn classes"))
    return sorted(rng.permutation(data.C)[: max(round(DRAWN * data.C), least)].tolist())


# --- added classes


@dataclass(frozen=True)
class Addition:
    """A trained network with outputs for new classes too, which they have yet to learn.

    model: images -> logits [N, C], the old classes first.  Parameters that stay as they are require
    no gradient, or are `kept`.
    """

    model: ImageNetwork
    macs: int
    """Of one image."""
    learning_macs: int
    """Of those, in layers that learn."""
    kept: tuple[Kept, ...] = ()


class KeptRows(Classification):
    """Classification, where the first rows of some parameters stay as they are."""

    def __init__(self, recipe: Recipe, val: Source, kept: Iterable[Kept]) -> None:
        super().__init__(recipe, val)
        self.kept = tuple(kept)

    def after_step(self, step: int) -> None:
        with torch.no_grad():
            for parameter, rows in self.kept:
                parameter[: len(rows)] = rows


def new_expert(stage: NofEStage, nofe: Classifier, class_names: Sequence[str]) -> Addition:
    """One more branch, for the new classes alone; all else stays as it is.

    class_names: of all classes, those of `nofe` first.
    """
    assert isinstance(nofe.network, NofE)
    old = nofe.network.specialties
    of = (*old.of, *[old.K] * (len(class_names) - old.C))
    joint = Specialties(tuple(class_names), of, old.K + 1)
    scheme, width = stage.config.network.initialisation, stage.config.branch_width
    network = NofE(stage.backbone, joint, scheme, stage.seed, width)
    found = network.load_state_dict(nofe.network.state_dict(), strict=False)
    assert not found.unexpected_keys
    assert all(name.startswith(f"branches.{old.K}.") for name in found.missing_keys)
    model = ImageNetwork(nofe.preprocess, network).to(nofe.preprocess.mean.device)
    for part in ("trunk", "shared", *(f"branches.{k}" for k in old.nonempty)):
        model.freeze(part)
    cost = network.macs(stage.backbone.input_shape)
    return Addition(model, cost.trunk + sum(cost.branches), cost.branches[-1])


def new_rows(
    stage: FlatStage, base: Classifier, class_names: Sequence[str], frozen: bool
) -> Addition:
    """New rows of the base CNN's classifier; frozen: all else stays as it is.

    class_names: of all classes, those of `base` first.
    """
    scheme, shape = stage.config.network.initialisation, stage.backbone.input_shape
    network = CNN(stage.backbone, len(class_names), scheme, stage.seed)
    own, old = network.state_dict(), base.network.state_dict()
    longer = [name for name, tensor in old.items() if tensor.shape != own[name].shape]
    begun = {n: torch.cat([old[n], own[n][len(old[n]) :].to(old[n])]) for n in longer}
    network.load_state_dict(old | begun)
    model = ImageNetwork(base.preprocess, network).to(base.preprocess.mean.device)
    macs = learning = count_macs(network, shape)
    if not frozen:
        return Addition(model, macs, learning)
    model.freeze("")
    kept = tuple((network.get_parameter(name), old[name]) for name in longer)
    for parameter, _ in kept:
        parameter.requires_grad_(True)
    return Addition(model, macs, macs - count_macs(base.network, shape), kept)


def teach(
    addition: Addition, images: Source, stage: Stage, recipe: Recipe, precision: str = "fp32"
) -> int:
    """Train an addition in place; returns the multiply-accumulates.

    images: labelled with all classes, the old ones first.  stage: that trained the old network.
    precision: of the training; the trained network answers in fp32, as loaded ones do.
    Layers that learn cost three forward passes, as in `Stage.training_macs`; the others one.
    """
    recipe = replace(recipe, batch_size=min(recipe.batch_size, len(images)))
    model = addition.model
    if recipe.keep_statistics:
        model.keep_statistics()
    device = model.preprocess.mean.device
    batches = Batches(images, recipe, stage.seed, device, stage.window)
    groups = stage.backbone.parameter_groups(model, recipe)
    model.precision = precision
    fit(model, groups, KeptRows(recipe, images[:0], addition.kept), batches, recipe)
    model.precision = "fp32"
    seen = recipe.epochs * len(batches) * recipe.batch_size
    return seen * (addition.macs + 2 * addition.learning_macs)


def added_classes(experiment: Experiment) -> Rows:
    """A tenth of the classes is added to networks that were trained on the others.

    The experiment's network of experts gets an expert for them; a base CNN, trained for as much
    arithmetic as that network, gets new rows or is trained again, on all classes.
    images: how many training needs.  training_macs: of the addition alone.  old_before: accuracy on
    the old classes before it.  run: what was added to, or trained again.
    """
    whole = experiment.data
    if whole.C < FEWEST:
        raise InvalidInput(
            f"added_classes needs a data set of at least {FEWEST} classes; {whole.name} has "
            f"{whole.C}."
        )
    new = drawn_classes(whole, 2, experiment.seed)
    old = [c for c in range(whole.C) if c not in new]
    data = whole.with_classes([*old, *new])
    before, after = _on(experiment, data.with_classes(range(len(old)))), _on(experiment, data)
    nofe, base, again = before.nofe(), before.base("arithmetic"), after.base("arithmetic")
    before.run(nofe, base)
    trained: dict[Stage, Classifier] = {stage: before.model(stage) for stage in (nofe, base)}
    old_test = before.data.test
    accuracy = {stage: predict(model, old_test).accuracy for stage, model in trained.items()}
    everything, is_new = data.train, data.train.labels >= len(old)
    names, recipe = data.class_names, before.recipes.nofe
    precision = experiment.runner.machine.precision
    rows: Rows = []

    def measured(
        network: str, model: nn.Module, origin: Stage, run: Stage, images: int, macs: int
    ) -> None:
        found = predict(model, data.test)
        right, is_old = found.predicted == found.labels, found.labels < len(old)
        rows.append(
            {
                "network": network,
                "old_before": accuracy[origin],
                "old": right[is_old].mean(),
                "new": right[~is_old].mean(),
                "all": right.mean(),
                "images": images,
                "training_macs": macs,
                "run": run.id,
            }
        )
        log.info(f"{network}, seed {experiment.seed}: {right.mean():.2%} of all images")

    for which, images in (("all images", everything), ("new images", everything[is_new])):
        additions: dict[str, tuple[Stage, Addition]] = {
            "new expert": (nofe, new_expert(nofe, trained[nofe], names)),
            "new rows": (base, new_rows(base, trained[base], names, frozen=True)),
        }
        if which == "new images":
            finetuned = new_rows(base, trained[base], names, frozen=False)
            additions["finetuned base CNN"] = base, finetuned
        for name, (stage, addition) in additions.items():
            macs = teach(addition, images, stage, recipe, precision)
            measured(f"{name}, {which}", addition.model, stage, stage, len(images), macs)
    macs = again.training_macs
    measured(RETRAINED, after.model(again), base, again, len(everything), macs)
    return rows


# --- one expert alone


def masked(found: Predictions, classes: Sequence[int]) -> Predictions:
    """The answers for the images of some classes, in order, where only these compete."""
    own = np.isin(found.labels, classes)
    logits, labels = found.logits[own][:, classes], found.labels[own]
    return Predictions(logits, np.searchsorted(classes, labels))


def one_expert(experiment: Experiment) -> Rows:
    """Every expert alone, beside the base CNN masked to its classes, on test images of these.

    For learned, balanced and random maps on one kind of trunk; the base CNN is trained for as much
    arithmetic as the experiment's own network of experts.
    """
    test = experiment.data.test
    stage = experiment.base("arithmetic")
    nofes = {name: experiment.nofe(name) for name in ("learned", "balanced", "random")}
    experiment.run(stage, *nofes.values())
    base = experiment.model(stage)
    answers = predict(base, test)
    rows: Rows = []
    for name, nofe in nofes.items():
        model = experiment.model(nofe)
        specialties = model.specialties
        assert specialties is not None
        for k in specialties.nonempty:
            classes, expert = specialties.members(k), model.expert(k)
            inside = test[torch.isin(test.labels, torch.tensor(classes))]
            labels = torch.from_numpy(np.searchsorted(classes, inside.labels.numpy()))
            alone = predict(expert, inside.with_labels(labels))
            for network, found, module, run in (
                (ALONE, alone, expert.network, nofe.id),
                (MASKED, masked(answers, classes), base.network, stage.id),
            ):
                rows.append(
                    {
                        "map": name,
                        "specialty": k,
                        "classes": len(classes),
                        "network": network,
                        "accuracy": found.accuracy,
                        "parameters": count_parameters(module),
                        "macs": count_macs(module, stage.backbone.input_shape),
                        "run": run,
                    }
                )
    return rows


# --- twins


def with_twins(data: Dataset, classes: Sequence[int], seed: int) -> Dataset:
    """Split the images of some classes at random in two; one half becomes a class of its own.

    The new classes come last, in the order of `classes`, called "NAME, twin".
    """
    fewest = int(data.train.labels.bincount(minlength=data.C)[list(classes)].min())
    if fewest < 2:
        raise InvalidInput(
            f"twins need classes of at least 2 training images; {data.name} has one of {fewest}."
        )
    twin = torch.arange(data.C)
    twin[list(classes)] = data.C + torch.arange(len(classes))

    def halved(name: str) -> Source:
        split: Source = getattr(data, name)
        moved = stratified_draw(split.labels, lambda n: n // 2, derive_seed(seed, "twins", name))
        return split.with_labels(torch.where(moved, twin[split.labels], split.labels))

    of = data.superclass_of
    return replace(
        data,
        name=f"{data.name} with twins",
        class_names=(*data.class_names, *(f"{data.class_names[c]}, twin" for c in classes)),
        train=halved("train"),
        val=halved("val"),
        test=halved("test"),
        superclass_of=(*of, *(of[c] for c in classes)) if of else (),
        clearest=None,
    )


def reunited(specialties: Specialties, classes: Sequence[int]) -> float:
    """The share of `classes` that are in one specialty with their twins, the last classes."""
    of = np.array(specialties.of)
    return float((of[list(classes)] == of[-len(classes) :]).mean())


def twins(experiment: Experiment) -> Rows:
    """A tenth of the classes is split at random in two: which maps reunite the twins?

    Maps that a generalist learns, clusters of a base CNN, which is trained as long, and a random
    map.  chance: the mean share for random maps with specialties of the same sizes.
    """
    classes = drawn_classes(experiment.data, 1, experiment.seed)
    there = _on(experiment, with_twins(experiment.data, classes, experiment.seed))
    data, K, seed = there.data, there.usual_K, there.seed
    names = data.class_names
    rules, stage = ("optimal", "greedy"), there.base("generalist")
    *runs, run = there.run(*map(there.generalist, rules), stage)
    learned, base = dict(zip(rules, runs, strict=True)), there.model(stage)
    trunk = ImageNetwork(base.preprocess, base.network.get_submodule("trunk"), base.precision)
    confusion, means = predict(base, data.train).confusion, class_means(trunk, data.train, data.C)
    maps: dict[str, tuple[Specialties, Run | None]] = {
        **{f"learned, {rule}": (load_specialties(each), each) for rule, each in learned.items()},
        "balanced clusters of confusions": (balanced_clusters(confusion, names, K), run),
        "clusters of features": (feature_clusters(means, names, K, seed), run),
        "random": (Specialties.random(names, K, seed), None),
    }
    return [
        {
            "map": name,
            "K": found.K,
            "twins": len(classes),
            "reunited": reunited(found, classes),
            "chance": inside_by_chance(found.sizes),
            "run": None if learner is None else learner.id,
        }
        for name, (found, learner) in maps.items()
    ]


USES: dict[str, Callable[[Experiment], Rows]] = {
    "added_classes": added_classes,
    "one_expert": one_expert,
    "twins": twins,
}
"""The comparisons by name: functions that make the rows of one seed."""
