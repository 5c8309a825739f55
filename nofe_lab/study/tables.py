"""The tables of the study and of single runs, as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nofe_lab.config import CLUSTERED, data_folder, derive_seed
from nofe_lab.evaluation import coverage_table
from nofe_lab.specialties import Specialties
from nofe_lab.stages import Arm
from nofe_lab.stages.report import TIMED_BATCHES
from nofe_lab.statistics import inside_by_chance, over_seeds, paired_differences, share_interval
from nofe_lab.study import questions
from nofe_lab.study.answers import difference, ensemble, read_all_answers
from nofe_lab.study.pays import (
    FLAT,
    MOST_RUN,
    WANTED_LEAD,
    chosen,
    deviation,
    leads,
    read_pilot,
    rival,
    seeds_of_test,
)
from nofe_lab.study.questions import (
    FEW_QUESTIONS,
    MAIN_STUDY,
    OTHER_STUDIES,
    PAYS,
    QUESTIONS,
    SAME_BASE,
    STUDIES,
    TWO,
    Questions,
)
from nofe_lab.study.queue import RESULTS

PAPER = questions.LEARNED.name
BALANCED = questions.BALANCED_BASE_TRUNK.name
SHOWN_EXPERTS = (2, 1, 0)
"""How many experts the tables of few experts show."""
NOT_YET = "Not measured yet."
CHOSEN_ON = 0
"""The seed on which the gate was chosen."""


def read_result(name: str) -> pd.DataFrame:
    """A table of data/results."""
    return pd.read_csv(data_folder() / "results" / f"{name}.csv", comment="#")


def markdown(head: list[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def measured_on(table: pd.DataFrame) -> str:
    """Where a table was made, and with what: as its first row says."""
    first = table.iloc[0]
    words = {"hardware": "{}", "threads": "{} threads"}
    words |= {name: f"{name} {{}}" for name in ("torch", "onnxruntime", "revision")}
    return ", ".join(form.format(first[name]) for name, form in words.items() if name in first)


def means_of(table: pd.DataFrame, value: str = "top1", by: str = "arm") -> Any:
    """`over_seeds`, by the name of the network."""
    return over_seeds(table, value, by).set_index(by)


def differences_from(
    table: pd.DataFrame, reference: Any, value: str = "top1", by: str = "arm"
) -> Any:
    """`paired_differences`, by the name of the network."""
    return paired_differences(table, reference, value, by).set_index(by)


INTERVAL = "[95 %] (detectable)"
"""What `points` and `between` append to a difference."""


def points(found: pd.Series) -> str:
    """A difference in points, with its interval and the smallest detectable difference."""
    return between(found, 2, 100)


def between(found: pd.Series, digits: int, unit: float) -> str:
    """The same in other units: a row of `paired_differences` times `unit`."""
    mean, low, high = (f"{unit * found[name]:+.{digits}f}" for name in ("mean", "low", "high"))
    if pd.isna(found["low"]):
        return mean
    return f"{mean} [{low}, {high}] ({unit * found['detectable']:.{digits}f})"


def percent(found: pd.Series) -> str:
    """A mean ± half the width of its interval, in per cent."""
    half = "" if pd.isna(found["high"]) else f" ± {100 * (found['high'] - found['mean']):.2f}"
    return f"{100 * found['mean']:.2f}{half}"


def quick() -> pd.DataFrame:
    """The rows of the main study."""
    table = read_result("study")
    return table[table["study"] == MAIN_STUDY]


def made_again() -> pd.DataFrame:
    """The rows of the main study that were trained again on another machine."""
    return read_result("study_again")


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def answer() -> str:
    """The answer to every question of QUESTIONS."""
    again = made_again()
    twin = again[again["arm"] == questions.BASE_TRUNK.name].assign(arm=SAME_BASE)
    return compared(pd.concat([quick(), twin]), QUESTIONS)


def few_answer() -> str:
    """The answers where two experts are run; the gate's training counts too."""
    few, table = curves(), quick()
    two = few[(few["arm"] == PAPER) & (few["experts"] == 2)].assign(arm=TWO)
    spent = table.loc[table["arm"] == PAPER, "total_training_macs"].iloc[0]
    two["total_training_macs"] = spent + two["gate_training_macs"]
    return compared(pd.concat([table, two]), FEW_QUESTIONS)


