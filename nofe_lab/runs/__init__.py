"""Runs: the store of finished runs, found by identity, and checkpoints of unfinished ones."""

from nofe_lab.runs.checkpoint import Checkpoints
from nofe_lab.runs.provenance import code_digest, code_revision
from nofe_lab.runs.store import (
    DamagedRun,
    Run,
    RunStore,
    default_runs_dir,
    identity_hash,
    new_folder,
    open_run,
    write_published,
)

__all__ = [
    "Checkpoints",
    "DamagedRun",
    "Run",
    "RunStore",
    "code_digest",
    "code_revision",
    "default_runs_dir",
    "identity_hash",
    "new_folder",
    "open_run",
    "write_published",
]
