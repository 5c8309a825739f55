"""Labels that several networks agree to doubt, as a list to go through: `relabel`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from nofe_lab.config import InvalidInput, one_of, printable
from nofe_lab.data import Dataset, Source
from nofe_lab.data.corrections import Corrections
from nofe_lab.diagnosis.report import Look
from nofe_lab.evaluation import predict
from nofe_lab.files import user_path, writable_path
from nofe_lab.inference import Classifier

if TYPE_CHECKING:
    from nofe_lab.views import RelabelList

AT_ONCE = 1000
"""Images whose hashes are compared at once."""


@dataclass(frozen=True, eq=False)
class _Judged:
    """Images that at least two networks have not trained on, and what these say."""

    images: Source
    may_judge: NDArray[np.bool_]
    """[networks, N]."""
    looks: tuple[Look, ...]
    """Each network's, of the images that it may judge."""


def relabel(
    data: Dataset,
    networks: Sequence[Classifier],
    path: str | Path,
    splits: Sequence[str] = ("train", "val"),
) -> RelabelList:
    """A list of images that may be labelled wrongly, to keep, relabel or exclude with a key each.

    >>> nofe_lab.relabel(data, [experiment.model(base), experiment.model(nofe)], "corrections.csv")

    Listed are the images whose label every network doubts, all for the same other class (see
    `Look.mislabelled`), and those of the worst confusions.  A network judges only images on which
    it has not trained, and an image needs two judges: with one data_seed these are val images,
    networks with other ones judge each other's.
    data: from files, without corrections.  path: the CSV to which each
    decision is written at once, for the knob `corrections`; one that exists is gone on with.
    splits: of train, val and test.  Test images that are corrected by a network's doubts flatter
    this network, so they must be asked for.
    Raises InvalidInput if the arguments do not fit together.
    """
    from nofe_lab.views import RelabelList

    if not data.files:
        raise InvalidInput(
            "relabelling is for data sets of files, such as 'folder:DIR'; got "
            f"{printable(data.name)}."
        )
    known = Corrections(path, {})
    if os.path.lexists(user_path(path)):
        known = Corrections.read(path)
        known.check(data.name, data.class_names, data.files)
    writable_path("corrections", path)
    judged = _judged(data, networks, splits)
    file_of = {image.key: file for file, image in data.files.items()}
    files = [file_of[key.tobytes()] for key in judged.images.keys.numpy()]
    labels = judged.images.labels.tolist()
    for file, label in zip(files, labels, strict=True):
        if data.files[file].label != data.class_names[label]:
            raise InvalidInput(
                f"relabelling starts from the labels of the files, but that of {file!r} has been "
                "corrected: load the data without corrections."
            )

    def items(rows: Sequence[int], suggested: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {
                "row": row,
                "file": files[row],
                "label": data.class_names[labels[row]],
                "suggested": other,
                "said": _said(judged, networks, row),
            }
            for row, other in zip(rows, suggested, strict=True)
        ]

    suspects, together = _suspects(judged), _together(judged, data)
    confused = [
        row
        for pair in together.worst_pairs()[["class", "rival"]].to_numpy()
        for row in together.between(*map(data.class_names.index, pair))
    ]
    lists = {
        "labelled wrongly?": items(suspects["row"].tolist(), suspects["suggested"].tolist()),
        "worst confusions": items(
            confused, [data.class_names[together.predicted[row]] for row in confused]
        ),
    }
    return RelabelList(known, data, judged.images, lists)


def _judged(data: Dataset, networks: Sequence[Classifier], splits: Sequence[str]) -> _Judged:
    if len(networks) < 2:
        raise InvalidInput(
            "relabelling needs 2 networks or more, such as base CNN and network of experts, which "
            f"can agree; got {len(networks)}."
        )
    for model in networks:
        name = model.run.path.name
        if model.output_names != data.class_names or (
            model.description.image_shape != data.image_shape
        ):
            raise InvalidInput(f"the network {name} answers for other classes or images.")
        if not model.knows_seen:
            raise InvalidInput(
                f"the run {name} does not say which images it has trained on, so it cannot judge "
                "labels: it was made by an earlier nofe_lab; train it again."
            )
    parts, seen = [], []
    for split in splits:
        part = getattr(data, one_of("split", split, ("train", "val", "test")))
        if len(part):
            parts.append(part)
            seen += [[m.has_seen(some) for m in networks] for some in part.parts(AT_ONCE)]
    may_judge = ~np.concatenate(seen, axis=1) if seen else np.empty((len(networks), 0), bool)
    chosen = may_judge.sum(axis=0) >= 2
    if not chosen.any():
        raise InvalidInput(
            f"no image of {' or '.join(splits)} is unknown to two networks, so none can be judged; "
            "accepted: networks that were trained with val_fraction above 0, or with another "
            "data_seed."
        )
    ends = np.cumsum([len(part) for part in parts])[:-1]
    parts = [
        part[torch.from_numpy(mask)]
        for part, mask in zip(parts, np.split(chosen, ends), strict=True)
    ]
    images = parts[0].joined(parts[1:])
    looks = []
    for model, mask in zip(networks, may_judge[:, chosen], strict=True):
        answers = predict(model, images[torch.from_numpy(mask)])
        looks.append(
            Look(data.class_names, answers.labels, answers.predicted, answers.probabilities)
        )
    return _Judged(images, may_judge[:, chosen], tuple(looks))


def _suspects(judged: _Judged) -> pd.DataFrame:
    """The images that all their judges doubt for the same class, the likeliest first."""
    tables = [
        found.assign(row=np.flatnonzero(mask)[found["row"].to_numpy(int)])
        for mask, found in zip(
            judged.may_judge, (look.mislabelled(None) for look in judged.looks), strict=True
        )
    ]
    doubts = pd.concat(tables).assign(margin=lambda table: table["p_label"] - table["p_suggested"])
    agreed = doubts.groupby(["row", "suggested"], as_index=False).agg(
        doubts=("margin", "size"), margin=("margin", "mean")
    )
    judges = judged.may_judge.sum(axis=0)
    agreed = agreed[agreed["doubts"] == judges[agreed["row"].to_numpy(int)]]
    return agreed.sort_values("margin", kind="stable")


def _together(judged: _Judged, data: Dataset) -> Look:
    """What the judges of each image say in the mean."""
    total = np.zeros((len(judged.images), data.C))
    for mask, look in zip(judged.may_judge, judged.looks, strict=True):
        total[mask] += look.probabilities
    mean = total / judged.may_judge.sum(axis=0)[:, None]
    return Look(data.class_names, judged.images.labels.numpy(), mean.argmax(axis=1), mean)


def _said(judged: _Judged, networks: Sequence[Classifier], row: int) -> list[list[Any]]:
    """Of each judge of an image: its name, its answer, how probable that is, and the label."""
    found = []
    for model, mask, look in zip(networks, judged.may_judge, judged.looks, strict=True):
        if mask[row]:
            assert look.probabilities is not None
            place = int(mask[:row].sum())
            p, said = look.probabilities[place], int(look.predicted[place])
            title = printable(str(model.run.about["title"]))
            found.append(
                [title, look.class_names[said], float(p[said]), float(p[look.labels[place]])]
            )
    return found
