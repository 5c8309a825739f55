"""An experiment: every knob of a notebook, checked before any work, and the stages they make."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from nofe_lab.config import (
    CLUSTERED,
    SPECIALTIES,
    InvalidInput,
    derive_seed,
    one_of,
    printable,
    text,
    whole_number,
)
from nofe_lab.data import Dataset, load_dataset, prepared, source_state
from nofe_lab.data.features import features_of
from nofe_lab.data.preprocess import ImageNetwork
from nofe_lab.data.sources import without_folders
from nofe_lab.evaluation import Formation, predict, with_clearest
from nofe_lab.inference import Classifier, load_specialties
from nofe_lab.knobs import check_fields, default
from nofe_lab.log import log
from nofe_lab.machine import PRECISIONS
from nofe_lab.networks import Backbone, FlatControl, OnFeatures, backbone, preset
from nofe_lab.networks.catalogue import Network
from nofe_lab.networks.counting import layer_table
from nofe_lab.recipes import Preset, Recipe, fitted_preset
from nofe_lab.runs import Run, default_runs_dir
from nofe_lab.specialties import (
    FEWEST_CLASSES,
    Specialties,
    balanced_maps,
    clusters_history,
    usual_specialties,
)
from nofe_lab.stages.arms import THESE, TWO_AND_GATE, Arm
from nofe_lab.stages.flat import FlatConfig, FlatStage
from nofe_lab.stages.gate import GateConfig, GateStage
from nofe_lab.stages.generalist import GeneralistConfig, GeneralistStage
from nofe_lab.stages.nofe import NofEConfig, NofEStage
from nofe_lab.stages.report import FinalReport, final_report
from nofe_lab.stages.runner import Runner
from nofe_lab.stages.stage import Stage, load_model
from nofe_lab.training.events import Listener

GATE_EPOCHS = 10
"""The longest training of a gate."""

OF_GENERALIST = ("elastic_lambda", "fine_head")
"""Changes of an arm that only a generalist reads."""

OF_FILES = (
    *("image_size", "groups", "corrections", "skip_unreadable"),
    *("streaming", "loader_workers"),
)
"""Knobs of images that are read from files."""


@dataclass(frozen=True)
class Experiment:
    """The knobs, and the stages that they make.

    What each knob is and accepts is declared in `nofe_lab.knobs`, and listed in docs/guide.md.
    None stands for the preset's value.  `dataset` and `backbone` take objects as well as names.
    Whatever can be refused without the data is refused here, the rest when `data` is first used or
    a stage is made: always before training.  Building one reads no file but `weights`, and writes
    none.

    >>> experiment = Experiment("glyphs", K=10, epochs=2)
    >>> base, nofe = experiment.run(experiment.base(), experiment.nofe())
    """

    dataset: str | Dataset = default("dataset")
    backbone: Network = default("backbone")
    K: int | None = default("K")
    rule: str | None = default("rule")
    preset: str = default("preset")
    epochs: int | None = default("epochs")
    trunk_epochs: int | None = default("trunk_epochs")
    batch_size: int | None = default("batch_size")
    learning_rate: float | None = default("learning_rate")
    seed: int = default("seed")
    device: str = default("device")
    precision: str = default("precision")
    ranks: int = default("ranks")
    runs_dir: str | None = default("runs_dir")
    checkpoint_seconds: float = default("checkpoint_seconds")
    specialties: str = default("specialties")
    trunk: str = default("trunk")
    val_fraction: float | None = default("val_fraction")
    split: str | None = default("split")
    stem: str = default("stem")
    weights: str | None = default("weights")
    initialisation: str | None = default("initialisation")
    branch_width: float = default("branch_width")
    branch_start: str = default("branch_start")
    overlap: int = default("overlap")
    sparse: int | None = default("sparse")
    teacher: str | None = default("teacher")
    trunk_rate: float | None = default("trunk_rate")
    nofe_rate: float | None = default("nofe_rate")
    flips: bool | None = default("flips")
    random_crops: bool = default("random_crops")
    image_size: int | None = default("image_size")
    train_per_class: int | None = default("train_per_class")
    skip_unreadable: bool = default("skip_unreadable")
    streaming: bool | None = default("streaming")
    loader_workers: int | None = default("loader_workers")
    groups: str | None = default("groups")
    corrections: str | None = default("corrections")
    data_seed: int = default("data_seed")
    map_updates: int | None = default("map_updates")
    affinity: str | None = default("affinity")
    affinity_images: int | None = default("affinity_images")
    affinity_from: str = default("affinity_from")
    elastic_lambda: float = default("elastic_lambda")
    fine_head: bool = default("fine_head")
    _backbone: Backbone = field(init=False, repr=False, compare=False)
    _recipes: Preset = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(self.dataset, Dataset):
            text("dataset", self.dataset)
        network = _backbone(self.backbone, self.split, self.stem, self.weights)
        object.__setattr__(self, "_backbone", network)
        recipes = preset(self.preset, network).override(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            trunk_rate=self.trunk_rate,
            flips=self.flips,
            random_crops=self.random_crops,
        )
        if self.random_crops and not self.streaming and not isinstance(self.dataset, Dataset):
            raise InvalidInput(
                "random_crops=True needs streaming=True, so that no run depends on how much memory "
                f"there happens to be; got streaming={self.streaming}."
            )
        if self.val_fraction is not None:
            recipes = replace(recipes, val_fraction=self.val_fraction)
        if self.initialisation is not None:
            network.initialise(nn.Sequential(), self.initialisation)  # or refuses: it has weights
            begun = replace(recipes.network, initialisation=self.initialisation)  # type: ignore[arg-type]
            recipes = replace(recipes, network=begun)
        object.__setattr__(self, "_recipes", recipes)
        K = self.K or 2
        self._generalist_config(recipes, K, self.rule)
        own = ("trunk", "branch_width", "branch_start", "overlap", "sparse")
        named = {name: getattr(self, name) for name in own}
        self._nofe_config(recipes, K, self.specialties, **named)
        self.runner  # noqa: B018  refuses devices and precisions that the machine does not have

    @cached_property
    def recipes(self) -> Preset:
        """The preset's recipes, with the overrides in place.

        Those of `quick` are fitted to the number of training images, unless batch_size is given.
        """
        return self._fitted[0]

    @cached_property
    def _fitted(self) -> tuple[Preset, str]:
        """The recipes, and a sentence on how they were fitted to the data; "" if they were not."""
        recipes, said = self._recipes, ""
        if self.preset == "quick" and self.batch_size is None:
            n, may_be_longer = len(self.data.train), self.epochs is None
            recipes, said = fitted_preset(recipes, n, self._backbone.pretrained, may_be_longer)
        if self.trunk_epochs is not None:
            first = replace(recipes.generalist, epochs=self.trunk_epochs)
            recipes = replace(recipes, generalist=first)
        if self.nofe_rate is not None:
            then = replace(recipes.nofe, learning_rate=self.nofe_rate)
            recipes = replace(recipes, nofe=then)
        return recipes, said

    @cached_property
    def usual_K(self) -> int:
        """`K`, or the usual number of specialties for the data's classes."""
        return self.K or usual_specialties(self.data.C)

    @property
    def _image_size(self) -> int | None:
        """`image_size`, or that of the pretrained weights where pictures come from a folder."""
        is_folder = str(self.dataset).strip().lower().startswith("folder:")
        return (
            self._backbone.usual_side if self.image_size is None and is_folder else self.image_size
        )

    @cached_property
    def _choices(self) -> tuple[str, ...]:
        """What was chosen for the data, each with its reason."""
        C, K = self.data.C, self.usual_K
        notes = [self._fitted[1]] if self._fitted[1] else []
        side, height = self._backbone.usual_side, self.data.image_shape[1]
        if side is not None and self._image_size != self.image_size:
            notes.append(
                f"Images of {side} x {side} pixels, which the pretrained weights were made for "
                "(image_size takes others)."
            )
        elif side is not None and height < side:
            notes.append(
                f"The pretrained weights were made for images of {side} x {side} pixels; these "
                f"have {height} x {self.data.image_shape[2]}."
            )
        if self.K is None:
            why = f"about the square root of {C} classes"
            if round(C**0.5) != K:
                fits = C >= FEWEST_CLASSES * K
                why = f"at least {FEWEST_CLASSES} of {C} classes in each" if fits else "the fewest"
            notes.append(f"K = {K} specialties: {why}.")
        if C < FEWEST_CLASSES * K and usual_specialties(C) == K:
            notes.append(
                f"With {C} classes a specialty has fewer than {FEWEST_CLASSES}, which leaves an "
                "expert little to tell apart."
            )
        elif C < FEWEST_CLASSES * K and usual_specialties(C) < K:
            notes.append(
                f"K = {K} makes specialties of fewer than {FEWEST_CLASSES} of the {C} classes, "
                f"which leaves an expert little to tell apart; K = {usual_specialties(C)} would "
                f"give each about {round(C / usual_specialties(C))}."
            )
        return tuple(notes)

    @cached_property
    def runner(self) -> Runner:
        """Carries the stages out."""
        runs_dir = default_runs_dir() if self.runs_dir is None else self.runs_dir
        return Runner(
            runs_dir, self.device, self.precision, self.checkpoint_seconds, ranks=self.ranks
        )

    @cached_property
    def data(self) -> Dataset:
        """The data set, loaded once for all experiments on the same data."""
        fraction, seed, few = self._recipes.val_fraction, self.data_seed, self.train_per_class
        options = {name: getattr(self, name) for name in OF_FILES}
        if isinstance(self.dataset, Dataset):
            for name, value in options.items():
                if value != default(name):
                    raise InvalidInput(
                        f"{name} is for images that are read from files; got {value!r} for the "
                        f"Dataset {self.dataset.name!r}."
                    )
            if self.val_fraction and len(self.dataset.val):
                raise InvalidInput(
                    f"val_fraction is for data without val images; got {self.val_fraction:g} for "
                    f"the Dataset {self.dataset.name!r}, which has {len(self.dataset.val)}."
                )
            return _prepared(self.dataset, fraction, seed, few)
        state = source_state(self.dataset, self.groups, self.corrections)
        options["image_size"] = self._image_size
        options |= {"val_fraction": fraction, "seed": seed, "train_per_class": few}
        return _load(self.dataset, state, **options)

    @property
    def held_out(self) -> Experiment:
        """This experiment if it has val images, else one that holds out a tenth of train.

        For questions about a base CNN that need images it has not learned from; test is for final
        reports.
        """
        has_val = self._recipes.val_fraction or len(self.data.val)
        return self if has_val else replace(self, val_fraction=0.1)

    def on_features(self, stage: Stage | None = None, stored: str = "float32") -> Experiment:
        """This experiment on the features of a frozen trunk, where all stages take seconds.

        stage: whose trunk it is, trained or loaded here; None: the pretrained weights'.  Its images
        are seen once, without augmentation, and their features kept in memory, as `stored` (see
        `features_of`).  Its stages are those of a trunk_rate of 0, with runs of their own.
        Raises InvalidInput without weights or stage, and for recipes with flips, crops or padding.
        """
        if stage is None and not self._backbone.pretrained:
            raise InvalidInput(
                "features are those of a trunk that has been trained: pass the stage that trained "
                f"it, or give {self._backbone.name!r} weights."
            )
        start = self.base() if stage is None else stage
        if stage is None:
            model = start.image_network(start.untrained_network(), self.runner.machine)
            origin = str(start.backbone.identity)
        else:
            model, origin = self.model(start), start.id
        trunk = ImageNetwork(
            model.preprocess, model.network.get_submodule("trunk"), model.precision
        ).eval()
        data = start.dataset
        train, val, test = (
            features_of(trunk, split, origin, stored) for split in (data.train, data.val, data.test)
        )
        name = f"features of {data.name}"
        kept = replace(data, name=name, train=train, val=val, test=test, clearest=None)
        idle = (*OF_FILES, "split", "stem", "weights", "train_per_class")
        usual: dict[str, Any] = {name: default(name) for name in idle}
        usual["val_fraction"] = None if len(val) else 0.0
        return replace(self, dataset=kept, backbone=OnFeatures(start.backbone), **usual)

    def with_seed(self, seed: int) -> Experiment:
        """The same experiment with another seed, on the same images."""
        return replace(self, seed=seed)

    def stage(self, arm: Arm) -> FlatStage | NofEStage:
        """The stage that trains an arm.

        Raises InvalidInput if this experiment's network or data do not allow it.
        """
        changed = arm.changed
        if "learning_rate" in changed:  # of this arm too
            changed["nofe_rate"] = None
        there = replace(self, **changed) if changed else self
        stage = there._nofe_stage(arm) if arm.kind == "nofe" else there._flat_stage(arm)
        generalists = [each for each in stage.parents.values() if isinstance(each, GeneralistStage)]
        for name in OF_GENERALIST:
            value = arm.changed.get(name)
            if value is not None and all(getattr(g.config, name) != value for g in generalists):
                raise InvalidInput(f"{arm.name!r} has no generalist that {name} would change.")
        stage.arm, stage.choices = arm, there._choices
        self._tell(stage, f"stage({arm.code})")
        return stage

    def base(self, budget: str = "nofe") -> FlatStage:
        """The base CNN.  budget: see `Arm`."""
        stage = self.stage(Arm("base", budget=budget))
        assert isinstance(stage, FlatStage)
        if budget == "nofe":
            self._tell(stage, "base()")
        return stage

    def _flat_stage(self, arm: Arm) -> FlatStage:
        backbone, recipes = self._backbone, self.recipes
        if arm.kind == "control":
            K = self.usual_K
            if arm.experts is not None:
                K = whole_number("experts", arm.experts, 1, K)
            backbone = FlatControl(backbone, K, self.branch_width * arm.width)
        as_nofe = arm.recipe == "nofe" or arm.trunk != "scratch"
        recipe = recipes.nofe if as_nofe else recipes.flat
        if arm.budget == "generalist":
            recipe = recipes.generalist
        if arm.budget == "total":
            recipe = replace(recipe, epochs=recipe.epochs + recipes.generalist.epochs)

        def made(recipe: Recipe) -> FlatStage:
            config = FlatConfig(recipes.network, recipe, self.seed, arm.trunk)
            origin = self._origin(arm.trunk, arm.trunk_rule)
            return FlatStage(self.data, backbone, config, origin, self._teacher(arm))

        if arm.budget == "arithmetic":
            left = sum(each.training_macs for each in self.nofe().lineage.values())
            stage = made(recipe)
            teaching = stage.teacher_macs
            for parent in stage.parents.values():
                teaching += sum(each.training_macs for each in parent.lineage.values())
            epoch = (stage.training_macs - stage.teacher_macs) / recipe.epochs
            if left - teaching < epoch / 2 and arm.teacher:
                raise InvalidInput(
                    f"{arm.name!r} has no arithmetic left to learn with: its teacher takes "
                    f"{teaching / 1e12:.2f} of {left / 1e12:.2f} T multiply-accumulates; a network "
                    "of experts with the same teacher would have more."
                )
            recipe = replace(recipe, epochs=max(round((left - teaching) / epoch), 1))
        return made(recipe)

    def _teacher(self, arm: Arm) -> FlatStage | None:
        """The stage whose answers an arm learns, trained as long as what trunks are taken from."""
        if not arm.teacher:
            return None
        stage = self.stage(Arm(arm.teacher, budget="generalist"))
        assert isinstance(stage, FlatStage)
        return stage

    def _origin(self, trunk: str, rule: str) -> GeneralistStage | FlatStage | None:
        """The stage whose trunk another one starts from."""
        if trunk == "generalist":
            return self.generalist(rule)
        # trained as long as the generalist: only the task differs
        return self.base("generalist") if trunk == "base" else None

    def generalist(self, rule: str | None = None) -> GeneralistStage:
        """The generalist.  rule: instead of the experiment's."""
        config = self._generalist_config(self.recipes, self.usual_K, rule or self.rule)
        if (config.affinity_images or 0) >= len(self.data.train):
            config = replace(config, affinity_images=None)  # all: the same training, the same run
        stage = GeneralistStage(self.data, self._backbone, config)
        stage.choices = self._choices
        self._tell(stage, f"generalist({'' if rule is None else repr(rule)})")
        return stage

    @property
    def _rule(self) -> str:
        """The rule of the experiment's generalist."""
        return self.rule or self._recipes.rule

    def nofe(
        self,
        specialties: str | Specialties | None = None,
        trunk: str | None = None,
        rule: str | None = None,
        trunk_rule: str | None = None,
    ) -> NofEStage:
        """The network of experts; arguments replace the experiment's own choices.

        rule: of the generalist that its partition or its trunk comes from.  trunk_rule: of another
        generalist, for the trunk only.
        """
        is_own = (specialties, trunk, rule, trunk_rule) == (None,) * 4
        wanted = specialties if specialties is not None else self.specialties
        trunk, rule = trunk or self.trunk, rule or self._rule
        arm = Arm(
            "nofe",
            wanted if isinstance(wanted, Specialties) else str(wanted),
            rule if wanted == "learned" else "",
            trunk,
            (trunk_rule or rule) if trunk == "generalist" else "",
            branch_start=self.branch_start,
            teacher=self.teacher or "",
            sparse=self.sparse,
            overlap=self.overlap,
        )
        stage = self.stage(arm)
        assert isinstance(stage, NofEStage)
        if is_own:
            self._tell(stage, "nofe()")
        return stage

    def _nofe_stage(self, arm: Arm) -> NofEStage:
        wanted = "learned" if arm.rule else arm.partition
        config = self._nofe_config(
            self.recipes,
            self.usual_K,
            wanted,
            trunk=arm.trunk,
            branch_width=self.branch_width * arm.width,
            branch_start=arm.branch_start,
            overlap=arm.overlap,
            sparse=arm.sparse,
        )
        if isinstance(wanted, Specialties):
            partition: Specialties | GeneralistStage | FlatStage = wanted
        elif wanted == "learned":
            partition = self.generalist(arm.rule)
        elif wanted == "random":
            # another draw than the one that this seed's generalists begin with
            seed = derive_seed(self.seed, "random specialties")
            partition = Specialties.random(self.data.class_names, self.usual_K, seed)
        elif wanted == "superclass":
            partition = superclass_specialties(self.data)
        elif wanted in CLUSTERED:
            partition = self.base("generalist")
        else:
            partition = Specialties.load(wanted, self.data.class_names)
        origin = self._origin(arm.trunk, arm.trunk_rule)
        teacher = self._teacher(arm)
        return NofEStage(self.data, self._backbone, config, partition, origin, teacher)

    def gate(self, nofe: NofEStage | None = None) -> GateStage | NofEStage:
        """A network of experts, by default the experiment's own, with a gate (see `GateStage`).

        One that was trained sparsely has its gate, and is returned as it is.  Any other gate is
        trained by the quick recipe, as long as the network of experts but not longer than
        GATE_EPOCHS, whatever the preset: nothing was published.
        """
        wanted = nofe or self.nofe()
        if wanted.config.sparse is not None:
            return wanted
        quick, nofe_recipe = self._backbone.quick_preset(), self.recipes.nofe
        recipe = replace(
            quick.nofe,
            epochs=min(nofe_recipe.epochs, GATE_EPOCHS),
            batch_size=nofe_recipe.batch_size,
            learning_rate=self.learning_rate or quick.nofe.learning_rate,
            flips=quick.nofe.flips if self.flips is None else self.flips,
        )
        begun = (quick if self.initialisation is None else self.recipes).network.initialisation
        network = replace(self.recipes.network, initialisation=begun)
        config = GateConfig(network, recipe, self.seed, self.branch_width)
        stage = GateStage(wanted, config)
        of = ""
        if nofe is not None:  # which may be another experiment's
            is_own = nofe.arm is not None and self.stage(nofe.arm).id == nofe.id
            of = f"experiment.stage({nofe.arm.code})" if nofe.arm and is_own else "..."
        self._tell(stage, f"gate({of})")
        return stage

    def arms(self, own: str | Specialties | None = None) -> list[Arm]:
        """The networks that an honest comparison sets side by side.

        own: a partition of the user's, or the path of its .json file, as one more.
        Flat ones: the base CNN, and the control that is as deep and as large as the network of
        experts, each with the NofE stage's epochs, both stages' epochs, and both stages'
        arithmetic; and the control on the trunks that networks of experts start from.  A *small*
        control has a branch as expensive as two experts and the gate that chooses them (K > 3).
        Networks of experts: where the trunk is the learned generalist's, the partition alone
        differs; ``its generalist`` is one that was trained on, or learned, that very partition.
        Superclasses are more than K, or fewer, and so may one's own specialties be: their experts
        are then narrower, or wider, so that all together cost the same.  Where flat networks train
        with flips and the network of experts does not, as AlexNet-Quick's published recipe has it,
        one with flips is there too.  All learn from the experiment's teacher, and all networks of
        experts are trained as sparsely, with as much overlap, as its own.
        Raises InvalidInput for the rule `random`, which would make some of them the same.
        """
        rule = self._rule
        if rule == "random":
            raise InvalidInput(
                "rule must learn, so that it can be compared with random specialties; got 'random'."
            )
        budgets = ("nofe", "total", "arithmetic")
        # only a base CNN's classifier has the rows of an expert's classes
        start = self.branch_start
        if start == "upcycled":
            start = "tail" if self.branch_width == 1 else "fresh"
        teacher = self.teacher or ""
        experts = partial(Arm, "nofe", overlap=self.overlap, sparse=self.sparse, teacher=teacher)
        nofe = partial(experts, branch_start=start)
        on_base = partial(experts, trunk="base", branch_start=self.branch_start)
        on_trunk = partial(nofe, trunk="generalist", trunk_rule=rule)
        control = partial(Arm, "control", teacher=teacher)
        control_on_trunk = partial(control, trunk="generalist", trunk_rule=rule)
        found = [Arm("base", budget=each, teacher=teacher) for each in budgets]
        found += [*(control(budget=each) for each in budgets), control_on_trunk()]
        found.append(control(trunk="base"))
        if self.usual_K > TWO_AND_GATE:
            found.append(control(budget="total", experts=TWO_AND_GATE))
            found.append(control_on_trunk(experts=TWO_AND_GATE))
        if self.recipes.nofe != self.recipes.flat:
            found.append(control(budget="total", recipe="nofe"))
        learned = nofe(rule=rule)
        found.append(learned)
        found += [nofe(rule=each) for each in ("optimal", "greedy", "elastic") if each != rule]
        found += [nofe("random", rule="random"), on_trunk("random")]
        if self.recipes.flat.flips and not self.recipes.nofe.flips:
            found.append(learned.with_changes(flips=True))
        found += [on_trunk(each) for each in ("confusion", "features")]
        unequal: list[tuple[str | Specialties, int]] = []
        if self.data.superclass_of:
            unequal.append(("superclass", len(self.data.superclass_names)))
        if own is not None:
            names = self.data.class_names
            given = own if isinstance(own, Specialties) else Specialties.load(own, names)
            unequal.append((given, len(given.nonempty)))
        for partition, n in unequal:
            try:
                found.append(on_trunk(partition, width=self.usual_K / n))
            except InvalidInput as reason:
                what = "superclass" if partition == "superclass" else "your own"
                log.warning(f"experts for {what} specialties are left out: {reason}")
        found.append(nofe(rule=rule, trunk_rule="random"))
        found += [on_base(rule=rule), on_base("random")]
        scratch = partial(experts, trunk="scratch")  # without a trained tail to start from
        return [*found, scratch(rule=rule), scratch("random")]

    def opponents(self, own: str | Specialties | None = None) -> dict[str, Stage]:
        """The stages of all `arms`, by name.

        What a network or the data do not admit, such as a control where widths are fixed, is left
        out and said.
        """
        return self.possible(self.arms(own))

    def possible(self, arms: Iterable[Arm]) -> dict[str, Stage]:
        """The stages of those arms that the network and the data admit; of the others, why not."""
        found: dict[str, Stage] = {}
        for arm in arms:
            if arm.name in found:
                raise InvalidInput(f"two arms of a comparison are called {arm.name!r}.")
            try:
                found[arm.name] = self.stage(arm)
            except InvalidInput as reason:
                if arm.kind == "base" or arm.rule:  # no comparison without these
                    raise
                log.warning(f"{arm.name} is left out: {reason}")
        return found

    def formation(self) -> Formation | None:
        """How the specialties form, if they are learned, or clusters of confusions; else None.

        Loads or trains the generalist that learns them, or the network of experts that is clustered
        for.
        """
        if self.specialties == "learned":
            learner = self.generalist()
            (run,) = self.run(learner)
            found = load_specialties(run)
            history, updates = run.table("map_history"), run.table("map_updates")
            data = with_clearest(self.data, self.model(learner), torch.tensor(found.of))
            objective = "mean affinity\nof the classes for\ntheir specialties"
            start = "random start"
        elif self.specialties in ("confusion", "balanced"):
            (run,) = self.run(self.nofe())
            found = load_specialties(run)
            model, K, C = self.model(self.base("generalist")), found.K, found.C
            counts = predict(model, self.data.train).confusion
            if self.specialties == "balanced":
                start, (*before, _) = "neighbours in a tree of confusions", balanced_maps(counts, K)
            else:
                start, before = "in the data's order", [np.arange(C) * K // C]
            history, updates = clusters_history(counts, [*before, found.of])
            data = with_clearest(self.data, model)
            objective = "share of the\nerrors that stay\ninside specialties"
        else:
            return None
        return Formation(data, found, history, updates, objective, start)

    def layer_table(self, *networks: str) -> pd.DataFrame:
        """What the networks are made of and what they cost, before any is trained.

        networks: of ``base CNN``, ``generalist`` and ``network of experts``, by default all three.
        One row a layer group (see `layer_table` of nofe_lab.networks.counting).  Specialties that
        are yet to be learned are taken to be balanced.
        """
        stages: dict[str, Callable[[], Stage]] = {
            "base CNN": self.base,
            "generalist": self.generalist,
            "network of experts": self.nofe,
        }
        tables = []
        for name in networks or stages:
            stage = stages[one_of("network", name, stages)]()
            table = layer_table(stage.untrained_network(), stage.backbone.input_shape)
            tables.append(table.assign(network=name))
        joined = pd.concat(tables, ignore_index=True)
        return joined[["network", *joined.columns.drop("network")]]

    def run(self, *stages: Stage, watch: Listener | None = None) -> list[Run]:
        """Load or train the runs of the stages, and of the stages they build on.

        watch: is told the events of what is trained, like `nofe_lab.views.LiveTraining`.
        """
        return self.runner.run(stages, watch)

    def model(self, stage: Stage) -> Classifier:
        """The trained network of a stage, on the experiment's device."""
        return load_model(stage, self.run(stage)[0], self.runner.machine.device)

    def final_report(self, networks: Mapping[str, Stage]) -> FinalReport:
        """Load or train the named stages and test each network on the test split."""
        return final_report(self.runner, list(networks.items()))

    def seeds(self, n: int) -> tuple[int, ...]:
        """The experiment's seed and the n - 1 after it."""
        return tuple(range(self.seed, self.seed + whole_number("n_seeds", n, 1)))

    def variants(self, **values: Iterable[Any]) -> dict[str, Stage]:
        """Networks of experts that differ from the experiment's own in one parameter each.

        >>> experiment.variants(K=[5, 20], rule=["greedy"])  # "as it is", "K = 5", "K = 20", ...
        """
        known = [each.name for each in fields(self) if each.init]
        found: dict[str, Stage] = {"as it is": self.nofe()}
        for name, options in values.items():
            one_of("parameter", name, known)
            for value in options:
                if value != (self.usual_K if name == "K" else getattr(self, name)):
                    found[f"{name} = {value}"] = replace(self, **{name: value}).nofe()
        return found

    def comparison(
        self,
        seeds: Iterable[int],
        networks: Callable[[Experiment], Mapping[str, Stage]] | None = None,
        split: str = "test",
    ) -> FinalReport:
        """The final report of all `opponents`, or of other networks, each with every seed.

        split: test, or val to choose between networks.
        """
        lines = [(networks or Experiment.opponents)(self.with_seed(seed)) for seed in seeds]
        if not lines:
            raise InvalidInput("a comparison needs at least 1 seed; got none.")
        named = [(name, line[name]) for name in lines[0] for line in lines]
        return final_report(self.runner, named, split)

    def scores(
        self, arms: Iterable[Arm], seeds: Iterable[int], watch: Listener | None = None
    ) -> pd.DataFrame:
        """Accuracy on val of some arms, each with every seed: network, seed, val_accuracy.

        What is missing is trained, seed by seed.  watch: see `run`.
        Raises InvalidInput if the data have no val images.
        """
        if not len(self.data.val):
            raise InvalidInput(f"scores need val images; {self.data.name} has none.")
        arms = list(arms)
        rows = []
        for seed in seeds:
            there = self.with_seed(seed)
            runs = there.run(*(there.stage(arm) for arm in arms), watch=watch)
            rows += [
                {"network": arm.name, "seed": seed, "val_accuracy": run.result["val_accuracy"]}
                for arm, run in zip(arms, runs, strict=True)
            ]
        return pd.DataFrame(rows)

    def in_precision(self, precision: str) -> Experiment:
        """The same experiment in another precision, with a runs folder of its own inside its own.

        The precision is no part of a run's identity, so one folder could not keep both.
        """
        return replace(
            self, precision=precision, runs_dir=str(Path(self.runner.runs_dir) / precision)
        )

    def precision_report(self, seeds: Iterable[int]) -> FinalReport:
        """The final report of the network of experts, trained in each precision with every seed."""
        seeds, reports = tuple(seeds), []
        for precision in PRECISIONS:
            there = self.in_precision(precision)
            named = [(f"NofE in {precision}", there.with_seed(s).nofe()) for s in seeds]
            reports.append(final_report(there.runner, named))
        return FinalReport(
            pd.concat([report.table for report in reports], ignore_index=True),
            reports[0].class_names,
            tuple(answers for report in reports for answers in report.predictions),
        )

    def command(self, notebook: str, **also: object) -> str:
        """The command line that executes a notebook with the parameters of this experiment.

        Only parameters that differ from their defaults are named, and none that belong to the
        machine: folder, device, precision, checkpoints.
        also: parameters that the notebook has beyond the experiment's.
        """
        asked = self._asked
        words = ["papermill", f"notebooks/{notebook}.ipynb", "out.ipynb"]
        if "backbone" in asked:
            asked["backbone"] = self._backbone.name
        if isinstance(self.dataset, Dataset):
            asked["dataset"] = self.dataset.name
        for name, value in (asked | also).items():
            if value is not None:
                words += ["-p", name, str(value)]
        return shlex.join(words)

    @property
    def _asked(self) -> dict[str, Any]:
        """The parameters that differ from their defaults, and none that belong to the machine."""
        machine = ("runs_dir", "device", "precision", "ranks", "checkpoint_seconds")
        own = [each for each in fields(self) if each.init and each.name not in machine]
        return {f.name: value for f in own if (value := getattr(self, f.name)) != f.default}

    def _tell(self, stage: Stage, call: str) -> None:
        """Say what makes a stage again; call: of this experiment, in Python."""
        stage.command = self._again(call, self._asked)
        paths = ("dataset", "specialties", "groups", "weights")
        public = {
            name: without_folders(value) if name in paths and isinstance(value, str) else value
            for name, value in self._asked.items()
        }
        if str(public.get("specialties", "")).endswith(".json"):
            public["specialties"] = THESE
        stage.public_command = self._again(call, public)

    def _again(self, call: str, asked: Mapping[str, Any]) -> str:
        """A command line if there is one for the call, else Python."""
        named = [n for n in ("dataset", "backbone") if not isinstance(asked.get(n, ""), str)]
        options = {name: value for name, value in asked.items() if name != "dataset"}
        if call == "nofe()" and not named:
            words = ["nofe-lab", "train", str(asked.get("dataset", default("dataset")))]
            for name, value in options.items():
                words += [f"--{name.replace('_', '-')}", str(value)]
            return shlex.join(words)
        said = [f"{name}={name if name in named else repr(value)}" for name, value in asked.items()]
        lines = ["from nofe_lab import Arm, Experiment", ""]
        for name in named:
            known = without_folders(str(getattr(asked[name], "name", "a network of its own")))
            lines.append(f"{name} = ...  # to be given: {printable(known)}")
        lines.append(f"experiment = Experiment({', '.join(said)})")
        return "\n".join([*lines, f"experiment.run(experiment.{call})"])

    def _generalist_config(self, recipes: Preset, K: int, rule: str | None) -> GeneralistConfig:
        images = self.affinity_images
        if images is None and self.affinity_from == "evaluation":
            images = recipes.affinity_images
        # as many intervals in a shorter or longer stage
        usual = preset(self.preset, self._backbone)
        every = recipes.update_every * recipes.generalist.epochs / usual.generalist.epochs
        return GeneralistConfig(
            network=recipes.network,
            recipe=recipes.generalist,
            K=K,
            rule=rule or recipes.rule,
            update_every=every,
            map_updates=self.map_updates,
            affinity=self.affinity or recipes.affinity,  # type: ignore[arg-type]
            affinity_images=images or None,
            affinity_from=self.affinity_from,  # type: ignore[arg-type]
            elastic_lambda=self.elastic_lambda,
            fine_head=self.fine_head,
            seed=self.seed,
        )

    def _nofe_config(
        self,
        recipes: Preset,
        K: int,
        specialties: str | Specialties,
        **named: Any,
    ) -> NofEConfig:
        """named: further fields of the config."""
        # a partition from a file is known by its content: where it lies makes no other run
        origin = "file"
        if not isinstance(specialties, Specialties) and not str(specialties).endswith(".json"):
            origin = one_of("specialties", specialties, SPECIALTIES, "the path of a .json file")
        return NofEConfig(
            recipes.network,
            recipes.nofe,
            self.seed,
            origin,
            clusters=K if origin in CLUSTERED else None,
            **named,
        )


def superclass_specialties(dataset: Dataset) -> Specialties:
    """The data set's superclasses as a partition.  Raises InvalidInput if it has none."""
    if not dataset.superclass_of:
        raise InvalidInput(
            f"specialties 'superclass' is for data sets with superclasses; {dataset.name} has none."
        )
    names = dataset.superclass_names
    return Specialties(dataset.class_names, dataset.superclass_of, len(names), names)


def _backbone(network: Network, split: str | None, stem: str, weights: str | None) -> Backbone:
    if isinstance(network, str) and weights is None:
        return _named_backbone(network, split, stem)
    return backbone(network, split=split, stem=stem, weights=weights)


@lru_cache(maxsize=8)
def _named_backbone(name: str, split: str | None, stem: str) -> Backbone:
    """Traced once for the experiments of all seeds."""
    return backbone(name, split=split, stem=stem)


@lru_cache(maxsize=2)
def _prepared(dataset: Dataset, fraction: float, seed: int, few: int | None) -> Dataset:
    """The same object for the experiments of all seeds."""
    return prepared(dataset, fraction, seed, few)


@lru_cache(maxsize=2)
def _load(name: str, state: str, **options: Any) -> Dataset:
    """`state` makes files that have changed another data set, also within one process."""
    return load_dataset(name, **options)