def compared(table: pd.DataFrame, asked: Questions) -> str:
    """One row a question: the difference of top-1 between its two arms, and a verdict."""
    pairs = {
        (one if isinstance(one, str) else one.name, other.name): question
        for (one, other), question in asked.items()
    }
    of = {
        each: differences_from(table, each)
        for each in dict.fromkeys(nofe for nofe, _ in pairs)
        if each in set(table["arm"])
    }
    spent = table.groupby("arm")["total_training_macs"].first()
    rows = []
    for (nofe, arm), question in pairs.items():
        differences = of.get(nofe)
        if differences is None or arm not in differences.index:
            known = {nofe, arm} <= set(table["arm"])
            missing = "no common seed yet" if known else "not measured yet"
            rows.append([question, nofe, arm, "", "", missing, ""])
            continue
        found: Any = differences.loc[arm].copy()
        found[["mean", "low", "high"]] = -found[["mean", "high", "low"]].to_numpy()
        verdict = "one seed" if pd.isna(found["low"]) else _verdict(found)
        budgets = " / ".join(f"{spent[each] / 1e12:.0f}" for each in (nofe, arm))
        seeds = f"{found['seeds']:.0f}"
        rows.append([question, nofe, arm, budgets, seeds, points(found), verdict])
    head = ["A compared with", "A", "B", "training, A / B: T multiply-accumulates", "seeds"]
    return markdown([*head, f"A − B, points {INTERVAL}", "A is"], rows)


BUDGET = [
    "parameters",
    "multiply-accumulates an image",
    "epochs in all",
    "multiply-accumulates of training",
]


def budget(row: pd.Series) -> list[str]:
    """The cells of a row of the study in the columns BUDGET."""
    return [
        f"{row['parameters'] / 1e6:.2f} M",
        f"{row['macs'] / 1e6:.1f} M",
        f"{row['total_epochs']:.0f}",
        f"{row['total_training_macs'] / 1e12:.0f} T",
    ]


def ranked(table: pd.DataFrame, means: pd.DataFrame) -> pd.DataFrame:
    """The arms' means, best first by the difference from PAPER over common seeds."""
    wide = table.pivot(index="seed", columns="arm", values="top1")
    order = wide.sub(wide[PAPER], axis=0).mean().sort_values(ascending=False)
    return means.loc[order.index]


def study_table() -> str:
    """Every arm: accuracy, difference from the paper's network, size and budget."""
    table = quick()
    means = means_of(table)
    differences = differences_from(table, PAPER)
    first: Any = table.groupby("arm").first()
    rows = []
    for arm, found in ranked(table, means).iterrows():
        apart = points(differences.loc[arm]) if arm in differences.index else ""
        seeds = f"{found['seeds']:.0f}"
        rows.append([str(arm), seeds, percent(found), apart, *budget(first.loc[arm])])
    head = ["network", "seeds", "top-1 %, mean ± 95 %", f"it − {PAPER} {INTERVAL}"]
    return markdown([*head, *BUDGET], rows)


