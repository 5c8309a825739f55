"""Rebuild every table and figure of README and docs from ``data/results``: ``make results``.

A table stands in its Markdown file between two comments, ``<!-- table NAME -->`` and
``<!-- end -->``; what lies between them is replaced.  A test rebuilds all of it and compares.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nofe_lab import study
from nofe_lab.bench import against_targets, read
from nofe_lab.config import CLUSTERED
from nofe_lab.networks.paper import PUBLISHED
from nofe_lab.statistics import inside_by_chance, over_seeds, paired_differences
from nofe_lab.views import plots

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "data" / "results"
FIGURES = ROOT / "data" / "figures"
FILES = ("README.md", "docs/results.md", "docs/speed.md", "docs/widgets.md")

PAPER = study.LEARNED.name
OWN_RANDOM = study.OWN_RANDOM.name
OTHER_RANDOM = study.RANDOM.name
OTHER_TRUNK = study.OTHER_TRUNK.name
BASE_TRUNK = study.BASE_TRUNK.name
SAME_BASE = f"{BASE_TRUNK}, made again"
"""The same, trained where the flat control on such a trunk was, and so on the same one."""
FEW = (PAPER, OWN_RANDOM)
"""The networks whose few experts README and figure show."""
SHOWN_EXPERTS = (2, 1, 0)
CHOSEN_ON = 0
"""The seed on which the gate was chosen."""
NETWORKS = {
    "AlexNet-C100": "cifar100_alexnet_c100",
    "VGG11-C100": "cifar100_vgg11_c100",
    "NIN-C100": "cifar100_nin_c100",
    "ResNet56-C100": "cifar100_resnet56_c100",
    "ResNet18 of torchvision": "tiny_imagenet_resnet18",
}


def measured(name: str) -> pd.DataFrame:
    """A file of data/results."""
    return pd.read_csv(RESULTS / f"{name}.csv", comment="#")


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


INTERVAL = "[95 %] (detectable)"
"""What `points` and `between` write behind a difference."""


def points(found: pd.Series) -> str:
    """A difference with its interval and what could have been seen, in points."""
    return between(found, 2, 100)


def between(found: pd.Series, digits: int, unit: float) -> str:
    """A row of `paired_differences`, `unit` times what it is, with so many digits."""
    mean, low, high = (f"{unit * found[name]:+.{digits}f}" for name in ("mean", "low", "high"))
    if pd.isna(found["low"]):
        return mean
    return f"{mean} [{low}, {high}] ({unit * found['detectable']:.{digits}f})"


def percent(found: pd.Series) -> str:
    """A mean with half of its interval's width, in per cent."""
    half = "" if pd.isna(found["high"]) else f" ± {100 * (found['high'] - found['mean']):.2f}"
    return f"{100 * found['mean']:.2f}{half}"


def quick() -> pd.DataFrame:
    """The rows of the study's first part."""
    table = measured("study")
    return table[table["study"] == next(iter(study.STUDIES))]


def made_again() -> pd.DataFrame:
    """The rows of it that were trained once more, on another machine."""
    return measured("study_again")


TWO = f"{PAPER}, two experts"
"""The same network with its gate, where two experts are run for an image."""

