"""Rebuild the tables and figures of README and docs from ``data/results``: ``make results``.

A table stands in its Markdown file between two comments, ``<!-- table NAME -->`` and
``<!-- end -->``; the text between them is replaced.  A test rebuilds everything and compares.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nofe_lab import knobs
from nofe_lab.bench.targets import RESULTS as BENCH_RESULTS
from nofe_lab.bench.targets import against_targets, read
from nofe_lab.config import data_folder
from nofe_lab.log import log
from nofe_lab.networks.paper import PUBLISHED
from nofe_lab.stages import Arm
from nofe_lab.statistics import over_seeds
from nofe_lab.study import tables
from nofe_lab.study.questions import (
    BASE_ARITHMETIC,
    BASE_TOTAL,
    BASE_TRUNK,
    LEARNED,
    NARROW,
    OTHER_TRUNK,
    OWN_RANDOM,
    RANDOM,
    README_ARMS,
)
from nofe_lab.study.tables import (
    INTERVAL,
    PAPER,
    changes,
    curves,
    differences_from,
    markdown,
    means_of,
    measured_on,
    points,
    quick,
    read_result,
)
from nofe_lab.views import plots

FILES = (
    "README.md",
    "docs/guide.md",
    "docs/results.md",
    "docs/scale.md",
    "docs/speed.md",
    "docs/widgets.md",
)

NETWORKS = {
    "AlexNet-C100": (
        "cifar100_alexnet_c100",
        "`preset=paper`, all 50,000 images, shortened from 120/140 epochs",
    ),
    "VGG11-C100": ("cifar100_vgg11_c100", "`preset=quick`, 40 images a class"),
    "NIN-C100": ("cifar100_nin_c100", "`preset=quick`, 40 images a class"),
    "ResNet56-C100": ("cifar100_resnet56_c100", "`preset=quick`, 40 images a class"),
    "ResNet18 of torchvision": (
        "tiny_imagenet_resnet18",
        "Tiny ImageNet at 32 x 32, K = 20, `split=layer4`, `branch_width=0.25`, "
        "`stem=original`, 120 images a class",
    ),
}
"""The short trainings: their files of data/results, and their recipes."""


def lead() -> str:
    """The answer in a few sentences with their figures."""
    table = quick()

    def turned(found: Any) -> Any:
        """A difference the other way round, in points."""
        return -100 * found[["mean", "high", "low"]].set_axis(["mean", "low", "high"])

    def apart(nofe: Arm, arm: Arm) -> Any:
        """The lead of a network of experts over another arm, in points: mean, low, high."""
        return turned(differences_from(table, nofe.name).loc[arm.name])

    def mean(*pairs: tuple[Arm, Arm]) -> float:
        return float(np.mean([apart(*pair)["mean"] for pair in pairs]))

    def said(found: Any) -> str:
        return f"{found['mean']:+.1f} [{found['low']:.1f}, {found['high']:.1f}]"

    run = read_result("first_run_test")
    found = means_of(run, "test_accuracy", "network")
    ahead = differences_from(run, tables.SAME_MACS, "test_accuracy", "network").loc[tables.EXPERTS]
    names = (tables.EXPERTS, tables.SAME_MACS, tables.SAME_EPOCHS)
    experts, as_much, as_long = (f"{100 * found['mean'][name]:.1f} %" for name in names)
    few = curves()
    lost = [-100 * changes(few[few["arm"] == arm.name])[0].loc[2, "mean"] for arm in NARROW]
    two = few[(few["arm"] == PAPER) & (few["experts"] == 2)]
    saved = 100 * (1 - (two["macs"] / two["macs_all"]).median())
    added, own = read_result("added_classes"), "new expert, all images"
    spent = added.groupby("network")["training_macs"].mean()
    others = differences_from(added, own, "all", "network")
    again, new_rows = (
        said(turned(others.loc[name])) for name in (tables.RETRAINED, "new rows, all images")
    )
    sentences = [
        "**The published gain is there, but most of it is training:** the same base CNN is "
        f"{mean((LEARNED, BASE_TOTAL)):.1f} points behind when it is trained for as "
        f"many epochs, and {-mean((LEARNED, BASE_ARITHMETIC)):.1f} ahead with as much "
        "arithmetic.",
        f"**The trunk matters:** {said(apart(BASE_TRUNK, LEARNED))} points for a base CNN's in "
        "place of the generalist's.",
        f"**Learned against random groups:** {said(apart(LEARNED, OWN_RANDOM))}, each on the trunk "
        "of its own generalist, the comparison singled out early; the trunk makes about "
        f"{mean((RANDOM, OWN_RANDOM), (LEARNED, OTHER_TRUNK)):.1f} of it, the map "
        f"{mean((LEARNED, RANDOM), (OTHER_TRUNK, OWN_RANDOM)):.1f} (mean of both orders).",
        f"**Two of ten experts** an image cost {lost[0]:.1f} points (random: "
        f"{lost[1]:.1f}) and save {saved:.0f} % of the arithmetic.",
        f"**Ten classes added to ninety** ({added['seed'].nunique()} short trainings): their own "
        f"expert is {again} points from training all again, for "
        f"{100 * spent[own] / spent[tables.RETRAINED]:.0f} % of the arithmetic, and {new_rows} "
        "from new rows.",
        f"**`make run`**, on glyphs, over {run['seed'].nunique()} seeds that its choice had not "
        f"seen: {experts} with experts, the base CNN {as_much} with as much arithmetic "
        f"({said(100 * ahead)}) and {as_long} with as many epochs.",
    ]
    return "\n".join(
        textwrap.fill(f"* {each}", 100, subsequent_indent="  ", break_on_hyphens=False)
        for each in sentences
    )


def first_table() -> str:
    """Accuracy and budget of the arms that decide."""
    table = quick()
    means = means_of(table)
    first: Any = table.groupby("arm").first()
    rows = []
    for arm, name in README_ARMS.items():
        row, found = first.loc[arm.name], means.loc[arm.name]
        before = int(row["total_epochs"] - row["epochs"])
        epochs = f"{before} + {row['epochs']}" if before else f"{row['epochs']}"
        half = 100 * (found["high"] - found["mean"])
        accuracy = f"{100 * found['mean']:.1f} ± {half:.1f}"
        rows.append([name, accuracy, epochs, f"{row['total_training_macs'] / 1e12:.0f} T"])
    head = ["network", "top-1 %, mean ± 95 %", "epochs", "multiply-accumulates of training"]
    return markdown(head, rows)


def paper_table() -> str:
    """The published accuracies beside those of single runs of notebook 03."""
    greedy = read_result("cifar100_paper_greedy").set_index("network")
    optimal = read_result("cifar100_paper_optimal").set_index("network")
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
    table = read_result("glyphs_quick_comparison")
    differences = differences_from(table, PAPER, "test_accuracy", "network")
    rows = []
    for found in over_seeds(table).itertuples():
        known = found.network in differences.index
        apart = points(differences.loc[found.network]) if known else ""
        rows.append([found.network, f"{found.seeds}", f"**{found.mean:.2%}**", apart])
    return markdown(
        ["network", "seeds", "test accuracy", f"minus {PAPER}, points {INTERVAL}"], rows
    )


def networks_table() -> str:
    """Short trainings of every published network and of one of torchvision's."""
    rows = []
    for name, (file, recipe) in NETWORKS.items():
        table = read_result(file).set_index("network")
        base, nofe = table.loc["base CNN"], table.loc["network of experts"]
        rows.append(
            [
                name,
                recipe,
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
    found: Any = against_targets(read(BENCH_RESULTS)).itertuples()
    rows = [
        [
            row.what,
            f"{row.networks}" if row.networks > 1 else "AlexNet-Quick",
            row.target,
            f"**{row.measured:.3g}**",
            f"{row.smallest:.3g} to {row.largest:.3g}",
            "met" if row.met else "missed",
        ]
        for row in found
    ]
    return markdown(["what", "networks", "target", "mean", "smallest to largest", ""], rows)


def widgets_table() -> str:
    """How soon the widgets answer a click."""
    table = read_result("widgets")
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
    about = (
        f"{table['repeats'].iloc[0]} clicks each; {measured_on(table)}. "
        f"`LiveTraining` took {100 * share['share']:.2f} % of the time of a training "
        f"(AlexNet-Quick's generalist on {share['images']:,} images of {share['dataset']}); the "
        "goal was at most 2 %."
    )
    return f"{markdown(['widget', 'click', *head], rows)}\n\n{about}"


def latency_table() -> str:
    """How long `predict` takes."""
    table = read_result("latency")
    rows = []
    by = ["network", "pictures", "batch"]
    for (network, kind, batch), found in table.groupby(by, sort=False):
        each = found.set_index("experts")[["ms", "peak_mb"]].to_dict()
        cells = [f"{each['ms'][m]:.1f}" for m in ("all", "2")]
        cells += [f"{each['peak_mb'][m]:.0f}" for m in ("all", "2")]
        rows.append([f"`{network}`", str(kind), str(batch), *cells])
    head = ["ms, all experts", "ms, two", "MB, all", "MB, two"]
    about = f"Medians of {table['repeats'].iloc[0]} on {measured_on(table)}."
    return f"{markdown(['network', 'pictures', 'batch', *head], rows)}\n\n{about}"


def onnx_table() -> str:
    """What ONNX files take to make, and how fast they answer beside torch."""
    table = read_result("onnx")
    rows = [
        [
            f"`{row['network']}`" + (", one expert" if row["part"] == "expert" else ""),
            f"{row['seconds']:.1f}",
            f"{row['mb']:.1f}",
            f"{row['logits']:.0e}",
            f"{row['probabilities']:.0e}",
            *(f"{row[f'ms_{n}_torch']:.1f} / {row[f'ms_{n}_onnx']:.1f}" for n in (1, 256)),
        ]
        for row in table.to_dict("records")
    ]
    head = ["s to make", "MB", "logits", "probabilities", "ms, batch 1", "ms, batch 256"]
    about = f"Medians of {table['repeats'].iloc[0]} on {measured_on(table)}."
    return f"{markdown(['network', *head], rows)}\n\n{about}"


def streaming_table() -> str:
    """How long a large folder takes to open, and how fast its images are streamed."""
    table = read_result("streaming")
    rows = [[row["what"], f"{row['value']:,.3g} {row['unit']}"] for row in table.to_dict("records")]
    first = table.iloc[0]
    about = (
        f"{first['images']:,} JPEG files of 320 x 240 pixels, resized to {first['side']}, "
        f"{first['workers']} workers; speeds are medians of {first['repeats']}, in turn, on "
        f"{measured_on(table)}."
    )
    return f"{markdown(['', ''], rows)}\n\n{about}"


def sweeps_table() -> str:
    """How long small trainings take in a sweep, and without one."""
    table = read_result("sweeps")
    rows = [
        [
            row["way"],
            f"{row['seconds']:.0f} ({row['smallest']:.0f} to {row['largest']:.0f})",
            f"**{row['ratio']:.2f}**",
        ]
        for row in table.to_dict("records")
    ]
    where = table.drop(columns="threads")  # of this process, not of the trainings
    first = table.iloc[0]
    about = (
        f"{first['runs']} base CNNs on {first['cores']} cores; medians of {first['repeats']}, in "
        f"turn, on {measured_on(where)}; load average before the first "
        f"{first['load_at_first']:.1f}."
    )
    head = ["way", "s, median (smallest to largest)", "times as fast as one after the other"]
    return f"{markdown(head, rows)}\n\n{about}"


TABLES: dict[str, Callable[[], str]] = {
    "latency": latency_table,
    "streaming": streaming_table,
    "onnx": onnx_table,
    "sweeps": sweeps_table,
    "widgets": widgets_table,
    "lead": lead,
    "answer": tables.answer,
    "few": tables.few_answer,
    "first": first_table,
    "study": tables.study_table,
    "quality": tables.quality_table,
    "kept": tables.kept_answers_table,
    "agreement": tables.agreement_table,
    "conditional": tables.conditional_table,
    "precision": tables.precision_table,
    "upcycling": tables.upcycling_table,
    "pilot": tables.pilot_table,
    "pays": tables.pays_table,
    "added_classes": partial(tables.uses_table, "added_classes"),
    "one_expert": partial(tables.uses_table, "one_expert"),
    "twins": partial(tables.uses_table, "twins"),
    "choice": tables.first_run_choice,
    "run": tables.first_run_table,
    "times": tables.times_table,
    "again": tables.again_table,
    "machines": tables.machines_table,
    "settings": tables.settings_table,
    "elsewhere": tables.few_elsewhere,
    "paper": paper_table,
    "glyphs": glyphs_table,
    "networks": networks_table,
    "speed": speed_table,
    "parameters": knobs.table,
}
"""By NAME."""


def study_figure() -> Figure:
    """Accuracy of every arm that has all seeds against the arithmetic of its training."""
    table = quick().rename(columns={"top1": "test_accuracy"})
    seeds = table.groupby("arm")["seed"].transform("nunique")
    return plots.plot_front(table[seeds == seeds.max()], by="arm")


def conditional_figure() -> Figure:
    """Accuracy with few experts, for learned and for random specialties.

    Beside them the flat networks with the same seeds and at least as many epochs in all.
    """
    table = curves()
    arms = [arm.name for arm in NARROW if arm.name in set(table["arm"])]
    kept = pd.concat([table[table["arm"] == arm] for arm in arms])
    flat = quick()
    epochs = flat.loc[flat["arm"] == PAPER, "total_epochs"].max()
    alike = (flat["kind"] != "nofe") & (flat["total_epochs"] >= epochs)
    flat = flat[alike & flat["seed"].isin(kept["seed"])]
    whole = flat.groupby("arm")["seed"].transform("nunique") == kept["seed"].nunique()
    return plots.plot_conditional(kept, flat[whole])


def pays_figure() -> Figure | None:
    """Accuracy against arithmetic in the test whether experts pay; None before it."""
    flat, few = (table.assign(arm=table["network"]) for table in tables.paying_rows())
    return plots.plot_conditional(few, flat[flat["seed"].isin(few["seed"])]) if len(few) else None


PICTURES: dict[str, Callable[[], Figure | None]] = {
    "study": study_figure,
    "study_conditional": conditional_figure,
    "pays": pays_figure,
}
"""By the name of the file in data/figures; None: not measured yet."""


def rebuilt(text: str) -> str:
    """The text of a Markdown file with all of its tables rebuilt."""
    pattern = re.compile(r"(<!-- table (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[4]}", text)


def rebuild(root: Path | None = None) -> None:
    """Rebuild the tables and figures under `root`, by default this checkout."""
    root = root or data_folder().parent
    for name in FILES:
        path = root / name
        text = path.read_text(encoding="utf-8")
        path.write_text(rebuilt(text), encoding="utf-8")
        log.info(f"{name}: {len(re.findall('<!-- table', text))} tables")
    for name, draw in PICTURES.items():
        if (figure := draw()) is None:
            continue
        target = root / "data" / "figures" / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, dpi=100)
        log.info(f"{target.relative_to(root)}")
