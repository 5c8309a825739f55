"""From data to final report, through the library alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import nofe_lab
from nofe_lab.__main__ import main
from nofe_lab.statistics import over_seeds


def test_generalist_to_network_of_experts_and_back_from_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = nofe_lab.Experiment(
        "glyphs:4", K=4, epochs=2, batch_size=60, device="cpu", runs_dir=str(tmp_path)
    )
    first = experiment.final_report({"base": experiment.base(), "nofe": experiment.nofe()})
    said = capsys.readouterr().out
    assert "To train, on cpu in " in said
    assert "together about" in said
    runs = nofe_lab.Experiment(
        "glyphs:4", K=4, epochs=2, batch_size=60, device="cpu", runs_dir=str(tmp_path)
    )
    again = runs.final_report({"base": runs.base(), "nofe": runs.nofe()})
    assert "To train" not in capsys.readouterr().out
    for one, other in zip(first.predictions, again.predictions, strict=True):
        assert torch.equal(torch.from_numpy(one.logits), torch.from_numpy(other.logits))
    row = again.table.set_index("network").loc["nofe"]
    assert row.total_seconds > row.seconds
    assert row.parameters > again.table.parameters[0]


def test_the_same_request_trained_twice_gives_the_same_bits(tmp_path: Path) -> None:
    weights = []
    for folder in ("one", "two"):
        experiment = nofe_lab.Experiment(
            "glyphs:4", K=4, epochs=1, batch_size=60, device="cpu", runs_dir=str(tmp_path / folder)
        )
        (run,) = experiment.run(experiment.nofe())
        weights.append(run.weights())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_comparison_over_seeds_has_every_network_once_a_seed(tmp_path: Path) -> None:
    experiment = nofe_lab.Experiment(
        "glyphs:4", K=3, epochs=1, batch_size=120, device="cpu", runs_dir=str(tmp_path)
    )
    names = ["base CNN", "flat control, both budgets", "NofE confusion, learned generalist"]
    report = experiment.comparison(
        experiment.seeds(2), lambda each: {name: each.opponents()[name] for name in names}
    )
    assert report.table.groupby("network").seed.apply(list).tolist() == [[0, 1]] * 3
    assert list(over_seeds(report.table)["network"]) == names
    command = experiment.command("04_compare_baselines", n_seeds=2)
    path = report.save(tmp_path / "results" / "table.csv", command)
    expected = "papermill notebooks/04_compare_baselines.ipynb out.ipynb -p dataset glyphs:4 -p K 3"
    assert path.read_text().startswith(f"# {expected} -p epochs 1 -p batch_size 120 -p n_seeds 2")


def test_the_command_line_lists_and_removes_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", "--runs-dir", str(tmp_path)]) == 0
    assert "no runs in" in capsys.readouterr().out
    experiment = nofe_lab.Experiment(
        "glyphs:4", K=4, epochs=1, batch_size=60, device="cpu", runs_dir=str(tmp_path)
    )
    run, _ = experiment.run(experiment.base(), experiment.generalist())
    capsys.readouterr()
    main(["runs", "--runs-dir", str(tmp_path)])
    listed = capsys.readouterr().out
    for word in (run.id, "glyphs:4", "alexnet_quick", "generalist", "% val", "0.0 h", "2 runs"):
        assert word in listed
    assert main(["runs", "--runs-dir", str(tmp_path), "--remove", run.id[:6]]) == 0
    assert not run.path.exists()
    assert main(["runs", "--runs-dir", str(tmp_path), "--remove", "no-such-run"]) == 2
    assert "names 0 runs" in capsys.readouterr().err


@pytest.mark.slow
def test_the_base_cnn_neither_fails_nor_saturates_on_glyphs(tmp_path: Path) -> None:
    experiment = nofe_lab.Experiment(runs_dir=str(tmp_path))
    report = experiment.final_report({"base": experiment.base()})
    assert 0.60 <= report.table.test_accuracy[0] <= 0.90


@pytest.mark.slow
def test_the_method_runs_on_real_cifar_100(tmp_path: Path, nofe_data: Path) -> None:
    os.environ.setdefault("NOFE_DATA", str(nofe_data))
    experiment = nofe_lab.Experiment(
        "parquet:$NOFE_DATA/cifar100",
        preset="paper",
        epochs=1,
        batch_size=16,
        train_per_class=100,
        runs_dir=str(tmp_path),
    )
    report = experiment.final_report({"base": experiment.base(), "nofe": experiment.nofe()})
    assert (report.table.test_accuracy > 0.03).all()  # three times chance after one epoch
