"""Means over seeds, paired differences, and how many confusions specialties hold by chance.

scipy is imported where it is needed, because it takes longer to import than everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nofe_lab.config import derive_seed
from nofe_lab.specialties import Specialties

Table = TypeVar("Table", pd.DataFrame, pd.Series)

POWER = 0.8
"""Probability with which a test finds a difference as large as `detectable`."""
RANDOM_PARTITIONS = 1000
"""Random partitions that the share of confusions inside specialties is compared with."""
RESAMPLES = 2000
"""Samples that `paired_interval_over_seeds` draws."""


def over_seeds(
    table: pd.DataFrame, value: str = "test_accuracy", by: str = "network"
) -> pd.DataFrame:
    """Mean over seeds and its 95 % interval (Student's t), one row for each network.

    table: long, with the columns `by`, seed and `value`.  Returns the columns `by`, seeds, mean,
    low and high; low and high are NaN for a single seed.
    """
    from scipy import stats

    groups = table.groupby(by, sort=False)[value]
    result = groups.agg(seeds="count", mean="mean", error="sem").reset_index()
    error = result.pop("error")
    low, high = stats.t.interval(0.95, result["seeds"] - 1)
    return result.assign(low=result["mean"] + low * error, high=result["mean"] + high * error)


def paired_differences(
    table: pd.DataFrame, reference: str, value: str = "test_accuracy", by: str = "network"
) -> pd.DataFrame:
    """Each network minus `reference` over their common seeds, with 95 % intervals.

    Arguments and columns are those of `over_seeds`, with one more: `detectable`, the smallest true
    difference that so many seeds show with a probability of 80 %.  Smaller ones can be missed.
    """
    wide = table.pivot(index="seed", columns=by, values=value)
    differences = wide.sub(wide[reference], axis=0).drop(columns=reference)
    order = [name for name in table[by].unique() if name != reference]
    long = differences[order].melt(ignore_index=False, value_name="difference").reset_index()
    result = over_seeds(long.dropna(), "difference", by)
    return result.assign(
        detectable=[detectable(differences[name].dropna().to_numpy()) for name in result[by]]
    )


def paired_interval(
    right: NDArray[np.bool_], other: NDArray[np.bool_]
) -> tuple[float, float, float]:
    """The difference of two networks' accuracies on the same N images, and its 95 % interval.

    right, other: [N], whether each image is answered correctly.  The interval (Student's t, over
    images) tells of other images of this kind, not of other seeds; NaN for a single image.
    """
    from scipy import stats

    differences, n = right.astype(np.float64) - other, len(right)
    mean = float(differences.mean())
    if n < 2:
        return mean, np.nan, np.nan
    half = float(stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / n**0.5)
    return mean, mean - half, mean + half


def paired_interval_over_seeds(
    right: NDArray[np.bool_], other: NDArray[np.bool_]
) -> tuple[float, float, float]:
    """The difference of two arms' accuracies, and its 95 % interval over seeds and images.

    right, other: [S, N], whether each of the same N images is answered correctly with each of the
    same S seeds.  A bootstrap (percentiles) that draws seeds and images with replacement, the same
    images for all seeds, from a fixed seed.  It tells of other seeds and of other images of this
    kind.  It is too wide where the noise of single answers prevails, and too narrow where few seeds
    differ much: there `paired_differences` is the one to trust.
    See A. Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007.
    """
    differences = right.astype(np.int8) - other
    S, N = differences.shape
    patterns, counts = np.unique(differences, axis=1, return_counts=True)  # images that look alike
    rng = np.random.default_rng(derive_seed(0, "seeds and images"))
    seeds = rng.multinomial(S, np.full(S, 1 / S), RESAMPLES)
    images = rng.multinomial(N, counts / N, RESAMPLES)
    means = (seeds @ patterns * images).sum(axis=1) / (S * N)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(differences.mean()), float(low), float(high)


def share_interval(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share that was found on n images (Wilson's score interval)."""
    from scipy import stats

    interval = stats.binomtest(round(share * n), n).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)