QUESTIONS: dict[tuple[str, str], str] = {
    (PAPER, OWN_RANDOM): "**primary:** random specialties, on the trunk of their own generalist",
    (PAPER, OTHER_RANDOM): "... on the same trunk",
    (OTHER_RANDOM, OWN_RANDOM): "... the trunk alone: random ones on the paper's network's trunk, "
    "compared with random ones on their own generalist's",
    (OTHER_TRUNK, OWN_RANDOM): "... the partition alone, both on the trunk "
    "of the random one's generalist",
    (PAPER, study.BASE.name): "its base CNN, trained for 10 epochs (the NofE: 8 + 10)",
    (PAPER, study.BASE_TOTAL.name): "... for 18",
    (PAPER, study.BASE_ARITHMETIC.name): "... for 32, as much arithmetic as both stages",
    (
        PAPER,
        study.CONTROL.name,
    ): "one flat branch of the experts' depth, parameters and arithmetic, 10 epochs from scratch",
    (PAPER, study.CONTROL_TOTAL.name): "... 18 epochs from scratch",
    (PAPER, study.CONTROL_NOFE_RECIPE.name): "... without mirrored images",
    (PAPER, study.CONTROL_ARITHMETIC.name): "... 14 epochs from scratch, with mirrored images, "
    "as much arithmetic as the NofE's two stages",
    (PAPER, study.CONTROL_GENERALIST.name): "... 8 + 10 epochs, on the same generalist's trunk",
    (
        study.FLIPS.name,
        study.CONTROL_TOTAL.name,
    ): "**with mirrored images in both of its stages:** one flat branch, 18 epochs from scratch",
    (BASE_TRUNK, PAPER): "**on the trunk of a base CNN (8 + 10 epochs), with the same "
    "specialties:** the paper's network, on its generalist's trunk",
    (BASE_TRUNK, study.RANDOM_BASE_TRUNK.name): "... random specialties on that trunk",
    (study.RANDOM_BASE_TRUNK.name, OTHER_RANDOM): "... the trunk alone: random specialties on it, "
    "compared with random ones on the paper's network's trunk",
    (BASE_TRUNK, study.CONTROL_BASE_TRUNK.name): "... one flat branch on such a trunk, which was "
    "trained for it on another machine",
    (SAME_BASE, study.CONTROL_BASE_TRUNK.name): "... one flat branch on the very same trunk",
    (BASE_TRUNK, study.CONTROL_TOTAL.name): "... one flat branch, 18 epochs from scratch",
    (BASE_TRUNK, study.BASE_ARITHMETIC.name): "... its base CNN, trained for 32 epochs",
}
"""What each opponent is to the network of experts."""

FEW_QUESTIONS: dict[tuple[str, str], str] = {
    (TWO, study.SMALL_TOTAL.name): "one flat branch of their arithmetic, 18 epochs from scratch",
    (TWO, study.SMALL_GENERALIST.name): "... 8 + 10 epochs, on the same generalist's trunk",
    (TWO, study.BASE_ARITHMETIC.name): "its base CNN, which is smaller still, 32 epochs",
}
"""What each opponent is to the network of experts of which two are run."""


def lead() -> str:
    """The answer in a few sentences, each with its figures."""
    table = quick()

    def apart(nofe: str, arm: str) -> pd.Series:
        """What a network of experts has over another arm, in points: mean, low, high."""
        found = paired_differences(table, nofe, "top1", "arm").set_index("arm").loc[arm]
        return -100 * found[["mean", "high", "low"]].set_axis(["mean", "low", "high"])

    def mean(*pairs: tuple[str, str]) -> float:
        return float(np.mean([apart(*pair)["mean"] for pair in pairs]))

    def said(found: pd.Series) -> str:
        return f"{found['mean']:+.1f} [{found['low']:.1f}, {found['high']:.1f}]"

    few = curves()
    lost = {arm: -100 * changes(few[few["arm"] == arm])[0].loc[2, "mean"] for arm in FEW}
    two = few[(few["arm"] == PAPER) & (few["experts"] == 2)]
    saved = 100 * (1 - (two["macs"] / two["macs_all"]).median())
    sentences = [
        "**The published gain is there, but most of it is training:** the same base CNN is "
        f"{mean((PAPER, study.BASE_TOTAL.name)):.1f} points behind when it is trained for as "
        f"many epochs, and {-mean((PAPER, study.BASE_ARITHMETIC.name)):.1f} ahead with as much "
        "arithmetic.",
        f"**The trunk matters most:** {said(apart(BASE_TRUNK, PAPER))} points for a base CNN's in "
        "place of the generalist's.",
        f"**Learned against random groups:** {said(apart(PAPER, OWN_RANDOM))}, each on the trunk "
        "of its own generalist, the comparison chosen in advance. The trunk makes about "
        f"{mean((OTHER_RANDOM, OWN_RANDOM), (PAPER, OTHER_TRUNK)):.1f} of that and the map about "
        f"{mean((PAPER, OTHER_RANDOM), (OTHER_TRUNK, OWN_RANDOM)):.1f} (means of both orders).",
        f"**Two of ten experts** for each image lose {lost[PAPER]:.1f} points and save {saved:.0f} "
        f"% of the arithmetic; random groups do as well ({lost[OWN_RANDOM]:.1f}).",
    ]
    return "\n".join(
        textwrap.fill(f"* {each}", 100, subsequent_indent="  ", break_on_hyphens=False)
        for each in sentences
    )


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def answer() -> str:
    """What each comparison asks, and what the seeds say."""
    again = made_again()
    twin = again[again["arm"] == BASE_TRUNK].assign(arm=SAME_BASE)
    return compared(pd.concat([quick(), twin]), QUESTIONS)


