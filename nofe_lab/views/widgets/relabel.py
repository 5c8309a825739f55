"""The relabelling list: images that may be labelled wrongly, and a decision about each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import traitlets
from matplotlib.figure import Figure

from nofe_lab.config import InvalidInput, one_of, printable, whole_number
from nofe_lab.data import Dataset, Source
from nofe_lab.data.corrections import RELABEL, Correction, Corrections
from nofe_lab.files import redact_path, user_path
from nofe_lab.views import plots
from nofe_lab.views.widgets.base import View, check, check_choice, script, sentence, sprite

SIDE = 128
"""Of the images, in pixels."""

UNDECIDED = 100
"""Most undecided images in a list."""


class RelabelList(View):
    """Images that may be labelled wrongly; what is decided about each is in a CSV at once.

    >>> found = nofe_lab.relabel(data, networks, "corrections.csv")
    >>> found.decide(0, "relabel", "dog")

    corrections: the decisions that there are.  images: those of the lists.  lists: name -> items,
    see `nofe_lab.relabel`.  which: the list that is shown.  place: the chosen item of it.
    """

    _esm = script("relabel")
    what = "list"

    which = traitlets.Unicode(help="The list that is shown.").tag(sync=True)
    place = traitlets.Int(0, help="The chosen item of the list.").tag(sync=True)
    choices = traitlets.List(traitlets.List()).tag(sync=True)
    class_names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    sheet = traitlets.Dict(help="The images, in one.").tag(sync=True)
    items: Any = traitlets.List(help="The items of the list.").tag(sync=True)
    decisions: Any = traitlets.List(help="Of each item: decision, class; None: none.").tag(
        sync=True
    )

    def __init__(
        self,
        corrections: Corrections,
        data: Dataset,
        images: Source,
        lists: Mapping[str, Sequence[Mapping[str, Any]]],
    ) -> None:
        self._path = corrections.path
        self._known = dict(corrections.by_file)
        self._made: list[tuple[str, int, Correction | None]] = []
        self._images = images
        self.data = data
        self.lists = {name: self._first(items) for name, items in lists.items()}
        rows = sorted({each["row"] for items in self.lists.values() for each in items})
        piece = {row: n for n, row in enumerate(rows)}
        for items in self.lists.values():
            items[:] = [{**each, "piece": piece[each["row"]]} for each in items]
        super().__init__(
            class_names=list(data.class_names),
            choices=[[name, f"{name} ({len(items)})"] for name, items in self.lists.items()],
            sheet=sprite(list(images.sample(rows)) if rows else [], SIDE),
        )
        self.which = next((name for name, items in self.lists.items() if items), next(iter(lists)))

    def _first(self, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """All items that are decided on, and the first of the others."""
        undecided = [n for n, each in enumerate(items) if each["file"] not in self._known]
        left_out = set(undecided[UNDECIDED:])
        return [dict(each) for n, each in enumerate(items) if n not in left_out]

    @check("which")
    def _check_which(self, proposal: Any) -> str:
        return check_choice(proposal, list(self.lists))

    @check("place")
    def _check_place(self, proposal: Any) -> int:
        return whole_number("place", proposal["value"], 0, max(len(self.items) - 1, 0))

    @traitlets.observe("which")
    def _show_list(self, change: Any) -> None:
        with self.hold_sync():
            self.items = self.lists[self.which]
            self.place = 0
            self._show_decisions()
            undecided = [n for n, each in enumerate(self.decisions) if each is None]
            self.place = next(iter(undecided), 0)

    def _show_decisions(self, said: str = "") -> None:
        found = [self._known.get(each["file"]) for each in self.items]
        self.decisions = [None if c is None else [c.decision, c.corrected] for c in found]
        decided = len(found) - found.count(None)
        count = f"{decided} of {len(found)} decided" if found else "no image stands out"
        known = f"{len(self._known)} decision{'s' * (len(self._known) != 1)} in {self._path}"
        self.words = printable(f"{said}{count}; {known}.")

    def decide(self, item: int, decision: str, corrected: str = "") -> None:
        """Decide on an item of the list and write the CSV.

        Raises InvalidInput if the decision is none or the file cannot be read or written; then
        nothing is decided.
        """
        whole_number("item", item, 0, len(self.items) - 1)
        self._decide(self.which, item, decision, corrected)

    def _decide(self, which: str, item: int, decision: str, corrected: str) -> None:
        each = self.lists[which][item]
        if decision == RELABEL and one_of("class", corrected, self.class_names) == each["label"]:
            raise InvalidInput(f"{corrected!r} is the label that the image has: keep it.")
        file = self.data.files[each["file"]]
        made = Correction(each["file"], file.checksum, file.label, decision, corrected)
        self._made.append((which, item, self._put(each["file"], made)))

    def undo(self) -> None:
        """Take back the last decision that was made here, and return to its image.

        Raises InvalidInput as `decide` does.
        """
        if self._made:
            which, item, before = self._made[-1]
            self._put(self.lists[which][item]["file"], before)
            self._made.pop()
            self.which = which
            self.place = item

    def _put(self, file: str, made: Correction | None) -> Correction | None:
        """Write the decision on an image, or none, to the CSV; returns what was decided before."""
        if user_path(self._path).exists():  # another list may write it, too
            self._known = dict(Corrections.read(self._path).by_file)
        before = self._known.get(file)
        known = {name: each for name, each in self._known.items() if name != file}
        if made is not None:
            known[file] = made
        try:
            Corrections(self._path, known).write()
        except OSError as error:
            why = redact_path(error.strerror or str(error), self._path)
            raise InvalidInput(
                f"the decision on {file!r} cannot be written to {str(self._path)!r} ({why})."
            ) from error
        self._known = known
        said = "undecided" if made is None else made.corrected or made.decision
        self._show_decisions(f"{file}: {said}. ")
        return before

    def obey(self, what: dict[str, Any], buffers: list[Any]) -> None:
        """Carry out a decision on the image that was shown, or undo one; say so if it is refused.

        The browser goes on at once, and may show another list by now.
        """
        try:
            if what["do"] == "undo":
                self.undo()
                return
            which, item = next(
                (name, item)
                for name in sorted(self.lists, key=lambda name: name != self.which)
                for item, each in enumerate(self.lists[name])
                if each["file"] == what["file"]
            )
            self._decide(which, item, str(what["decision"]), str(what["corrected"]))
        except Exception as error:  # beside the image that it is about
            self.send({"file": what.get("file"), "refused": sentence(error)})

    def figures(self) -> dict[str, Figure]:
        some = self.items[:16]
        captions = [f"{each['label']}: {each['suggested']}?" for each in some]
        rows = [each["row"] for each in some]
        return {"list": plots.plot_images(self._images, rows, captions, self.which)}