def detectable(differences: NDArray[np.float64]) -> float:
    """The smallest mean difference that a paired t test at 5 % finds with probability `POWER`.

    differences: one for each seed; their standard deviation is taken as the true one.  Computed
    from scipy's noncentral t distribution, for the right sign; NaN for fewer than two seeds.
    """
    n = len(differences)
    return np.nan if n < 2 else float(_detectable_shift(n) * differences.std(ddof=1))


@cache
def _detectable_shift(n: int) -> float:
    """`detectable` with n >= 2 seeds, in standard deviations of a difference."""
    from scipy import optimize, stats

    critical = stats.t.ppf(0.975, n - 1)

    def missing(shift: float) -> float:
        return float(stats.nct.sf(critical, n - 1, shift)) - POWER

    return float(optimize.brentq(missing, 0.0, 4 * critical)) / n**0.5


MOST_SEEDS = 200
"""The most seeds that `seeds_to_detect` proposes."""


def seeds_to_detect(
    difference: float, differences: NDArray[np.float64], least: int = 2
) -> int | None:
    """The fewest seeds, from `least` on, of which `detectable` is at most `difference`.

    differences: a pilot's, one for each of two or more seeds.  None: more than MOST_SEEDS.
    """
    deviation = differences.std(ddof=1)
    for n in range(least, MOST_SEEDS + 1):
        if _detectable_shift(n) * deviation <= difference:
            return n
    return None


def verdict(differences: Sequence[float], seconds: float) -> str:
    """One sentence on experts against a CNN: use them, keep the CNN, or not told apart.

    differences: accuracy with experts minus that of the CNN, as shares, one for each seed.
    seconds: what one more seed costs.  The 95 % interval of the mean (Student's t) decides.  Where
    it holds 0, the sentence says how many seeds would show a true difference as large as the mean
    found, with a probability of `POWER`.
    """
    found = 100 * np.asarray(differences, dtype=np.float64)
    n = len(found)
    if n < 2:
        return (
            f"Not told apart: one seed ({found.mean():+.1f} points) says nothing about chance; 3 "
            f"seeds would take about {2 * seconds / 60:.0f} min more."
        )
    table = over_seeds(pd.DataFrame({"network": "", "difference": found}), "difference")
    mean, low, high = (float(table[name].iloc[0]) for name in ("mean", "low", "high"))
    said = f"{mean:+.1f} points [{low:+.1f}, {high:+.1f}] over {n} seeds, on these test images"
    if low > 0:
        return f"Use experts: {said}."
    if high < 0:
        return f"Keep your CNN: with experts {said}."
    more = f"more than {MOST_SEEDS} seeds"
    if mean and (wanted := seeds_to_detect(abs(mean), found, n + 1)):
        more = f"about {wanted} seeds, {(wanted - n) * seconds / 60:.0f} min more"
    return (
        f"Not told apart: {mean:+.1f} points ± {high - mean:.1f} over {n} seeds; to know whether a "
        f"difference of this size is real would take {more}."
    )


def standings(
    table: pd.DataFrame, own: str, value: str = "test_accuracy", by: str = "network"
) -> pd.DataFrame:
    """Where the network `own` stands beside each of a table (see `over_seeds`).

    Returns the columns of `over_seeds`; lead, lead_low and lead_high, `own` minus the network over
    their common seeds with its 95 % interval; and standing: "ahead" or "behind" where the interval
    leaves out 0, "tie" where it holds 0, "one seed" where there is none, "" for `own` itself.
    """
    found = over_seeds(table, value, by)
    differences = paired_differences(table, own, value, by).set_index(by)
    leads = -differences.reindex(found[by])[["mean", "high", "low"]].to_numpy(np.float64)
    lead, low, high = leads.T
    standing = np.select([low > 0, high < 0, low <= high], ["ahead", "behind", "tie"], "one seed")
    standing = np.where(found[by] == own, "", standing)
    return found.assign(lead=lead, lead_low=low, lead_high=high, standing=standing)


