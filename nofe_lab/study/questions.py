"""What the study asks: its arms, their order, and which pairs of arms answer which question."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from nofe_lab.config import data_folder
from nofe_lab.networks import backbone
from nofe_lab.networks.backbone import matching_width
from nofe_lab.stages import Arm, Experiment
from nofe_lab.stages.arms import TWO_AND_GATE
from nofe_lab.study import pays

PAIRS = data_folder() / "specialties" / "cifar100_superclass_pairs.json"
"""CIFAR-100's 20 superclasses, paired by a person."""

# --- arms

BASE, BASE_TOTAL, BASE_ARITHMETIC = (
    Arm("base", budget=budget) for budget in ("nofe", "total", "arithmetic")
)
CONTROL, CONTROL_TOTAL, CONTROL_ARITHMETIC = (
    Arm("control", budget=budget) for budget in ("nofe", "total", "arithmetic")
)
CONTROL_NOFE_RECIPE = Arm("control", budget="total", recipe="nofe")
CONTROL_GENERALIST, CONTROL_BASE_TRUNK = (
    Arm("control", trunk=trunk) for trunk in ("generalist", "base")
)
SMALL_TOTAL = Arm("control", budget="total", experts=TWO_AND_GATE)
SMALL_GENERALIST = Arm("control", trunk="generalist", experts=TWO_AND_GATE)
LEARNED = Arm("nofe")
"""The paper's network, with the exact rule; all others are compared with it."""
FLIPS = LEARNED.with_changes(flips=True)
"""The same with flips in its second stage too."""
GREEDY = Arm("nofe", rule="greedy")
OWN_RANDOM = Arm("nofe", "random", rule="random")
"""Random specialties on the trunk of a generalist trained for them."""
RANDOM, CONFUSION, FEATURES = (Arm("nofe", each) for each in ("random", "confusion", "features"))
"""Other partitions on the trunk of the paper's network."""
SUPERCLASS = Arm("nofe", "superclass", width=0.5)
"""CIFAR-100's twenty superclasses, with experts half as wide."""
SUPERCLASS_PAIRS = Arm("nofe", str(PAIRS), label="superclass pairs")
OTHER_TRUNK = Arm("nofe", trunk_rule="random")
"""Learned specialties on the trunk of OWN_RANDOM."""
BASE_TRUNK, RANDOM_BASE_TRUNK = (Arm("nofe", each, trunk="base") for each in ("", "random"))
"""Learned and random specialties on the trunk of a base CNN."""
RANDOM_SCRATCH = Arm("nofe", "random", trunk="scratch")
BALANCED_BASE_TRUNK = Arm("nofe", "balanced", trunk="base")
"""No generalist: balanced clusters of a base CNN's confusions, on its trunk."""
FLIPS_BASE_TRUNK = BASE_TRUNK.with_changes(flips=True)
ONE_STAGE, RANDOM_ONE_STAGE = (each.with_changes(fine_head=True) for each in (LEARNED, RANDOM))
"""Learned and random specialties on the trunk of a generalist that learns the classes too."""
OVERLAP_BASE_TRUNK, TREENET_BASE_TRUNK = (
    Arm("nofe", "balanced", trunk="base", overlap=overlap) for overlap in (2, 10)
)
"""Every class in two experts, and in all ten: an ensemble on one trunk, as S. Lee et al., "Why M
Heads are Better than One", 2015, have it."""
ELASTIC = Arm("nofe", rule="elastic")
ELASTIC_MOVES = ELASTIC.with_changes(elastic_lambda=300)
"""With a penalty under which classes move, and no specialty swallows the others."""
CONTROL_FAN_IN = CONTROL_TOTAL.with_changes(initialisation="fan_in")
"""The published deviations are the same however wide a layer is."""

# --- their order

PRIMARY = (BASE, LEARNED, OWN_RANDOM)
"""First: do learned specialties help?"""

