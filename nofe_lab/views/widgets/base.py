"""The base of all widgets: state in traits, figures of the state, JavaScript.

A widget is an anywidget.  Python holds its state and computes every table it shows.  Its JavaScript
(in ``static/``, part of the package, so that it works offline) draws these tables and sends back
what the reader chose; matplotlib would take a second for each click.  `View.figures` draws the
current state with ``plot_*`` functions; this picture is shown where no kernel runs.
"""

from __future__ import annotations

import base64
import io
import textwrap
import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import anywidget
import numpy as np
import traitlets
from IPython.display import display
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nofe_lab.config import InvalidInput, first_line, one_of
from nofe_lab.data import Dataset
from nofe_lab.data.pictures import rgb
from nofe_lab.runs import Run
from nofe_lab.specialties import Specialties, class_number
from nofe_lab.training.events import Event, StageAwaited, StageBegun, StageEnded, StepDone
from nofe_lab.views import plots
from nofe_lab.views.page import STATIC

DPI = 100
"""Resolution of the picture that is shown where no kernel runs."""
MOST_PIXELS = 6_000_000
"""Most pixels of that picture; larger ones are drawn at a lower resolution."""
PERIOD = 0.5
"""Least seconds between two messages about the steps of a training."""

DRAWN = 32
"""Longest side of images that can be drawn by hand, in pixels."""
FAINT = 40
"""Grey levels between ink and paper that are too few to see what one draws."""


def script(*parts: str) -> str:
    """A widget's JavaScript: the common part and its own.

    The notebook loads it as one string, in which modules cannot import each other.
    """
    return "\n".join((STATIC / f"{part}.js").read_text("utf-8") for part in ("common", *parts))


class InvalidTrait(InvalidInput, traitlets.TraitError):
    """A trait was set to an invalid value; traitlets then restores the old one."""


def check(*traits: str) -> Callable[[Callable[[Any, Any], Any]], Any]:
    """Decorate a widget's method that validates traits: it returns a value or raises InvalidInput.

    Like `traitlets.validate`, but the error also makes traitlets restore the old value if the new
    one came from the browser.
    """

    def marked(method: Callable[[Any, Any], Any]) -> Any:
        @wraps(method)
        def checked(widget: Any, proposal: Any) -> Any:
            try:
                return method(widget, proposal)
            except InvalidInput as error:
                raise InvalidTrait(str(error)) from None

        return traitlets.validate(*traits)(checked)

    return marked


class View(anywidget.AnyWidget):  # type: ignore[misc]
    """The base class of all widgets."""

    _css = STATIC / "style.css"

    words = traitlets.Unicode(help="What is shown, in words.").tag(sync=True)

    what = "view"
    """What the widget shows, for the caption of its picture."""

    def __init__(self, **traits: Any) -> None:
        self._stills: list[Any] = []
        super().__init__(**traits)
        self.on_msg(self._hear)

    def _hear(self, _: Any, what: dict[str, Any], buffers: list[Any]) -> None:
        """Answer a message from the browser: a ping or a command."""
        if what.get("do") == "ping":
            self.send({"pong": what.get("token")})
            return
        try:
            self.obey(what, buffers)
        except Exception as error:  # ipywidgets would write it where nobody looks
            self._refuse(error)

    def _refuse(self, error: Exception) -> None:
        """Show why what the reader asked for was not done."""
        self.words = sentence(error)

    def obey(self, what: dict[str, Any], buffers: list[Any]) -> None:
        """Carry out a command of the browser, in widgets that have some."""

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """Take values from the browser; reject invalid ones and send the current values back."""
        try:
            super().set_state(sync_data)
        except Exception as error:
            self._refuse(error)
            self.send_state(list(sync_data))

    def figures(self) -> dict[str, Figure]:
        """Figures of the current state: name -> figure, from top to bottom."""
        raise NotImplementedError

    @property
    def png(self) -> bytes:
        """The figures below each other, with a caption for readers without a kernel."""
        caption = (
            f"{self.words}  This is a picture of the {self.what} as it was when this cell was run; "
            "with a running kernel (JupyterLab) it can be used by mouse and keyboard."
        )
        return stacked([*self.figures().values(), _caption(caption)])

    def save(self, run: Run, name: str) -> None:
        """Save the current figures in the run's folder, as PNG and SVG."""
        for part, figure in self.figures().items():
            run.save_figure(figure, f"{name}_{part}")

    def _ipython_display_(self) -> None:
        """Display two outputs: the widget, and the picture that is shown where no kernel runs.

        One output with both would do in JupyterLab, but an exported page would take the widget's
        part and show nothing.  While the widget is alive, its style sheet hides the picture.
        """
        live, _ = self._repr_mimebundle_() or ({}, {})
        display({**live, "text/plain": self.words}, raw=True)
        data, metadata = self._picture()
        self._stills.append(display(data, metadata=metadata, raw=True, display_id=True))

    def refresh(self) -> None:
        """Update the pictures that were displayed with the widget to its current state."""
        if self._stills:
            data, metadata = self._picture()
            for still in self._stills:
                still.update(data, metadata=metadata, raw=True)

    def _picture(self) -> tuple[dict[str, str], dict[str, str]]:
        data = {"text/plain": self.words, "image/png": base64.b64encode(self.png).decode()}
        return data, {"needs_background": "light"}


