"""Reads labels and predictions from tables and arrays of any framework, and checks every value."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from nofe_lab.config import (
    InvalidInput,
    check_distinct,
    check_names,
    composed,
    first_line,
    shown,
    some_of,
)
from nofe_lab.files import UnreadableFile, memory, open_regular, redact_path, user_path
from nofe_lab.specialties import class_number

LABEL, PREDICTION, FILE = "label", "prediction", "file"
"""The columns of a table that are no classes."""

MAX_CLASSES = 10_000
"""Most classes: their confusions are a dense matrix."""

TOLERANCE = 0.01
"""How far the sum of an image's probabilities may be from 1: they may have been rounded."""

ROWS_AT_ONCE = 4096
"""Rows of probabilities that are checked at once."""

ENDINGS = (".csv", ".parquet")

ACCEPTED = (
    "a torch module with images, a pair (labels, predictions), or a table (.csv, .parquet or a "
    "DataFrame) with the column 'label' and either 'prediction' or a column of probabilities for "
    "each class"
)


_NUMBER = re.compile(r"\d{1,18}", re.ASCII)
"""A class that is called by a number."""


@dataclass(frozen=True, eq=False)
class CheckedPredictions:
    """What a classifier said of N images, checked."""

    class_names: tuple[str, ...]
    labels: NDArray[np.int64]
    """[N], from 0 to C - 1."""
    predicted: NDArray[np.int64]
    """[N], from 0 to C - 1."""
    probabilities: NDArray[np.floating] | None = None
    """[N, C]; None if only predicted classes are known."""
    files: tuple[str, ...] | None = None
    """Where the images are, as the table has it."""
    folder: Path | None = None
    """The table's folder, which `files` are relative to."""
    notes: tuple[str, ...] = ()


def is_table(given: Any) -> bool:
    """Whether these are predictions in a form that `read_answers` takes."""
    return isinstance(given, (str, Path, pd.DataFrame, Mapping, tuple, np.ndarray, Tensor, list))


def read_answers(
    given: Any, labels: Any = None, class_names: Sequence[str] | None = None
) -> CheckedPredictions:
    """Read predictions, and labels unless they are given (see `nofe_lab.look`).

    Raises InvalidInput, naming the value, if labels or predictions do not fit the classes or rows
    of probabilities are not probabilities; UnreadableFile if a file is no such table.
    """
    folder = None
    notes: tuple[str, ...] = ()
    names = checked_names(class_names) if class_names is not None else None
    are_columns = names is None
    if isinstance(given, (str, Path)):
        folder, given = _read_table(given)
    if isinstance(given, pd.DataFrame):
        columns, names, notes = _columns(given, labels is not None, names)
    elif isinstance(given, Mapping):
        known = {LABEL, PREDICTION, "probabilities", FILE}
        if odd := [key for key in given if key not in known]:
            raise InvalidInput(
                f"a mapping of predictions has the keys {LABEL!r}, {PREDICTION!r} or "
                f"'probabilities', and {FILE!r}; got {shown(odd[0])}."
            )
        columns = {**given}
        if "probabilities" in columns:
            columns[PREDICTION] = columns.pop("probabilities")
    elif isinstance(given, tuple):
        if len(given) != 2:
            raise InvalidInput(f"predictions must be {ACCEPTED}; got {len(given)} arrays.")
        columns = {LABEL: given[0], PREDICTION: given[1]}
    else:
        columns = {PREDICTION: given}
    if labels is not None:
        if columns.get(LABEL) is not None:
            raise InvalidInput("labels are given twice: in the table and by labels=.")
        columns[LABEL] = labels
    for needed in (LABEL, PREDICTION):
        if columns.get(needed) is None:
            hint = "; labels= takes them" if needed == LABEL else ""
            raise InvalidInput(f"there are no {needed}s; accepted: {ACCEPTED}{hint}.")
    files = columns.get(FILE)
    given_labels = _array(LABEL, columns[LABEL])
    if are_columns and names is not None and all(map(_NUMBER.fullmatch, names)):
        given_labels = _texts(LABEL, given_labels)  # of columns, which are called by numbers
        if odd := sorted(set(given_labels.tolist()) - set(names)):
            raise InvalidInput(
                f"the {LABEL} {odd[0]} is no column of probabilities; there are {some_of(names)}."
            )
    found = _checked(given_labels, _array(PREDICTION, columns[PREDICTION]), names)
    if files is not None:
        files = tuple(str(file) for file in files)
        if len(files) != len(found.labels):
            raise InvalidInput(f"there are {len(found.labels)} labels, but {len(files)} files.")
    return CheckedPredictions(
        found.class_names, found.labels, found.predicted, found.probabilities, files, folder, notes
    )


