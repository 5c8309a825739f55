"""The command line: ``nofe-lab``, or ``python -m nofe_lab``.

Each command adds its options to a parser and returns the function to run.  Those of ``nofe-lab
dev`` are for people who work on nofe_lab itself; some need a checkout of the repository.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from datetime import datetime
from importlib import metadata
from itertools import permutations
from pathlib import Path
from typing import Any

import pandas as pd

from nofe_lab.config import InvalidInput, first_line, printable, some_of
from nofe_lab.data.sources import ACCEPTED, READY_MADE
from nofe_lab.files import user_path, writable_path, write_file
from nofe_lab.inference import load
from nofe_lab.inference.export import exported_path
from nofe_lab.knobs import FROM_1, KNOBS, Real, understood
from nofe_lab.log import log, redirect_to_devnull, write_line
from nofe_lab.machine import Machine
from nofe_lab.ranks import FROM_RANK_0, in_turn, own_rank
from nofe_lab.runs import Run, RunStore, default_runs_dir, new_folder, open_run
from nofe_lab.stages import Experiment, Stage, launch
from nofe_lab.sweeps import Sweep

Command = Callable[[Namespace], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 2 for bad input."""
    parser = ArgumentParser(
        prog="nofe-lab",
        description="Networks of experts: see what a CNN confuses, train experts for it, use them.",
        epilog="nofe-lab COMMAND --help has an example of each.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add(commands, COMMANDS)
    maintenance = commands.add_parser("dev", help="commands for maintainers of nofe_lab")
    _add(maintenance.add_subparsers(required=True, metavar="COMMAND"), MAINTENANCE)
    options = parser.parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    options.line = shlex.join(["nofe-lab", *words])
    try:
        with redirect_stdout(None) if own_rank() else nullcontext():  # rank 0 says it
            options.run(options)
    except InvalidInput as error:
        if FROM_RANK_0 not in getattr(error, "__notes__", ()):
            write_line(str(error), sys.stderr)
        return 2
    except OSError as error:  # a full disk, above all
        said = error.strerror or first_line(error)
        where = f" ({error.filename})" if error.filename else ""
        write_line(f"{said}{where}: mend that and give the command again.", sys.stderr)
        return 2
    except KeyboardInterrupt as stop:  # what was kept of a training, it says
        if not own_rank():
            write_line(str(stop) or "stopped.", sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if error.name not in ("nofe_lab.bench", "nofe_lab.study"):
            raise
        said = "this command needs a checkout of the repository; the wheel does not have it."
        write_line(said, sys.stderr)
        return 2
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                if stream is not None:
                    stream.flush()
            except (OSError, ValueError):
                redirect_to_devnull(stream)
    return 0


def _add(commands: Any, prepared: Sequence[Callable[[ArgumentParser], Command]]) -> None:
    """Add commands to a parser, with their docstrings as help."""
    for prepare in prepared:
        text = prepare.__doc__ or ""
        command = commands.add_parser(
            prepare.__name__,
            help=text.partition("\n")[0],
            description="\n".join(line.strip() for line in text.splitlines()),
            formatter_class=RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=prepare(command))


# --- commands


def look(parser: ArgumentParser) -> Command:
    """Show what a classifier confuses, without training, as one HTML page.

    nofe-lab look predictions.csv --images folder:~/flowers
    nofe-lab look data/runs/flat-flowers-... --images ~/flowers
    """
    parser.add_argument("what", help="a table of predictions (.csv, .parquet), or a run")
    parser.add_argument("--images", default=None, help="a folder, or the name of a data set")
    parser.add_argument("--output", default="look.html", help="the page (default: look.html)")
    add_knobs(parser, "K", "runs_dir")

    def run(options: Namespace) -> None:
        from nofe_lab.diagnosis import look as look_at

        target = writable_path("output", options.output)
        what = options.what
        if not str(what).lower().endswith((".csv", ".parquet")):
            what = load(what, runs_dir=options.runs_dir)
            if options.images is None:
                raise InvalidInput(
                    f"a look at the run {options.what!r} needs pictures: give --images a folder of "
                    "class folders, or the name of a data set."
                )
        found = look_at(what, options.images, K=KNOBS["K"].parse(options.K))
        write_line(str(found), sys.stdout)
        log.info(f"the page: {found.save(target)}")

    return run


def train(parser: ArgumentParser) -> Command:
    """Train a base CNN and a network of experts, and test both.

    nofe-lab train folder:~/flowers --backbone resnet18 --branch-width 0.25
    nofe-lab train glyphs --K 10
    torchrun --nproc-per-node 2 -m nofe_lab train glyphs
    """
    names = [name for name in Experiment.__dataclass_fields__ if name in KNOBS]
    parser.add_argument("dataset", help=KNOBS["dataset"].help)
    add_knobs(parser, *names[1:])

    def run(options: Namespace) -> None:
        experiment, stages = in_turn(lambda: asked(options))
        write_line(repr(experiment.data), sys.stdout)
        runs = dict(zip(stages, experiment.run(*stages.values()), strict=True))
        if len(experiment.data.test):
            write_line(str(experiment.final_report(stages)), sys.stdout)
        for name, found in runs.items():
            log.info(f"{name}: nofe-lab predict {shlex.quote(found.location())} photo.jpg")

    def asked(options: Namespace) -> tuple[Experiment, dict[str, Stage]]:
        given = {name: getattr(options, name) for name in names}
        is_name = options.dataset in READY_MADE or ":" in options.dataset
        if options.dataset.strip() and not is_name:
            if not os.path.isdir(user_path(options.dataset)):
                raise InvalidInput(
                    f"dataset {options.dataset!r} is neither a folder nor the name of a data set; "
                    f"accepted: a folder of class folders, {ACCEPTED}."
                )
            given["dataset"] = f"folder:{options.dataset}"
        experiment = Experiment(**understood(given))
        return experiment, {"base CNN": experiment.base(), "network of experts": experiment.nofe()}

    return run


def sweep(parser: ArgumentParser) -> Command:
    """Train the networks of a grid, several at once; the same command goes on.

    nofe-lab sweep grid.yaml --output table.csv

    The file has entries such as
    experiment: {dataset: glyphs, epochs: 10}
    arms: [nofe, base, {kind: nofe, partition: random}]
    changes: {K: [5, 10]}
    seeds: [0, 1, 2]
    at_once: 2
    """
    parser.add_argument("grid", help="a YAML or JSON file; docs/scale.md has all its entries")
    parser.add_argument("--output", default=None, help="a CSV file for the table")

    def run(options: Namespace) -> None:
        target = None if options.output is None else writable_path("output", options.output)
        planned, how = Sweep.of_file(options.grid)
        try:
            planned.run(**how)
        finally:
            table = planned.table
            accuracy = {"val_accuracy": lambda value: f"{value:.1%}" if value == value else ""}
            write_line(table.to_string(index=False, formatters=accuracy), sys.stdout)
            if target is not None:
                write_file(target, table.to_csv(index=False))
        if missing := int((table["state"] != "done").sum()):
            raise InvalidInput(f"{missing} of {len(table)} networks have no run; see their state.")

    return run


def predict(parser: ArgumentParser) -> Command:
    """Answer for pictures with the network of a run.

    nofe-lab predict data/runs/nofe-flowers-... photo.jpg more_photos/
    """
    parser.add_argument("which", metavar="RUN", help="the folder of a run, or its id")
    parser.add_argument("pictures", nargs="+", help="images, or folders of images")
    parser.add_argument("--experts", default=None, help="how many experts run, with a gate")
    parser.add_argument("--coverage", default=None, help="share that is answered with a class")
    parser.add_argument("--output", default=None, help="a CSV file for the answers")
    add_knobs(parser, "device", "runs_dir")

    def run(options: Namespace) -> None:
        target = None if options.output is None else writable_path("output", options.output)
        experts = None if options.experts is None else FROM_1.parse("experts", options.experts)
        share = None if options.coverage is None else Real(0, 1).parse("coverage", options.coverage)
        model = load(options.which, runs_dir=options.runs_dir, device=options.device)
        what = options.pictures[0] if len(options.pictures) == 1 else options.pictures
        answers = model.predict(what, experts, share)
        write_line(str(answers), sys.stdout)
        if target is not None:
            write_file(target, answers.table.to_csv(index=False))
            log.info(f"the answers: {target}")

    return run


def export(parser: ArgumentParser) -> Command:
    """Hand a trained network on: as a web page, a folder to publish, or an ONNX file.

    nofe-lab export data/runs/nofe-flowers-... --web page --folder flowers --file flowers.onnx
    nofe-lab export data/runs/nofe-flowers-... --expert 3 --file roses.onnx
    """
    parser.add_argument("which", metavar="RUN", help="the folder of a run, or its id")
    parser.add_argument("--web", metavar="DIR", help="a page that answers in the browser, offline")
    parser.add_argument("--folder", metavar="DIR", help="weights, config and a model card")
    parser.add_argument("--file", metavar="FILE", help="an .onnx file, or .pt2 for torch.export")
    parser.add_argument("--expert", metavar="NAME", help="one expert, by its specialty's name")
    parser.add_argument("--experts", metavar="M", help="experts that answer, by the gate")
    parser.add_argument("--no-thumbnails", action="store_true", help="without training images")
    parser.add_argument("--runtime", metavar="FILE", help="onnxruntime-web for the page, as a .tgz")
    add_knobs(parser, "runs_dir")

    def run(options: Namespace) -> None:
        folders = [path for path in (options.web, options.folder) if path is not None]
        if not folders and options.file is None:
            raise InvalidInput("nothing to write: give --web, --folder or --file.")
        few = None if options.experts is None else FROM_1.parse("experts", options.experts)
        if folders and (options.expert, few) != (None, None):
            raise InvalidInput(
                "--expert and --experts are for --file; a page and a folder have the whole network."
            )
        if None not in (options.expert, few):
            raise InvalidInput(f"--experts is for the whole network; got {few}, and --expert.")
        if options.no_thumbnails and not folders:
            raise InvalidInput("--no-thumbnails is for --web and --folder; a file has none.")
        if options.runtime is not None and options.web is None:
            raise InvalidInput("--runtime is for --web.")
        model = load(options.which, runs_dir=options.runs_dir)
        alone = None if options.expert is None else model.expert(options.expert)
        if few is not None:
            model.check_experts(few)
        # nothing is written unless all can be
        places = [os.path.abspath(user_path(p)) for p in (*folders, options.file) if p is not None]
        for a, b in permutations(places, 2):
            if Path(b).is_relative_to(a):
                raise InvalidInput(
                    f"--web, --folder and --file need places of their own; got {a!r} and {b!r}."
                )
        if options.file is not None:
            exported_path(options.file)
        if options.folder is not None:
            new_folder(options.folder)
        if options.web is not None:
            from nofe_lab.views.web_page import write_web_page

            write_web_page(model, options.web, options.runtime, not options.no_thumbnails)
            log.info(f"the page: python -m http.server --directory {shlex.quote(options.web)}")
        if options.file is not None:
            done = model.export(options.file, few) if alone is None else alone.export(options.file)
            log.info(
                f"{done.path}: {done.bytes / 1e6:.1f} MB; its probabilities differ from the "
                f"network's by {done.probabilities:.1g} at most"
            )
        if options.folder is not None:
            found = model.publish(options.folder, not options.no_thumbnails)
            log.info(f"the folder, with its model card README.md: {found.path}")

    return run


def show(parser: ArgumentParser) -> Command:
    """Write a report of a run, as one HTML page.

    nofe-lab show data/runs/nofe-flowers-... --output flowers.html
    """
    parser.add_argument("which", metavar="RUN", help="the folder of a run, or its id")
    parser.add_argument("--output", default=None, help="the page (default: the run's name.html)")
    add_knobs(parser, "runs_dir")

    def run(options: Namespace) -> None:
        from nofe_lab.views.run_page import run_page

        found = open_run(options.which, options.runs_dir)
        target = writable_path("output", options.output or f"{found.path.name}.html")
        write_file(target, run_page(found))
        log.info(f"the report: {target}")

    return run


def runs(parser: ArgumentParser) -> Command:
    """List the runs, or remove one.

    nofe-lab runs --remove 0123456789ab
    """
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


def init(parser: ArgumentParser) -> Command:
    """Copy the notebooks into a folder of yours.

    nofe-lab init experiments && jupyter lab experiments
    """
    parser.add_argument("folder", help="where the notebooks go; it is made if it is missing")

    def run(options: Namespace) -> None:
        if not options.folder.strip():
            raise InvalidInput("the folder for the notebooks must have a name; got ''.")
        folder = user_path(options.folder)
        sources = notebooks()
        taken = [path.name for path in sources if (folder / path.name).exists()]
        if taken:
            raise InvalidInput(
                f"{options.folder!r} has {some_of(taken)} already, which would be overwritten; "
                "accepted: a folder without these."
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in sources:
                shutil.copyfile(path, folder / path.name)
        except OSError as error:
            raise InvalidInput(
                f"the notebooks cannot be copied to {options.folder!r} ({first_line(error)})."
            ) from error
        log.info(f"{len(sources)} notebooks in {folder}; open them: jupyter lab {folder}")

    return run


def notebooks() -> list[Path]:
    """The notebooks of a checkout, or of the installed package."""
    folder = Path(__file__).resolve().parents[1] / "notebooks"
    if folder.is_dir():
        return sorted(folder.glob("*.ipynb"))
    files = metadata.files("nofe_lab") or []
    return sorted(Path(str(file.locate())) for file in files if file.suffix == ".ipynb")


# --- commands for maintainers


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


def latency(parser: ArgumentParser) -> Command:
    """Measure how long predict takes, and how much memory."""
    parser.add_argument("--output", default=None, help="write the table to this CSV file")
    parser.add_argument("--repeats", type=int, default=15, help="of every measurement")

    def run(options: Namespace) -> None:
        from nofe_lab.bench.inference import measure

        measure(options.repeats, options.output, options.line)

    return run


def onnx(parser: ArgumentParser) -> Command:
    """Measure ONNX files: how long they take to make, and beside torch to answer."""
    parser.add_argument("--output", default=None, help="write the table to this CSV file")
    parser.add_argument("--repeats", type=int, default=7, help="of every measurement")

    def run(options: Namespace) -> None:
        from nofe_lab.bench.export import measure

        measure(options.repeats, options.output, options.line)

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


def streaming(parser: ArgumentParser) -> Command:
    """Measure how fast images are streamed from a large folder, beside torchvision."""
    parser.add_argument("--output", default=None, help="write the table to this CSV file")
    parser.add_argument("--images", type=int, default=100_000, help="files of the folder")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode")
    parser.add_argument("--repeats", type=int, default=7, help="of the comparison")

    def run(options: Namespace) -> None:
        from nofe_lab.bench.streaming import measure

        measure(options.images, options.workers, options.repeats, options.output, options.line)

    return run


def sweeps(parser: ArgumentParser) -> Command:
    """Measure how long a sweep takes, beside its trainings without one."""
    parser.add_argument("--output", default=None, help="write the table to this CSV file")
    parser.add_argument("--repeats", type=int, default=3, help="of every way")

    def run(options: Namespace) -> None:
        from nofe_lab.bench.sweeps import measure

        measure(options.repeats, options.output, options.line)

    return run


def film(parser: ArgumentParser) -> Command:
    """Draw how learned or clustered specialties form; train what they come from if necessary."""
    parser.add_argument("--output", default=".", help="folder for film.gif and film_dark.gif")
    knobs = [name for name in Experiment.__dataclass_fields__ if name in KNOBS]
    add_knobs(parser, *knobs)

    def run(options: Namespace) -> None:
        from nofe_lab.views.film import save_films

        folder = user_path(options.output)
        for name in ("film.gif", "film_dark.gif"):
            writable_path("output", folder / name)
        experiment = Experiment(**understood({name: getattr(options, name) for name in knobs}))
        if (formation := experiment.formation()) is None:
            raise InvalidInput(
                "a film is of 'learned', 'confusion' or 'balanced' specialties; got "
                f"{experiment.specialties!r}."
            )
        save_films(folder, formation)

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
    parser.add_argument("--workers", type=int, default=None, help="train so many at once")
    parser.add_argument("--executor", default=None, help="where: a Dask scheduler's address")

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
            queue.run(options.rows, options.commit, options.executor, options.workers)

    return run


def upcycling(parser: ArgumentParser) -> Command:
    """Compare upcycled experts with fresh ones."""
    parser.add_argument("dataset", nargs="?", default="parquet:$NOFE_DATA/cifar100")
    parser.add_argument("--train-per-class", type=int, default=100, help="images of a class")
    parser.add_argument("--epochs", type=int, default=4, help="of every stage")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--results", default=None, help="a CSV file for the table")
    add_knobs(parser, "runs_dir")

    def run(options: Namespace) -> None:
        from nofe_lab.study import comparisons

        comparisons.upcycling(
            options.dataset,
            options.train_per_class,
            options.epochs,
            options.seeds,
            options.runs_dir,
            options.results,
            options.line,
        )

    return run


def first_run(parser: ArgumentParser) -> Command:
    """Compare recipes for `make run`, beside base CNNs of the same budget.

    nofe-lab dev first_run --alone --seeds 1
    nofe-lab dev first_run "normalised, upcycled" --seed 100 --split test
    """
    parser.add_argument("candidates", nargs="*", help="by name (default: all)")
    parser.add_argument("--split", default="val", help="val to choose, test for final figures")
    parser.add_argument("--alone", action="store_true", help="without the base CNNs")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--results", default=None, help="a CSV file for the table")
    add_knobs(parser, "seed", "runs_dir")

    def run(options: Namespace) -> None:
        from nofe_lab.study import comparisons

        seeds = Experiment(seed=KNOBS["seed"].parse(options.seed)).seeds(options.seeds)
        comparisons.first_run(
            options.candidates,
            seeds,
            options.split,
            options.alone,
            options.runs_dir,
            options.results,
            options.line,
        )

    return run


def pays(parser: ArgumentParser) -> Command:
    """Choose on val where experts may pay: candidates beside flat networks of equal arithmetic.

    nofe-lab dev pays "late cut" "early cut" --results part.csv
    """
    parser.add_argument("candidates", nargs="*", help="by name (default: the whole pilot)")
    parser.add_argument("--results", default=None, help="another CSV file, which a part needs")
    add_knobs(parser, "seed", "runs_dir")

    def run(options: Namespace) -> None:
        from nofe_lab.study.pays import pilot

        seed = KNOBS["seed"].parse(options.seed)
        pilot(options.candidates, seed, options.runs_dir, options.results, options.line)

    return run


def uses(parser: ArgumentParser) -> Command:
    """Compare what experts are for beside accuracy.

    nofe-lab dev uses added_classes --dataset glyphs --results added.csv
    """
    parser.add_argument("use", help="added_classes, one_expert or twins")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--results", default=None, help="a CSV file for the table")
    knobs = [name for name in Experiment.__dataclass_fields__ if name in KNOBS]
    add_knobs(parser, *knobs)
    parser.set_defaults(dataset="parquet:$NOFE_DATA/cifar100", val_fraction=0.0)
    parser.set_defaults(specialties="balanced", trunk="base")

    def run(options: Namespace) -> None:
        from nofe_lab.study.uses import compare

        experiment = Experiment(**understood({name: getattr(options, name) for name in knobs}))
        seeds = experiment.seeds(options.seeds)
        compare(options.use, experiment, seeds, options.results, options.line)

    return run


def rank(parser: ArgumentParser) -> Command:
    """Be one of the ranks that a notebook has started."""
    parser.add_argument("stages", help="a file that it has written")

    def run(options: Namespace) -> None:
        launch.carry_out(Path(options.stages))

    return run


def results(parser: ArgumentParser) -> Command:
    """Rebuild the tables and figures of README and docs."""

    def run(options: Namespace) -> None:
        from nofe_lab.study.readme import rebuild

        rebuild()

    return run


COMMANDS = (look, train, sweep, predict, show, export, runs, init)
MAINTENANCE = (
    *(bench, latency, onnx, widgets, streaming, sweeps),
    *(film, study, upcycling, first_run, pays, uses, rank, results),
)


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
    shown = next((f"{value:.1%} {split}" for split, value in run.accuracies.items()), "")
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
