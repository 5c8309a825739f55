"""Runs notebooks with papermill, one after the other, in one kernel: an own one takes seconds each.

What a notebook leaves behind is no help to the next one: the kernel forgets its variables, and its
imports of this library.  Reads requests as lines of JSON, and answers each with what papermill
raised, or null.
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from typing import Any

import papermill
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

FORGET = """
import os, sys
from matplotlib import pyplot
pyplot.close("all")
for name in [name for name in sys.modules if name.split(".")[0] == "nofe_lab"]:
    del sys.modules[name]
os.chdir({cwd!r})
%reset -f
"""


def answer(request: dict[str, Any], kernel: AsyncKernelManager) -> str | None:
    """Run a notebook; returns what papermill raised."""
    forget = new_notebook(cells=[new_code_cell(FORGET.format(cwd=request["cwd"]))])
    NotebookClient(forget, km=kernel).execute()
    try:
        papermill.execute_notebook(**request, progress_bar=False, km=kernel)
    except Exception:
        return traceback.format_exc()
    return None


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr  # nothing else may write among the answers
    shared = AsyncKernelManager(kernel_name="python3")
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), shared)), file=answers, flush=True)
    asyncio.run(shared.shutdown_kernel(now=True))