def quality_table() -> str:
    """Every arm: all that was measured besides top-1, means over the seeds."""
    table = quick()
    table["inside"] = 1 - table["crossing"]
    sizes = table["map"].dropna().map(lambda of: list(Counter(of.split()).values()))
    table["chance"] = sizes.map(inside_by_chance)
    means = ranked(table, table.groupby("arm").mean(numeric_only=True))
    differences = {
        name: differences_from(table, PAPER, name) for name in ("nll", "calibration_error")
    }
    columns = {
        "top5": "top-5 %",
        "nll": "negative log-likelihood",
        "calibration_error": "calibration error %",
        "train_accuracy": "training top-1 %",
        "right_specialty": "right specialty %",
        "within_specialty": "top-1 % if it were known",
        "inside": "errors inside a specialty %",
        "chance": "by chance, for its sizes %",
    }
    rows = []
    for arm, row in means.iterrows():
        cells = []
        for name in columns:
            value = row[name]
            digits, shown = (3, value) if name == "nll" else (1, 100 * value)
            cells.append("" if pd.isna(value) else f"{shown:.{digits}f}")
        apart = []
        for name, digits, unit in (("nll", 3, 1), ("calibration_error", 1, 100)):
            found = differences[name].loc[arm] if arm != PAPER else None
            apart.append("" if found is None else between(found, digits, unit))
        rows.append([str(arm), *cells, *apart])
    head = ["network", *columns.values(), f"negative log-likelihood − that of {PAPER} {INTERVAL}"]
    return markdown([*head, "calibration error − its, points"], rows)


def kept_answers_table() -> str:
    """What the answers that were kept give beside the rows, for every arm that has them."""
    table = quick()
    kept = read_all_answers(RESULTS, table)
    reference = kept[BALANCED]
    rows = []
    for arm in ranked(table, means_of(table)).index.intersection(list(kept)):
        own = list(kept[arm].values())
        cells = [f"{len(own)}", f"{100 * np.mean([each.accuracy for each in own]):.2f}"]
        cells.append(f"{100 * ensemble(own).accuracy:.2f}" if len(own) > 1 else "")
        halves = [
            coverage_table(each.certainty, each.specialties, [0.5])
            for each in own
            if each.specialties is not None
        ]
        for name in ("class_right", "specialty_right", "right"):
            cells.append(f"{100 * pd.concat(halves)[name].mean():.1f}" if halves else "")
        common = sorted(set(kept[arm]) & set(reference))
        if arm == BALANCED or len(common) < 2:
            cells.append("")
        else:
            own, other = ([of[seed] for seed in common] for of in (kept[arm], reference))
            mean, low, high = (100 * share for share in difference(own, other))
            cells.append(f"{mean:+.2f} [{low:+.2f}, {high:+.2f}] ({len(common)})")
        rows.append([str(arm), *cells])
    head = ["network", "seeds", "top-1 %", "of one ensemble of the seeds"]
    head += ["the surer half: class right %", "the other half: specialty right %", "both, right %"]
    apart = f"minus {BALANCED}, points [95 % over seeds and images] (common seeds)"
    return markdown([*head, apart], rows)


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """How alike the specialties of different seeds are, one row an arm.

    table: rows of one study.  ari, nmi: means over the pairs of seeds (see
    `Specialties.agreement`).  chance_nmi: nmi between one map and another whose classes are
    shuffled, since the mutual information of unrelated partitions is above 0.
    """
    rows = []
    for arm, part in table.dropna(subset=["map"]).groupby("arm", sort=False):
        maps = [np.array(each.split(), dtype=int) for each in part["map"]]
        names = tuple(map(str, range(len(maps[0]))))
        shuffled = np.random.default_rng(derive_seed("agreement", arm))

        def alike(one: NDArray[np.int64], other: NDArray[np.int64]) -> dict[str, float]:
            K = int(max(one.max(), other.max())) + 1
            left, right = (Specialties(names, tuple(of), K) for of in (one, other))  # noqa: B023
            return left.agreement(right)

        pairs = list(combinations(maps, 2))
        found = pd.DataFrame([alike(*pair) for pair in pairs], columns=["ari", "nmi"])
        chance = [alike(one, shuffled.permutation(other))["nmi"] for one, other in pairs]
        rows.append(
            {
                "arm": arm,
                "pairs": len(pairs),
                "ari": found["ari"].mean(),
                "nmi": found["nmi"].mean(),
                "chance_nmi": np.mean(chance) if chance else np.nan,
            }
        )
    return pd.DataFrame(rows)


