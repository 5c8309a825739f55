"""The command line: ``python -m nofe_lab``.

``runs`` lists runs or removes one; ``bench`` measures speed, ``widgets`` how fast the widgets
answer; ``study`` compares networks of experts with their opponents, ``results`` rebuilds the tables
and figures of README and docs; ``film`` draws how specialties form.
"""

from __future__ import annotations

import os
import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from datetime import datetime

import pandas as pd
import torch

from nofe_lab.config import InvalidInput, printable
from nofe_lab.evaluation import with_clearest
from nofe_lab.files import user_path, writable_path
from nofe_lab.inference import load_specialties
from nofe_lab.knobs import KNOBS, understood
from nofe_lab.log import log, redirect_to_devnull, write_line
from nofe_lab.machine import Machine
from nofe_lab.runs import Run, RunStore, default_runs_dir
from nofe_lab.stages import Experiment

Command = Callable[[Namespace], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 2 for bad input."""
    parser = ArgumentParser(prog="python -m nofe_lab", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for prepare in COMMANDS:
        command = commands.add_parser(prepare.__name__, help=prepare.__doc__)
        command.set_defaults(run=prepare(command))
    options = parser.parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    options.line = shlex.join(["python", "-m", "nofe_lab", *words])
    try:
        options.run(options)
    except InvalidInput as error:
        write_line(str(error), sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in ("nofe_lab.bench", "nofe_lab.study"):
            raise
        said = "this command needs a checkout of the repository; the wheel does not have it."
        write_line(said, sys.stderr)
        return 2
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                redirect_to_devnull(stream)
    return 0


# --- commands: each adds its options to its parser and returns the function to run


def runs(parser: ArgumentParser) -> Command:
    """List the runs, or remove one."""
    add_knobs(parser, "runs_dir")
    parser.add_argument("--remove", metavar="ID", help="delete the run whose id begins with ID")

    def run(options: Namespace) -> None:
        folder = user_path(options.runs_dir or default_runs_dir())
        if not os.path.isdir(folder):
            raise InvalidInput(f"there is no folder {str(folder)!r}; accepted: a folder of runs.")
        store = RunStore(folder)
        if options.remove is not None:
            log.info(f"removed {store.remove(options.remove)}")
        else:
            write_line(listing(store), sys.stdout)

    return run


def bench(parser: ArgumentParser) -> Command:
    """Measure speed, side by side with the alternatives."""
    parser.add_argument("--output", default=None, help="write the table to this CSV file")
    add_knobs(parser, "device", "precision")
    parser.add_argument("--networks", nargs="+", default=None, metavar="NETWORK")
    parser.add_argument("--batch", type=int, default=128, help="images a step")
    parser.add_argument("--repeats", type=int, default=7, help="of every measurement")

    def run(options: Namespace) -> None:
        from nofe_lab.bench.speed import NETWORKS, Bench, measure

        machine = Machine.pick(options.device, options.precision)
        networks = options.networks or NETWORKS
        measured = Bench(machine, networks, options.batch, options.repeats)
        measure(measured, options.output, options.line)

    return run


def widgets(parser: ArgumentParser) -> Command:
    """Measure how fast the widgets answer a click."""
    parser.add_argument("--output", default=None, help="write the table to this CSV file")
    add_knobs(parser, "dataset")
    parser.add_argument("--repeats", type=int, default=21, help="of every click")

    def run(options: Namespace) -> None:
        from nofe_lab.bench.widgets import measure

        measure(options.dataset, options.repeats, options.output, options.line)

    return run


def film(parser: ArgumentParser) -> Command:
    """Draw how the specialties of a generalist form; train it if necessary."""
    parser.add_argument("--output", default=".", help="folder for film.gif and film_dark.gif")
    knobs = [name for name in Experiment.__dataclass_fields__ if name in KNOBS]
    add_knobs(parser, *knobs)

    def run(options: Namespace) -> None:
        from nofe_lab.views.film import save_films

        folder = user_path(options.output)
        for name in ("film.gif", "film_dark.gif"):
            writable_path("output", folder / name)
        experiment = Experiment(**understood({name: getattr(options, name) for name in knobs}))
        stage = experiment.generalist()
        (found,) = experiment.run(stage)
        specialties = load_specialties(found)
        model = experiment.model(stage)
        data = with_clearest(experiment.data, model, torch.tensor(specialties.of))
        tables = found.table("map_history"), found.table("map_updates")
        save_films(folder, data, specialties, *tables)

    return run


def study(parser: ArgumentParser) -> Command:
    """Make the next rows of the study."""
    parser.add_argument("--rows", type=int, default=1, help="how many (default: 1)")
    parser.add_argument("--list", action="store_true", help="only show which rows are missing")
    parser.add_argument("--study", nargs="+", default=None, metavar="NAME", help="of these alone")
    parser.add_argument("--arm", default=None, metavar="NAME", help="of this network alone")
    parser.add_argument("--seed", type=int, default=None, help="of this seed alone")
    parser.add_argument("--results", default=None, help="the table that rows go into")
    parser.add_argument("--conditional", default=None, help="the table of a few experts")
    add_knobs(parser, "runs_dir")
    parser.add_argument("--commit", action="store_true", help="commit the tables after each row")

    def run(options: Namespace) -> None:
        from nofe_lab.study.queue import CONDITIONAL, RESULTS, Queue

        queue = Queue(
            options.study,
            options.results or RESULTS,
            options.conditional or CONDITIONAL,
            options.runs_dir,
            options.arm,
            options.seed,
        )
        if options.list:
            queue.show()
        else:
            queue.run(options.rows, options.commit)

    return run


def results(parser: ArgumentParser) -> Command:
    """Rebuild the tables and figures of README and docs."""

    def run(options: Namespace) -> None:
        from nofe_lab.study.readme import rebuild

        rebuild()

    return run


COMMANDS = (runs, bench, widgets, film, study, results)


def add_knobs(parser: ArgumentParser, *names: str) -> None:
    """Add options for knobs, such as --runs-dir for runs_dir."""
    for knob in map(KNOBS.__getitem__, names):
        option = f"--{knob.name.replace('_', '-')}"
        parser.add_argument(option, default=knob.default, help=knob.help, metavar="VALUE")


# --- the list of runs


def listing(store: RunStore) -> str:
    """A table of the runs, and what is wrong with those that cannot be used."""
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
    """A printable text, shortened in its middle."""
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
