"""The provenance of a run: code, versions, hardware and time; shown, but not part of its id."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors
import torch

from nofe_lab.machine import Machine
from nofe_lab.ranks import world_size

LIBRARY = Path(__file__).resolve().parents[1]


@cache
def code_revision() -> str:
    """The git revision, with "-dirty" if the library's files differ; else the version."""
    root = LIBRARY.parent
    if (root / ".git").exists():
        git = ["git", "-C", str(root)]
        named = [*git, "describe", "--always", "--abbrev=10"]
        done = subprocess.run(named, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            changed = [*git, "diff", "--quiet", "HEAD", "--", LIBRARY.name]
            is_dirty = subprocess.run(changed, capture_output=True, check=False).returncode != 0
            return done.stdout.strip() + "-dirty" * is_dirty
    return metadata.version("nofe_lab")


@cache
def code_digest() -> str:
    """A digest of the library's Python files."""
    digest = hashlib.sha256()
    for path in sorted(LIBRARY.rglob("*.py")):
        digest.update(f"{path.relative_to(LIBRARY).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:10]


def provenance(machine: Machine, seconds: float) -> dict[str, Any]:
    """Collect revision, versions, hardware and times of a run that builds on no other."""
    return {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": round(seconds, 2),
        "lineage": {},
        "revision": code_revision(),
        "code": code_digest(),
        "precision": machine.precision,
        "device": machine.name,
        "threads": torch.get_num_threads(),
        "ranks": world_size(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("nofe_lab", "torch", "numpy", "pillow")},
            "safetensors": safetensors.__version__,
        },
    }
