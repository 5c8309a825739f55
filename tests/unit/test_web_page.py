"""The folder of the page to hand on; the page itself is tested in a browser."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import urllib.error
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nofe_lab import InvalidInput, Specialties
from nofe_lab.views import web_page
from nofe_lab.views.web_page import MEMBERS, RUNTIME, runtime_files, write_web_page
from nofe_lab.views.widgets.base import sketch_colours


def package(names: tuple[str, ...] = MEMBERS) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in (*names, "../../outside"):
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    return packed.getvalue()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Makes the registry send something; without that, there is no network."""

    def unreachable(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("no route to host")

    def sends(content: bytes) -> None:
        monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(content))

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr(web_page, "data_folder", lambda: tmp_path / "data")
    digest = base64.b64encode(hashlib.sha512(package()).digest()).decode()
    monkeypatch.setattr(web_page, "SHA512", digest)
    return sends


def test_the_runtime_is_downloaded_once(registry: Callable[[bytes], None], tmp_path: Path) -> None:
    registry(package())
    first = runtime_files()
    assert first == {name: name.encode() for name in MEMBERS}
    registry(b"another")
    assert runtime_files() == first
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [Path(RUNTIME).name]


def test_without_a_network_it_is_said_what_is_needed(registry: Any, tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInput, match=r"no route to host.*: download https://.*--runtime FILE"
    ):
        runtime_files()
    file = tmp_path / "downloaded.tgz"
    file.write_bytes(package())
    assert set(runtime_files(file)) == set(MEMBERS)
    with pytest.raises(InvalidInput, match=r"'missing.tgz' cannot be opened"):
        runtime_files(tmp_path / "missing.tgz")


def test_a_kept_runtime_that_is_damaged_is_downloaded_again(
    registry: Callable[[bytes], None], tmp_path: Path
) -> None:
    registry(package())
    first = runtime_files()
    (kept,) = (tmp_path / "data").rglob("*.tgz")
    kept.write_bytes(b"half of it")
    assert runtime_files() == first
    assert kept.read_bytes() == package()


@pytest.mark.parametrize("content", [b"", package()[:-1], package(("other",))])
def test_another_package_is_refused_and_not_kept(
    content: bytes, registry: Callable[[bytes], None], tmp_path: Path
) -> None:
    registry(content)
    with pytest.raises(InvalidInput, match=r"is not onnxruntime-web .* its SHA-512"):
        runtime_files()
    assert not (tmp_path / "data").exists()
    file = tmp_path / "other.tgz"
    file.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"other.tgz is not onnxruntime-web"):
        runtime_files(file)


@pytest.mark.parametrize("content", [package(MEMBERS[:1]), b"no archive"])
def test_a_package_without_the_runtime_is_refused(
    content: bytes, registry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    monkeypatch.setattr(web_page, "SHA512", digest)
    file = tmp_path / "package.tgz"
    file.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"the package of onnxruntime-web cannot be read"):
        runtime_files(file)


def test_a_page_that_cannot_be_made_is_refused_before_anything_is_written(
    registry: Any, tmp_path: Path
) -> None:
    def model(channels: int) -> Any:
        description = SimpleNamespace(image_shape=(channels, 8, 8), kind="flat", of_features=False)
        run = SimpleNamespace(about={"title": "a network"})
        return SimpleNamespace(description=description, run=run)

    with pytest.raises(InvalidInput, match="a network takes 5 channels"):
        write_web_page(model(5), tmp_path / "page")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "index.html").write_text("mine")
    with pytest.raises(
        InvalidInput, match=r"other' cannot be written \(it is there and not empty\)"
    ):
        write_web_page(model(3), tmp_path / "other")
    (tmp_path / "other" / "page.json").write_text('"mine"')
    with pytest.raises(
        InvalidInput, match=r"other' cannot be written \(it is there and not empty\)"
    ):
        write_web_page(model(3), str(tmp_path / "other"))
    assert (tmp_path / "other" / "index.html").read_text() == "mine"
    with pytest.raises(InvalidInput, match=r"--runtime FILE"):
        write_web_page(model(3), tmp_path / "page")
    with pytest.raises(InvalidInput, match=r"index.html' cannot be written"):
        write_web_page(model(3), tmp_path / "other" / "index.html")
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize(("kind", "shown"), [("nofe", [0, 2]), ("generalist", [0, 1, 2])])
def test_every_output_has_a_card(kind: str, shown: list[int]) -> None:
    partition = Specialties(tuple("abcd"), (0, 0, 2, 2), 3)
    model: Any = SimpleNamespace(specialties=partition, description=SimpleNamespace(kind=kind))
    assert [each["k"] for each in web_page._cards(model)] == shown


@pytest.mark.parametrize(("paper", "ink"), [(200, 90), (10, 240)])
def test_drawings_begin_in_the_colours_of_the_images(paper: int, ink: int) -> None:
    images = torch.full((4, 3, 20, 20), paper, dtype=torch.uint8)
    images[:, :, 8:12] = ink
    colours = {"paper": f"#{paper:02x}" + 2 * f"{paper:02x}", "ink": "#" + 3 * f"{ink:02x}"}
    assert sketch_colours(images, (3, 32, 32)) == colours
    assert sketch_colours(images, (3, 33, 32)) is None
    blank = torch.full((1, 1, 1, 1), paper, dtype=torch.uint8)
    assert sketch_colours(blank, (1, 1, 1))["ink"] in ("#000000", "#ffffff")  # type: ignore[index]