def few_answer() -> str:
    """The same where two experts are run, whose gate was trained too."""
    few, table = curves(), quick()
    two = few[(few["arm"] == PAPER) & (few["experts"] == 2)].assign(arm=TWO)
    spent = table.loc[table["arm"] == PAPER, "total_training_macs"].iloc[0]
    two["total_training_macs"] = spent + two["gate_training_macs"]
    return compared(pd.concat([table, two]), FEW_QUESTIONS)


def compared(table: pd.DataFrame, questions: dict[tuple[str, str], str]) -> str:
    """Differences of top-1 between two arms, each pair with its question and a verdict."""
    of = {
        each: paired_differences(table, each, "top1", "arm").set_index("arm")
        for each in dict.fromkeys(nofe for nofe, _ in questions)
        if each in set(table["arm"])
    }
    spent = table.groupby("arm")["total_training_macs"].first()
    rows = []
    for (nofe, arm), question in questions.items():
        differences = of.get(nofe)
        if differences is None or arm not in differences.index:
            known = {nofe, arm} <= set(table["arm"])
            missing = "no common seed yet" if known else "not measured yet"
            rows.append([question, nofe, arm, "", "", missing, ""])
            continue
        found = differences.loc[arm].copy()
        found[["mean", "low", "high"]] = -found[["mean", "high", "low"]].to_numpy()
        if pd.isna(found["low"]):
            verdict = "open: one seed"
        elif found["low"] > 0:
            verdict = "better"
        else:
            verdict = "worse" if found["high"] < 0 else "open"
        budgets = " / ".join(f"{spent[each] / 1e12:.0f}" for each in (nofe, arm))
        seeds = f"{found['seeds']:.0f}"
        rows.append([question, nofe, arm, budgets, seeds, points(found), verdict])
    head = ["A compared with", "A", "B", "training, A / B: T multiply-accumulates", "seeds"]
    return markdown([*head, f"A − B, points {INTERVAL}", "A is"], rows)


FIRST = {
    study.BASE.name: "base CNN",
    PAPER: "**network of experts**, as in the paper",
    study.BASE_TOTAL.name: "base CNN, as many epochs",
    study.BASE_ARITHMETIC.name: "base CNN, as much arithmetic",
    BASE_TRUNK: "**experts** on the trunk of a base CNN",
    study.CONTROL_BASE_TRUNK.name: "one wide branch on such a trunk",
}
"""The arms that the README shows, as it calls them."""


