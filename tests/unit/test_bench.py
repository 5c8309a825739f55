"""The benchmark measures what it says it does: at toy size, so the figures mean nothing here."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from nofe_lab import InvalidInput, backbone
from nofe_lab.__main__ import main
from nofe_lab.bench import speed
from nofe_lab.bench.speed import Bench, flops_of, measure
from nofe_lab.bench.targets import NETWORKS, TARGETS, against_targets, compared, read
from nofe_lab.machine import Machine

pytestmark = pytest.mark.xdist_group("bench")  # it is measured once, for all of them

COLUMNS = {
    *("name", "network", "K", "batch", "precision", "device"),
    *("ratio", "ours_s", "theirs_s", "hardware", "torch", "date"),
}


@pytest.fixture(scope="module")
def measured() -> pd.DataFrame:
    bench = Bench(Machine(torch.device("cpu")), ("alexnet_quick",), batch=2, repeats=1)
    network = backbone("alexnet_quick")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "MATRIX_SIDES", (64, 128))  # larger ones are for a larger peak
        bench.branches(network)
        bench.steps(network)
        bench.epochs(network)
    return bench.table


def test_every_target_is_measured_in_the_columns_that_were_asked_for(
    measured: pd.DataFrame,
) -> None:
    assert set(TARGETS) <= set(measured["name"])
    assert set(measured.columns) >= COLUMNS
    assert (measured["network"] == "alexnet_quick").all()
    assert (measured[["ours_s", "theirs_s"]] > 0).all().all()


def test_a_ratio_is_that_of_its_seconds(measured: pd.DataFrame) -> None:
    rows = measured.set_index("name")
    for name in ("branches", "branches at K = 50", "step", "epoch", "NofE step against peak"):
        assert rows.ratio[name] == pytest.approx(rows.theirs_s[name] / rows.ours_s[name])
    base = rows.loc["step against base"]
    arithmetic = float(base.note.split()[0])
    assert base.ratio == pytest.approx(base.ours_s / base.theirs_s / arithmetic, rel=1e-3)
    overhead = rows.loc["overhead"]
    assert overhead.ratio == pytest.approx(1 - overhead.theirs_s / overhead.ours_s)


def test_operations_of_a_step_are_those_forward_and_backward() -> None:
    layers = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 7))
    images = torch.randn(2, 3)
    found = flops_of(lambda: layers(images).sum().backward())
    # the first layer's inputs need no gradient
    assert found == 2 * 2 * (2 * 3 * 5 + 3 * 5 * 7)


def test_a_profile_names_what_takes_the_time() -> None:
    bench = Bench(Machine(torch.device("cpu")), ("alexnet_quick",), batch=2, repeats=1)
    found = bench.profile(backbone("alexnet_quick"))
    assert found["ms"].is_monotonic_decreasing
    assert found["share"].sum() == pytest.approx(1)
    assert found["operation"].str.contains("convolution").any()


def test_targets_are_held_against_geometric_means() -> None:
    ratios = (1.0, 1.0, 4.0, 2.0, 4.0)
    table = pd.DataFrame({"name": "branches", "network": NETWORKS, "ratio": ratios})
    (row,) = against_targets(table).itertuples()
    assert row.measured == pytest.approx(math.prod(ratios) ** 0.2)
    assert (row.smallest, row.largest, row.networks) == (1, 4, 5)
    assert row.met == (row.measured >= 2)
    both = pd.concat([table, table.assign(name="NofE step against peak", ratio=ratios)])
    assert list(against_targets(both)["networks"]) == [5, 2]
    assert compared(both)["counts"].sum() == 5 + 2


def test_only_a_table_of_the_benchmark_is_read(tmp_path: Path, measured: pd.DataFrame) -> None:
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    good.write_text(f"# a comment\n{measured.to_csv(index=False)}")
    assert list(read(good)["name"]) == list(measured["name"])
    bad.write_text("a,b\n1,2\n")
    with pytest.raises(InvalidInput, match="it lacks name, network, ours_s"):
        read(bad)
    with pytest.raises(InvalidInput, match="accepted: a file that `make bench` wrote"):
        read(tmp_path / "missing.csv")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--networks", "vgg"], "network 'vgg' is unknown"),
        (["--repeats", "0"], "repeats must be a whole number of at least 1; got 0."),
        (["--batch", "1"], "batch must be a whole number of at least 2; got 1."),
        (["--output", "/proc/none/x.csv"], "output '/proc/none/x.csv' cannot be written"),
        (["--precision", "fp8"], "precision 'fp8' is unknown"),
    ],
)
def test_the_command_refuses_before_it_measures(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dev", "bench", *words]) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert not said.out


def test_a_home_in_the_path_of_the_output_is_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: pd.DataFrame
) -> None:
    """A folder called ~ was made where the command was started."""

    class Done:
        rows, table = [1], measured

        def run(self) -> pd.DataFrame:
            return measured

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    measure(Done(), "~/tables/x.csv", "a command")  # type: ignore[arg-type]
    assert (tmp_path / "tables" / "x.csv").read_text().startswith("# a command\n")
    assert not (tmp_path / "~").exists()


def test_importing_the_library_imports_nothing_for_notebooks_or_plots() -> None:
    code = (
        "import sys, nofe_lab; first = set(sys.modules); nofe_lab.Experiment; nofe_lab.predict; "
        "heavy = {'matplotlib', 'seaborn', 'IPython', 'ipywidgets', 'jupyterlab', 'papermill'}; "
        "print(heavy & set(sys.modules), {'pandas', 'sklearn', 'torch'} & first)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()", "set()"]
