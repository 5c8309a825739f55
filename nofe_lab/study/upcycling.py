"""Upcycled against fresh experts: the same trunk and partition, trained for the same arithmetic.

A base CNN is trained; clusters of its confusions are the specialties, and its trunk starts the
networks of experts.  They differ in the start of their branches alone.
"""

from __future__ import annotations

import sys

from torch import Tensor, nn

from nofe_lab.config import BRANCH_STARTS
from nofe_lab.files import writable_path
from nofe_lab.log import log, write_line
from nofe_lab.stages.arms import Arm
from nofe_lab.stages.experiment import Experiment
from nofe_lab.study.queue import RESULTS

K = 10
"""Number of specialties."""


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


def compare(
    dataset: str,
    train_per_class: int,
    epochs: int,
    seeds: int,
    runs_dir: str | None,
    results: str | None,
    command: str,
) -> None:
    """Train, test and save all networks; finished ones are loaded.

    results: a CSV file for the table; its first line is `command`.
    """
    target = (
        RESULTS.parent / "upcycling.csv" if results is None else writable_path("results", results)
    )
    experiment = Experiment(
        dataset,
        backbone=Quick,
        split="conv3",
        K=K,
        trunk="base",
        epochs=epochs,
        val_fraction=0.0,
        train_per_class=train_per_class,
        device="cpu",
        runs_dir=runs_dir,
    )
    arms = {"base CNN": Arm("base", budget="generalist")} | {
        f"{start} experts": Arm("nofe", "confusion", trunk="base", branch_start=start)
        for start in BRANCH_STARTS
    }
    report = experiment.comparison(
        experiment.seeds(seeds),
        lambda each: {name: each.stage(arm) for name, arm in arms.items()},
    )
    write_line(str(report), sys.stdout)
    log.info(f"the table: {report.save(target, command)}")