def standings_in_words(found: pd.DataFrame, by: str = "network") -> str:
    """One sentence on `standings`, in which a tie is called one.

    >>> standings_in_words(standings(table, "by hand"))
    'by hand: ahead of random; not told apart from learned / clusters; over 3 seeds.'
    """
    (own,) = found[by][found["standing"] == ""]
    seeds = found["seeds"].min()
    words = {"ahead": "ahead of", "behind": "behind", "tie": "not told apart from"}
    parts = [
        f"{said} {' / '.join(found[by][found['standing'] == standing])}"
        for standing, said in words.items()
        if (found["standing"] == standing).any()
    ]
    if (found["standing"] == "one seed").any():
        parts.append("one seed says nothing about chance")
    if seeds > 1:
        parts.append(f"over {seeds} seeds")
    return f"{own}: {'; '.join(parts)}."


def in_points(found: Table) -> Table:
    """Rows or one row of `over_seeds` or `paired_differences`, shares as percentage points."""
    columns = [name for name in ("mean", "low", "high", "detectable") if name in found]
    scaled = found.copy()
    scaled[columns] = 100 * found[columns]
    return scaled


def errors_inside(confusion: NDArray[np.int64], specialties: Specialties) -> float:
    """The share of all errors whose answer is in the right specialty; NaN if there are no errors.

    confusion: counts [C, C], row = label, column = prediction.
    """
    return _inside(confusion, np.array(specialties.of))


def _inside(confusion: NDArray[np.int64], of: NDArray[np.int64]) -> float:
    right = np.trace(confusion)
    errors = confusion.sum() - right
    inside = confusion[of[:, None] == of[None, :]].sum() - right
    return float(inside / errors) if errors else np.nan


def inside_by_chance(sizes: Sequence[int]) -> float:
    """The mean of `errors_inside` over random partitions into specialties of these sizes.

    It is the share of ordered pairs of different classes that lie in one specialty:
    sum n (n - 1) / (C (C - 1)).
    """
    C = sum(sizes)
    return sum(n * (n - 1) for n in sizes) / max(C * (C - 1), 1)


@dataclass(frozen=True)
class InsideShare:
    """The share of errors inside a specialty, against `RANDOM_PARTITIONS` of the same sizes."""

    share: float
    """Of all errors, those inside a specialty; NaN if there are no errors."""
    random_mean: float
    """Mean share over the random partitions."""
    random_low: float
    """Their 2.5th percentile."""
    random_high: float
    """Their 97.5th percentile."""


def inside_share(confusion: NDArray[np.int64], specialties: Specialties) -> InsideShare:
    """Compare `errors_inside` with random partitions, made by permuting the classes."""
    of = np.array(specialties.of)
    rng = np.random.default_rng(derive_seed(0, "inside share"))
    drawn = [_inside(confusion, rng.permutation(of)) for _ in range(RANDOM_PARTITIONS)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    share = errors_inside(confusion, specialties)
    return InsideShare(share, float(np.mean(drawn)), float(low), float(high))


@dataclass(frozen=True)
class Ceiling:
    """What experts for the groups of a partition could gain at most; shares of all images."""

    accuracy: float
    """As it is."""
    mended: float
    """If every error inside a group were mended: its predicted class is in the label's group."""
    random: float
    """The same for random groups of the same sizes: the exact mean."""

    def __str__(self) -> str:
        return (
            f"Were every error inside these groups mended: {percents(self.accuracy, self.mended)}; "
            f"random groups of the same sizes: {percents(self.random)}."
        )


def percents(*shares: float) -> str:
    """Shares as percentages with one digit and an arrow between them: "84.0 -> 91.2"."""
    return " -> ".join(f"{100 * share:.1f}" for share in shares)


def ceiling(confusion: NDArray[np.int64], specialties: Specialties) -> Ceiling:
    """What experts could gain at most, from counts [C, C], row = label.

    A ceiling, not a forecast: experts also make errors of their own, and groups that were made of
    these counts hold more of these errors than of those of other images.
    """
    images, right = int(confusion.sum()), int(np.trace(confusion))
    inside = errors_inside(confusion, specialties) if images > right else 0.0
    errors = images - right
    mended, random = (
        (right + share * errors) / images for share in (inside, inside_by_chance(specialties.sizes))
    )
    return Ceiling(right / images, mended, random)
