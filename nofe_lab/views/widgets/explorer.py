"""The specialty explorer: which classes share a specialty, and how networks do there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import traitlets
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nofe_lab.config import InvalidInput
from nofe_lab.data import Dataset
from nofe_lab.evaluation import specialties_of_networks
from nofe_lab.specialties import Specialties
from nofe_lab.views import plots
from nofe_lab.views.widgets.base import (
    ClassView,
    cards,
    check,
    check_choice,
    check_table,
    hex_colours,
    script,
    sprite,
    thumbnails,
)

SORTS = ("number", "size", "accuracy", "gain", "leaking")
EXAMPLES = 12
RIVALS = 6


class SpecialtyExplorer(ClassView):
    """The specialties as cards, alone or beside another partition, and one class in detail.

    >>> explorer = SpecialtyExplorer(dataset, specialties, {"base CNN": counts, "NofE": other})
    >>> explorer.class_name = "shark"  # its specialty, its examples and its rivals follow
    >>> explorer.compare_with = "superclasses"

    confusions: network -> counts [C, C], row = label, column = prediction; the first is "before",
    the last "after".  affinity: A[C, K] of the generalist.  generalist: counts [K, K] of its own
    answers.  others: name -> another partition of the same classes, of any K.
    sort_by: number, size, accuracy and leaking (of the last network), or gain (the last network's
    accuracy minus the first's).  Images are of the training split.
    Raises InvalidInput if the arguments do not fit together or a trait is set to an invalid value.
    """

    _esm = script("cards", "explorer")
    what = "specialties"

    specialty = traitlets.Int(-1, help="The chosen class's specialty, 0 to K - 1.").tag(sync=True)
    sort_by = traitlets.Unicode("number", help="The order of the cards.").tag(sync=True)
    search = traitlets.Unicode(help="Classes whose names do not hold it are dimmed.").tag(sync=True)
    compare_with = traitlets.Unicode(help="The other partition beside; '': none.").tag(sync=True)
    sorts = traitlets.List(list(SORTS)).tag(sync=True)
    others = traitlets.List(traitlets.Unicode()).tag(sync=True)
    thumbnails = traitlets.Dict().tag(sync=True)
    examples = traitlets.Dict().tag(sync=True)
    shown = traitlets.Dict(help="The cards of one partition or two.").tag(sync=True)
    detail = traitlets.Dict(help="The chosen class.").tag(sync=True)

    def __init__(
        self,
        dataset: Dataset,
        specialties: Specialties,
        confusions: Mapping[str, NDArray[np.int64]],
        *,
        affinity: NDArray[np.floating] | None = None,
        generalist: NDArray[np.int64] | None = None,
        others: Mapping[str, Specialties] | None = None,
    ) -> None:
        C, K = specialties.C, specialties.K
        specialties.check_classes(dataset.class_names)
        if not confusions:
            raise InvalidInput("confusions must hold the counts of a network or more; got none.")
        for network, confusion in confusions.items():
            check_table(f"the confusion of {network}", confusion, (C, C))
        if affinity is not None:
            check_table("the affinity", affinity, (C, K))
        if generalist is not None:
            check_table("the generalist's counts", generalist, (K, K))
        for other in (others or {}).values():
            specialties.check_classes(other.class_names)
        self.dataset = dataset
        self.specialties = specialties
        self.confusions = dict(confusions)
        self.affinity = affinity
        self.partitions = dict(others or {})
        self.networks = specialties_of_networks(self.confusions, specialties, generalist)
        super().__init__(
            class_names=list(specialties.class_names),
            others=list(self.partitions),
            thumbnails=thumbnails(dataset),
        )
        self._show_cards()
        self.label = specialties.order[0]

    @check("specialty")
    def _check_specialty(self, proposal: Any) -> int:
        k: int = proposal["value"]
        if k not in self.specialties.nonempty:
            raise InvalidInput(
                f"specialty {k} has no class; accepted: "
                f"{', '.join(map(str, self.specialties.nonempty))}."
            )
        return k

    @check("sort_by")
    def _check_sort(self, proposal: Any) -> str:
        return check_choice(proposal, SORTS)

    @check("compare_with")
    def _check_other(self, proposal: Any) -> str:
        return check_choice(proposal, ["", *self.partitions])

    @traitlets.observe("specialty")
    def _choose_specialty(self, change: Any) -> None:
        if self.specialties.of[self.label] != change["new"]:
            self.label = self.specialties.members(change["new"])[0]

    @traitlets.observe("sort_by", "compare_with")
    def _show_cards(self, change: Any = None) -> None:
        colours = hex_colours(self.specialties.K)
        order = self.card_order()
        own = cards(self.specialties, colours)
        for each in own:
            each["facts"] = self._facts(each["k"])
        shown = {
            "titles": ["these specialties", self.compare_with],
            "cards": [own[k] for k in order],
            "other": [],
            "agreement": "",
        }
        if self.compare_with:
            other = self.partitions[self.compare_with]
            theirs = cards(other, self._matched_colours(other))
            for each in theirs:
                each["facts"] = []
            place = {k: n for n, k in enumerate(order)}
            partner = self.specialties.matched(other)
            shown["other"] = sorted(theirs, key=lambda each: place.get(partner[each["k"]], 10**6))
            found = self.specialties.agreement(other)
            shown["agreement"] = (
                f"Same colour: most classes in common. Agreement: {self._in_common(other)} of "
                f"{other.C} classes; normalised mutual information {found['nmi']:.2f}, "
                f"adjusted Rand index {found['ari']:.2f} (0: as by chance)."
            )
        self.shown = shown

    @traitlets.observe("label")
    def _show_class(self, change: Any) -> None:
        label = change["new"]
        k = self.specialties.of[label]
        self.specialty = k
        images = self._images(label, EXAMPLES)
        where = f"specialty {self.specialties.names[k]}: {self.specialties.sizes[k]} classes"
        if self.dataset.superclass_of:
            where += (
                f"; superclass {self.dataset.superclass_names[self.dataset.superclass_of[label]]}"
            )
        with self.hold_sync():
            self.examples = sprite(images, 64)
            self.detail = {
                "name": self.class_names[label],
                "colour": hex_colours(self.specialties.K)[k],
                "where": where,
                "images": len(images),
                "panels": [*self._rivals(label), *self._leanings(label)],
            }
            self.words = self._in_words(label)

    def card_order(self) -> list[int]:
        """The specialties in the order of their cards; empty ones come last."""
        first, last = next(iter(self.confusions)), list(self.confusions)[-1]
        by = {
            network: self.networks[self.networks["network"] == network].set_index("specialty")
            for network in (first, last)
        }
        key: pd.Series = {
            "number": lambda: pd.Series(self.specialties.nonempty, self.specialties.nonempty),
            "size": lambda: -pd.Series(self.specialties.sizes).loc[list(self.specialties.nonempty)],
            "accuracy": lambda: -by[last]["accuracy"],
            "gain": lambda: by[first]["accuracy"] - by[last]["accuracy"],
            "leaking": lambda: -by[last]["leaking"],
        }[self.sort_by]()
        order = [int(k) for k in key.sort_values(kind="stable").index]
        return [*order, *(k for k in range(self.specialties.K) if k not in order)]

    def figures(self) -> dict[str, Figure]:
        notes = {
            k: "; ".join(f"{name} {value}" for name, value in self._facts(k, "{} ({} in, {} out)"))
            for k in self.specialties.nonempty
        }
        order = [k for k in self.card_order() if self.specialties.sizes[k]]
        drawn = {
            "specialties": plots.plot_specialties(
                self.dataset, self.specialties, order=order, notes=notes
            )
        }
        if self.compare_with:
            other = self.partitions[self.compare_with]
            drawn["comparison"] = plots.plot_crosstab(self.specialties, other, self.compare_with)
        drawn["class"] = plots.plot_class(
            self.dataset, self.specialties, self.confusions, self.label
        )
        return drawn

    def _images(self, label: int, n: int) -> list[Any]:
        split = self.dataset.train
        return list(split.sample(split.of_class(label)[:n]))

    def _facts(self, k: int, form: str = "{}, mistakes {} in, {} out") -> list[tuple[str, str]]:
        """The results of each network on specialty k, in words."""
        facts = []
        for row in self.networks[self.networks["specialty"] == k].to_dict("records"):
            said = f"{row['accuracy']:.0%}"
            if not np.isnan(row["leaking"]):
                said = form.format(said, round(row["inside"]), round(row["leaking"]))
            facts.append((str(row["network"]), said))
        return facts

    def _matched_colours(self, other: Specialties) -> list[str]:
        own = hex_colours(self.specialties.K)
        more = hex_colours(max(other.K, self.specialties.K))[self.specialties.K :]
        return [[*own, *more][k] for k in self.specialties.matched(other)]

    def _in_common(self, other: Specialties) -> int:
        partner = self.specialties.matched(other)
        return sum(partner[b] == a for a, b in zip(self.specialties.of, other.of, strict=True))

    def _rivals(self, label: int) -> list[dict[str, Any]]:
        """What images of the class are mistaken for, a panel for each network."""
        colours = hex_colours(self.specialties.K)
        panels = []
        for network, confusion in self.confusions.items():
            row = confusion[label].copy()
            images, right = int(row.sum()), int(row[label])
            row[label] = 0
            worst = [int(c) for c in np.argsort(-row, kind="stable")[:RIVALS] if row[c]]
            rows = [
                {
                    "name": self.class_names[c],
                    "share": float(row[c] / row[worst[0]]),
                    "text": f"{row[c]}",
                    "colour": colours[self.specialties.of[c]],
                    "hollow": not self._inside(label, c),
                }
                for c in worst
            ]
            title = f"{network}: {right} of {images} right; mistaken for (hollow: other specialty)"
            panels.append({"title": title, "rows": rows, "none": "nothing: never mistaken"})
        return panels

    def _leanings(self, label: int) -> list[dict[str, Any]]:
        """The class's affinity over all specialties."""
        if self.affinity is None:
            return []
        colours = hex_colours(self.specialties.K)
        row = self.affinity[label]
        rows = [
            {
                "name": self.specialties.names[k],
                "share": float(row[k]),
                "text": f"{row[k]:.0%}",
                "colour": colours[k],
                "hollow": False,
                "strong": k == self.specialties.of[label],
            }
            for k in range(self.specialties.K)
        ]
        return [{"title": "affinity: where the generalist puts it", "rows": rows, "none": ""}]

    def _inside(self, label: int, other: int) -> bool:
        return self.specialties.of[label] == self.specialties.of[other]

    def _in_words(self, label: int) -> str:
        """A description of what is shown, for readers who do not see it."""
        parts = [
            f"Class {self.class_names[label]}, specialty {self.specialties.names[self.specialty]}."
        ]
        members = list(self.specialties.members(self.specialty))
        for network, confusion in self.confusions.items():
            row = confusion[label]
            errors = int(row.sum() - row[label])
            inside = int(row[members].sum() - row[label])
            parts.append(
                f"{network}: {row[label]} of {row.sum()} images right, {inside} of {errors} "
                "mistakes inside the specialty."
            )
        return " ".join(parts)
