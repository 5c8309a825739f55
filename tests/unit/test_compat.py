"""torchvision beside a CPU-only torch: cured where it is ill, left alone where it is not."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from nofe_lab import compat
from nofe_lab.compat import import_torchvision

MISSING = RuntimeError("operator torchvision::nms does not exist")


class Declared:
    """Stands in for torch.library.Library and notes what is declared."""

    made: list[Declared]

    def __init__(self, namespace: str, kind: str) -> None:
        self.namespace = namespace
        self.schemas: list[str] = []
        self.made.append(self)

    def define(self, schema: str) -> None:
        self.schemas.append(schema)


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> list[Declared]:
    """The libraries that were declared, in a copy of sys.modules."""
    Declared.made = []
    monkeypatch.setattr(torch.library, "Library", Declared)
    monkeypatch.setattr(compat, "_DECLARED", [])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return Declared.made


def answer(monkeypatch: pytest.MonkeyPatch, *answers: ModuleType | Exception) -> None:
    """Let importing torchvision end in these ways, one after the other."""
    waiting = list(answers)

    def import_module(name: str) -> ModuleType:
        assert name == "torchvision"
        outcome = waiting.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(compat.importlib, "import_module", import_module)


def test_torchvision_is_imported_with_its_data_sets() -> None:
    found: Any = import_torchvision()
    assert found.__name__ == "torchvision"
    assert found is import_torchvision()
    from torchvision.datasets import CIFAR100

    assert CIFAR100.__name__ == "CIFAR100"


def test_where_the_import_works_nothing_is_declared(
    declared: list[Declared], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ModuleType("torchvision")
    answer(monkeypatch, whole)
    assert import_torchvision() is whole
    assert declared == []


def test_where_the_operators_are_missing_both_are_declared_and_the_import_is_tried_again(
    declared: list[Declared], monkeypatch: pytest.MonkeyPatch
) -> None:
    cured = ModuleType("torchvision")
    answer(monkeypatch, MISSING, cured)
    sys.modules["torchvision"] = sys.modules["torchvision.half"] = ModuleType("half imported")
    assert import_torchvision() is cured
    (library,) = declared
    assert library.namespace == "torchvision"
    assert [schema.split("(")[0] for schema in library.schemas] == ["nms", "qnms"]
    assert "torchvision.half" not in sys.modules


def test_declarations_are_kept_alive(
    declared: list[Declared], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, MISSING, ModuleType("torchvision"))
    import_torchvision()
    assert declared == compat._DECLARED


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA driver is too old"), ModuleNotFoundError("No module")]
)
def test_another_error_is_passed_on_and_nothing_is_declared(
    declared: list[Declared], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    answer(monkeypatch, error)
    with pytest.raises(type(error), match=str(error)):
        import_torchvision()
    assert declared == []