def first_table() -> str:
    """The arms that decide: budget and accuracy."""
    table = quick()
    means = over_seeds(table, "top1", "arm").set_index("arm")
    first = table.groupby("arm").first()
    rows = []
    for arm, name in FIRST.items():
        row, found = first.loc[arm], means.loc[arm]
        before = int(row["total_epochs"] - row["epochs"])
        epochs = f"{before} + {row['epochs']}" if before else f"{row['epochs']}"
        half = 100 * (found["high"] - found["mean"])
        accuracy = f"{100 * found['mean']:.1f} ± {half:.1f}"
        rows.append([name, accuracy, epochs, f"{row['total_training_macs'] / 1e12:.0f} T"])
    head = ["network", "top-1 %, mean ± 95 %", "epochs", "multiply-accumulates of training"]
    return markdown(head, rows)


BUDGET = [
    "parameters",
    "multiply-accumulates an image",
    "epochs in all",
    "multiply-accumulates of training",
]


def budget(row: pd.Series) -> list[str]:
    """The cells below BUDGET of a row of the study."""
    return [
        f"{row['parameters'] / 1e6:.2f} M",
        f"{row['macs'] / 1e6:.1f} M",
        f"{row['total_epochs']:.0f}",
        f"{row['total_training_macs'] / 1e12:.0f} T",
    ]


def ranked(table: pd.DataFrame, means: pd.DataFrame) -> pd.DataFrame:
    """The arms' means, best first: by the difference from PAPER over the seeds that both have."""
    wide = table.pivot(index="seed", columns="arm", values="top1")
    order = wide.sub(wide[PAPER], axis=0).mean().sort_values(ascending=False)
    return means.loc[order.index]


def study_table() -> str:
    """Every arm: accuracy, difference from the paper's network, size and budget."""
    table = quick()
    means = over_seeds(table, "top1", "arm").set_index("arm")
    differences = paired_differences(table, PAPER, "top1", "arm").set_index("arm")
    first = table.groupby("arm").first()
    rows = []
    for arm, found in ranked(table, means).iterrows():
        apart = points(differences.loc[arm]) if arm in differences.index else ""
        seeds = f"{found['seeds']:.0f}"
        rows.append([str(arm), seeds, percent(found), apart, *budget(first.loc[arm])])
    head = ["network", "seeds", "top-1 %, mean ± 95 %", f"it − {PAPER} {INTERVAL}"]
    return markdown([*head, *BUDGET], rows)


def quality_table() -> str:
    """Every arm: what else than top-1 was measured, means over the seeds."""
    table = quick()
    machine = table.loc[table["arm"] == PAPER, "hardware"].iloc[0]
    times = ["seconds", "total_seconds"]  # of one machine, or nobody could compare them
    table[times] = table[times].where(table["hardware"] == machine)
    table["inside"] = 1 - table["crossing"]
    sizes = table["map"].dropna().map(lambda of: list(Counter(of.split()).values()))
    table["chance"] = sizes.map(inside_by_chance)
    means = ranked(table, table.groupby("arm").mean(numeric_only=True))
    differences = {
        name: paired_differences(table, PAPER, name, "arm").set_index("arm")
        for name in ("nll", "calibration_error")
    }
    columns = {
        "top5": "top-5 %",
        "nll": "negative log-likelihood",
        "calibration_error": "calibration error %",
        "train_accuracy": "training top-1 %",
        "right_specialty": "right specialty %",
        "within_specialty": "top-1 % if it were known",
        "inside": "errors inside a specialty %",
        "chance": "by chance, for its sizes %",
        "seconds": "seconds",
        "total_seconds": "with all stages",
    }
    rows = []
    for arm, row in means.iterrows():
        cells = []
        for name in columns:
            value = row[name]
            plain = name == "nll" or "seconds" in name
            digits = 0 if "seconds" in name else 3 if name == "nll" else 1
            shown = value if plain else 100 * value
            cells.append("" if pd.isna(value) else f"{shown:.{digits}f}")
        apart = []
        for name, digits, unit in (("nll", 3, 1), ("calibration_error", 1, 100)):
            found = differences[name].loc[arm] if arm != PAPER else None
            apart.append("" if found is None else between(found, digits, unit))
        rows.append([str(arm), *cells, *apart])
    head = ["network", *columns.values(), f"negative log-likelihood − that of {PAPER} {INTERVAL}"]
    return markdown([*head, "calibration error − its, points"], rows)


