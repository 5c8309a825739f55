"""The page of `nofe_lab.look`: in a notebook, and as an HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
import json
from typing import Any

import numpy as np
import traitlets
from matplotlib.figure import Figure

from nofe_lab.config import InvalidInput, printable
from nofe_lab.specialties import Specialties
from nofe_lab.statistics import percents
from nofe_lab.views import plots
from nofe_lab.views.page import html_page
from nofe_lab.views.widgets.base import View, check, hex_colours, script, sprite

SIDE = 72
"""Of the page's images, in pixels."""


class LookPage(View):
    """What a classifier confuses: blocks, pairs, suspects, reliability, a ceiling for experts.

    page: what `nofe_lab.diagnosis` found.  K: the number of groups that is shown, one of those that
    the slider offers.  Raises InvalidInput if K is set to another.
    """

    _esm = script("matrix", "look")
    what = "page"

    K = traitlets.Int(help="The number of groups.").tag(sync=True)
    found = traitlets.Dict(help="All that is drawn.").tag(sync=True)
    sheet = traitlets.Dict(help="The images, in one.").tag(sync=True)

    def __init__(self, page: dict[str, Any]) -> None:
        self._page = page
        sheet, found = _drawn(page)
        super().__init__(sheet=sheet, found=found, K=page["K"])

    @check("K")
    def _check_K(self, proposal: Any) -> int:
        K: int = proposal["value"]
        if K not in self._page["partitions"]:
            offered = ", ".join(map(str, self._page["partitions"]))
            raise InvalidInput(f"K must be one of {offered}; got {K}: look(..., K={K}) adds it.")
        return K

    @traitlets.observe("K")
    def _say(self, change: Any) -> None:
        self.words = (
            f"{self._page['title']}: {self._page['summary']}. K = {self.K}: "
            + (self._page["sentences"][self.K])
        )

    @property
    def specialties(self) -> Specialties:
        """The groups that are shown."""
        found: Specialties = self._page["partitions"][self.K]
        return found

    def figures(self) -> dict[str, Figure]:
        page = self._page
        title = f"{page['title']}, {self.K} groups"
        drawn = {"blocks": plots.plot_confusion(page["confusion"], self.specialties, title)}
        if page["images"] is not None:
            for pair, rows in page["pairs"][:1]:
                title = f"{pair['class']} and {pair['rival']}: {pair['errors']} errors"
                captions = [page["class_names"][page["predicted"][row]] for row in rows]
                drawn["worst pair"] = plots.plot_images(page["images"], rows, captions, title)
        suspects = page["suspects"]
        if suspects is not None and page["images"] is not None:
            some = suspects.head(16)
            captions = [f"{a}: {b}?" for a, b in zip(some["label"], some["suggested"], strict=True)]
            title = "Labelled wrongly?"
            drawn["suspects"] = plots.plot_images(
                page["images"], some["row"].tolist(), captions, title
            )
        if page["reliability"] is not None:
            drawn["reliability"] = plots.plot_reliability(page["reliability"])
        return drawn


def page_html(page: dict[str, Any]) -> str:
    """The page as one HTML document, with its images and without any link."""
    sheet, found = _drawn(page)
    found["sheet"] = {**sheet, "data": base64.b64encode(sheet["data"]).decode()}
    data = json.dumps(found).replace("<", "\\u003c")  # no </script> in names
    words = html.escape(f"{page['summary']}. {page['sentences'][page['K']]}")
    return html_page(
        found["title"],
        f"<noscript>{words}</noscript>",
        code=f'{script("matrix", "look")}\ndrawPage(document.querySelector("main"), {data});',
    )


def _drawn(page: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sheet of images, and all else as JSON."""
    rows: list[int] = []

    def piece(row: int) -> int | None:
        if page["images"] is None:
            return None
        rows.append(row)
        return len(rows) - 1

    def example(row: int) -> dict[str, Any]:
        sure = None if page["sureness"] is None else float(page["sureness"][row])
        label, said = int(page["labels"][row]), int(page["predicted"][row])
        return {"piece": piece(row), "label": label, "said": said, "sure": sure}

    pairs = [
        {**pair, "examples": [example(row) for row in found if page["images"] is not None]}
        for pair, found in page["pairs"]
    ]
    suspects = page["suspects"]
    if suspects is not None:
        suspects = [
            {**each, "file": printable(each.get("file", "")), "piece": piece(each["row"])}
            for each in suspects.to_dict("records")
        ]
    labels, said = np.nonzero(page["confusion"])
    images = page["images"]
    sheet = sprite(list(images.sample(rows)) if rows else [], SIDE)
    notes = [*page["notes"], *_unreadable(images)]
    bins = page["reliability"]
    return sheet, {
        "title": printable(page["title"]),
        "summary": page["summary"],
        "notes": [printable(note) for note in notes],
        "names": list(page["class_names"]),
        "counts": [each.tolist() for each in (labels, said, page["confusion"][labels, said])],
        "order": page["order"].tolist(),
        "K": page["K"],
        "partitions": [
            {
                "K": K,
                "of": list(each.of),
                "colours": hex_colours(K),
                "sentence": page["sentences"][K],
                "crossed": percents(page["crossed"][K].accuracy, page["crossed"][K].mended),
                "line": page["lines"][K],
            }
            for K, each in page["partitions"].items()
        ],
        "pairs": pairs,
        "suspects": suspects,
        "n_suspects": page["n_suspects"],
        "reliability": None if bins is None else bins.fillna(-1).to_dict("records"),
        "calibration_error": page["calibration_error"],
    }


def _unreadable(images: Any) -> list[str]:
    """A sentence about files among those shown that cannot be decoded, if there are any."""
    found = getattr(images, "unreadable", {})
    if not found:
        return []
    name, reason = next(iter(found.items()))
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    return [f"Shown as a grey square: {name} cannot be decoded ({reason}){more}."]
