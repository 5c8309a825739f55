"""Folders to publish: weights, config and a model card, which is written from the run alone.

A figure that was not measured is "not tested"; none is made up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nofe_lab.config import printable
from nofe_lab.data.sources import without_folders
from nofe_lab.inference.kept import (
    EXPERTS,
    SEEN,
    THUMBNAILS,
    VAL,
    Description,
    check_takes_pictures,
    class_names_of,
    load_specialties,
)
from nofe_lab.networks.catalogue import is_named
from nofe_lab.runs import Run, new_folder, write_published
from nofe_lab.specialties import Specialties
from nofe_lab.statistics import in_points, paired_differences, share_interval

KEPT = ("history.csv", "specialties.json", VAL, EXPERTS, SEEN, THUMBNAILS)
"""Files of a run that are in a folder to publish, if it has them."""

MANY_CLASSES = 200
"""A card lists the names of fewer classes than these."""

KINDS = {
    "flat": "A CNN for {C} classes",
    "generalist": "A generalist: a CNN that answers with the specialty of an image, one of {K} "
    "groups of the {C} classes that it confuses",
    "nofe": "A network of experts: one trunk, {K} branches, each an expert for a group of "
    "confusable classes (a *specialty*), and one softmax over all {C} classes",
}
KINDS["gate"] = KINDS["nofe"] + "; a gate chooses which experts run"


def save_for_publishing(run: Run, folder: Path | str, thumbnails: bool = True) -> Run:
    """Write a run as a folder to publish, which `nofe_lab.load` reads.

    It holds model.safetensors, config.json, README.md (the model card), and what `load` offers
    beside: the certainty on val images, the epochs and, unless `thumbnails` is False, thumbnails
    and hashes of training images.  Of the path of the data only the last part is told.
    Raises InvalidInput if the folder is there and not empty, the network takes no pictures, or the
    run is of an earlier library that did not keep what its network is made of.
    """
    check_takes_pictures(run, Description.of_run(run))
    target = new_folder(folder)
    keep = [name for name in KEPT if thumbnails or name not in (THUMBNAILS, SEEN)]
    told = {"command": str(run.provenance.get("public_command", ""))}
    about = {"dataset": without_folders(str(run.about["dataset"]))}
    texts = {"README.md": model_card(run), ".gitattributes": "* -text\n"}
    return write_published(run, target, texts, keep, about, told)


def model_card(run: Run) -> str:
    """The model card of a run, in Markdown.  It tells no path of a file or a folder."""
    return "\n".join(_card(run))


def _card(run: Run) -> Iterator[str]:
    about, names = Description.of_run(run), class_names_of(run)
    specialties = load_specialties(run) if run.about["K"] else None
    data = without_folders(str(run.about["dataset"]))
    yield _front_matter(run, about.kind, data)
    data = _plain(data)
    yield f"# {_plain(run.about['title'])}\n"
    kind = KINDS["gate" if about.gate_width is not None else about.kind]
    kind = kind.format(C=len(names), K=len(specialties.nonempty) if specialties else 0)
    yield f"{kind}.  Backbone {_plain(run.about['backbone'])}, trained on {data}.\n"
    yield "## Use it\n"
    yield "```python\nimport nofe_lab\n\n" + _loading(about)
    yield 'print(model.predict("photo.jpg"))\n```\n'
    channels, height, width = about.image_shape
    yield (
        f"It takes pictures of any size, which are resized until they cover {height} x {width} "
        f"pixels, cropped in the centre{' and turned to grey' if channels == 1 else ''}, and "
        "normalised by the network itself.\n"
    )
    yield from _data(run, data, names, specialties)
    yield from _accuracy(run, len(names), about.kind)
    if specialties is not None:
        yield from _specialties(run, specialties)
    yield from _comparison(run)
    yield from _limits(run, len(names), about.kind, specialties)
    yield "## Make it again\n"
    command = str(run.provenance.get("public_command", ""))
    if command:
        lines = "\n".join(map(printable, command.split("\n")))
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", lines)), default=0))
        yield f"{fence}\n{lines}\n{fence}\n"
    else:
        yield "The run does not say by which command it was made.\n"
    yield _table({"what": _made(run).keys(), "": _made(run).values()})


def _front_matter(run: Run, kind: str, data: str) -> str:
    """What model hubs read: YAML, of which JSON is a part."""
    title, data = printable(str(run.about["title"])), printable(data)
    said: dict[str, Any] = {
        "library_name": "nofe_lab",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "nofe_lab", kind],
    }
    if (accuracy := run.reports.get("test_accuracy")) is not None:
        task = {"type": "image-classification"}
        metric = {"type": "accuracy", "value": round(accuracy, 4)}
        result = {"task": task, "dataset": {"name": data, "type": data}, "metrics": [metric]}
        said["model-index"] = [{"name": title, "results": [result]}]
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in said.items()]
    return "\n".join(["---", *lines, "---", ""])


def _loading(about: Description) -> str:
    load = 'model = nofe_lab.load("path/of/this/folder"'
    known = is_named(str(about.network["name"]))
    return f"{load})" if known else f"{load}, network)  # as it was passed for training"


def _data(
    run: Run, data: str, names: tuple[str, ...], specialties: Specialties | None
) -> Iterator[str]:
    yield "## Data\n"
    counts = run.provenance.get("images")
    told = "the run does not say how many images it had"
    if isinstance(counts, dict) and all(_is_known(n) for n in counts.values()):
        told = ", ".join(f"{n:,} {_plain(split)}" for split, n in counts.items()) + " images"
    network = run.identity.get("backbone")
    is_pretrained = isinstance(network, dict) and network.get("weights")
    start = (
        " began with pretrained weights, which had seen other images, and" if is_pretrained else ""
    )
    yield (
        f"{data}: {len(names)} classes; {told}.  The network{start} was trained on train images "
        "alone.\n"
    )
    if len(names) < MANY_CLASSES and specialties is None:
        yield f"Classes: {', '.join(map(_plain, names))}.\n"
    elif len(names) >= MANY_CLASSES:
        yield "The names of the classes are in config.json.\n"


def _accuracy(run: Run, C: int, kind: str) -> Iterator[str]:
    yield "## How good it is\n"
    on_val = _share(run.accuracies.get("val"))
    if kind == "generalist":  # which no final report tests
        yield _table({"figure": ["share of right specialties on val images"], "value": [on_val]})
        return
    figures, n = run.reports, run.reports.get("test_images")
    accuracy = figures.get("test_accuracy")
    interval = ""
    if accuracy is not None and n is not None and 0 <= accuracy <= 1 <= n:
        low, high = share_interval(accuracy, int(n))
        interval = f" [{low:.2%}, {high:.2%}] on {int(n):,} images"
    shown = {
        "test accuracy, 95 % interval": _share(accuracy) + interval,
        "mean over the classes": _share(figures.get("test_class_accuracy")),
        "right class among the five most probable": _share(figures.get("test_top5")),
        "calibration error (15 bins)": _share(figures.get("test_calibration_error")),
        "accuracy on val images": on_val,
    }
    if C <= 5:
        del shown["right class among the five most probable"]
    yield _table({"figure": shown.keys(), "value": shown.values()})
    if accuracy is not None:
        yield (
            "The interval tells of other images of this kind, not of other seeds.  The calibration "
            "error is the mean distance between confidence and accuracy: 0 % if 80 % of the "
            "answers of which the network is 80 % certain are right.\n"
        )


def _specialties(run: Run, specialties: Specialties) -> Iterator[str]:
    yield "## Its specialties\n"
    rows = []
    for k, row in zip(specialties.nonempty, _per_specialty(run, specialties), strict=True):
        classes = specialties.class_names_of(k)
        listed = ", ".join(map(_plain, classes)) if specialties.C < MANY_CLASSES else len(classes)
        inside = _share(row.get("inside"))
        if row.get("accuracy") == 1:
            inside = "no errors"
        rows.append(
            {
                "specialty": _plain(specialties.names[k]),
                "classes": listed,
                "test images": _number(row.get("images")),
                "accuracy": _share(row.get("accuracy")),
                "right specialty": _share(row.get("right specialty")),
                "errors inside": inside,
            }
        )
    yield _table(pd.DataFrame(rows).to_dict("list"))


def _comparison(run: Run) -> Iterator[str]:
    yield "## What it was compared with\n"
    figures = ("seed", "test_accuracy", "difference", "low", "high")
    table = _measured(run.report_table("compared"), ("network", "run"), figures)
    table = table.drop_duplicates("run")
    if (table["run"] == run.id).sum() != 1:
        yield "Not tested against any other network.\n"
        return
    (own,) = _records(table[table["run"] == run.id])
    others = table[(table["run"] != run.id) & (table["seed"] == own["seed"])]
    if others.empty:
        yield "Not tested against any other network of its seed.\n"
    else:
        rows = [
            {
                "network": _plain(row["network"]),
                "test accuracy": _share(row["test_accuracy"]),
                "this one minus it, in points": _points(row),
                "multiply-accumulates of an image": _number(row.get("macs")),
                "of its training, with its stages": _number(row.get("total_training_macs")),
            }
            for row in [own, *_records(others)]
        ]
        rows[0]["network"], rows[0]["this one minus it, in points"] = "**this one**", ""
        yield _table(pd.DataFrame(rows).to_dict("list"))
        yield "Intervals (95 %) are over the test images, for these very networks.\n"
    table = table.drop_duplicates(["network", "seed"])  # of one name, the first
    if (table["network"] == own["network"]).sum() > 1:
        differences = in_points(paired_differences(table, str(own["network"])))
        differences[["mean", "low", "high"]] = -differences[["mean", "high", "low"]].to_numpy()
        rows = [
            {
                "network": _plain(row["network"]),
                "seeds": _number(row["seeds"]),
                "ones like this minus it, in points": f"{row['mean']:+.1f} [{row['low']:.1f}, "
                f"{row['high']:.1f}]",
            }
            for row in _records(differences)
            if _is_known(row["low"])
        ]
        if rows:
            yield "Over seeds, with 95 % intervals of the mean:\n"
            yield _table(pd.DataFrame(rows).to_dict("list"))


def _limits(run: Run, C: int, kind: str, specialties: Specialties | None) -> Iterator[str]:
    yield "## Limits\n"
    what = "specialties" if kind == "generalist" else f"{C} classes"
    yield (
        f"- It answers with one of its {what} whatever a picture shows.  Whether it can tell "
        "pictures of anything else: not tested."
    )
    yield "- Other cameras, places, times or drawings than those of its data: not tested."
    yield "- Whether it serves groups of people equally well: not tested."
    found = [] if specialties is None else _per_specialty(run, specialties)
    if found := [row for row in found if _is_known(row.get("accuracy"))]:
        worst = min(found, key=lambda row: float(row["accuracy"]))
        yield (
            f"- It is worst in specialty {_plain(worst['specialty'])}: "
            f"{_share(worst['accuracy'])} of its test images are answered correctly."
        )
    if run.reports.get("test_accuracy") is None:
        yield "- It has not been tested: its accuracy on new images is unknown."
    yield "- Whether licences and consent of the training images allow a use: not known here.\n"


def _made(run: Run) -> dict[str, str]:
    made = run.provenance
    return {
        "run": f"{run.id}, seed {run.about['seed']}, epochs: {run.about['epochs']}",
        "finished": _plain(made["finished"]),
        "seconds of training": f"{run.seconds:.0f}, with the stages it builds on "
        f"{run.total_seconds:.0f}",
        "machine": _plain(f"{made['device']}, {made['precision']}"),
        "code": _plain(
            f"nofe_lab {made['versions'].get('nofe_lab', '')} ({made['revision']}), "
            f"torch {made['versions']['torch']}"
        ),
    }


def _share(value: float | None) -> str:
    return f"{value:.2%}" if _is_known(value) else "not tested"


def _number(value: float | None) -> str:
    return f"{value:,.0f}" if _is_known(value) else "not tested"


def _is_known(value: float | None) -> bool:
    return isinstance(value, (int, float)) and value == value


def _points(row: dict[str, Any]) -> str:
    if not all(_is_known(row[name]) for name in ("difference", "low", "high")):
        return ""
    difference, low, high = (100 * row[name] for name in ("difference", "low", "high"))
    return f"{difference:+.1f} [{low:.1f}, {high:.1f}]"


def _per_specialty(run: Run, specialties: Specialties) -> list[dict[str, Any]]:
    """What the final report found for each specialty with classes; {} if it was not tested."""
    table = _measured(run.report_table("per_specialty"), ("specialty",), ("accuracy", "images"))
    names = [specialties.names[k] for k in specialties.nonempty]
    if table["specialty"].tolist() != names:
        return [{} for _ in names]
    return [row if row["images"] else {"images": 0} for row in _records(table)]


def _measured(table: pd.DataFrame, texts: Sequence[str], figures: Sequence[str]) -> pd.DataFrame:
    """A table of a report, with numbers as numbers; no rows if it is not what a report writes."""
    try:
        return table.astype({**dict.fromkeys(texts, str), **dict.fromkeys(figures, float)})
    except (KeyError, ValueError, TypeError):
        return pd.DataFrame(columns=[*texts, *figures])


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]


def _plain(value: object) -> str:
    """Other people's text, of which Markdown and HTML make nothing."""
    marked = r"[\\`*_{}\[\]<>#|~&$@]|(?<=www)\.|(?<=http):|(?<=https):"
    return re.sub(marked, r"\\\g<0>", printable(str(value)))


def _table(columns: Any) -> str:
    """A Markdown table of columns by title."""
    rows = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows) + "\n"