def agreement_table() -> str:
    """How alike the maps of different seeds are, for every arm that makes its own."""
    table = quick()
    learned = (table["partition"] == "learned") & (table["rule"] == table["trunk_rule"])
    own = (learned & table["changes"].isna()) | table["partition"].isin(CLUSTERED)
    found = study.agreement(table[own])
    start = table[table["arm"] == OWN_RANDOM].set_index("seed")["map"]
    rows = []
    for row in found[found["pairs"] > 0].itertuples():
        alike = [f"{row.pairs}", f"{row.ari:.2f}", f"{row.nmi:.2f}", f"{row.chance_nmi:.2f}"]
        moved = ""
        if row.arm in set(table[learned]["arm"]):  # began with the random map
            maps = table[table["arm"] == row.arm].set_index("seed")["map"]
            counts = [
                sum(a != b for a, b in zip(of.split(), start[seed].split(), strict=True))
                for seed, of in maps.items()
            ]
            moved = f"{min(counts)} to {max(counts)}"
        rows.append([row.arm, *alike, moved])
    head = ["network", "pairs of seeds", "adjusted Rand index", "mutual information", "by chance"]
    return markdown([*head, "classes moved from the random start"], rows)


def curves() -> pd.DataFrame:
    """The curves over experts of the study's first part.

    Without seed 0, on which the gate was chosen, as soon as there are others.
    """
    table = measured("study_conditional")
    table = table[table["study"] == next(iter(study.STUDIES))]
    others = table[table["seed"] != CHOSEN_ON]
    return others if len(others) else table


def changes(own: pd.DataFrame) -> tuple[pd.DataFrame, float]:
    """What a number of experts changes (see `paired_differences`), and the mean with all of them.

    own: the curves of an arm.  0 experts: the gate's own answers.
    """
    last = own["experts"].max()
    gate = own[own["experts"] == last].assign(experts=0, top1=lambda rows: rows["gate_top1"])
    every = pd.concat([gate, own])
    differences = paired_differences(every, last, "top1", "experts").set_index("experts")
    return differences, own.loc[own["experts"] == last, "top1"].mean()


def conditional_table() -> str:
    """Accuracy lost with few experts, and what that saves."""
    table = curves()
    rows = []
    for arm in dict.fromkeys(table["arm"]):
        own = table[table["arm"] == arm]
        lost, whole = changes(own)
        two = own[own["experts"] == 2]
        times = [
            [two[f"ms_{batch}{of}"] for of in ("", "_all", "_trunk")] for batch in study.BATCHES
        ]
        saved = {
            "arithmetic": [two["macs"] / two["macs_all"]],
            "experts": [(few - trunk) / (ten - trunk) for few, ten, trunk in times],
            "network": [few / ten for few, ten, _ in times],
        }
        rows.append(
            [
                str(arm),
                f"{own['seed'].nunique()}",
                f"{own['experts'].max()}",
                f"{100 * whole:.2f}",
                *(points(lost.loc[m]) for m in SHOWN_EXPERTS),
                *(
                    " / ".join(f"{100 * (1 - each.median()):.0f}" for each in parts)
                    for parts in saved.values()
                ),
            ]
        )
    head = ["network", "seeds", "experts", "all of them: top-1 %"]
    head += [f"{m or 'none'} of them: points {INTERVAL}" for m in SHOWN_EXPERTS]
    batches = " / ".join(map(str, study.BATCHES))
    head += ["2 of them save: arithmetic %"]
    head += [f"the experts' time %, batch {batches}", f"the whole network's time %, {batches}"]
    return markdown(head, rows)


