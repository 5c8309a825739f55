"""The evolution player: how the partition formed, from the random start, update by update."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
import traitlets
from matplotlib.figure import Figure

from nofe_lab.config import InvalidInput
from nofe_lab.specialties import Specialties, maps_of, settling
from nofe_lab.views import plots
from nofe_lab.views.widgets.base import ClassView, check, hex_colours, script

LISTED = 40
"""Most classes that are listed by name."""


class EvolutionPlayer(ClassView):
    """The path of every class through the updates of the map, with a slider and a play button.

    >>> player = EvolutionPlayer(run.table("map_history"), specialties, run.table("map_updates"))
    >>> player.update = 3  # what the third update did
    >>> player.class_name = "shark"  # follow one class

    map_history, map_updates: the tables of a generalist's run.  specialties: the final ones.
    Raises InvalidInput if they do not fit together or a trait is set to an invalid value.
    """

    _esm = script("evolution")
    what = "map's evolution"
    may_be_none = True

    update = traitlets.Int(0, help="How far it is shown; 0: the random start.").tag(sync=True)
    last_update = traitlets.Int(0).tag(sync=True)
    drawing = traitlets.Dict(help="Where each class lies in each map.").tag(sync=True)
    objectives = traitlets.List(traitlets.Dict()).tag(sync=True)
    step = traitlets.Dict(help="What the current update did.").tag(sync=True)
    never_settled = traitlets.Dict().tag(sync=True)

    def __init__(
        self, map_history: pd.DataFrame, specialties: Specialties, map_updates: pd.DataFrame
    ) -> None:
        maps = maps_of(map_history, specialties)
        if len(map_updates) != len(maps) - 1:
            raise InvalidInput(
                f"{len(maps) - 1} updates of the map need as many rows; got {len(map_updates)}."
            )
        self.maps = maps
        self.specialties = specialties
        self.map_history = map_history
        self.map_updates = map_updates
        self.settling = settling(maps)
        K, gap = specialties.K, max(1.5, specialties.C / 60)
        places, blocks = plots.alluvial(maps, K, gap)
        colours = hex_colours(K)
        before, after = map_updates["objective_before"], map_updates["objective_after"]
        super().__init__(
            class_names=list(specialties.class_names),
            last_update=len(maps) - 1,
            drawing={
                "specialties": [
                    {
                        "name": specialties.title(k),
                        "short": specialties.names[k],
                        "colour": colours[k],
                    }
                    for k in range(K)
                ],
                "places": [
                    {"of": of.tolist(), "row": row.tolist()}
                    for of, row in zip(maps, places, strict=True)
                ],
                "blocks": [
                    {"update": update, "k": k, "first": first, "size": size}
                    for update, k, first, size in blocks
                ],
                "height": specialties.C + gap * (K - 1),
            },
            objectives=[
                {"update": n + 1, "before": float(b), "after": float(a)}
                for n, (b, a) in enumerate(zip(before, after, strict=True))
            ],
            never_settled=self._unsettled(),
        )
        self.update = len(maps) - 1
        self._show_update()

    @check("update")
    def _check_update(self, proposal: Any) -> int:
        update: int = proposal["value"]
        if not 0 <= update <= self.last_update:
            raise InvalidInput(f"update must be from 0 to {self.last_update}; got {update}.")
        return update

    @traitlets.observe("update", "label")
    def _show_update(self, change: Any = None) -> None:
        n = self.update
        moved = np.flatnonzero(self.maps[n] != self.maps[n - 1]).tolist() if n else []
        title = f"{len(moved)} classes moved" if n else "the random start"
        more = f"and {len(moved) - LISTED} more" if len(moved) > LISTED else ""
        self.step = {"update": n, "title": title, "moved": moved[:LISTED], "more": more}
        self.words = self._in_words(len(moved))

    def _unsettled(self) -> dict[str, Any]:
        restless = self.settling[~self.settling["settled"]]
        ranked = restless.sort_values("moves", ascending=False, kind="stable")["class"].tolist()
        if not ranked:
            return {"title": "every class settled", "labels": []}
        n = len(ranked)
        some = f", the {LISTED} most restless" if n > LISTED else ""
        title = f"{n} of {len(self.settling)} classes never settled{some}"
        return {"title": title, "labels": ranked[:LISTED]}

    def _in_words(self, moved: int) -> str:
        if self.update:
            row = self.map_updates.iloc[self.update - 1]
            said = (
                f"Update {self.update} of {self.last_update} moved {moved} classes; the objective "
                f"went from {row['objective_before']:.1%} to {row['objective_after']:.1%}."
            )
        else:
            said = "The random start."
        if self.label >= 0:
            way = [self.specialties.names[k] for k, _ in groupby(self.maps[:, self.label])]
            said += f" {self.class_name}: specialty {' → '.join(way)}."
        restless = int((~self.settling["settled"]).sum())
        return f"{said} {restless} classes still moved in the last quarter of the updates."

    def figures(self) -> dict[str, Figure]:
        return {
            "evolution": plots.plot_evolution(
                self.map_history,
                self.specialties,
                self.map_updates,
                update=self.update,
                follow=self.label if self.label >= 0 else None,
            )
        }
