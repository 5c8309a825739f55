"""What the paper published, beside what was measured here."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nofe_lab.networks import PAPER, preset
from nofe_lab.networks.paper import PUBLISHED
from nofe_lab.study.questions import BASE, GREEDY, MAIN_STUDY
from nofe_lab.study.queue import KEYS, RESULTS, read


def paper_rows(results: Path | str = RESULTS.parent) -> pd.DataFrame:
    """The published accuracies beside those measured here, one row a network.

    Accuracies are in per cent, means over `seeds`.  published_epochs, epochs: of generalist + NofE
    stage.  recipe: preset, rule and, unless all were used, images a class of the networks measured
    here (the published ones used the greedy rule and all images).  source: the file in `results`
    with the figures, whose first line is the command; empty if nothing was measured yet.
    """
    folder = Path(results)
    rows = []
    for name, (base, nofe) in PUBLISHED.items():
        recipes = preset("paper", PAPER[name]())
        found, source = _measured(folder, name)
        rows.append(
            {
                "network": name,
                "published_base": base,
                "published_nofe": nofe,
                "published_epochs": f"{recipes.generalist.epochs} + {recipes.nofe.epochs}",
                **found,
                "source": source,
            }
        )
    return pd.DataFrame(rows)


def _measured(folder: Path, name: str) -> tuple[dict[str, Any], str]:
    """The measured columns of a network and their file: from the study, else from a single run."""
    path = folder / RESULTS.name
    if path.is_file():
        needed = ("backbone", "preset", "rule", "epochs", "total_epochs")
        table = read(path, (*KEYS, "top1", *needed))
        arms = {"base": BASE.name, "nofe": GREEDY.name}  # the paper's rule
        first = table["study"] == MAIN_STUDY  # others have another K, or other images
        rows = table[first & (table["backbone"] == name)]
        parts = {key: rows[rows["arm"] == arm] for key, arm in arms.items()}
        if all(len(part) for part in parts.values()):
            last = parts["nofe"].iloc[0]
            stages = f"{last['total_epochs'] - last['epochs']} + {last['epochs']}"
            seeds = min(len(part) for part in parts.values())
            means = {key: 100 * part["top1"].mean() for key, part in parts.items()}
            recipe = f"{last['preset']}, {last['rule']}"
            return {**means, "epochs": stages, "seeds": seeds, "recipe": recipe}, path.name
    path = folder / f"cifar100_{name}.csv"
    if path.is_file():
        single = pd.read_csv(path, comment="#").set_index("network")
        base, nofe = single.loc["base CNN"], single.loc["network of experts"]
        stages = f"{base['epochs']} + {nofe['epochs']}"
        accuracies = {"base": 100 * base["test_accuracy"], "nofe": 100 * nofe["test_accuracy"]}
        recipe = _recipe(path, str(nofe["rule"]))
        return {**accuracies, "epochs": stages, "seeds": 1, "recipe": recipe}, path.name
    return {"base": np.nan, "nofe": np.nan, "epochs": "", "seeds": 0, "recipe": ""}, ""


def _recipe(path: Path, rule: str) -> str:
    """The recipe in a file's first line, which is a command that runs notebook 3."""
    with path.open(encoding="utf-8") as file:
        words = shlex.split(file.readline())
    asked = {words[i + 1]: words[i + 2] for i, word in enumerate(words) if word == "-p"}
    few = asked.get("train_per_class")
    return f"{asked.get('preset', 'quick')}, {rule}{f', {few} images a class' if few else ''}"
