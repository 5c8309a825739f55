"""The README's figures are those of data/results, and those say where they come from."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from nofe_lab.bench import TARGETS, against_targets, read
from nofe_lab.evaluation import over_seeds, paired_differences

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "data" / "results" / "bench.csv"
RESULTS = sorted(set((ROOT / "data" / "results").glob("*.csv")) - {BENCH})


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_says_where_it_comes_from(path: Path) -> None:
    assert path.read_text().startswith("# papermill notebooks/")
    table = pd.read_csv(path, comment="#")
    assert table[["network", "seed", "run", "device", "torch", "revision"]].notna().all().all()
    assert not table.revision.str.endswith("dirty").any()
    assert table.test_accuracy.between(0.01, 1).all()


CIFAR = [
    ("base CNN", "cifar100_paper_greedy", "base CNN"),
    ("base CNN", "cifar100_paper_optimal", "base CNN"),
    ("NofE, greedy specialties", "cifar100_paper_greedy", "network of experts"),
    ("NofE, optimal specialties", "cifar100_paper_optimal", "network of experts"),
]


@pytest.mark.parametrize(("label", "file", "network"), CIFAR)
def test_the_readme_shows_the_measured_cifar_100_results(
    label: str, file: str, network: str
) -> None:
    row = measured(file).set_index("network").loc[network]
    line = readme_line(f"| {label}", containing=f"{row.parameters:,}")
    assert f"**{row.test_accuracy:.2%}**" in line
    assert f"{row.seconds:.0f} s" in line
    assert f"{row.total_seconds:.0f} s" in line


def test_the_readme_shows_the_measured_comparison() -> None:
    table = measured("glyphs_quick_comparison")
    differences = paired_differences(table, "NofE learned, generalist").set_index("network")
    for row in over_seeds(table).itertuples():
        line = readme_line(f"| {row.network} |", containing=f"**{row.mean:.2%}**")
        if row.network in differences.index:
            found = differences.loc[row.network]
            points = f"{100 * found['mean']:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"
            assert points in line


def measured(file: str) -> pd.DataFrame:
    return pd.read_csv(ROOT / "data" / "results" / f"{file}.csv", comment="#")


def readme_line(start: str, containing: str) -> str:
    lines = (ROOT / "README.md").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(start) and containing in line]
    return line


NETWORKS = {
    "AlexNet-C100": "cifar100_alexnet_c100",
    "VGG11-C100": "cifar100_vgg11_c100",
    "NIN-C100": "cifar100_nin_c100",
    "ResNet56-C100": "cifar100_resnet56_c100",
    "ResNet18 of torchvision": "tiny_imagenet_resnet18",
}


@pytest.mark.parametrize(("label", "file"), NETWORKS.items())
def test_every_network_learns_and_the_readme_shows_how_far(label: str, file: str) -> None:
    table = measured(file).set_index("network")
    assert (table.last_epoch_loss < table.first_epoch_loss).all()
    base, nofe = table.loc["base CNN"], table.loc["network of experts"]
    assert nofe.test_accuracy > 3 * chance(file)
    line = readme_line(f"| {label}", containing=f"{nofe.test_accuracy:.2%}")
    for figure in (
        f"{base.test_accuracy:.2%}",
        f"{base.parameters:,} / {nofe.parameters:,}",
        f"{nofe.first_epoch_loss:.2f} → {nofe.last_epoch_loss:.2f}",
        f"{base.epochs}",
    ):
        assert figure in line


def chance(file: str) -> float:
    return 1 / (200 if file.startswith("tiny") else 100)


def test_the_readme_shows_the_measured_speed() -> None:
    assert BENCH.read_text().startswith("# python -m nofe_lab bench")
    table = read(BENCH)
    assert (
        table[["precision", "device", "hardware", "torch", "revision", "date"]].notna().all().all()
    )
    assert not table.revision.str.endswith("dirty").any()
    found = against_targets(table)
    assert len(found) == len(TARGETS)
    for row in found.itertuples():
        line = readme_line(f"| {row.what} |", containing=f"| {row.target} |")
        assert f"| **{row.measured:.3g}** |" in line
        assert f"{row.smallest:.3g} to {row.largest:.3g}" in line
        assert ("missed" in line) != row.met


def test_the_readme_shows_what_bf16_costs() -> None:
    table = measured("cifar100_precision")
    (difference,) = paired_differences(table, "NofE in fp32").itertuples()
    assert difference.seeds >= 3
    means = over_seeds(table).set_index("network")["mean"]
    text = (ROOT / "README.md").read_text().replace("\n", " ")
    for figure in (
        f"{means['NofE in bf16']:.2%}",
        f"{means['NofE in fp32']:.2%}",
        f"{100 * difference.mean:+.2f} [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]",
    ):
        assert figure in text