def agreement_table() -> str:
    """How alike the maps of different seeds are, for every arm that makes its own map."""
    table = quick()
    learned = (table["partition"] == "learned") & (table["rule"] == table["trunk_rule"])
    learned &= table["arm"] != questions.FLIPS.name  # whose generalist is PAPER's
    own = learned | table["partition"].isin(CLUSTERED)
    found = agreement(table[own])
    start: Any = table[table["arm"] == questions.OWN_RANDOM.name].set_index("seed")["map"]
    rows = []
    for row in found[found["pairs"] > 0].itertuples():
        alike = [f"{row.pairs}", f"{row.ari:.2f}", f"{row.nmi:.2f}", f"{row.chance_nmi:.2f}"]
        moved = ""
        if row.arm in set(table[learned]["arm"]):  # began with the random map
            maps = table[table["arm"] == row.arm].set_index("seed")["map"]
            counts = [
                sum(a != b for a, b in zip(of.split(), start[seed].split(), strict=True))
                for seed, of in maps.items()
            ]
            moved = f"{min(counts)} to {max(counts)}"
        rows.append([row.arm, *alike, moved])
    head = ["network", "pairs of seeds", "adjusted Rand index", "mutual information", "by chance"]
    return markdown([*head, "classes moved from the random start"], rows)


def curves() -> pd.DataFrame:
    """Accuracy with few experts in the main study.

    Seed 0, on which the gate was chosen, is left out if there are others.
    """
    table = read_result("study_conditional")
    table = table[table["study"] == MAIN_STUDY]
    others = table[table["seed"] != CHOSEN_ON]
    return others if len(others) else table


def changes(own: pd.DataFrame) -> tuple[Any, float]:
    """What few experts change (see `paired_differences`), and the mean accuracy with all.

    own: the curves of one arm.  0 experts: the gate's own answers.
    """
    last = own["experts"].max()
    gate = own[own["experts"] == last].assign(experts=0, top1=lambda rows: rows["gate_top1"])
    every = pd.concat([gate, own])
    differences = differences_from(every, last, by="experts")
    return differences, own.loc[own["experts"] == last, "top1"].mean()


def conditional_table() -> str:
    """Accuracy lost with few experts, and the arithmetic and time saved."""
    table = curves()
    rows = []
    for arm in dict.fromkeys(table["arm"]):
        own = table[table["arm"] == arm]
        lost, whole = changes(own)
        two = own[own["experts"] == 2]
        times = [
            [two[f"ms_{batch}{of}"] for of in ("", "_all", "_trunk")] for batch in TIMED_BATCHES
        ]
        saved = {
            "arithmetic": [two["macs"] / two["macs_all"]],
            "experts": [(few - trunk) / (ten - trunk) for few, ten, trunk in times],
            "network": [few / ten for few, ten, _ in times],
        }
        rows.append(
            [
                str(arm),
                f"{own['seed'].nunique()}",
                f"{own['experts'].max()}",
                f"{100 * whole:.2f}",
                *(points(lost.loc[m]) for m in SHOWN_EXPERTS),
                *(
                    " / ".join(f"{100 * (1 - each.median()):.0f}" for each in parts)
                    for parts in saved.values()
                ),
            ]
        )
    head = ["network", "seeds", "experts", "all of them: top-1 %"]
    head += [f"{m or 'none'} of them: points {INTERVAL}" for m in SHOWN_EXPERTS]
    batches = " / ".join(map(str, TIMED_BATCHES))
    head += ["2 of them save: arithmetic %"]
    head += [f"the experts' time %, batch {batches}", f"the whole network's time %, {batches}"]
    return markdown(head, rows)


def precision_table() -> str:
    """The published comparison in bf16 and in fp32."""
    return _against("cifar100_precision", "NofE in fp32", "fp32")


def upcycling_table() -> str:
    """Starts of the experts' branches, at equal arithmetic."""
    return _against("upcycling", "fresh experts", "fresh experts")