def checked_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Class names as a tuple.  Raises InvalidInput unless there are 2 or more, all different."""
    if isinstance(class_names, str) or not isinstance(class_names, Iterable):
        raise InvalidInput(f"class_names must be a list of names; got {shown(class_names)}.")
    names = tuple(composed(str(name)) for name in class_names)
    if not 2 <= len(names) <= MAX_CLASSES:
        raise InvalidInput(
            f"there must be 2 to {MAX_CLASSES:,} classes; got {len(names)}: {some_of(names)}."
        )
    check_names("class names", names)
    check_distinct("class names", names)
    return names


def check_probabilities(
    probabilities: NDArray[np.floating], class_names: Sequence[str], images: str = "row"
) -> None:
    """Raise InvalidInput unless all values are 0 or more and every row sums to 1."""
    for start in range(0, len(probabilities), ROWS_AT_ONCE):
        part = probabilities[start : start + ROWS_AT_ONCE]
        for bad in (~np.isfinite(part), part < 0):
            if bad.any():
                row, c = (int(i) for i in np.argwhere(bad)[0])
                raise InvalidInput(
                    f"probabilities must be from 0 to 1; that of class {class_names[c]!r} in "
                    f"{images} {start + row} is {part[row, c]:g}."
                )
        sums = part.sum(axis=1, dtype=np.float64)
        if (far := np.abs(sums - 1) > TOLERANCE).any():
            row = int(far.argmax())
            raise InvalidInput(
                f"the probabilities of an image must sum to 1; those in {images} {start + row} sum "
                f"to {sums[row]:g}: apply a softmax if they are logits."
            )


def _read_table(path: str | Path) -> tuple[Path, pd.DataFrame]:
    """Read a .csv or .parquet file; also returns its folder."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    place = user_path(path)
    ending = place.suffix.lower()
    if ending not in ENDINGS:
        raise InvalidInput(
            f"predictions must be in a file that ends in {' or '.join(ENDINGS)}; got {str(path)!r}."
        )
    try:
        with open_regular(place, memory(), links=True) as file:
            if not os.fstat(file.fileno()).st_size:  # pyarrow's threads may outlive its refusal
                raise ValueError("it is empty")
            if ending == ".csv":
                as_text = dict.fromkeys((LABEL, PREDICTION, FILE), pa.string())
                table = csv.read_csv(file, convert_options=csv.ConvertOptions(column_types=as_text))
            else:
                table = parquet.read_table(file)
        frame = table.to_pandas(ignore_metadata=True)
    except UnreadableFile as error:
        raise UnreadableFile(
            f"the table {str(path)!r} cannot be read ({redact_path(str(error), path)})"
        ) from error
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        why = redact_path(first_line(error), path).rstrip(".")
        raise UnreadableFile(f"the table {str(path)!r} cannot be read ({why}).") from error
    return place.parent, frame


def _columns(
    frame: pd.DataFrame, has_labels: bool, names: tuple[str, ...] | None
) -> tuple[dict[str, Any], tuple[str, ...] | None, tuple[str, ...]]:
    """Take a table apart: its columns, the names of its classes, and what was not read."""
    frame = frame.set_axis([composed(str(column)) for column in frame.columns], axis=1)
    header = list(frame.columns)
    for name in (LABEL, PREDICTION, FILE):
        if header.count(name) > 1:
            raise InvalidInput(f"the table has {header.count(name)} columns {name!r}.")
    if LABEL not in header and not has_labels:
        raise InvalidInput(
            f"the table has no column {LABEL!r}, but {some_of(header)}; accepted: {ACCEPTED}."
        )
    columns: dict[str, Any] = {name: frame[name] for name in (LABEL, FILE) if name in header}
    others = [name for name in header if name not in (LABEL, PREDICTION, FILE)]
    if PREDICTION in header and not (names and set(names) <= set(others)):
        notes = (f"Columns that were not read: {some_of(others)}.",) if others else ()
        return {**columns, PREDICTION: frame[PREDICTION]}, names, notes
    if names is None:
        names = checked_names(others)
    if missing := [name for name in names if name not in others]:
        raise InvalidInput(
            f"the table has no column {PREDICTION!r}, and none of probabilities for "
            f"{len(missing)} of {len(names)} classes: {some_of(missing)}."
        )
    for name in names:
        column = frame[name]
        if not isinstance(column, pd.Series):
            raise InvalidInput(f"the table has several columns {name!r}.")
        if column.dtype.kind not in "fiu":
            odd = next((v for v in column if not isinstance(v, (int, float))), column.iloc[0])
            raise InvalidInput(
                f"the column {name!r} must hold probabilities; got {shown(odd)}.  Accepted: "
                f"{ACCEPTED}."
            )
    probabilities = frame[list(names)].to_numpy(np.float32)
    left = [name for name in others if name not in set(names)]
    notes = (f"Columns that were not read: {some_of(left)}.",) if left else ()
    return {**columns, PREDICTION: probabilities}, names, notes