SECONDARY = (CONTROL, CONTROL_GENERALIST, BASE_TOTAL, CONTROL_TOTAL, RANDOM)
"""Next: is it the specialties, or size, training time and trunk?"""

TERTIARY = (FLIPS, CONTROL_BASE_TRUNK, SMALL_TOTAL, SMALL_GENERALIST, CONTROL_NOFE_RECIPE)
"""Then: is it the flips or the base CNN's trunk?  Does a flat network of the same cost do as well
as two experts?"""

OTHERS: tuple[Arm, ...] = ()
"""The place of all arms that no tier names."""

LAST = (RANDOM_BASE_TRUNK, RANDOM_SCRATCH, SUPERCLASS_PAIRS)
"""Last of the first part: arms that only explain others."""

FOLLOW_UPS = (
    *(BALANCED_BASE_TRUNK, ONE_STAGE, RANDOM_ONE_STAGE),
    *(FLIPS_BASE_TRUNK, ELASTIC_MOVES, CONTROL_FAN_IN),
)
"""What the first part left open: can a base CNN's trunk be had without training it beside a
generalist?  And do flips, the penalty or the initialisation explain what it found?"""

SHARED = (OVERLAP_BASE_TRUNK, TREENET_BASE_TRUNK)
"""Then: experts that share classes."""

GATED = (LEARNED, OWN_RANDOM, RANDOM, CONFUSION, FEATURES, SUPERCLASS, SUPERCLASS_PAIRS)
"""The arms that get a gate: they differ in the partition, not in the trunk or the rule."""

NARROW = (LEARNED, OWN_RANDOM)
"""The two arms that say whether learned specialties help."""

FEW = (
    BASE,
    BASE_TOTAL,
    CONTROL,
    CONTROL_TOTAL,
    CONTROL_GENERALIST,
    SMALL_TOTAL,
    *NARROW,
    BASE_ARITHMETIC,
    CONTROL_BASE_TRUNK,
    BASE_TRUNK,
    RANDOM_BASE_TRUNK,
)
"""Those two, and what separates size, depth, training time and trunk."""

# --- studies

CIFAR100, TINY = "parquet:$NOFE_DATA/cifar100", "parquet:$NOFE_DATA/tiny-imagenet-200-32px"


def arms_of(experiment: Experiment) -> list[Arm]:
    """The experiment's arms, later ones, and for CIFAR-100 with K = 10 its superclass pairs."""
    names = experiment.data.superclass_names
    in_pairs = len(names) == 2 * experiment.usual_K and PAIRS.is_file() and "trees" in names
    return [*experiment.arms(), *([SUPERCLASS_PAIRS] if in_pairs else []), *FOLLOW_UPS, *SHARED]


@dataclass(frozen=True)
class Study:
    """One experiment with several seeds."""

    name: str
    make: Callable[[str | None], Experiment]
    """Makes the experiment, given the folder of the runs."""
    seeds: Callable[[], range]
    """May raise InvalidInput where they follow from data that are not there."""
    arms: Callable[[Experiment], Iterable[Arm]] = arms_of
    tiers: tuple[tuple[Arm, ...], ...] = (
        *(PRIMARY, SECONDARY, TERTIARY, OTHERS, LAST),
        *(FOLLOW_UPS, SHARED),
    )
    """A tier begins when the tiers before it have every seed."""

    def rows(self, arms: Iterable[Arm]) -> list[tuple[Arm, int]]:
        """(arm, seed) of every row of these arms, in the order of the queue."""
        arms, seeds = list(arms), self.seeds()
        known = {arm for tier in self.tiers for arm in tier}
        others = [arm for arm in arms if arm not in known]
        return [
            (arm, seed)
            for tier in self.tiers
            for seed in seeds
            for arm in tier or others
            if arm in arms
        ]


def _quick(runs_dir: str | None, dataset: str = CIFAR100, **changes: Any) -> Experiment:
    """AlexNet-Quick by the published recipe, unless changed."""
    usual = {"preset": "paper", "rule": "optimal", "K": 10}
    return Experiment(dataset, runs_dir=runs_dir, **{**usual, **changes})


