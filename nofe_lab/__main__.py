"""The command line: ``python -m nofe_lab``.

``runs`` lists runs, and removes one on request; ``bench`` measures speed, ``widgets`` how soon the
widgets answer; ``study`` compares networks of experts with their opponents; ``film`` draws how
specialties form.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pandas as pd
import torch

from nofe_lab.bench import NETWORKS, Bench, against_targets
from nofe_lab.config import InvalidInput, printable, whole_number
from nofe_lab.data import load_dataset
from nofe_lab.evaluation import with_clearest
from nofe_lab.log import give_up, log, write_line
from nofe_lab.machine import Machine
from nofe_lab.runs import Run, RunStore, default_runs_dir, provenance
from nofe_lab.stages import Experiment, load_specialties
from nofe_lab.study import CONDITIONAL, RESULTS, Queue
from nofe_lab.training import Event


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m nofe_lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("runs", help="list the runs, or remove one")
    runs.add_argument("--runs-dir", default=None, help="folder of the runs (default: data/runs)")
    runs.add_argument("--remove", metavar="ID", help="delete the run whose id begins with ID")
    speed = commands.add_parser("bench", help="measure speed, side by side with the alternatives")
    speed.add_argument("--output", default=None, help="write the table to this CSV file")
    speed.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    speed.add_argument("--precision", default="auto", help="auto, bf16, fp32")
    speed.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="NETWORK")
    speed.add_argument("--batch", type=int, default=128, help="images a step")
    speed.add_argument("--repeats", type=int, default=7, help="of every measurement")
    widgets = commands.add_parser("widgets", help="measure how soon the widgets answer a click")
    widgets.add_argument("--output", default=None, help="write the table to this CSV file")
    widgets.add_argument("--dataset", default="glyphs", help="whose test images are shown")
    widgets.add_argument("--repeats", type=int, default=21, help="of every click")
    film = commands.add_parser("film", help="draw how the specialties of a generalist form")
    film.add_argument("--output", default=".", help="folder for film.gif and film_dark.gif")
    film.add_argument("--dataset", default="glyphs", help="what the generalist learns")
    film.add_argument("--K", type=int, default=10, help="number of specialties")
    film.add_argument("--seed", type=int, default=0, help="of the generalist")
    film.add_argument("--runs-dir", default=None, help="folder of the runs (default: data/runs)")
    study = commands.add_parser("study", help="make the next rows of the study")
    study.add_argument("--rows", type=int, default=1, help="how many (default: 1)")
    study.add_argument("--list", action="store_true", help="only show which rows are missing")
    study.add_argument("--study", nargs="+", default=None, metavar="NAME", help="of these alone")
    study.add_argument("--arm", default=None, metavar="NAME", help="of this network alone")
    study.add_argument("--seed", type=int, default=None, help="of this seed alone")
    study.add_argument("--results", default=RESULTS, help="the table that rows go into")
    study.add_argument("--conditional", default=CONDITIONAL, help="the table of a few experts")
    study.add_argument("--runs-dir", default=None, help="folder of the runs (default: data/runs)")
    study.add_argument("--commit", action="store_true", help="commit the tables after each row")
    options = parser.parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "nofe_lab", *words])
    try:
        if options.command == "bench":
            machine = Machine.pick(options.device, options.precision)
            measured = Bench(machine, options.networks, options.batch, options.repeats)
            measure(measured, options.output, command)
            return 0
        if options.command == "widgets":
            answer(options.dataset, options.repeats, options.output, command)
            return 0
        if options.command == "film":
            wanted = {"K": options.K, "seed": options.seed, "runs_dir": options.runs_dir}
            draw_film(Path(options.output), Experiment(options.dataset, **wanted))
            return 0
        if options.command == "study":
            tables = (options.results, options.conditional)
            which = {"arm": options.arm, "seed": options.seed}
            queue = Queue(options.study, *tables, options.runs_dir, **which)
            if options.list:
                missing = list(queue.missing())
                for each, arm, seed in missing:
                    log.info(f"{each.name}: {arm.name}, seed {seed}")
                log.info(f"{len(missing)} rows missing")
                return 0
            for _ in range(whole_number("rows", options.rows, 1)):
                if not queue.work():
                    log.info("no rows missing")
                    break
                if options.commit:
                    queue.commit()
            return 0
        folder = Path(options.runs_dir or default_runs_dir())
        if not os.path.isdir(folder):
            raise InvalidInput(f"there is no folder {str(folder)!r}; accepted: a folder of runs.")
        store = RunStore(folder)
        if options.remove is not None:
            log.info(f"removed {store.remove(options.remove)}")
        else:
            write_line(listing(store), sys.stdout)
    except InvalidInput as error:
        write_line(str(error), sys.stderr)
        return 2
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                give_up(stream)
    return 0


def measure(bench: Bench, output: str | None, command: str) -> None:
    """Run a benchmark and show it against its targets.

    output: a CSV file for its table, also if it is broken off; its first line is the command.
    """
    _check_output(output)
    try:
        write_line(against_targets(bench.run()).to_string(index=False), sys.stdout)
    finally:
        if output is not None and bench.rows:
            text = f"# {command}\n{bench.table.to_csv(index=False)}"
            Path(output).write_text(text, "utf-8")


def answer(dataset: str, repeats: int, output: str | None, command: str) -> None:
    """Measure how soon the widgets answer: on a data set of K = 10, and with 1000 classes."""
    from nofe_lab.views.widgets.response import response, synthetic

    _check_output(output)
    data = load_dataset(dataset, val_fraction=0.0)
    parts = [response(data, 10, repeats), response(synthetic(1000), 30, repeats), live_share()]
    found = pd.concat(parts)
    about = provenance(Machine.pick("cpu"), 0.0)
    found = found.assign(hardware=about["device"], revision=about["revision"])
    write_line(found.to_string(index=False), sys.stdout)
    if output is not None:
        Path(output).write_text(f"# {command}\n{found.to_csv(index=False)}", "utf-8")


def draw_film(folder: Path, experiment: Experiment) -> None:
    """Write the film of an experiment's generalist, which is trained if it has not been.

    folder: where film.gif and film_dark.gif are put, for light and for dark pages.
    """
    from nofe_lab.views.film import DARK, LIGHT, film

    for name in ("film.gif", "film_dark.gif"):
        _check_output(str(folder / name))
    stage = experiment.generalist()
    (run,) = experiment.run(stage)
    specialties = load_specialties(run)
    model = experiment.model(stage)
    data = with_clearest(experiment.data, model, torch.tensor(specialties.of))
    tables = run.table("map_history"), run.table("map_updates")
    for name, theme in (("film.gif", LIGHT), ("film_dark.gif", DARK)):
        film(data, specialties, *tables, theme).save(folder / name)
        log.info(f"{folder / name}: {(folder / name).stat().st_size / 1e6:.2f} MB")


def live_share() -> pd.DataFrame:
    """What the live view of a training costs it: the share of its time, in a real training."""
    from nofe_lab.views.widgets.live import LiveTraining

    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment(device="cpu", runs_dir=folder)
        live, spent = LiveTraining(experiment.data, experiment.K), 0.0

        def timed(event: Event) -> None:
            nonlocal spent
            begun = time.perf_counter()
            live(event)
            spent += time.perf_counter() - begun

        (run,) = experiment.run(experiment.generalist(), watch=timed)
        row = {
            "widget": "LiveTraining",
            "click": "(a whole training)",
            "dataset": experiment.data.name,
            "classes": experiment.data.C,
            "images": len(experiment.data.train),
            "repeats": 1,
            "share": round(spent / run.seconds, 5),
        }
    return pd.DataFrame([row])


def _check_output(output: str | None) -> None:
    if output is None:
        return
    try:
        Path(output).touch()
    except OSError as error:
        raise InvalidInput(
            f"{output!r} cannot be written ({error}); accepted: a file in a folder of yours."
        ) from error


def listing(store: RunStore) -> str:
    """A table of the runs: data, network, K, accuracy, age and disk use."""
    runs, problems = store.opened()
    aside = sorted(printable(path.name) for path in store.folder.glob("*.damaged-*"))
    note = f"\nset aside as damaged, delete them by hand: {', '.join(aside)}" if aside else ""
    if names := [printable(path.name) for path in store.unfinished]:
        note += f"\nunfinished, go on when they are asked for again: {', '.join(names)}"
    rows, total = [], 0
    for run in runs:
        try:
            rows.append(_row(run))
            total += run.bytes_on_disk
            if problem := run.reports_problem:
                note += f"\n{run.path.name}: {problem}"
        except (InvalidInput, OSError) as error:
            problems[run.path] = str(error)
    for path, problem in problems.items():
        note += f"\n{printable(path.name)} cannot be used: {problem}"
    if not rows:
        return f"no runs in {store.folder}{note}"
    table = pd.DataFrame(rows).to_string(index=False)
    return f"{table}\n{len(rows)} runs, {total / 1e6:.1f} MB{note}"


def _short(text: str, length: int = 60) -> str:
    """A text for a column: printable, and cut in its middle."""
    text = printable(text)
    return text if len(text) <= length else f"{text[: length // 2]}…{text[-length // 2 + 1 :]}"


def _row(run: Run) -> dict[str, str]:
    about = run.about
    accuracy = {
        "test": run.reports.get("test_accuracy"),
        "val": run.result.get("val_accuracy"),
        "train": run.result.get("train_accuracy"),
    }
    shown = next(
        (f"{value:.1%} {name}" for name, value in accuracy.items() if value is not None), ""
    )
    age = datetime.now().astimezone() - datetime.fromisoformat(run.provenance["finished"])
    hours = age.total_seconds() / 3600
    return {
        "id": run.id,
        "stage": _short(about["title"]),
        "data": _short(about["dataset"]),
        "network": _short(about["backbone"]),
        "K": str(about["K"] or ""),
        "epochs": str(about["epochs"]),
        "seed": str(about["seed"]),
        "accuracy": shown,
        "age": f"{hours / 24:.1f} d" if hours >= 48 else f"{hours:.1f} h",
        "disk": f"{run.bytes_on_disk / 1e6:.1f} MB",
    }


if __name__ == "__main__":
    sys.exit(main())