class ClassView(View):
    """A widget in which one class is chosen; `label` and `class_name` stay in step.

    Raises InvalidInput if an unknown class is chosen.  -1 and "" mean no class, where a widget
    allows that.
    """

    label = traitlets.Int(-1, help="The chosen class, from 0 to C - 1.").tag(sync=True)
    class_name = traitlets.Unicode(help="The name of the chosen class.").tag(sync=True)
    class_names = traitlets.List(traitlets.Unicode()).tag(sync=True)

    may_be_none = False
    """Whether no class at all can be chosen."""

    @check("label")
    def _check_label(self, proposal: Any) -> int:
        label: int = proposal["value"]
        C = len(self.class_names)
        if not (0 <= label < C or (label == -1 and self.may_be_none)):
            raise InvalidInput(f"label must be from 0 to {C - 1}; got {label}.")
        return label

    @check("class_name")
    def _check_class_name(self, proposal: Any) -> str:
        name: str = proposal["value"]
        if name or not self.may_be_none:
            class_number(name, self.class_names)
        return name

    @traitlets.observe("class_name")
    def _choose_by_name(self, change: Any) -> None:
        name = change["new"]
        self.label = self.class_names.index(name) if name else -1

    @traitlets.observe("label")
    def _choose_by_label(self, change: Any) -> None:
        label = change["new"]
        self.class_name = self.class_names[label] if label >= 0 else ""


class TrainingView(View):
    """A widget that listens to a training, and shows how far it is."""

    stage = traitlets.Unicode(help="What is being trained; '' between stages.").tag(sync=True)
    progress = traitlets.List(traitlets.Int(), [0, 0], help="Steps done, and in all.").tag(
        sync=True
    )
    _told = 0.0

    def __call__(self, event: Event) -> None:
        """Update the state from an event of the training loop."""
        match event:
            case StageBegun():
                self.stage, self.progress = event.title, [0, event.steps]
            case StepDone():
                if time.monotonic() - self._told > PERIOD or event.step == event.steps:
                    self.progress = [event.step, event.steps]
                    self._told = time.monotonic()
            case StageEnded():
                self.stage = ""
            case StageAwaited():
                self.stage, self.progress = f"{event.title}: waiting for {event.holder}", [0, 0]


def sentence(error: BaseException) -> str:
    """An error as its widget shows it: with its type, unless it is a sentence for the reader."""
    said = first_line(error)
    return said if isinstance(error, InvalidInput) else f"{type(error).__name__}: {said}"


def check_choice(proposal: Any, accepted: Sequence[str]) -> str:
    """The proposed value of a trait; raises InvalidInput if it is none of those accepted."""
    value: str = one_of(proposal["trait"].name, proposal["value"], tuple(accepted))
    return value