def _with_K(runs_dir: str | None, K: int) -> Experiment:
    """The same with K experts that together cost as much as ten."""
    ten = _quick(runs_dir)
    width = matching_width(backbone("alexnet_quick"), 100, ten.usual_K, branches=K)
    return replace(ten, K=K, branch_width=width)


def _few(_: Experiment) -> tuple[Arm, ...]:
    return FEW


def _narrow(_: Experiment) -> tuple[Arm, ...]:
    return NARROW


def _rivals(experiment: Experiment) -> Iterable[Arm]:
    return pays.rivals(experiment).values()


THREE = partial(range, 3)

STUDIES = {
    study.name: study
    for study in (
        Study("cifar100 alexnet_quick, published recipe", _quick, partial(range, 5)),
        Study("cifar100, do experts pay?", pays.chosen_experiment, pays.seeds_of_test, _rivals),
        Study(
            "cifar100 alexnet_quick, strong recipe",
            partial(_quick, preset="strong"),
            THREE,
            _few,
        ),
        *(
            Study(
                f"cifar100 alexnet_quick, K = {K}",
                partial(_with_K, K=K),
                THREE,
                _narrow,
            )
            for K in (2, 5, 20, 50)
        ),
        Study("tiny-imagenet alexnet_quick", partial(_quick, dataset=TINY), THREE, _few),
    )
}
"""In the order of the queue."""

MAIN_STUDY, PAYS, *OTHER_STUDIES = STUDIES
"""Their names."""

# --- questions

SAME_BASE = f"{BASE_TRUNK.name}, made again"
"""BASE_TRUNK trained on the machine of CONTROL_BASE_TRUNK, and so on the very same trunk."""

TWO = f"{LEARNED.name}, two experts"
"""LEARNED with its gate, which runs two experts for an image."""

Questions = dict[tuple[Arm | str, Arm], str]
"""{(arm, opponent): what the comparison asks}."""

