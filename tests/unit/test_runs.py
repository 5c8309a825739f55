"""Runs on disk: found when whole, set aside when damaged, never overwritten."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from nofe_lab import InvalidInput, Run, load_specialties
from nofe_lab.__main__ import main
from nofe_lab.files import read_tensors, write_tensors
from nofe_lab.machine import Machine
from nofe_lab.runs import (
    DamagedRun,
    RunStore,
    checkpoint,
    default_runs_dir,
    identity_hash,
    locks,
)
from nofe_lab.runs.checkpoint import OtherFormat, State
from nofe_lab.runs.locks import LockLost
from nofe_lab.runs.provenance import provenance
from nofe_lab.runs.store import _digest

FIXTURES = Path(__file__).parents[1] / "fixtures"
IDENTITY: dict[str, Any] = {"stage": "flat", "config": {"seed": 0, "rate": 0.1}, "parents": {}}
ABOUT = {
    "title": "base CNN (2 epochs)",
    "dataset": "tiny",
    "backbone": "alexnet_quick",
    "K": None,
    "epochs": 2,
    "seed": 0,
}


def save(store: RunStore, accuracy: float = 0.5, **changes: Any) -> Run:
    return store.save(
        "flat-tiny",
        {**IDENTITY, **changes},
        ABOUT,
        {"w": torch.arange(4.0)},
        {"history.csv": "epoch,train_loss\n1,2.5\n2,1.5\n", "note.json": "{}"},
        {"train_accuracy": accuracy},
        provenance(Machine(torch.device("cpu")), 1.234),
    )


@pytest.fixture
def store(runs_dir: Path) -> RunStore:
    return RunStore(runs_dir)


# --- identity


def test_the_id_does_not_depend_on_the_order_of_the_identity_s_parts() -> None:
    assert identity_hash(dict(reversed(IDENTITY.items()))) == identity_hash(IDENTITY)
    assert len(identity_hash(IDENTITY)) == 12


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "nofe"},
        {"config": {"seed": 1, "rate": 0.1}},
        {"config": {"seed": 0, "rate": 0.2}},
        {"parents": {"trunk": "0123456789ab"}},
        {"data": "00ff"},
        {"specialties": None},
    ],
)
def test_the_id_depends_on_every_part_of_the_identity(change: dict[str, Any]) -> None:
    assert identity_hash({**IDENTITY, **change}) != identity_hash(IDENTITY)


def test_the_id_outlives_a_new_layout_and_depends_on_its_own_format(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = identity_hash(IDENTITY)
    monkeypatch.setattr("nofe_lab.runs.store.FORMAT", 99)
    assert identity_hash(IDENTITY) == before
    monkeypatch.setattr("nofe_lab.runs.store.IDENTITY_FORMAT", 99)
    assert identity_hash(IDENTITY) != before


# --- a whole run


def test_a_saved_run_is_found_with_all_that_was_saved(store: RunStore) -> None:
    saved = save(store)
    found = RunStore(store.folder).find(identity_hash(IDENTITY))
    assert found is not None
    assert found.path == saved.path == store.folder / f"flat-tiny-{saved.id}"
    assert (found.identity, found.about) == (IDENTITY, ABOUT)
    assert found.result == {"train_accuracy": 0.5}
    assert found.weights()["w"].tolist() == [0, 1, 2, 3]
    assert found.history["train_loss"].tolist() == [2.5, 1.5]
    assert found.text("note.json") == "{}"
    assert found.seconds == 1.23


def test_what_was_never_saved_is_not_found(store: RunStore) -> None:
    save(store)
    assert store.find("0" * 12) is None


def test_nothing_is_left_in_the_folder_but_the_run(store: RunStore) -> None:
    run = save(store)
    assert list(store.folder.iterdir()) == [run.path]
    files = {path.name for path in run.path.iterdir()}
    assert files == {"run.json", "weights.safetensors", "history.csv", "note.json"}
    assert run.bytes_on_disk == sum(path.stat().st_size for path in run.path.iterdir())


def test_a_run_that_another_process_has_saved_first_is_kept(store: RunStore) -> None:
    first = save(RunStore(store.folder), accuracy=0.5)
    second = save(store, accuracy=0.9)
    assert second.path == first.path
    assert second.result == {"train_accuracy": 0.5}
    assert list(store.folder.iterdir()) == [first.path]


def test_runs_are_listed_oldest_first(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for hour, stage in ((12, "b"), (11, "a"), (13, "c")):
        when = f"2024-05-06T{hour}:00:00+0000"
        monkeypatch.setattr("nofe_lab.runs.provenance.time.strftime", lambda _, when=when: when)
        save(store, stage=stage)
    assert [run.identity["stage"] for run in store] == ["a", "b", "c"]


def test_reports_are_added_to_a_run_without_damaging_it(store: RunStore) -> None:
    run = save(store)
    assert run.reports == {}
    run.report(test_accuracy=0.4)
    run.report(test_loss=2.0, test_accuracy=0.45)
    found = store.find(run.id)
    assert found is not None
    assert found.reports == {"test_accuracy": 0.45, "test_loss": 2.0}


def test_figures_are_kept_in_the_run_s_folder(store: RunStore) -> None:
    run = save(store)
    path = run.save_figure(Figure(), "confusion")
    assert path == run.path / "figures" / "confusion.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in path.with_suffix(".svg").read_text()
    assert store.find(run.id) is not None


def test_a_page_is_kept_in_the_run_s_folder_or_its_lack_is_said(
    store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save(store)
    path = run.keep("report.html", lambda path: path.write_text("a page"))
    assert path == run.path / "figures" / "report.html"
    assert path.read_text() == "a page"

    def refuse(path: Path) -> None:
        raise InvalidInput(f"{path.name} cannot be written")

    assert run.keep("report.html", refuse) is None
    assert "report.html of" in "".join(capsys.readouterr())
    with pytest.raises(InvalidInput, match="is not the name of a file"):
        run.keep("../report.html", refuse)


def test_a_location_is_seen_from_the_working_folder(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = save(store)
    monkeypatch.chdir(store.folder)
    assert run.location() == run.path.name
    assert run.location(run.path / "figures") == f"{run.path.name}/figures"


def test_provenance_says_where_when_and_with_what() -> None:
    found = provenance(Machine(torch.device("cpu")), 1.234)
    assert set(found) == {
        "finished",
        "seconds",
        "lineage",
        "revision",
        "code",
        "precision",
        "device",
        "threads",
        "ranks",
        "platform",
        "versions",
    }
    assert {"python", "torch", "numpy", "nofe_lab"} <= set(found["versions"])
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["threads"] == torch.get_num_threads()
    assert datetime.fromisoformat(found["finished"]).tzinfo is not None


# --- a damaged run


def flip_a_byte(run: Run) -> None:
    path = run.path / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncate_the_record(run: Run) -> None:
    path = run.path / "run.json"
    path.write_bytes(path.read_bytes()[:-20])


def remove_a_file(run: Run) -> None:
    (run.path / "history.csv").unlink()


def remove_the_record(run: Run) -> None:
    (run.path / "run.json").unlink()


def change_the_identity(run: Run) -> None:
    record = {**run.record, "identity": {**run.identity, "stage": "nofe"}}
    (run.path / "run.json").write_text(json.dumps(record))


def write_no_format(run: Run) -> None:
    (run.path / "run.json").write_text(json.dumps({**run.record, "format": "new"}))


DAMAGES = [
    (flip_a_byte, "weights.safetensors is missing or changed"),
    (truncate_the_record, "run.json cannot be read: 'run.json' holds no JSON"),
    (remove_a_file, "history.csv is missing or changed"),
    (remove_the_record, "run.json cannot be read: 'run.json' cannot be opened"),
    (change_the_identity, "run.json has been changed"),
    (write_no_format, "its format is 'new', this library reads 2 to 3"),
]


@pytest.mark.parametrize(("damage", "sentence"), DAMAGES)
def test_a_damaged_run_is_set_aside_with_a_message_and_not_found(
    store: RunStore,
    damage: Callable[[Run], None],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = save(store)
    damage(run)
    remains = {path.name: path.read_bytes() for path in run.path.iterdir()}
    assert store.find(run.id) is None
    message = capsys.readouterr().out
    assert message.startswith(f"{run.path.name} is damaged ({sentence}")
    aside = store.folder / f"{run.path.name}.damaged-1"
    assert message.endswith(f"set aside as {aside.name}.\n")
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == remains


def rewrite(run: Run, **changes: Any) -> None:
    """Change a run's record as one who knows how its checksum is made."""
    record = {key: value for key, value in {**run.record, **changes}.items() if key != "digest"}
    record["digest"] = _digest(record)
    (run.path / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize("found", [1, 99])
def test_a_run_of_a_format_that_is_not_read_is_refused_with_both_and_left_alone(
    found: int, store: RunStore
) -> None:
    run = save(store)
    rewrite(run, format=found)
    with pytest.raises(OtherFormat, match=f"is of format {found}, this library reads formats 2 to"):
        store.find(run.id)
    assert run.path.is_dir()
    assert list(store) == []


@pytest.mark.parametrize("version", [2, 3])
def test_runs_that_were_made_in_a_format_stay_readable(
    version: int, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real runs of digits, made when the format was new: a generalist and a network of experts."""
    made = FIXTURES / f"runs_of_format_{version}"
    shutil.copytree(made, store.folder, dirs_exist_ok=True)
    generalist, nofe = list(store)
    assert [run.path.name for run in (generalist, nofe)] == sorted(p.name for p in made.iterdir())
    assert nofe.about["title"] == "NofE (optimal specialties, K = 3; trunk: generalist (optimal))"
    assert nofe.identity["parents"] == {"specialties": generalist.id, "trunk": generalist.id}
    assert list(nofe.lineage) == [generalist.id, nofe.id]
    assert nofe.weights()["network.trunk.trunk.0.weight"].shape == (4, 3, 3, 3)
    assert len(nofe.history) == 1
    assert set(nofe.reports) >= {"test_accuracy", "test_top5"}
    assert load_specialties(nofe).sizes == load_specialties(generalist).sizes
    assert len(generalist.table("map_updates")) == 7
    assert main(["runs", "--runs-dir", str(store.folder)]) == 0
    assert "2 runs, 0.0 MB\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("about", {**ABOUT, "title": 3}),
        ("about", {}),
        ("result", {"train_accuracy": "high"}),
        ("result", [1.0]),
        ("identity", {"stage": "another"}),
        ("id", "0123456789ab"),
        ("provenance", {"finished": "yesterday"}),
        ("files", {"../../etc/passwd": {"bytes": 1, "sha256": ""}}),
        ("files", {"/etc/passwd": {"bytes": 1, "sha256": ""}}),
        ("files", {"..": {"bytes": 1, "sha256": ""}}),
        ("files", {"weights.safetensors": {"bytes": 10**18, "sha256": ""}}),
        ("files", {"weights.safetensors": 7}),
        ("files", []),
        ("files", None),
    ],
)
def test_a_record_that_is_none_is_found_out_whoever_wrote_it(
    store: RunStore, name: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save(store)
    rewrite(run, **{name: value})
    assert list(store) == []
    assert store.find(run.id) is None
    assert "is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("target", ["/etc/hostname", "/dev/zero"])
def test_a_link_out_of_the_run_s_folder_is_not_followed(store: RunStore, target: str) -> None:
    run = save(store)
    inside = run.path / "history.csv"
    inside.unlink()
    inside.symlink_to(target)
    assert list(store) == []
    with pytest.raises(InvalidInput, match="is not a regular file"):
        run.text("history.csv")


@pytest.mark.parametrize("file", ["../secret", "/etc/passwd", "..", ".hidden", "a/b"])
def test_a_file_outside_of_the_run_s_folder_is_not_read(store: RunStore, file: str) -> None:
    with pytest.raises(InvalidInput, match="is not among the files of"):
        save(store).text(file)


def test_figures_are_not_written_through_a_link(store: RunStore, tmp_path: Path) -> None:
    run = save(store)
    (run.path / "figures").symlink_to(tmp_path)
    with pytest.raises(InvalidInput, match="'figures' is a link"):
        run.save_figure(Figure(), "confusion")


def test_reports_hold_numbers_alone(store: RunStore) -> None:
    run = save(store)
    deep = "[" * 100_000
    for content in ('{"test_accuracy": "<b>1</b>", "test_loss": 2.0}', deep, "[1]", "\0"):
        (run.path / "reports.json").write_text(content)
        assert run.reports in ({"test_loss": 2.0}, {})


def test_a_run_that_only_cannot_be_read_now_is_not_set_aside(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = save(store)

    def too_many(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("nofe_lab.files.os.open", too_many)
        with pytest.raises(InvalidInput, match=r"cannot be read \(.*Too many open files"):
            store.find(run.id)
    found = store.find(run.id)
    assert found is not None
    assert found.path == run.path


@pytest.mark.usefixtures("flock")
def test_a_run_that_is_being_trained_is_not_removed(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LEASE", 3.0)  # its signs of life come each second
    with store.training("a", "0123456789ab") as checkpoints:
        checkpoints.save(1, State({"w": torch.zeros(1)}, {}))
        with pytest.raises(InvalidInput, match=r"process \d+ on .* is training the run 012"):
            store.remove("0123")
    assert store.remove("0123") == checkpoints.folder


@pytest.mark.usefixtures("flock")
def test_who_waits_for_a_run_is_told_so_again_and_can_stop(store: RunStore) -> None:
    told: list[str] = []

    def wait(who: str) -> None:
        told.append(who)
        if len(told) == 2:
            raise KeyboardInterrupt

    with store.training("a", "0123456789ab"):
        with pytest.raises(KeyboardInterrupt), store.training("a", "0123456789ab", wait):
            pass
        assert told == [f"process {os.getpid()} on {socket.gethostname()}"] * 2
    with store.training("a", "0123456789ab", wait):
        assert len(told) == 2


@pytest.mark.usefixtures("flock")
def test_who_has_lost_a_run_to_another_process_writes_nothing_more(store: RunStore) -> None:
    lost = pytest.raises(LockLost, match="process 1 on elsewhere has taken it over")
    run_id = identity_hash(IDENTITY)
    with store.training("flat-tiny", run_id) as checkpoints:
        state = State({"w": torch.zeros(1)}, {})
        checkpoints.save(1, state)
        (store.folder / ".locks" / f"{run_id}.lease-2").write_text("process 1 on elsewhere\n\n")
        with lost:
            checkpoints.save(2, state)
        with lost:
            save(store)
    assert checkpoints.step == 1
    assert list(store) == []
    assert {path.name for path in store.folder.iterdir()} == {".locks", checkpoints.folder.name}


def test_an_unfinished_run_is_found_by_its_id_alone(store: RunStore) -> None:
    with store.training("flat-pictures", "0123456789ab") as checkpoints:
        checkpoints.save(1, State({"w": torch.zeros(1)}, {}))
    assert store.checkpoints("flat-moved", "0123456789ab").step == 1


def test_every_damaged_run_is_kept_under_a_name_of_its_own(store: RunStore) -> None:
    for number in (1, 2):
        run = save(store)
        remove_a_file(run)
        assert store.find(run.id) is None
        assert (store.folder / f"{run.path.name}.damaged-{number}").is_dir()
    again = save(store)
    assert store.find(again.id) is not None
    assert len(list(store.folder.iterdir())) == 3


def test_a_run_that_was_damaged_while_its_successor_trained_does_not_cost_the_successor(
    store: RunStore,
) -> None:
    remove_a_file(save(store, accuracy=0.5))
    assert save(store, accuracy=0.9).result == {"train_accuracy": 0.9}


def test_a_run_that_cannot_be_written_leaves_nothing_behind(store: RunStore) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        save(store, accuracy=object())  # type: ignore[arg-type]
    assert list(store.folder.iterdir()) == []


def test_damaged_runs_are_not_listed(store: RunStore) -> None:
    whole, damaged = save(store), save(store, stage="nofe")
    flip_a_byte(damaged)
    assert [run.id for run in store] == [whole.id]


# --- folders


def test_the_default_folder_does_not_depend_on_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = default_runs_dir()
    monkeypatch.chdir(tmp_path)
    assert default_runs_dir() == before
    assert before == Path(__file__).resolve().parents[2] / "data" / "runs"


def test_a_folder_that_is_missing_is_made_with_its_parents(tmp_path: Path) -> None:
    assert RunStore(tmp_path / "a" / "b").folder.is_dir()


@pytest.mark.parametrize("inside", ["", "below"])
def test_a_file_in_the_folder_s_place_is_refused(tmp_path: Path, inside: str) -> None:
    file = tmp_path / "runs"
    file.write_text("not a folder")
    with pytest.raises(InvalidInput, match=r"runs_dir '.*runs.*' cannot be written \(.+\); accept"):
        RunStore(file / inside)
    assert file.read_text() == "not a folder"


# --- removal and the command line


def test_a_run_is_removed_by_the_beginning_of_its_id(store: RunStore) -> None:
    kept, removed = save(store), save(store, stage="nofe")
    assert store.remove(removed.id[:6]) == removed.path
    assert list(store.folder.iterdir()) == [kept.path]


@pytest.mark.parametrize("run_id", ["", "xyz"])
def test_an_id_that_names_no_run_removes_nothing(store: RunStore, run_id: str) -> None:
    run = save(store)
    with pytest.raises(InvalidInput, match=f"'{run_id}' names 0 runs of .* known ids: {run.id}"):
        store.remove(run_id)
    assert run.path.is_dir()


def test_an_id_that_names_several_runs_removes_nothing(store: RunStore) -> None:
    runs = [save(store, stage=str(number)) for number in range(17)]  # 16 first digits
    digits = [run.id[0] for run in runs]
    shared = next(digit for digit in digits if digits.count(digit) > 1)
    with pytest.raises(InvalidInput, match=f"names {digits.count(shared)} runs"):
        store.remove(shared)
    assert len(list(store)) == 17


def test_the_command_line_lists_runs(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    run = save(store)
    assert main(["runs", "--runs-dir", str(store.folder)]) == 0
    header, row, total = capsys.readouterr().out.splitlines()
    assert header.split() == [
        "id", "stage", "data", "network", "K", "epochs", "seed", "accuracy", "age", "disk"
    ]  # fmt: skip
    assert row.split()[0] == run.id
    assert "50.0% train" in row
    assert total.startswith("1 runs, ")


def test_the_command_line_prefers_test_accuracy_to_the_others(
    store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    save(store).report(test_accuracy=0.25)
    main(["runs", "--runs-dir", str(store.folder)])
    assert "25.0% test" in capsys.readouterr().out


def test_the_command_line_says_where_there_are_no_runs(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", "--runs-dir", str(runs_dir)]) == 0
    assert capsys.readouterr().out == f"no runs in {runs_dir}\n"


def test_the_command_line_removes_a_run(
    store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save(store)
    assert main(["runs", "--runs-dir", str(store.folder), "--remove", run.id]) == 0
    assert capsys.readouterr().out == f"removed {run.path}\n"
    assert list(store) == []


def test_the_command_line_names_unfinished_runs_and_removes_them(
    store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save(store)
    kept = store.checkpoints("flat-tiny", "0123456789ab")
    assert kept.save(7, State({"w": torch.ones(1)}, {}))
    main(["runs", "--runs-dir", str(store.folder)])
    assert "asked for again: flat-tiny-0123456789ab.unfinished\n" in capsys.readouterr().out
    assert main(["runs", "--runs-dir", str(store.folder), "--remove", "0123"]) == 0
    assert [each.path for each in store] == [run.path]
    assert not store.unfinished


def test_a_title_cannot_command_the_terminal_that_lists_it(
    store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(save(store), about={**ABOUT, "title": "\x1b]52;c;x\x07", "dataset": "<b>"})
    assert main(["runs", "--runs-dir", str(store.folder)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\\x1b]52;c;x\\x07" in shown


def test_the_command_line_refuses_in_one_sentence_with_status_2(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", "--runs-dir", str(runs_dir), "--remove", "abc"]) == 2
    assert capsys.readouterr().err.startswith("'abc' names 0 runs of ")


def test_a_copy_under_another_run_s_name_is_not_that_run(store: RunStore) -> None:
    run = save(store)
    other = run.path.with_name("flat-tiny-0123456789ab")
    shutil.copytree(run.path, other)
    assert store.find("0123456789ab") is None
    assert [found.id for found in store] == [run.id]


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_damaged_reports_are_no_reports_and_can_be_made_again(
    store: RunStore, content: str
) -> None:
    run = save(store)
    run.report(test_accuracy=0.25)
    (run.path / "reports.json").write_text(content)
    assert run.reports == {}
    run.report(test_accuracy=0.5)
    assert run.reports == {"test_accuracy": 0.5}


# --- one bad folder among others; each test failed while it ended the listing of all


def spoil_with_a_huge_report(run: Run) -> str:
    (run.path / "reports.json").write_text('{"test_accuracy": 1' + "0" * 400 + "}")
    return "is no number"


def spoil_with_a_huge_number(run: Run) -> str:
    rewrite(run, about={**ABOUT, "K": 10**400})
    return "K of about is 1000"


def spoil_with_huge_seconds(run: Run) -> str:
    rewrite(run, provenance={**run.provenance, "seconds": 10**400})
    return "seconds of provenance is 1000"


def spoil_with_a_long_name(run: Run) -> str:
    rewrite(run, files={"x" * 5000: {"bytes": 1, "sha256": "0"}})
    return "is not the name of a file of its own"


def spoil_with_a_link(run: Run) -> str:
    (run.path / "run.json").unlink()
    (run.path / "run.json").symlink_to("/dev/zero")
    return "is not a regular file"


def spoil_without_lineage(run: Run) -> str:
    made = {name: value for name, value in run.provenance.items() if name != "lineage"}
    rewrite(run, provenance=made)
    return "its provenance lack 'lineage'"


def spoil_without_precision(run: Run) -> str:
    made = {name: value for name, value in run.provenance.items() if name != "precision"}
    rewrite(run, provenance=made)
    return "its provenance lack 'precision'"


def spoil_without_versions(run: Run) -> str:
    rewrite(run, provenance={**run.provenance, "versions": {}})
    return "its versions lack 'torch'"


@pytest.mark.parametrize(
    "spoil",
    [spoil_with_a_huge_report, spoil_with_a_huge_number, spoil_with_huge_seconds,
     spoil_with_a_long_name, spoil_with_a_link, spoil_without_lineage, spoil_without_precision,
     spoil_without_versions],
)  # fmt: skip
def test_a_bad_run_is_said_and_hides_no_other(
    store: RunStore, capsys: pytest.CaptureFixture[str], spoil: Callable[[Run], str]
) -> None:
    sound, bad = save(store), save(store, stage="nofe")
    said = spoil(bad)
    assert main(["runs", "--runs-dir", str(store.folder)]) == 0
    shown = capsys.readouterr().out
    assert sound.id in shown
    assert said in shown
    assert main(["runs", "--runs-dir", str(store.folder), "--remove", bad.id]) == 0
    assert [path.name for path in store.folder.iterdir()] == [sound.path.name]


def test_a_folder_of_another_user_is_said_and_hides_no_other(
    store: RunStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sound, bad = save(store), save(store, stage="nofe")
    real = Path.lstat

    def lstat(path: Path) -> os.stat_result:
        if bad.id in str(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "lstat", lstat)
    assert main(["runs", "--runs-dir", str(store.folder)]) == 0
    shown = capsys.readouterr().out
    assert sound.id in shown
    assert "Permission denied" in shown


def test_removing_a_run_removes_what_is_left_of_its_training_too(store: RunStore) -> None:
    run = save(store)
    kept = store.checkpoints("flat-tiny", run.id)
    assert kept.save(7, State({"w": torch.ones(1)}, {}))
    assert main(["runs", "--runs-dir", str(store.folder), "--remove", run.id]) == 0
    assert [path.name for path in store.folder.iterdir()] == [".locks"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(store: RunStore, value: float) -> None:
    run = save(store)
    write_tensors(run.path / "weights.safetensors", {"w": torch.tensor([1.0, value])})
    with pytest.raises(DamagedRun, match="'w' holds values that are not finite"):
        run.weights()


def test_a_file_that_the_run_does_not_list_is_not_read(store: RunStore) -> None:
    run = save(store)
    (run.path / "specialties.json").write_text("{}")
    with pytest.raises(DamagedRun, match=r"'specialties\.json' is not among the files of"):
        run.text("specialties.json")


@pytest.mark.parametrize("folder", ["", "  "])
def test_an_empty_name_is_no_folder_of_runs(folder: str) -> None:
    with pytest.raises(InvalidInput, match=r"runs_dir .* cannot be written \(it is empty"):
        RunStore(folder)


@pytest.mark.parametrize(
    "change",
    [{"seconds": -1.0}, {"seconds": float("nan")}, {"seconds": 1e300}, {"seconds": "9"},
     {"interruptions": -1}, {"interruptions": 1e9}, {"step": 8}, {"record": {"step": 3}},
     {"record": []}, {"conditions": 3}],
)  # fmt: skip
def test_a_checkpoint_that_lies_is_not_used(store: RunStore, change: dict[str, Any]) -> None:
    kept = store.checkpoints("flat-tiny", "0123456789ab")
    assert kept.save(7, State({"w": torch.ones(1)}, {"step": 7}))
    (path,) = kept.folder.iterdir()
    tensors, texts = read_tensors(path)
    text = json.dumps({**json.loads(texts["nofe_lab"]), **change})
    write_tensors(path, tensors, {"nofe_lab": text, "digest": checkpoint._digest(tensors, text)})
    used: list[State] = []
    assert not kept.resume(used.append)
    assert not used


def test_copies_of_a_run_and_other_people_s_folders_are_not_removed(store: RunStore) -> None:
    run = save(store)
    shutil.copytree(run.path, store.folder / f"flat-copy-{run.id}")
    (store.folder / f"mythesis-{run.id}").mkdir()
    (store.folder / f"mythesis-{run.id}" / "run.json").write_text("{}")
    before = sorted(path.name for path in store.folder.iterdir())
    with pytest.raises(InvalidInput, match=r"names several folders of .*, copies of one run"):
        store.remove(run.id)
    assert sorted(path.name for path in store.folder.iterdir()) == before
    shutil.rmtree(store.folder / f"flat-copy-{run.id}")
    store.remove(run.id)
    assert (store.folder / f"mythesis-{run.id}" / "run.json").is_file()


def test_a_removal_that_is_refused_loses_nothing(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = save(store)

    def rename(self: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(InvalidInput, match="cannot be removed"):
            store.remove(run.id)
    assert store.find(run.id) is not None


def test_weights_of_types_that_torch_cannot_look_at_are_refused(store: RunStore) -> None:
    run = save(store)
    eight = torch.ones(2).to(torch.float8_e4m3fn)
    write_tensors(run.path / "weights.safetensors", {"w": eight})
    with pytest.raises(DamagedRun, match="'w' holds values that are not finite"):
        run.weights()


def test_numpy_s_figures_are_reported(store: RunStore) -> None:
    run = save(store)
    run.report(test_accuracy=np.float32(0.5))
    assert run.reports == {"test_accuracy": 0.5}


def test_an_empty_id_is_refused(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    save(store)
    assert main(["runs", "--runs-dir", str(store.folder), "--remove", ""]) == 2
    assert main(["runs", "--runs-dir", "x" * 5000]) == 2
