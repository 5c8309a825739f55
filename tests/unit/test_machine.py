"""The machine: its device, and the precision it works in there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from nofe_lab import InvalidInput
from nofe_lab.machine import Machine, autocast, cores

CPU = torch.device("cpu")


def with_cpu(monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)


def with_gpus(
    monkeypatch: pytest.MonkeyPatch, cuda: int = 0, mps: bool = False, bf16: bool = False
) -> None:
    """A machine with so many CUDA devices, which have bf16 or only emulate it."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: cuda)
    monkeypatch.setattr(
        "torch.cuda.is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation
    )
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)


@pytest.mark.parametrize(
    ("avx512", "amx", "precision"),
    [
        (False, False, "fp32"),
        (True, False, "bf16"),
        (False, True, "bf16"),
        (True, True, "bf16"),
    ],
)
def test_a_cpu_works_in_bf16_where_it_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool, precision: str
) -> None:
    with_cpu(monkeypatch, avx512, amx)
    assert Machine.pick("cpu") == Machine(CPU, precision)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("able", [False, True])
def test_a_precision_that_is_asked_for_is_taken(
    monkeypatch: pytest.MonkeyPatch, able: bool, precision: str
) -> None:
    with_cpu(monkeypatch, able, able)
    assert Machine.pick("cpu", precision) == Machine(CPU, precision)


@pytest.mark.parametrize(("bf16", "precision"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_that_only_emulates_bf16_works_in_fp32(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, precision: str
) -> None:
    with_gpus(monkeypatch, cuda=2, bf16=bf16)
    for device in ("cuda", "cuda:1"):
        assert Machine.pick(device) == Machine(torch.device(device), precision)


@pytest.mark.parametrize(
    ("cuda", "mps", "device", "precision"),
    [
        (0, False, "cpu", "bf16"),
        (0, True, "mps", "fp32"),
        (1, False, "cuda", "bf16"),
        (1, True, "cuda", "bf16"),
    ],
)
def test_the_fastest_device_is_picked(
    monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, device: str, precision: str
) -> None:
    with_cpu(monkeypatch, avx512=True, amx=True)
    with_gpus(monkeypatch, cuda, mps, bf16=True)
    assert Machine.pick() == Machine(torch.device(device), precision)
    assert Machine.pick("cpu").device == CPU


@pytest.mark.parametrize(
    ("cuda", "mps", "device", "sentence"),
    [
        (0, False, "cuda", r"device 'cuda' is unknown.*; accepted: 'auto', 'cpu'\."),
        (0, True, "gpu", r"device 'gpu' is unknown.*; accepted: 'auto', 'mps', 'cpu'\."),
        (2, False, "cuda:2", r"accepted: 'auto', 'cuda', 'cuda:0', 'cuda:1', 'cpu'\."),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, device: str, sentence: str
) -> None:
    with_gpus(monkeypatch, cuda, mps)
    with pytest.raises(InvalidInput, match=sentence):
        Machine.pick(device)


@pytest.mark.parametrize("precision", ["fp16", "float32", "", None, 32])
def test_an_unknown_precision_is_refused(precision: str) -> None:
    sentence = f"precision {precision!r} is unknown.*; accepted: 'auto', 'bf16', 'fp32'"
    with pytest.raises(InvalidInput, match=sentence):
        Machine.pick("cpu", precision)


def test_a_machine_is_written_as_its_device_and_its_precision() -> None:
    assert str(Machine.pick("cpu", "bf16")) == "cpu in bf16"
    assert str(Machine(torch.device("cuda:1"), "fp32")) == "cuda:1 in fp32"
    assert str(Machine(CPU)) == "cpu in fp32"


def test_a_cpu_s_name_says_how_many_cores_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    assert Machine(CPU).name.endswith(" (7 cores)")
    assert Machine(torch.device("mps")).name == f"mps of {Machine(CPU).name}"


@pytest.mark.parametrize(
    ("precision", "product"), [("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_products_have_the_precision_and_sums_are_exact(
    precision: str, product: torch.dtype
) -> None:
    x = torch.full((2, 2), 1 + 2.0**-12)
    with autocast(CPU, precision):
        assert (x @ x).dtype == product
        assert torch.equal(x + x, 2 * x)
        assert (x + x).dtype == torch.float32


def test_a_gpu_is_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert Machine.pick("gpu", "fp32").device == torch.device("cuda")
    assert Machine.pick("gpu:1", "fp32").device == torch.device("cuda:1")
    with pytest.raises(InvalidInput, match="device 'gpu:7' is unknown"):
        Machine.pick("gpu:7", "fp32")


@pytest.mark.parametrize(("limit", "found"), [("max 100000", 8), ("250000 100000", 2), ("1 9", 1)])
def test_cores_are_those_that_the_process_and_its_container_may_use(
    limit: str, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(Path, "read_text", lambda _: limit)
    assert cores() == found