QUESTIONS: Questions = {
    (LEARNED, OWN_RANDOM): "**primary:** random specialties, on the trunk of their own generalist",
    (LEARNED, RANDOM): "... on the same trunk",
    (RANDOM, OWN_RANDOM): "... the trunk alone: random ones on the paper's network's trunk, "
    "compared with random ones on their own generalist's",
    (OTHER_TRUNK, OWN_RANDOM): "... the partition alone, both on the trunk "
    "of the random one's generalist",
    (LEARNED, BASE): "its base CNN, trained for 10 epochs (the NofE: 8 + 10)",
    (LEARNED, BASE_TOTAL): "... for 18",
    (LEARNED, BASE_ARITHMETIC): "... for 32, as much arithmetic as both stages",
    (LEARNED, CONTROL): "one flat branch of the experts' depth, parameters and arithmetic, "
    "10 epochs from scratch",
    (LEARNED, CONTROL_TOTAL): "... 18 epochs from scratch",
    (LEARNED, CONTROL_NOFE_RECIPE): "... without mirrored images",
    (LEARNED, CONTROL_FAN_IN): "... with them, initialised by its fan-in",
    (
        CONTROL_FAN_IN,
        CONTROL_TOTAL,
    ): "... the initialisation alone: that flat branch, compared with one initialised as published",
    (LEARNED, CONTROL_ARITHMETIC): "... 14 epochs from scratch, with mirrored images, "
    "as much arithmetic as the NofE's two stages",
    (LEARNED, CONTROL_GENERALIST): "... 8 + 10 epochs, on the same generalist's trunk",
    (FLIPS, CONTROL_TOTAL): "**with mirrored images in both of its stages:** one flat branch, "
    "18 epochs from scratch",
    (BASE_TRUNK, LEARNED): "**on the trunk of a base CNN (8 + 10 epochs), with the same "
    "specialties:** the paper's network, on its generalist's trunk",
    (BASE_TRUNK, RANDOM_BASE_TRUNK): "... random specialties on that trunk",
    (RANDOM_BASE_TRUNK, RANDOM): "... the trunk alone: random specialties on it, "
    "compared with random ones on the paper's network's trunk",
    (BASE_TRUNK, CONTROL_BASE_TRUNK): "... one flat branch on such a trunk, which was "
    "trained for it on another machine",
    (SAME_BASE, CONTROL_BASE_TRUNK): "... one flat branch on the very same trunk",
    (BASE_TRUNK, CONTROL_TOTAL): "... one flat branch, 18 epochs from scratch",
    (BASE_TRUNK, BASE_ARITHMETIC): "... its base CNN, trained for 32 epochs",
    (FLIPS_BASE_TRUNK, BASE_TRUNK): "**on such a trunk, with mirrored images in both stages:** "
    "without them in the second (another trunk and map)",
    (FLIPS_BASE_TRUNK, FLIPS): "... on the generalist's trunk, with them in both",
    (FLIPS_BASE_TRUNK, CONTROL_TOTAL): "... one flat branch, 18 epochs from scratch",
    (BALANCED_BASE_TRUNK, BASE_TRUNK): "**without a generalist, balanced clusters of a base CNN's "
    "confusions on its trunk:** a generalist's specialties on that trunk",
    (BALANCED_BASE_TRUNK, RANDOM_BASE_TRUNK): "... random specialties on that trunk",
    (BALANCED_BASE_TRUNK, BASE_ARITHMETIC): "... its base CNN, trained for 32 epochs",
    (OVERLAP_BASE_TRUNK, BALANCED_BASE_TRUNK): "**every class in two experts, on a base CNN's "
    "trunk:** in one",
    (TREENET_BASE_TRUNK, BALANCED_BASE_TRUNK): "**every class in all ten, a TreeNet on that "
    "trunk:** in one",
    (TREENET_BASE_TRUNK, CONTROL_BASE_TRUNK): "... one flat branch on such a trunk",
    (ONE_STAGE, LEARNED): "**on the trunk of a generalist that learns the classes too:** "
    "the paper's network",
    (ONE_STAGE, RANDOM_ONE_STAGE): "... random specialties on that trunk",
    (ONE_STAGE, BASE_TRUNK): "... specialties of an ordinary generalist on a base CNN's trunk",
    (RANDOM_ONE_STAGE, RANDOM_BASE_TRUNK): "... the trunk alone: random specialties on it, "
    "compared with random ones on a base CNN's trunk",
    (ONE_STAGE, BASE_ARITHMETIC): "... its base CNN, trained for 32 epochs",
    (ELASTIC_MOVES, ELASTIC): "**by the elastic rule, with a penalty that lets classes move:** "
    "with one that hardly does",
    (ELASTIC_MOVES, LEARNED): "... the exact rule",
    (ELASTIC_MOVES, OWN_RANDOM): "... random specialties, on the trunk of their own generalist",
}
"""What each opponent is to the network of experts."""

FEW_QUESTIONS: Questions = {
    (TWO, SMALL_TOTAL): "one flat branch of their arithmetic, 18 epochs from scratch",
    (TWO, SMALL_GENERALIST): "... 8 + 10 epochs, on the same generalist's trunk",
    (TWO, BASE_ARITHMETIC): "its base CNN, which is smaller still, 32 epochs",
}
"""The same for the network of experts that runs two of them."""

README_ARMS = {
    BASE: "base CNN",
    LEARNED: "**network of experts**, as in the paper",
    BASE_TOTAL: "base CNN, as many epochs",
    BASE_ARITHMETIC: "base CNN, as much arithmetic",
    BASE_TRUNK: "**experts** on the trunk of a base CNN",
    CONTROL_BASE_TRUNK: "one wide branch on such a trunk",
}
"""The arms of the README's table, and its names for them."""