def _array(what: str, values: Any) -> NDArray[Any]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    try:
        return np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise InvalidInput(f"{what}s must be an array ({first_line(error)}).") from error


def _checked(
    labels: NDArray[Any], predictions: NDArray[Any], names: tuple[str, ...] | None
) -> CheckedPredictions:
    if labels.ndim != 1:
        raise InvalidInput(f"labels must be an array [N]; got {list(labels.shape)}.")
    if predictions.ndim not in (1, 2):
        raise InvalidInput(
            "predictions must be classes [N] or probabilities [N, C]; got "
            f"{list(predictions.shape)}."
        )
    if len(labels) != len(predictions) or not len(labels):
        raise InvalidInput(
            f"there must be a prediction for each label, and at least one; got {len(labels)} "
            f"labels and {len(predictions)} predictions."
        )
    if predictions.ndim == 1:
        if names is None:
            names, labels, predictions = _named(labels, predictions)
        return CheckedPredictions(
            names, _codes(LABEL, labels, names), _codes(PREDICTION, predictions, names)
        )
    if predictions.dtype.kind not in "fiu":
        raise InvalidInput(f"probabilities must be numbers; got {shown(predictions.flat[0])}.")
    C = predictions.shape[1]
    if names is None:
        if labels.dtype.kind not in "iubf":
            raise InvalidInput(
                f"labels are names, such as {shown(labels[0])}: class_names must say which of the "
                f"{C} columns of probabilities is which class."
            )
        names = checked_names([str(c) for c in range(C)])
    if len(names) != C:
        raise InvalidInput(f"there are {len(names)} class names, but {C} columns of probabilities.")
    probabilities = predictions if predictions.dtype.kind == "f" else predictions.astype(np.float32)
    codes = _codes(LABEL, labels, names)
    check_probabilities(probabilities, names)
    return CheckedPredictions(names, codes, probabilities.argmax(axis=1), probabilities)


def _named(
    labels: NDArray[Any], predictions: NDArray[Any]
) -> tuple[tuple[str, ...], NDArray[Any], NDArray[Any]]:
    """Class names from all labels and predictions, sorted; both arrays as text.

    As in scikit-learn, a whole number that never occurs is no class.
    """
    texts = [_texts(LABEL, labels), _texts(PREDICTION, predictions)]
    found = sorted(set(texts[0].tolist()) | set(texts[1].tolist()))
    if all(map(_NUMBER.fullmatch, found)):
        found.sort(key=int)
    return checked_names(found), texts[0], texts[1]


def _fraction(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of some floats are no whole numbers, or too large to be exact."""
    return ~((np.abs(values) < 2**53) & (values == np.floor(values)))


def _texts(what: str, values: NDArray[Any]) -> NDArray[Any]:
    """Values as text.  Raises InvalidInput for one that is missing or a fraction."""
    if values.dtype.kind in "iub":
        return values.astype(np.int64).astype(str).astype(object)
    if values.dtype.kind == "f":
        odd = _fraction(values)
        if odd.any():
            row = int(odd.argmax())
            raise InvalidInput(
                f"the {what} in row {row} is {values[row]:g}; accepted: whole numbers or names."
            )
        return values.astype(np.int64).astype(str).astype(object)
    values = values.astype(object)
    absent = pd.isna(values) | (values == "")
    if absent.any():
        raise InvalidInput(f"row {int(absent.argmax())} has no {what}; accepted: a class.")
    codes, unique = pd.factorize(values)
    named = np.array([composed(_plain(value)) for value in unique], dtype=object)
    return named[codes]


def _plain(value: Any) -> str:
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)


def _codes(what: str, values: NDArray[Any], names: tuple[str, ...]) -> NDArray[np.int64]:
    """The class of each value [N], which is a name or an index.

    Text is a name if all values are names, else an index.  Raises InvalidInput for other values.
    """
    C = len(names)
    if values.dtype.kind in "iub" or (values.dtype.kind == "f" and not _fraction(values).any()):
        codes = values.astype(np.int64)
    else:
        texts = _texts(what, values)
        number = {name: c for c, name in enumerate(names)}
        unique = set(texts.tolist())
        if unique <= number.keys():
            return np.array([number[text] for text in texts.tolist()], dtype=np.int64)
        if not all(re.fullmatch(r"-?\d{1,18}", text, re.ASCII) for text in unique):
            row = next(i for i, text in enumerate(texts) if text not in number)
            try:
                class_number(texts[row], names)
            except InvalidInput as error:
                raise InvalidInput(f"the {what} in row {row} does not fit: {error}") from None
        codes = np.array([int(text) for text in texts.tolist()], dtype=np.int64)
    outside = (codes < 0) | (codes >= C)
    if outside.any():
        row = int(outside.argmax())
        raise InvalidInput(
            f"the {what} in row {row} is {codes[row]}; accepted: 0 to {C - 1}, or the name of one "
            f"of the {C} classes."
        )
    return codes
