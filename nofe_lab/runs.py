"""A run is a directory: found by what it was asked to be, believed only when it is whole.

A run's id is a hash over its identity: the stage and its configuration, the fingerprint of the
data, the ids of the runs it builds on, the partition where it is given, and the format version.  So
asking for the same thing finds the same directory, in another notebook, another process or next
week.
Device, versions, code revision and seconds are provenance: kept, shown, but not part of the id.

    <runs_dir>/nofe-glyphs-K10-s0-0123456789ab/
        run.json              identity, provenance, result, and the checksum of every other file
        weights.safetensors
        history.csv           one row an epoch
        ...                   what else the stage keeps, as JSON or CSV
        reports.json          figures of final reports, such as test accuracy, added later

A run is written under a hidden name and renamed when it is whole.  A directory found damaged
is set aside under another name, never overwritten.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nofe_lab.config import InvalidInput, data_folder
from nofe_lab.machine import Machine

FORMAT = 1
"""Version of the layout of a run; part of every id."""


class DamagedRun(Exception):
    """A run's directory is not what its run.json says; the message says how."""


@dataclass(frozen=True)
class Run:
    """A finished run: its directory and what run.json says about it."""

    path: Path
    record: Mapping[str, Any]

    @property
    def id(self) -> str:
        """12 hexadecimal digits."""
        return str(self.record["id"])

    @property
    def identity(self) -> Mapping[str, Any]:
        """What was hashed into the id."""
        identity: Mapping[str, Any] = self.record["identity"]
        return identity

    @property
    def about(self) -> Mapping[str, Any]:
        """title, dataset, backbone, K, epochs, seed: for people to read."""
        about: Mapping[str, Any] = self.record["about"]
        return about

    @property
    def result(self) -> Mapping[str, float]:
        """Figures at the end of training, such as val_accuracy."""
        result: Mapping[str, float] = self.record["result"]
        return result

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where, when and with what it was made."""
        provenance: Mapping[str, Any] = self.record["provenance"]
        return provenance

    @property
    def seconds(self) -> float:
        """Wall seconds that training took."""
        return float(self.provenance["seconds"])

    @property
    def lineage(self) -> dict[str, float]:
        """Training seconds of this run and of all runs it builds on, by id."""
        return {**self.provenance["lineage"], self.id: self.seconds}

    @property
    def total_seconds(self) -> float:
        """Wall seconds that training took, together with all runs it builds on."""
        return sum(self.lineage.values())

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row an epoch: losses, accuracies, learning rate, seconds."""
        return self.table("history")

    def table(self, name: str) -> pd.DataFrame:
        """The run's file `name`.csv."""
        return pd.read_csv(self.path / f"{name}.csv", keep_default_na=False, na_values=[""])

    def text(self, file: str) -> str:
        """The content of one of the run's text files."""
        return (self.path / file).read_text(encoding="utf-8")

    def weights(self) -> dict[str, Tensor]:
        """All tensors of the network and its preprocessing, by name."""
        return load_file(self.path / "weights.safetensors")

    @property
    def reports(self) -> dict[str, Any]:
        """What final reports added, for example ``{"test_accuracy": 0.47}``.

        Empty if there was none yet, or if the file is damaged: a new report can make it again.
        """
        try:
            content = json.loads((self.path / "reports.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def report(self, **figures: float) -> None:
        """Add figures of a final report."""
        _write(self.path / "reports.json", json.dumps({**self.reports, **figures}, indent=1))

    def save_figure(self, figure: Any, name: str) -> Path:
        """Keep a matplotlib figure as `name`.png in the run's folder ``figures``."""
        path = self.path / "figures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=150)
        return path

    def location(self, inside: Path | None = None) -> str:
        """The path of the run, or of something inside it, as seen from the working folder."""
        return os.path.relpath(inside or self.path)

    @property
    def bytes_on_disk(self) -> int:
        """Size of all its files."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


class RunStore:
    """All runs of one folder.

    Raises InvalidInput if the folder cannot be made or written.
    """

    def __init__(self, folder: Path | str) -> None:
        try:
            self.folder = Path(folder).expanduser().resolve()
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except (OSError, RuntimeError) as error:
            raise InvalidInput(
                f"runs_dir {str(folder)!r} cannot be written ({error}); "
                "accepted: a folder that exists or can be made, and that you may write to."
            ) from error

    def __iter__(self) -> Iterator[Run]:
        """The whole runs, oldest first; damaged ones are left out."""
        found = []
        for path in self.folder.iterdir():
            if not path.name.startswith(".") and (path / "run.json").is_file():
                try:
                    found.append(self._open(path))
                except DamagedRun:
                    continue
        return iter(sorted(found, key=lambda run: str(run.provenance["finished"])))

    def find(self, run_id: str) -> Run | None:
        """The finished run of that id, or None.  A damaged one is set aside, with a message."""
        for path in self.folder.glob(f"*-{run_id}"):
            try:
                return self._open(path)
            except DamagedRun as damage:
                aside = self._set_aside(path)
                print(f"{path.name} is damaged ({damage}); set aside as {aside.name}.")
        return None

    def save(
        self,
        name: str,
        identity: Mapping[str, Any],
        about: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        files: Mapping[str, str],
        result: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ) -> Run:
        """Write a run, whole or not at all.

        about: what people want to read of it beside its identity.  files: text files by name.
        result: figures.  If another process has saved the same run meanwhile, that
        one is kept and returned.
        """
        run_id = identity_hash(identity)
        folder = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=self.folder))
        try:
            for file, content in files.items():
                _write(folder / file, content)
            tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
            save_file(tensors, folder / "weights.safetensors")
            record = {
                "format": FORMAT,
                "id": run_id,
                "identity": identity,
                "about": about,
                "result": result,
                "provenance": provenance,
                "files": {file.name: _sha256(file) for file in sorted(folder.iterdir())},
            }
            record["digest"] = _digest(record)
            _write(folder / "run.json", json.dumps(record, indent=1, ensure_ascii=False))
            folder.chmod(0o755)
            if (other := self.find(run_id)) is not None:
                return other
            try:
                return self._open(folder.rename(self.folder / f"{name}-{run_id}"))
            except OSError:  # another process was faster between the last two lines
                if (other := self.find(run_id)) is not None:
                    return other
                raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def remove(self, run_id: str) -> Path:
        """Delete the run whose id begins with `run_id`.  Raises InvalidInput unless exactly one."""
        runs = list(self)
        matches = [run for run in runs if run_id and run.id.startswith(run_id)]
        if len(matches) != 1:
            known = ", ".join(run.id for run in runs) or "none"
            raise InvalidInput(
                f"{run_id!r} names {len(matches)} runs of {self.folder}; known ids: {known}."
            )
        shutil.rmtree(matches[0].path)
        return matches[0].path

    def _open(self, path: Path) -> Run:
        try:
            record = json.loads((path / "run.json").read_text(encoding="utf-8"))
            checksums: dict[str, str] = record["files"]
            if record["format"] != FORMAT:
                raise DamagedRun(f"its format is {record['format']}, this library's is {FORMAT}")
            if record.pop("digest", None) != _digest(record):
                raise DamagedRun("run.json has been changed")
            if not path.name.endswith(record["id"]):
                raise DamagedRun(f"it is the run {record['id']}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DamagedRun(f"run.json cannot be read, {reason}") from error
        for file, checksum in checksums.items():
            inside = path / Path(file).name
            if not inside.is_file() or _sha256(inside) != checksum:
                raise DamagedRun(f"{file} is missing or changed")
        return Run(path, record)

    def _set_aside(self, path: Path) -> Path:
        number = 1
        while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
            number += 1
        return path.rename(aside)


def identity_hash(identity: Mapping[str, Any]) -> str:
    """12 hexadecimal digits that depend on all of `identity` (anything JSON can write)."""
    return _digest({**identity, "format": FORMAT})[:12]


def _digest(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def default_runs_dir() -> Path:
    """The folder ``runs`` of `data_folder`."""
    return data_folder() / "runs"


@cache
def code_revision() -> str:
    """The library's git revision ("-dirty" where files differ from it), or its version."""
    root = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=10"]
    if (root / ".git").exists():
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    return metadata.version("nofe_lab")


def provenance(machine: Machine, seconds: float) -> dict[str, Any]:
    """Revision, versions, hardware, seconds and the time of day."""
    return {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": round(seconds, 2),
        "revision": code_revision(),
        "precision": machine.precision,
        "device": machine.name,
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("nofe_lab", "torch", "numpy", "pillow")},
            "safetensors": safetensors.__version__,
        },
    }


def _write(path: Path, content: str) -> None:
    """Replace a file's content in one step."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(content, encoding="utf-8")
    scratch.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
