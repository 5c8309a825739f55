"""A run as one HTML page: what it is, how it was trained, its specialties, how to use it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from nofe_lab.config import InvalidInput, printable
from nofe_lab.evaluation import coverage_table
from nofe_lab.inference import (
    MODEL,
    VAL,
    Description,
    certainty_of,
    class_names_of,
    load_specialties,
    thumbnails_of,
)
from nofe_lab.runs import Run
from nofe_lab.specialties import Specialties
from nofe_lab.views import plots
from nofe_lab.views.page import html_page

COVERAGES = (0.5, 0.8, 0.9, 0.95, 1.0)
"""Shares of val images that are answered with their class, in the table of coverage."""


@dataclass(frozen=True)
class _Gallery:
    """The thumbnails that a run keeps, as plots take them."""

    class_names: tuple[str, ...]
    thumbnails: Tensor


def run_page(run: Run) -> str:
    """The page of a finished run; what an older run does not keep is left out."""
    title = printable(str(run.about["title"]))
    return html_page(title, "\n".join(_sections(run, title)), "nofe-run")


def _sections(run: Run, title: str) -> Iterator[str]:
    about, made = run.about, run.provenance
    yield f"<h1>{html.escape(title)}</h1>"
    yield f'<p class="nofe-quiet">run {run.id}, finished {html.escape(str(made["finished"]))}</p>'
    yield f"<p>{accuracy_in_words(run)}</p>"
    facts = {
        "data": about["dataset"],
        "network": about["backbone"],
        "specialties": about["K"] or "none: a flat network",
        "epochs": about["epochs"],
        "seed": about["seed"],
        "training": f"{run.seconds:.0f} s, with the stages it builds on {run.total_seconds:.0f} s",
        "machine": f"{made['device']}, {made['precision']}, torch {made['versions']['torch']}",
        "code": made["revision"],
        "size": f"{run.bytes_on_disk / 1e6:.1f} MB",
    }
    yield _table(pd.DataFrame(facts.items()), header=False)
    names = class_names_of(run)
    specialties = load_specialties(run) if about["K"] else None
    if specialties is not None:
        yield f"<h2>Its {specialties.K} specialties</h2>"
        try:
            gallery = _Gallery(names, thumbnails_of(run, len(names))[:, 0])
            yield _picture(plots.plot_specialties(gallery, specialties), "specialties")
        except InvalidInput:
            listed = [(specialties.names[k], _listed(specialties, k)) for k in specialties.nonempty]
            yield _table(pd.DataFrame(listed, columns=["specialty", "classes"]))
    yield "<h2>How it was trained</h2>"
    yield _picture(plots.plot_history({title: run.history}), "loss and accuracy by epoch")
    if specialties is not None and run.has(VAL):
        yield "<h2>How certain it is</h2>"
        yield (
            "<p>With <code>coverage</code> the network answers with the class where it is certain "
            "enough, and with the specialty otherwise. On val images, on which the threshold is "
            "fitted:</p>"
        )
        usual = Description.of_run(run).sparse if run.has(MODEL) else None
        found = _coverage(certainty_of(run, len(names)), specialties, usual)
        yield _table(found, kind="numbers")
    yield "<h2>Use it</h2>"
    folder = html.escape(printable(run.location()))
    yield (
        f"<pre>nofe-lab predict {folder} photo.jpg</pre>\n"
        f"<pre>import nofe_lab\n\nmodel = nofe_lab.load({folder!r})\n"
        'print(model.predict("photo.jpg"))</pre>'
    )
    if command := str(made.get("command", "")):
        lines = "\n".join(map(printable, command.split("\n")))
        yield f"<h2>Make it again</h2>\n<pre>{html.escape(lines)}</pre>"


def _coverage(val: pd.DataFrame, specialties: Specialties, usual: int | None) -> pd.DataFrame:
    """The table of coverage on val images as text.

    usual: how many experts answer; None: all.
    """
    whole = val[val["experts"] == (usual or val["experts"].max())]
    found = coverage_table(whole, specialties, COVERAGES)
    columns = {
        "coverage": ("coverage", "{:.0%}"),
        "threshold": ("threshold", "{:.3f}"),
        "class_right": ("classes right", "{:.1%}"),
        "specialty_right": ("specialties right otherwise", "{:.1%}"),
        "right": ("answers right", "{:.1%}"),
    }
    return pd.DataFrame(
        {
            title: found[name].map(form.format, na_action="ignore").fillna("")
            for name, (title, form) in columns.items()
        }
    )


def accuracy_in_words(run: Run) -> str:
    """How often a run's network is right, and on what."""
    places = {"test": "on test", "val": "on val", "train": "on the training images"}
    what = "specialties" if "objective" in run.result else "classes"
    known = run.accuracies
    said = [f"{value:.1%} of {what} right {places[split]}" for split, value in known.items()]
    tested = "" if "test" in known else "; not tested"
    return f"{', '.join(said)}{tested}." if said else "not tested."


def _listed(specialties: Specialties, k: int) -> str:
    return ", ".join(specialties.class_names_of(k))


def _table(table: pd.DataFrame, header: bool = True, kind: str = "facts") -> str:
    written = table.to_html(index=False, header=header, border=0, classes=kind)
    return f'<div class="nofe-wide">{written}</div>'


def _picture(figure: Figure, alt: str) -> str:
    packed = io.BytesIO()
    figure.savefig(packed, format="png", dpi=150)
    data = base64.b64encode(packed.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
