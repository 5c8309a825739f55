"""What the benchmark should reach, and what it has reached."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from nofe_lab.config import InvalidInput, data_folder
from nofe_lab.files import user_path

NETWORKS = ("alexnet_quick", "alexnet_c100", "vgg11_c100", "nin_c100", "resnet56_c100")
"""The published networks for CIFAR-100."""

RESULTS = data_folder() / "results" / "bench.csv"
"""Where ``make bench`` writes its table."""


@dataclass(frozen=True)
class Target:
    """A limit for the mean of a ratio over `networks`."""

    what: str
    limit: float
    at_least: bool
    networks: tuple[str, ...] = NETWORKS

    def is_met(self, ratio: float) -> bool:
        """Whether a measured ratio is good enough."""
        return ratio >= self.limit if self.at_least else ratio <= self.limit


TARGETS = {
    "branches": Target("branches, K = 10: loop / grouped", 2.0, True),
    "branches at K = 50": Target("branches, K = 50, same arithmetic: loop / grouped", 4.0, True),
    "branches, K = 50 to 5": Target("branches, K = 50 / K = 5, same arithmetic", 1.25, False),
    "step against base": Target("(NofE step / base step) / their arithmetic", 1.10, False),
    "NofE step against peak": Target(
        "NofE step: achieved / matrix peak", 0.7, True, ("vgg11_c100", "nin_c100")
    ),
    "base step against peak": Target(
        "base step: achieved / matrix peak", 0.7, True, ("vgg11_c100", "nin_c100")
    ),
    "epoch": Target("epoch: DataLoader loop / ours", 2.0, True, ("alexnet_quick",)),
    "overhead": Target("share of an epoch outside of its steps", 0.03, False),
}
"""By the name of a row."""


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """The ratios that have a target: one row a comparison and network.

    what, limit, at_least: the target's; counts: whether the target includes this network.
    """
    found = table[table["name"].isin(TARGETS)].copy()
    found["what"] = [TARGETS[name].what for name in found["name"]]
    found["limit"] = [TARGETS[name].limit for name in found["name"]]
    found["at_least"] = [TARGETS[name].at_least for name in found["name"]]
    found["counts"] = [
        network in TARGETS[name].networks
        for name, network in zip(found["name"], found["network"], strict=True)
    ]
    return found


def against_targets(table: pd.DataFrame) -> pd.DataFrame:
    """One row a target: the measured mean, smallest and largest ratio, and whether it is met.

    Means are geometric.  That of the share of an epoch outside of its steps is arithmetic: a share
    can be 0 or below.
    """
    rows = []
    for name, target in TARGETS.items():
        found = table[(table["name"] == name) & table["network"].isin(target.networks)]["ratio"]
        if found.empty:
            continue
        mean = found.mean() if name == "overhead" else math.exp(np.log(found).mean())
        rows.append(
            {
                "what": target.what,
                "networks": len(found),
                "target": f"{'at least' if target.at_least else 'at most'} {target.limit:g}",
                "measured": mean,
                "smallest": found.min(),
                "largest": found.max(),
                "met": target.is_met(mean),
            }
        )
    return pd.DataFrame(rows)


def read(path: Path | str) -> pd.DataFrame:
    """The table of an earlier benchmark.  Raises InvalidInput if the file holds no such table."""
    try:
        table = pd.read_csv(user_path(path), comment="#")
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{str(path)!r} cannot be read ({error}); accepted: a file that `make bench` wrote."
        ) from error
    missing = {"name", "network", "ratio", "ours_s", "theirs_s"} - set(table.columns)
    if missing:
        raise InvalidInput(
            f"{str(path)!r} is no benchmark's table: it lacks {', '.join(sorted(missing))}; "
            "accepted: a file that `make bench` has written."
        )
    return table.fillna({"network": ""})
