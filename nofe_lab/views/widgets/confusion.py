"""The confusion explorer: the confusion matrix, and the images behind each cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import traitlets
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nofe_lab.config import InvalidInput
from nofe_lab.data import Source
from nofe_lab.evaluation import Predictions
from nofe_lab.specialties import Specialties, leaf_order
from nofe_lab.statistics import errors_inside, inside_by_chance
from nofe_lab.views import plots
from nofe_lab.views.widgets.base import View, check, check_choice, hex_colours, script, sprite

IMAGES = 24
LEAVES = "the confusions themselves"
"""The order in which classes that are confused are neighbours; it has no blocks."""
MOST_OPTIMAL = 300
"""Most classes whose leaf order is optimal here: a click is answered in milliseconds."""


class ConfusionExplorer(View):
    """The confusion matrix of a network, in blocks, and the images behind the chosen cell.

    >>> explorer = ConfusionExplorer(data.test, {"base CNN": base, "NofE": nofe}, {"learned": own})
    >>> explorer.network = "NofE minus base CNN"
    >>> explorer.row, explorer.column = 3, 7  # images of class 3 that are answered with class 7

    split: the images.  predictions: network -> its predictions for them [N, C]; with two networks,
    their difference can be shown too.  orders: name -> a partition of the classes whose groups are
    the blocks: specialties, superclasses, clusters.  One more order is made of the confusions of
    the network that is shown (see `leaf_order`).
    Raises InvalidInput if the arguments do not fit together or a trait is set to an invalid value.
    """

    _esm = script("matrix", "confusion")
    what = "confusions"

    network = traitlets.Unicode(help="Whose confusions are shown.").tag(sync=True)
    order_by = traitlets.Unicode(help="The partition that orders the classes.").tag(sync=True)
    scale = traitlets.Unicode("row", help="What a count is a share of.").tag(sync=True)
    row = traitlets.Int(0, help="The label of the chosen cell, from 0 to C - 1.").tag(sync=True)
    column = traitlets.Int(0, help="Its answer, from 0 to C - 1.").tag(sync=True)
    class_names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    networks = traitlets.List(traitlets.Unicode()).tag(sync=True)
    orders = traitlets.List(traitlets.Unicode()).tag(sync=True)
    matrix = traitlets.Dict(help="The order of the classes, its blocks, counts.").tag(sync=True)
    examples = traitlets.Dict().tag(sync=True)
    detail = traitlets.Dict(help="The chosen cell.").tag(sync=True)

    def __init__(
        self,
        split: Source,
        predictions: Mapping[str, Predictions],
        orders: Mapping[str, Specialties],
    ) -> None:
        if not predictions or not orders:
            raise InvalidInput("a confusion explorer needs a network and a partition or more.")
        if not len(split):
            raise InvalidInput("the split must have images; got one without.")
        if LEAVES in orders:
            raise InvalidInput(f"{LEAVES!r} is an order of its own; call the partition otherwise.")
        first = next(iter(orders.values()))
        for partition in orders.values():
            first.check_classes(partition.class_names)
        for name, found in predictions.items():
            if not np.array_equal(found.labels, split.labels.numpy()):
                raise InvalidInput(f"the predictions of {name} must be for the split's images.")
            if found.logits.shape[1] != first.C:
                raise InvalidInput(
                    f"the predictions of {name} must be for {first.C} classes; got "
                    f"{found.logits.shape[1]}."
                )
        self.split = split
        self.predictions = dict(predictions)
        self.partitions = dict(orders)
        self._leaves: dict[str, Specialties] = {}
        self.confusions = {name: found.confusion for name, found in predictions.items()}
        names = list(predictions)
        self._pairs: dict[str, tuple[str, ...]] = {name: (name,) for name in names}
        if len(names) > 1:
            self._pairs[f"{names[-1]} minus {names[0]}"] = (names[-1], names[0])
        super().__init__(
            class_names=list(first.class_names),
            networks=list(self._pairs),
            orders=[*orders, LEAVES],
            network=names[0],
            order_by=next(iter(orders)),
        )
        worst = plots.mistake_shares(self.confusions[names[0]], first.C)
        row, column = np.unravel_index(np.nan_to_num(worst).argmax(), worst.shape)
        self.row, self.column = int(row), int(column)
        self._show_cell()

    @check("network")
    def _check_network(self, proposal: Any) -> str:
        return check_choice(proposal, list(self._pairs))

    @check("order_by")
    def _check_order(self, proposal: Any) -> str:
        return check_choice(proposal, self.orders)

    @check("scale")
    def _check_scale(self, proposal: Any) -> str:
        return check_choice(proposal, list(plots.SCALES))

    @check("row", "column")
    def _check_class(self, proposal: Any) -> int:
        value: int = proposal["value"]
        if not 0 <= value < len(self.class_names):
            raise InvalidInput(
                f"{proposal['trait'].name} must be from 0 to {len(self.class_names) - 1}; "
                f"got {value}."
            )
        return value

    @property
    def specialties(self) -> Specialties:
        """The partition that orders the classes; a class each in the order of the confusions."""
        if self.order_by != LEAVES:
            return self.partitions[self.order_by]
        network = self._pairs[self.network][0]
        if network not in self._leaves:
            C = len(self.class_names)
            of = leaf_order(self.confusions[network], optimal=C <= MOST_OPTIMAL).argsort()
            self._leaves[network] = Specialties(tuple(self.class_names), tuple(of.tolist()), C)
        return self._leaves[network]

    def _pair(self) -> list[NDArray[np.int64]]:
        return [self.confusions[name] for name in self._pairs[self.network]]

    @traitlets.observe("network", "order_by")
    def _show_matrix(self, change: Any) -> None:
        if not self.order_by:
            return
        partition = self.specialties
        blocks = [] if self.order_by == LEAVES else partition.nonempty
        colours = hex_colours(partition.K) if blocks else []
        tables = []
        for counts in self._pair():
            cells = np.nonzero(counts)
            tables.append(np.stack([*cells, counts[cells]]).astype("<i4").tobytes())
        self.matrix = {
            "order": list(partition.order),
            "groups": [
                {"name": partition.title(k), "size": partition.sizes[k], "colour": colours[k]}
                for k in blocks
            ],
            "networks": list(self._pairs[self.network]),
            "tables": tables,  # int32 [3, n] each: labels, answers, counts
        }

    @traitlets.observe("network", "order_by", "row", "column")
    def _show_cell(self, change: Any = None) -> None:
        if not self.order_by:
            return
        chosen, sureness = self._behind()
        shown = chosen[:IMAGES]
        with self.hold_sync():
            self.examples = sprite(list(self.split.sample(shown.tolist())), 64)
            self.detail = {
                "title": f"{self.class_names[self.row]} → {self.class_names[self.column]}",
                "where": self._cell_in_words(len(chosen), len(shown)),
                "captions": [f"{share:.0%} sure" for share in sureness[:IMAGES]],
            }
            self.words = self._in_words()

    def _behind(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The images of the chosen cell, and how sure the network is of them: the surest first."""
        found = self.predictions[self._pairs[self.network][0]]
        cell = np.flatnonzero((found.labels == self.row) & (found.predicted == self.column))
        of_cell = Predictions(found.logits[cell], found.labels[cell])  # not of all N images
        sureness = of_cell.probabilities[:, self.column]
        order = np.argsort(-sureness, kind="stable")
        return cell[order], sureness[order]

    def _cell_in_words(self, n: int, shown: int) -> str:
        said = [
            f"{name}: {counts[self.row, self.column]} of {counts[self.row].sum()} images"
            for name, counts in zip(self._pairs[self.network], self._pair(), strict=True)
        ]
        whose = f" of {self._pairs[self.network][0]}" if len(said) > 1 else ""
        limit = f"; the {shown} surest{whose}" if n > shown else whose and f"; those{whose}"
        return "; ".join(said) + limit

    def _in_words(self) -> str:
        parts = [f"{self.network}, ordered by {self.order_by}."]
        if self.order_by == LEAVES:
            return f"{parts[0]} Classes that are confused are neighbours."
        for name, counts in zip(self._pairs[self.network], self._pair(), strict=True):
            share = errors_inside(counts, self.specialties)
            right = np.trace(counts) / max(counts.sum(), 1)
            kept = "" if np.isnan(share) else f", {share:.0%} of the mistakes inside a block"
            parts.append(f"{name}: {right:.1%} right{kept}.")
        chance = inside_by_chance(self.specialties.sizes)
        return " ".join([*parts, f"By chance, blocks of these sizes hold {chance:.0%}."])

    def figures(self) -> dict[str, Figure]:
        pair = self._pair()
        matrix = plots.plot_confusion(
            pair[0],
            self.specialties,
            f"{self.network}, ordered by {self.order_by}",
            minus=pair[1] if len(pair) > 1 else None,
            scale=self.scale,
        )
        title = f"{self.detail['title']}: {self.detail['where']}"
        shown = self._behind()[0][:IMAGES].tolist()
        images = plots.plot_images(self.split, shown, self.detail["captions"], title)
        return {"matrix": matrix, "images": images}