def precision_table() -> str:
    """The published row in bf16 and in fp32."""
    table = measured("cifar100_precision")
    differences = paired_differences(table, "NofE in fp32").set_index("network")
    rows = []
    for _, found in over_seeds(table).iterrows():
        name = found["network"]
        apart = points(differences.loc[name]) if name in differences.index else ""
        rows.append([name, f"{found['seeds']}", percent(found), apart])
    return markdown(
        ["network", "seeds", "top-1 %, mean ± 95 %", f"minus fp32, points {INTERVAL}"], rows
    )


def again_table() -> str:
    """Runs that were trained more than once: same data, recipe and seed, but not the same bits."""
    once = measured("cifar100_precision").rename(columns={"test_accuracy": "top1"})
    parts = {"study": quick(), "notebook 6": once}
    both = pd.concat([part.assign(made=name) for name, part in parts.items()])
    both = both[both["run"].isin(set(once["run"]) & set(quick()["run"]))]
    threads = both["threads"].map(lambda n: _counted(n, "thread"))
    how = both["made"] + ": " + both["precision"] + ", " + threads
    wide = both.assign(how=how).pivot(index="seed", columns="how", values="top1")
    cells = (100 * wide).map(lambda each: "" if pd.isna(each) else f"{each:.2f}")
    rows = [[f"{seed}", *row] for seed, row in cells.iterrows()]
    return markdown(["seed", *wide.columns], rows)


def machines_table() -> str:
    """Rows of the study that were trained twice, on the CPU and on the GPU."""
    once, again = quick(), made_again()
    both = pd.concat([once[once["run"].isin(again["run"])], again])
    here, there = sorted(both["hardware"].unique(), key=lambda name: "cores" not in name)
    together = both.groupby(["seed", "hardware"], as_index=False)["top1"].mean()
    both = pd.concat([both, together.assign(arm="all of these")])
    rows = []
    for arm, own in both.groupby("arm", sort=False):
        (found,) = paired_differences(own, here, "top1", "hardware").to_dict("records")
        means = own.groupby("hardware")["top1"].mean()
        cells = [f"{100 * means[name]:.2f}" for name in (here, there)]
        rows.append([str(arm), f"{found['seeds']}", *cells, points(pd.Series(found))])
    return markdown(["network", "seeds", here, there, f"difference, points {INTERVAL}"], rows)


def settings_table() -> str:
    """The other parts of the study, with the same networks under other recipes, K and images."""
    rows = []
    everything = measured("study")
    for name in list(study.STUDIES)[1:]:
        table = everything[everything["study"] == name]
        means = over_seeds(table, "top1", "arm").set_index("arm")
        known = PAPER in means.index
        if known:
            means = ranked(table, means)
            differences = paired_differences(table, PAPER, "top1", "arm").set_index("arm")
        for arm, found in means.iterrows():
            row = table[table["arm"] == arm].iloc[0]
            difference = points(differences.loc[arm]) if known and arm in differences.index else ""
            rows.append(
                [
                    name.removeprefix("cifar100 alexnet_quick, "),
                    str(arm),
                    f"{found['seeds']:.0f}",
                    percent(found),
                    difference,
                    *budget(row)[2:],
                    " and ".join(table.loc[table["arm"] == arm, "hardware"].unique()),
                ]
            )
    head = ["part of the study", "network", "seeds", "top-1 %, mean ± 95 %"]
    head += [f"it − {PAPER} {INTERVAL}", *BUDGET[2:], "trained on"]
    return markdown(head, rows)


def few_elsewhere() -> str:
    """Accuracy lost with few experts in the other parts of the study."""
    everything = measured("study_conditional")
    rows = []
    for name in list(study.STUDIES)[1:]:
        table = everything[everything["study"] == name]
        for arm, own in table.groupby("arm", sort=False):
            lost, whole = changes(own)
            cells = [points(lost.loc[m]) if m in lost.index else "" for m in SHOWN_EXPERTS]
            label = name.removeprefix("cifar100 alexnet_quick, ")
            seeds, last = own["seed"].nunique(), own["experts"].max()
            rows.append([label, str(arm), f"{seeds}", f"{last}", f"{100 * whole:.2f}", *cells])
    head = ["part of the study", "network", "seeds", "experts", "all of them: top-1 %"]
    head += [f"{m or 'none'} of them: points {INTERVAL}" for m in SHOWN_EXPERTS]
    return markdown(head, rows)