def check_table(what: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Raise InvalidInput unless the array has that shape and holds numbers."""
    if array.shape != shape:
        raise InvalidInput(f"{what} must be {list(shape)}; got {list(array.shape)}.")
    if not np.isfinite(array).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise InvalidInput(f"{what} must hold finite numbers; at {place} it is {array[place]}.")


def hex_colours(K: int) -> list[str]:
    """`plots.specialty_colours` as hexadecimal strings, for the browser."""
    return [to_hex(colour) for colour in plots.specialty_colours(K)]


def cards(specialties: Specialties, colours: Sequence[str]) -> list[dict[str, Any]]:
    """The specialties as tables for the browser, empty ones included."""
    return [
        {
            "k": k,
            "name": specialties.title(k),
            "colour": colours[k],
            "members": list(specialties.members(k)),
        }
        for k in range(specialties.K)
    ]


def sprite(images: Sequence[Tensor], side: int = 48) -> dict[str, Any]:
    """Many small images in one, for the browser.

    images: uint8 [channels, height, width] each.  Returns the bytes of a JPEG and the layout of the
    images in it: `side` pixels each, in `columns` columns.
    """
    columns = max(min(len(images), 32), 1)
    rows = max(-(-len(images) // columns), 1)
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    for n, image in enumerate(images):
        small = Image.fromarray(rgb(image))
        scale = side / max(small.size)
        small = small.resize([max(round(length * scale), 1) for length in small.size])
        corner = (side - small.width) // 2, (side - small.height) // 2
        sheet.paste(small, (n % columns * side + corner[0], n // columns * side + corner[1]))
    packed = io.BytesIO()
    sheet.save(packed, format="jpeg", quality=90, subsampling=0)
    return {"data": packed.getvalue(), "side": side, "columns": columns, "rows": rows}


def sketch_colours(images: Tensor, image_shape: Sequence[int]) -> dict[str, str] | None:
    """Colours to draw with, as hexadecimal strings, for a network of images [channels, h, w].

    images: some of them, uint8 [N, channels, h, w], of any size.  The paper is the median colour of
    their borders.  The ink is the 10 % quantile of their middles, or the 90 % quantile if these
    are brighter than the paper.  None if the network's images are too large to draw by hand.
    """
    if max(image_shape[1:]) > DRAWN:
        return None
    pixels = np.stack([rgb(image) for image in images])
    _, h, w, _ = pixels.shape
    middle = pixels[:, h // 4 : h - h // 4, w // 4 : w - w // 4].reshape(-1, 3)
    edges = (pixels[:, [0, -1]], pixels[:, :, [0, -1]])
    paper = np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0)
    is_darker = middle.mean() <= paper.mean()
    ink = np.quantile(middle, 0.1 if is_darker else 0.9, axis=0)
    if abs(ink.mean() - paper.mean()) < FAINT:
        ink = np.full(3, 0 if paper.mean() > 127 else 255)
    return {"paper": to_hex(paper / 255), "ink": to_hex(ink / 255)}


def thumbnails(dataset: Dataset) -> dict[str, Any]:
    """The thumbnail of each class, as a `sprite` in class order."""
    return sprite(list(dataset.thumbnails))


def stacked(figures: Sequence[Figure]) -> bytes:
    """Figures below each other, as one PNG."""
    drawn = []
    area = sum(float(np.prod(figure.get_size_inches())) for figure in figures)
    dpi = min(DPI, (MOST_PIXELS / area) ** 0.5)
    for figure in figures:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi)
        drawn.append(Image.open(buffer).convert("RGB"))
    width = max(picture.width for picture in drawn)
    whole = Image.new("RGB", (width, sum(picture.height for picture in drawn)), "white")
    top = 0
    for picture in drawn:
        whole.paste(picture, (0, top))
        top += picture.height
    packed = io.BytesIO()
    whole.save(packed, format="png")
    return packed.getvalue()


def _caption(text: str) -> Figure:
    lines = textwrap.wrap(" ".join(text.split()), 130)
    return plots.plot_words("\n".join(lines))
