"""How a partition formed: the maps in a generalist's run, update by update."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nofe_lab.config import InvalidInput
from nofe_lab.specialties.partition import Specialties


def maps_of(map_history: pd.DataFrame, specialties: Specialties) -> NDArray[np.int64]:
    """The specialty of each class after each update: int64 [updates + 1, C], row 0 the initial map.

    map_history: a run's table of that name, with columns update, class and specialty.
    specialties: must equal the last map.
    Raises InvalidInput if a map lacks a class, or the last one is not `specialties`.
    """
    twice = map_history[map_history.duplicated(["update", "class"])]
    if len(twice):
        first = twice.iloc[0]
        raise InvalidInput(
            f"the map's history has class {first['class']} twice in update {first['update']}."
        )
    wide = map_history.pivot(index="update", columns="class", values="specialty")
    if wide.isna().to_numpy().any() or list(wide.index) != list(range(len(wide))):
        raise InvalidInput(
            "the map's history needs one row for each class and each update, from update 0 on."
        )
    maps: NDArray[np.int64] = wide.to_numpy(dtype=np.int64)
    if tuple(maps[-1]) != specialties.of:
        raise InvalidInput("the map's history must end in the specialties that are shown with it.")
    return maps


def settling(maps: NDArray[np.int64]) -> pd.DataFrame:
    """When each class stopped moving, one row a class.

    maps: int64 [updates + 1, C].  moves: how often the class changed its specialty.  last_moved:
    the last update that moved it, or 0.  settled: whether it stayed in its specialty through the
    last quarter of the updates (at least one); True without updates.
    """
    updates = len(maps) - 1
    moved = maps[1:] != maps[:-1]
    numbers = np.arange(1, updates + 1)[:, None]
    last = np.where(moved, numbers, 0).max(axis=0, initial=0)
    quiet = updates - max(updates // 4, 1)
    return pd.DataFrame(
        {
            "class": np.arange(maps.shape[1]),
            "moves": moved.sum(axis=0),
            "last_moved": last,
            "settled": (last <= quiet) | (updates == 0),
        }
    )