def paper_table() -> str:
    """Each published row beside what this code gets: single runs, by notebook 03."""
    greedy = measured("cifar100_paper_greedy").set_index("network")
    optimal = measured("cifar100_paper_optimal").set_index("network")
    base, nofe = PUBLISHED["alexnet_quick"]
    rows = [
        ("base CNN", f"{base:.2f} %", greedy.loc["base CNN"]),
        ("NofE, greedy specialties (the paper's rule)", f"{nofe:.2f} %", greedy.iloc[-1]),
        ("NofE, optimal specialties (exact)", "", optimal.iloc[-1]),
    ]
    head = ["network", "published", "measured", "parameters", "multiply-accumulates", "training"]
    return markdown(
        [*head, "with its generalist"],
        [
            [
                name,
                published,
                f"**{row['test_accuracy']:.2%}**",
                f"{row['parameters']:,}",
                f"{row['macs'] / 1e6:.1f} M",
                f"{row['seconds']:.0f} s",
                f"{row['total_seconds']:.0f} s",
            ]
            for name, published, row in rows
        ],
    )


def glyphs_table() -> str:
    """The comparison of notebook 04 on the embedded data set."""
    table = measured("glyphs_quick_comparison")
    differences = paired_differences(table, PAPER).set_index("network")
    rows = []
    for found in over_seeds(table).itertuples():
        known = found.network in differences.index
        apart = points(differences.loc[found.network]) if known else ""
        rows.append([found.network, f"{found.seeds}", f"**{found.mean:.2%}**", apart])
    return markdown(
        ["network", "seeds", "test accuracy", f"minus {PAPER}, points {INTERVAL}"], rows
    )


RECIPES = {
    "cifar100_alexnet_c100": "`preset=paper`, all 50,000 images, shortened from 120/140 epochs",
    "cifar100_vgg11_c100": "`preset=quick`, 40 images a class",
    "cifar100_nin_c100": "`preset=quick`, 40 images a class",
    "cifar100_resnet56_c100": "`preset=quick`, 40 images a class",
    "tiny_imagenet_resnet18": "Tiny ImageNet at 32 x 32, K = 20, `split=layer4`, "
    "`branch_width=0.25`, `stem=original`, 120 images a class",
}


def networks_table() -> str:
    """Short trainings of every published network and of one of torchvision's."""
    rows = []
    for name, file in NETWORKS.items():
        table = measured(file).set_index("network")
        base, nofe = table.loc["base CNN"], table.loc["network of experts"]
        rows.append(
            [
                name,
                RECIPES[file],
                f"{base['epochs']}",
                f"{base['test_accuracy']:.2%}",
                f"{nofe['test_accuracy']:.2%}",
                f"{nofe['first_epoch_loss']:.2f} → {nofe['last_epoch_loss']:.2f}",
                f"{base['parameters']:,} / {nofe['parameters']:,}",
                f"{base['seconds'] / 60:.0f} / {nofe['total_seconds'] / 60:.0f} min",
            ]
        )
    head = ["network", "recipe", "epochs a stage", "base CNN", "NofE"]
    head += ["its training loss, first → last epoch", "parameters, base / NofE"]
    return markdown([*head, "training, base / NofE with its generalist"], rows)