def pilot_table() -> str:
    """The candidates of the test whether experts pay, on val, and which of them is chosen."""
    if (table := read_pilot()) is None:
        return NOT_YET
    rows = [
        [
            str(row["candidate"]),
            str(row["seed"]),
            _running(row["network"], row["experts"]),
            f"{100 * row['top1']:.2f}",
            f"{row['macs'] / 1e6:.1f} M",
            f"{row['total_training_macs'] / 1e12:.0f} T",
        ]
        for row in table.to_dict("records")
    ]
    said = ", ".join(f"{name} {100 * lead:+.2f}" for name, lead in leads(table).items())
    seeds = deviation(table)
    text = (
        "With as many experts as answer by default, minus the better flat network, in points: "
        f"{said}. Chosen: *{chosen(table)}*. Minus *{seeds.name}* it has a standard deviation of "
        f"{100 * seeds.std():.2f} over {len(seeds)} seeds, so the test has {len(seeds_of_test())}."
    )
    head = ["candidate", "seed", "network", "val top-1 %", BUDGET[1], BUDGET[3]]
    return f"{markdown(head, rows)}\n\n{text}"


def _running(network: str, experts: float) -> str:
    return network if pd.isna(experts) else f"{network}, {experts:.0f} for an image"


def paying_rows() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of the test whether experts pay: its flat rows, and the curves of its networks of experts.

    Both with the column network: one of the `rivals`.  None of either before it has experts.
    """
    rows, few = (
        read_result(name).query("study == @PAYS") for name in ("study", "study_conditional")
    )
    arms: Any = rows.to_dict("records")
    rows = rows.assign(network=[rival(Arm.of_columns(row)) for row in arms])
    of_rows, of_curves = (
        ["network", "sparse", "total_training_macs"],
        ["experts", "top1", "macs", "gate_top1", "macs_gate_alone"],
    )
    keys = ["arm", "seed"]
    few = few[keys + of_curves].merge(rows[keys + of_rows], on=keys)
    if "experts" not in set(few["network"]):
        rows, few = rows.head(0), few.head(0)
    return rows[rows["kind"] != "nofe"], few


def paying() -> pd.DataFrame:
    """The test whether experts pay, long: network, seed, top1, macs, total_training_macs, usual.

    network: one of the `rivals`, with the number of experts that run; usual: whether they are the
    configuration's own, and as many as answer by default.
    """
    flat, experts = paying_rows()
    experts = experts[experts["experts"] <= MOST_RUN]
    experts = experts.assign(
        usual=(experts["network"] == "experts") & (experts["experts"] == experts["sparse"]),
        network=list(map(_running, experts["network"], experts["experts"])),
    )
    columns = ["network", "seed", "top1", "macs", "total_training_macs", "usual"]
    return pd.concat([experts, flat.assign(usual=False)])[columns]


def pays_table() -> str:
    """The test whether experts pay: its networks and, once it is complete, its verdict."""
    table = paying()
    experts = next(iter(table.loc[table["usual"], "network"]), None)
    if experts is None:
        return NOT_YET
    means, apart = means_of(table, by="network"), differences_from(table, experts, by="network")
    rows = []
    for network, own in table.groupby("network", sort=False):
        difference = points(apart.loc[network]) if network in apart.index else ""
        cost = [f"{own['macs'].mean() / 1e6:.1f} M"]
        cost += [f"{own['total_training_macs'].mean() / 1e12:.0f} T"]
        found = means.loc[network]
        rows.append([str(network), f"{found['seeds']:.0f}", percent(found), difference, *cost])
    head = ["network", "seeds", "top-1 %, mean ± 95 %", f"it − {experts} {INTERVAL}"]
    said = " ".join([*_beside_flat(table, experts), *_beside_random(table)])
    shown = "![Accuracy against arithmetic, experts and flat networks](../data/figures/pays.png)"
    return f"{markdown([*head, BUDGET[1], BUDGET[3]], rows)}\n\n{said}\n\n{shown}"


BETTER, AHEAD, OPEN, WORSE = "better", "ahead by less than half a point", "not told apart", "worse"
"""What a difference says of what is ahead in it, from the best on."""


def _beside_flat(table: pd.DataFrame, experts: str) -> list[str]:
    if short := _unfinished(table, [experts, *FLAT]):
        return [f"Experts beside flat networks: {short}."]
    found = {name: differences_from(table, name, by="network").loc[experts] for name in FLAT}
    words = {name: _verdict(each, WANTED_LEAD) for name, each in found.items()}
    whole = max(words.values(), key=(BETTER, AHEAD, OPEN, WORSE).index)
    each = "; ".join(f"minus *{name}* {points(found[name])}, {words[name]}" for name in FLAT)
    passed = "is passed" if whole == BETTER else "is not passed"
    return [f"The test {passed}. Experts beside flat networks: *{whole}* ({each})."]


def _beside_random(table: pd.DataFrame) -> list[str]:
    own, random = (_running(name, 1) for name in ("experts", "random experts"))
    if short := _unfinished(table, [own, random]):
        return [f"Clusters of confusions beside random specialties: {short}."]
    found = differences_from(table, random, by="network").loc[own]
    return [
        "Clusters of confusions minus random specialties, the gate and one expert for an image: "
        f"{points(found)}, {_verdict(found)}."
    ]


def _unfinished(table: pd.DataFrame, networks: Sequence[str]) -> str:
    """How many of the seeds all of the networks have; empty for all."""
    wanted = set(STUDIES[PAYS].seeds())
    have = wanted.intersection(*(table.loc[table["network"] == n, "seed"] for n in networks))
    return "" if have == wanted else f"{len(have)} of {len(wanted)} seeds so far"


def _verdict(found: pd.Series, least: float = 0.0) -> str:
    if found["low"] > 0:
        return BETTER if found["mean"] >= least else AHEAD
    return WORSE if found["high"] < 0 else OPEN


RETRAINED = "base CNN trained again, all images"
"""What other ways to add classes are compared with."""
ALONE, MASKED = "expert alone", "base CNN, masked"
"""The networks that are compared on the classes of an expert."""


def uses_table(use: str) -> str:
    """One of the comparisons of `nofe_lab.study.uses`, once it has been measured."""
    try:
        table = read_result(use)
    except FileNotFoundError:
        return NOT_YET
    first = table.iloc[0]
    made = {"added_classes": _added, "one_expert": _alone, "twins": _reunited}[use](table)
    return f"{made}\n\n{first['backbone']} on {first['dataset']}, preset `{first['preset']}`."


def _added(table: pd.DataFrame) -> str:
    apart = differences_from(table, RETRAINED, "all", "network")
    shares = [means_of(table, name, "network") for name in ("old_before", "old", "new", "all")]
    rows = []
    for network, own in table.groupby("network", sort=False):
        cells = [percent(means.loc[network]) for means in shares]
        difference = points(apart.loc[network]) if network in apart.index else ""
        spent = [f"{own['training_macs'].mean() / 1e12:.2g} T", f"{own['images'].mean():,.0f}"]
        rows.append([str(network), f"{own['seed'].nunique()}", *cells, difference, *spent])
    head = ["network, trained on", "seeds", "old classes before: top-1 %, mean ± 95 %"]
    head += [
        "old classes after",
        "new classes",
        "all classes",
        f"minus {RETRAINED}, points {INTERVAL}",
    ]
    return markdown([*head, "multiply-accumulates of training", "images"], rows)


def _alone(table: pd.DataFrame) -> str:
    rows = []
    for name, own in table.groupby("map", sort=False):
        by_seed = own.groupby(["network", "seed"], as_index=False, sort=False).mean(
            numeric_only=True
        )
        means = means_of(by_seed, "accuracy", "network")
        cost: Any = by_seed.groupby("network")[["parameters", "macs"]].mean() / 1e6
        both = [percent(means.loc[network]) for network in (ALONE, MASKED)]
        apart = differences_from(by_seed, MASKED, "accuracy", "network").loc[ALONE]
        costs = [
            " / ".join(f"{cost.loc[network, what]:.{digits}f}" for network in (ALONE, MASKED))
            for what, digits in (("parameters", 2), ("macs", 1))
        ]
        rows.append([str(name), f"{own['seed'].nunique()}", *both, points(apart), *costs])
    head = [
        "map",
        "seeds",
        f"{ALONE}: top-1 %, mean ± 95 %",
        MASKED,
        f"difference, points {INTERVAL}",
    ]
    head += ["M parameters, expert / base", "M multiply-accumulates an image, expert / base"]
    return markdown(head, rows)


def _reunited(table: pd.DataFrame) -> str:
    rows = []
    for name, own in table.groupby("map", sort=False):
        n = int(own["twins"].sum())
        share = np.average(own["reunited"], weights=own["twins"])
        low, high = share_interval(share, n)
        found = f"{round(share * n)} of {n}"
        interval = f"{100 * share:.0f} [{100 * low:.0f}, {100 * high:.0f}]"
        chance = f"{100 * own['chance'].mean():.0f}"
        rows.append([str(name), f"{own['seed'].nunique()}", found, interval, chance])
    head = ["map", "seeds", "twins in one specialty", "% [95 % over twins]"]
    return markdown([*head, "by chance, for its sizes %"], rows)


EXPERTS, SAME_MACS, SAME_EPOCHS = (
    "network of experts",
    "base CNN, as much arithmetic",
    "base CNN, as many epochs",
)
"""The networks of every candidate for `make run`."""


def first_run_choice() -> str:
    """The candidates on val images, best first: five seeds of the best of a pilot with one."""
    chosen = read_result("first_run_val")
    pilot = read_result("first_run_pilot")
    table = pd.concat([chosen, pilot[~pilot["candidate"].isin(chosen["candidate"])]])
    rows = []
    for candidate, found in table.groupby("candidate", sort=False):
        own = found[found["network"] == EXPERTS]
        mean = over_seeds(own, "val_accuracy").iloc[0]
        apart = [
            points(differences_from(found, base, "val_accuracy", "network").loc[EXPERTS])
            if base in set(found["network"])
            else ""
            for base in (SAME_MACS, SAME_EPOCHS)
        ]
        first = own.iloc[0]
        before = int(first["total_epochs"] - first["epochs"])
        spent = [f"{before} + {first['epochs']}", f"{first['total_training_macs'] / 1e12:.1f} T"]
        cells = [str(candidate), f"{mean['seeds']}", percent(mean), *apart, *spent]
        rows.append((mean["mean"], [*cells, f"{first['total_steps']}"]))
    head = ["recipe", "seeds", "experts: val accuracy %, mean ± 95 %"]
    head += [f"minus {base}, points {INTERVAL}" for base in (SAME_MACS, SAME_EPOCHS)]
    head += ["epochs", "multiply-accumulates", "steps"]
    return markdown(head, (cells for _, cells in sorted(rows, reverse=True)))


def first_run_table() -> str:
    """The networks of `make run` on test images, with seeds that no choice has seen."""
    table = read_result("first_run_test")
    apart = differences_from(table, SAME_MACS, "test_accuracy", "network")
    first: Any = table.groupby("network").first()
    rows = []
    for _, found in over_seeds(table).iterrows():
        name = found["network"]
        row = first.loc[name]
        spent = [f"{row['total_epochs']}", f"{row['total_training_macs'] / 1e12:.1f} T"]
        rows.append(
            [name, percent(found), *spent, points(apart.loc[name]) if name in apart.index else ""]
        )
    head = ["network", "test accuracy %, mean ± 95 %", "epochs", "multiply-accumulates of training"]
    return markdown([*head, f"minus {SAME_MACS}, points {INTERVAL}"], rows)


def times_table() -> str:
    """How long `make run` and the first notebooks take with nothing trained before."""
    table = read_result("first_run_times")
    rows = [[f"`{row['what']}`", f"{row['seconds'] / 60:.1f}"] for _, row in table.iterrows()]
    head = ["once installed, with nothing trained before", "minutes"]
    return f"{markdown(head, rows)}\n\nOne measurement each on {measured_on(table)}."


def _against(file: str, reference: str, called: str) -> str:
    """The networks of a final report, and their differences from one of them."""
    table = read_result(file)
    differences = differences_from(table, reference, "test_accuracy", "network")
    rows = []
    for _, found in over_seeds(table).iterrows():
        name = found["network"]
        apart = points(differences.loc[name]) if name in differences.index else ""
        rows.append([name, f"{found['seeds']}", percent(found), apart])
    return markdown(
        ["network", "seeds", "top-1 %, mean ± 95 %", f"minus {called}, points {INTERVAL}"], rows
    )


def again_table() -> str:
    """Runs trained more than once: same data, recipe and seed, other threads or precision."""
    once = read_result("cifar100_precision").rename(columns={"test_accuracy": "top1"})
    parts = {"study": quick(), "notebook 6": once}
    both = pd.concat([part.assign(made=name) for name, part in parts.items()])
    both = both[both["run"].isin(set(once["run"]) & set(quick()["run"]))]
    threads = both["threads"].map(lambda n: _counted(n, "thread"))
    how = both["made"] + ": " + both["precision"] + ", " + threads
    wide = both.assign(how=how).pivot(index="seed", columns="how", values="top1")
    cells = (100 * wide).map(lambda each: "" if pd.isna(each) else f"{each:.2f}")
    rows = [[f"{seed}", *row] for seed, row in cells.iterrows()]
    return markdown(["seed", *wide.columns], rows)


def machines_table() -> str:
    """Rows of the study that were trained twice, on a CPU and on a GPU."""
    once, again = quick(), made_again()
    both = pd.concat([once[once["run"].isin(again["run"])], again])
    here, there = sorted(both["hardware"].unique(), key=lambda name: "cores" not in name)
    together = both.groupby(["seed", "hardware"], as_index=False)["top1"].mean()
    both = pd.concat([both, together.assign(arm="all of these")])
    rows = []
    for arm, own in both.groupby("arm", sort=False):
        (found,) = paired_differences(own, here, "top1", "hardware").to_dict("records")
        means = own.groupby("hardware")["top1"].mean()
        cells = [f"{100 * means[name]:.2f}" for name in (here, there)]
        rows.append([str(arm), f"{found['seeds']}", *cells, points(pd.Series(found))])
    return markdown(["network", "seeds", here, there, f"difference, points {INTERVAL}"], rows)


def settings_table() -> str:
    """The other studies: the same networks with other recipes, K and images."""
    rows = []
    everything = read_result("study")
    for name in OTHER_STUDIES:
        table = everything[everything["study"] == name]
        means = means_of(table)
        known = PAPER in means.index
        if known:
            means = ranked(table, means)
            differences = differences_from(table, PAPER)
        for arm, found in means.iterrows():
            row = table[table["arm"] == arm].iloc[0]
            difference = points(differences.loc[arm]) if known and arm in differences.index else ""
            rows.append(
                [
                    name.removeprefix("cifar100 alexnet_quick, "),
                    str(arm),
                    f"{found['seeds']:.0f}",
                    percent(found),
                    difference,
                    *budget(row)[2:],
                    " and ".join(table.loc[table["arm"] == arm, "hardware"].unique()),
                ]
            )
    head = ["part of the study", "network", "seeds", "top-1 %, mean ± 95 %"]
    head += [f"it − {PAPER} {INTERVAL}", *BUDGET[2:], "trained on"]
    return markdown(head, rows)


def few_elsewhere() -> str:
    """Accuracy lost with few experts in the other studies."""
    everything = read_result("study_conditional")
    rows = []
    for name in OTHER_STUDIES:
        table = everything[everything["study"] == name]
        for arm, own in table.groupby("arm", sort=False):
            lost, whole = changes(own)
            cells = [points(lost.loc[m]) if m in lost.index else "" for m in SHOWN_EXPERTS]
            label = name.removeprefix("cifar100 alexnet_quick, ")
            seeds, last = own["seed"].nunique(), own["experts"].max()
            rows.append([label, str(arm), f"{seeds}", f"{last}", f"{100 * whole:.2f}", *cells])
    head = ["part of the study", "network", "seeds", "experts", "all of them: top-1 %"]
    head += [f"{m or 'none'} of them: points {INTERVAL}" for m in SHOWN_EXPERTS]
    return markdown(head, rows)
