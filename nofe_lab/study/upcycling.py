"""Upcycled against fresh experts: the same trunk and partition, trained for the same arithmetic.

    python -m nofe_lab.study.upcycling parquet:$NOFE_DATA/cifar100

A base CNN is trained; clusters of its confusions are the specialties, and its trunk starts the
networks of experts.  They differ in the start of their branches alone.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from torch import Tensor, nn

from nofe_lab.config import BRANCH_STARTS
from nofe_lab.stages.arms import Arm
from nofe_lab.stages.experiment import Experiment
from nofe_lab.study.queue import RESULTS


class Quick(nn.Module):
    """AlexNet-Quick's convolutions with batch normalisation: any layer may begin the branches."""

    def __init__(self, classes: int = 100) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 32, 5, padding=2, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.norm2 = nn.Conv2d(32, 32, 5, padding=2, bias=False), nn.BatchNorm2d(32)
        self.conv3, self.norm3 = nn.Conv2d(32, 64, 5, padding=2, bias=False), nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(64 * 4 * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.norm1(self.conv1(x)).relu())
        x = self.pool(self.norm2(self.conv2(x)).relu())
        x = self.pool(self.norm3(self.conv3(x)).relu())
        logits: Tensor = self.fc(x.flatten(1))
        return logits


def main(words: list[str] | None = None) -> None:
    """Train, test and save all networks; finished ones are loaded."""
    parser = argparse.ArgumentParser(prog="python -m nofe_lab.study.upcycling")
    parser.add_argument("dataset", nargs="?", default="parquet:$NOFE_DATA/cifar100")
    parser.add_argument("--train-per-class", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--K", type=int, default=10)
    parser.add_argument("--runs-dir")
    parser.add_argument("--results", type=Path, default=RESULTS.parent / "upcycling.csv")
    asked = parser.parse_args(words)
    experiment = Experiment(
        asked.dataset,
        backbone=Quick,
        split="conv3",
        K=asked.K,
        trunk="base",
        epochs=asked.epochs,
        val_fraction=0.0,
        train_per_class=asked.train_per_class,
        device="cpu",
        runs_dir=asked.runs_dir,
    )
    arms = {"base CNN": Arm("base", budget="generalist")} | {
        f"{start} experts": Arm("nofe", "confusion", trunk="base", branch_start=start)
        for start in BRANCH_STARTS
    }
    report = experiment.comparison(
        experiment.seeds(asked.seeds),
        lambda each: {name: each.stage(arm) for name, arm in arms.items()},
    )
    own = ("runs_dir", "results")
    options = [f"--{k.replace('_', '-')} {v}" for k, v in vars(asked).items() if k not in own][1:]
    command = f"python -m nofe_lab.study.upcycling {shlex.quote(asked.dataset)} {' '.join(options)}"
    print(report, report.save(asked.results, command), sep="\n")


if __name__ == "__main__":
    main()