def speed_table() -> str:
    """The benchmark against its targets."""
    found = against_targets(read(RESULTS / "bench.csv"))
    rows = [
        [
            row.what,
            f"{row.networks}" if row.networks > 1 else "AlexNet-Quick",
            row.target,
            f"**{row.measured:.3g}**",
            f"{row.smallest:.3g} to {row.largest:.3g}",
            "met" if row.met else "missed",
        ]
        for row in found.itertuples()
    ]
    return markdown(["what", "networks", "target", "mean", "smallest to largest", ""], rows)


def widgets_table() -> str:
    """How soon the widgets answer a click."""
    table = measured("widgets")
    share = table.dropna(subset="share").iloc[0]
    table = table.dropna(subset="median_ms")
    few, many = sorted(table["classes"].unique())
    rows = []
    for (widget, click), found in table.groupby(["widget", "click"], sort=False):
        by = found.set_index("classes")
        cells = [
            f"{by.loc[C, 'median_ms']:.1f} ({by.loc[C, 'largest_ms']:.1f})" for C in (few, many)
        ]
        rows.append([f"`{widget}`", str(click), *cells])
    head = [f"C = {C}: median ms (largest)" for C in (few, many)]
    first = table.iloc[0]
    about = (
        f"{first['repeats']} clicks each; {first['hardware']}, revision {first['revision']}. "
        f"`LiveTraining` took {100 * share['share']:.2f} % of the time of a training "
        f"(AlexNet-Quick's generalist on {share['images']:,} images of {share['dataset']}); the "
        "goal was at most 2 %."
    )
    return f"{markdown(['widget', 'click', *head], rows)}\n\n{about}"


TABLES: dict[str, Callable[[], str]] = {
    "widgets": widgets_table,
    "lead": lead,
    "answer": answer,
    "few": few_answer,
    "first": first_table,
    "study": study_table,
    "quality": quality_table,
    "agreement": agreement_table,
    "conditional": conditional_table,
    "precision": precision_table,
    "again": again_table,
    "machines": machines_table,
    "settings": settings_table,
    "elsewhere": few_elsewhere,
    "paper": paper_table,
    "glyphs": glyphs_table,
    "networks": networks_table,
    "speed": speed_table,
}
"""What stands in the files between ``<!-- table NAME -->`` and ``<!-- end -->``."""


def study_figure() -> Figure:
    """Accuracy of every arm against the arithmetic of its training."""
    table = quick().rename(columns={"top1": "test_accuracy"})
    return plots.plot_front(table, by="arm")


def conditional_figure() -> Figure:
    """What a few experts do, for learned and for random specialties.

    Beside them the flat networks that were trained for as many epochs in all, or more, with the
    same seeds.
    """
    table = curves()
    arms = [arm for arm in FEW if arm in set(table["arm"])]
    kept = pd.concat([table[table["arm"] == arm] for arm in arms])
    flat = quick()
    epochs = flat.loc[flat["arm"] == PAPER, "total_epochs"].max()
    alike = (flat["kind"] != "nofe") & (flat["total_epochs"] >= epochs)
    flat = flat[alike & flat["seed"].isin(kept["seed"])]
    whole = flat.groupby("arm")["seed"].transform("nunique") == kept["seed"].nunique()
    return plots.plot_conditional(kept, flat[whole])


PICTURES: dict[str, Callable[[], Figure]] = {
    "study": study_figure,
    "study_conditional": conditional_figure,
}
"""Of data/figures."""


def rebuilt(text: str) -> str:
    """A Markdown file's text with all of its tables made anew."""
    pattern = re.compile(r"(<!-- table (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[4]}", text)


def main(root: Path) -> None:
    """Rebuild the files under `root`, a checkout of this project."""
    for name in FILES:
        path = root / name
        text = path.read_text(encoding="utf-8")
        path.write_text(rebuilt(text), encoding="utf-8")
        print(f"{name}: {len(re.findall('<!-- table', text))} tables")
    for name, draw in PICTURES.items():
        target = root / "data" / "figures" / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        draw().savefig(target, dpi=100)
        print(target.relative_to(root))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
