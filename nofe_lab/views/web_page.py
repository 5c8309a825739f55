"""A trained network as a web page, which answers in the browser and works offline.

onnxruntime-web runs the network.  It is no part of this library: its package is downloaded from the
npm registry when the first page is made, checked, and kept for the next.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from nofe_lab.config import InvalidInput, data_folder, first_line, printable, text
from nofe_lab.files import UnreadableFile, open_regular, read_json, user_path, write_file
from nofe_lab.inference import THUMBNAILS, Classifier
from nofe_lab.inference.export import export
from nofe_lab.inference.kept import check_takes_pictures
from nofe_lab.log import log
from nofe_lab.runs import new_folder
from nofe_lab.views.page import html_page
from nofe_lab.views.run_page import accuracy_in_words
from nofe_lab.views.widgets.base import (
    cards,
    hex_colours,
    script,
    sketch_colours,
    sprite,
)

VERSION = "1.30.0"
RUNTIME = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of the package, in base64, as npm writes it."""
MEMBERS = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
"""What a page needs of it."""
MAX_PACKAGE = 2**26
SECONDS = 60
"""How long the registry may take to answer."""

PAGE = "page.json"
"""What the page says about its network; the mark of a folder that may be written again."""

README = """{title}

This folder is a web page that needs nothing else. Serve it, for example with Python:

    python -m http.server 8000 --bind 127.0.0.1

and open http://localhost:8000 in a browser. Pictures stay in the browser.

model.onnx       the network; its input "images" is uint8 [N, {shape}]
page.json        the names of its classes and its specialties
{thumbnails}{members}
                 onnxruntime-web {version}, under the MIT License:

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or
substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def write_web_page(
    model: Classifier,
    folder: Path | str,
    runtime: Path | str | None = None,
    thumbnails: bool = True,
) -> None:
    """Write a folder with a page on which a network answers for pictures, in the browser.

    folder: a new or empty one, or one that was written before.  runtime: the package of
    onnxruntime-web, if it was downloaded elsewhere; None: it is downloaded once.  thumbnails:
    whether the training images that the run keeps are shown.
    Raises InvalidInput if the network does not take pictures, the folder holds other files or
    cannot be written, or the runtime is not there.
    """
    about, title = model.description, printable(str(model.run.about["title"]))
    check_takes_pictures(model.run, about)
    channels = about.image_shape[0]
    if channels not in (1, 3):
        raise InvalidInput(
            f"a page is for networks that take pictures; {title} takes {channels} channels."
        )
    text("folder", folder)
    is_page = _is_page(user_path(folder) / PAGE)
    folder = user_path(folder) if is_page else new_folder(folder)
    files: dict[str, bytes | str] = dict(runtime_files(runtime))
    found: dict[str, Any] = {
        "title": _kind(model),
        "summary": f"{title}: {accuracy_in_words(model.run)}",
        "kind": "nofe" if about.kind == "gate" else about.kind,
        "answering": about.sparse,
        "names": model.output_names,
        "class_names": model.class_names,
        "shape": about.image_shape,
        "bit_depth": about.bit_depth,
        "cards": _cards(model),
        "sheet": None,
        "canvas": None,
        "runtime": MEMBERS,
    }
    images = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    if model.run.has(THUMBNAILS):
        images = model.thumbnails[:, 0]
        if thumbnails:
            found["sheet"] = sprite(list(images), max(images.shape[2:]))
            files[THUMBNAILS] = found["sheet"].pop("data")
    found["canvas"] = sketch_colours(images, about.image_shape)
    files["README.txt"] = README.format(
        title=title,
        shape=", ".join(map(str, about.image_shape)),
        thumbnails=f"{THUMBNAILS}   training images of each class\n" if found["sheet"] else "",
        members="\n".join(MEMBERS),
        version=VERSION,
    )
    files = {PAGE: json.dumps(found, ensure_ascii=False), **files}  # it marks the folder first
    parts = ("cards", "experts", "pixels", "sketch", "web")
    code = f'{script(*parts)}\ndrawPage(document.querySelector("main"));'
    words = "<noscript>This page needs JavaScript.</noscript>"
    files["index.html"] = html_page(found["title"], words, "nofe-web", code)
    with TemporaryDirectory() as scratch:
        files["model.onnx"] = export(model, Path(scratch) / "model.onnx").path.read_bytes()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / THUMBNAILS).unlink(missing_ok=True)  # of an earlier page
        for name, content in files.items():
            write_file(folder / name, content)
    except OSError as error:
        raise _unusable(folder, error) from error


def runtime_files(runtime: Path | str | None = None) -> dict[str, bytes]:
    """The files of onnxruntime-web that a page needs, by name, from its checked package.

    runtime: the package; None: the one that was kept, or else downloaded.  Raises InvalidInput.
    """
    kept = data_folder() / "raw" / RUNTIME.rsplit("/", 1)[1]
    if runtime is not None:
        package = _read(user_path(runtime))
    elif not kept.exists() or not _is_runtime(package := _read(kept)):
        package = _downloaded()
    if not _is_runtime(package):
        raise InvalidInput(
            f"{runtime or RUNTIME} is not onnxruntime-web {VERSION}, or is damaged: its SHA-512 is "
            f"not the one that npm names; accepted: {RUNTIME}."
        )
    if runtime is None:
        with suppress(OSError):  # it is downloaded again for the next page
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_file(kept, package)
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(package), mode="r:gz") as archive:
            for name in MEMBERS:
                file = archive.extractfile(f"package/dist/{name}")
                if file is None:
                    raise KeyError(f"{name} is no file")
                found[name] = file.read()
    except (tarfile.TarError, EOFError, OSError, KeyError) as error:
        raise InvalidInput(
            f"the package of onnxruntime-web cannot be read ({first_line(error)}); accepted: "
            f"{RUNTIME}."
        ) from error
    return found


def _is_runtime(package: bytes) -> bool:
    return base64.b64encode(hashlib.sha512(package).digest()).decode() == SHA512


def _downloaded() -> bytes:
    log.info(f"Downloading onnxruntime-web {VERSION} (33 MB), once, from registry.npmjs.org.")
    try:
        with urllib.request.urlopen(RUNTIME, timeout=SECONDS) as answer:
            package: bytes = answer.read(MAX_PACKAGE)
    except (OSError, HTTPException) as error:
        raise InvalidInput(
            f"a page needs onnxruntime-web {VERSION}, which could not be downloaded "
            f"({first_line(error)}): download {RUNTIME} on another machine, and name the file "
            "(--runtime FILE)."
        ) from error
    return package


def _read(path: Path) -> bytes:
    try:
        with open_regular(path, MAX_PACKAGE, links=True) as file:
            return file.read(MAX_PACKAGE)
    except OSError as error:
        raise _unusable(path, error) from error


def _cards(model: Classifier) -> list[dict[str, Any]]:
    """One card for each expert or output; of a flat network one with all classes."""
    if model.specialties is None:
        members = list(range(len(model.class_names)))
        return [{"k": 0, "name": "all", "colour": hex_colours(1)[0], "members": members}]
    found = cards(model.specialties, hex_colours(model.specialties.K))
    is_generalist = model.description.kind == "generalist"
    return [each for each in found if each["members"] or is_generalist]


def _kind(model: Classifier) -> str:
    C = f"{len(model.class_names):,} classes"
    if model.specialties is None:
        return f"A network for {C}"
    n = len(model.specialties.nonempty)
    if model.description.kind == "generalist":
        return f"A network that answers with one of {model.specialties.K} groups of {C}"
    return f"A network of {n} experts for {C}"


def _is_page(path: Path) -> bool:
    try:
        found = read_json(path)
    except UnreadableFile:
        return False
    return isinstance(found, dict) and {"runtime", "cards", "shape"} <= set(found)


def _unusable(path: Path, error: Exception) -> InvalidInput:
    why = getattr(error, "strerror", None) or first_line(error)
    return InvalidInput(f"{str(path)!r} cannot be used ({why}).")
