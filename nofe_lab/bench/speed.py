"""The benchmark: what a network of experts costs, against what it should cost.

Each comparison times two ways of doing one thing, in turn on one machine and in one precision, and
divides their medians.  A slow or busy machine changes the seconds but hardly the ratio.  We compare
with what a user would have otherwise: a loop over the branches, the training loop of the popular
CIFAR repositories, and the fastest matrix product of the machine.

Images and weights are random; accuracy is not measured.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torch.utils.flop_counter import FlopCounterMode

from nofe_lab.bench.targets import NETWORKS, against_targets
from nofe_lab.compat import import_torchvision
from nofe_lab.config import one_of, whole_number
from nofe_lab.data import Batches, Dataset, Resident, Source
from nofe_lab.data.preprocess import ImageNetwork, Preprocess
from nofe_lab.files import writable_path
from nofe_lab.log import log, write_line
from nofe_lab.machine import Machine, autocast, exact_float32, median_seconds
from nofe_lab.networks import CNN, Backbone, NofE, backbone
from nofe_lab.networks.backbone import expert_macs, matching_width
from nofe_lab.networks.counting import count_macs
from nofe_lab.recipes import Recipe
from nofe_lab.runs import code_revision
from nofe_lab.specialties import Specialties, assign
from nofe_lab.training.loop import fit, sgd
from nofe_lab.training.tasks import Classification

C, EXPERTS = 100, 10
"""Number of classes, and of experts unless said otherwise."""

MATRIX_SIDES, PRODUCTS = (512, 1024, 2048, 4096), 4
"""Sides of the square matrices whose products give the machine's peak (the fastest counts), and how
many products are timed in a row."""

Side = Callable[[], object]


@dataclass
class Bench:
    """All comparisons on one machine.

    batch: images a step.  repeats: of every measurement, after one that warms up.
    Raises InvalidInput for unknown networks and numbers out of range.
    """

    machine: Machine
    networks: Sequence[str] = NETWORKS
    batch: int = 128
    repeats: int = 7
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in self.networks:
            one_of("network", name, NETWORKS)
        whole_number("batch", self.batch, 2)
        whole_number("repeats", self.repeats, 1)

    def run(self) -> pd.DataFrame:
        """Make all comparisons, one row each; each is printed as soon as it is done."""
        if self.machine.device.type == "cuda":
            exact_float32()
        self.imports()
        self.assignments()
        for name in self.networks:
            network = backbone(name)
            self.branches(network)
            self.steps(network)
            self.epochs(network)
        return self.table

    @property
    def table(self) -> pd.DataFrame:
        """The rows measured so far."""
        return pd.DataFrame(self.rows)

    # --- comparisons

    def branches(self, network: Backbone) -> None:
        """Time the branches alone, forward and backward: in groups and as a loop."""
        macs = expert_macs(network, C, EXPERTS)
        per_mac = {}
        for K in (EXPERTS, 50, 5):
            width = 1.0 if K == EXPERTS else matching_width(network, C, EXPERTS, branches=K)
            nofe = self._nofe(network, K, width)
            features = self._features(network, nofe)
            ours, theirs = self._in_turn(
                partial(self._through, nofe, features, True),
                partial(self._through, nofe, features, False),
            )
            per_mac[K] = ours / expert_macs(network, C, K, width)
            name = "branches" if K == EXPERTS else f"branches at K = {K}"
            self._add(name, network, K, theirs / ours, ours, theirs, f"branch_width {width:g}")
        self._add(
            "branches, K = 50 to 5",
            network,
            50,
            per_mac[50] / per_mac[5],
            per_mac[50] * macs,
            per_mac[5] * macs,
            "seconds for the arithmetic of ten full experts",
        )

    def steps(self, network: Backbone) -> None:
        """Time whole training steps: the NofE in groups and as a loop, the base CNN, the peak."""
        base = self._ready(CNN(network, C, "kaiming", 0))
        nofe = self._nofe(network, EXPERTS)
        shape = network.input_shape
        images = self._pixels(shape, self.batch).float().to(memory_format=torch.channels_last)
        labels = torch.arange(self.batch, device=self.machine.device) % C
        step = self._step(nofe, images, labels)
        base_step = self._step(base, images, labels)
        loop_flops, base_flops = flops_of(step), flops_of(base_step)
        trunk = count_macs(nofe.trunk, shape) / count_macs(nofe, shape)

        def grouped() -> None:
            nofe.grouped = True
            step()
            nofe.grouped = False

        ours, loop, base_seconds, *products = self._in_turn(
            grouped, step, base_step, *(self._product(side) for side in MATRIX_SIDES)
        )
        operations = (2 * PRODUCTS * side**3 for side in MATRIX_SIDES)
        peak = max(n / s for n, s in zip(operations, products, strict=True))
        self._add(
            "step",
            network,
            EXPERTS,
            loop / ours,
            ours,
            loop,
            f"trunk {trunk:.2f} of the arithmetic: at most {1 / trunk:.2f} if branches were free",
        )
        arithmetic = loop_flops / base_flops
        self._add(
            "step against base",
            network,
            EXPERTS,
            ours / base_seconds / arithmetic,
            ours,
            base_seconds,
            f"{arithmetic:.3f} times the arithmetic",
        )
        for name, seconds, flops in (
            ("NofE step against peak", ours, loop_flops),
            ("base step against peak", base_seconds, base_flops),
        ):
            K = EXPERTS if name.startswith("NofE") else None
            note = f"{flops / 1e9:.1f} GFLOP at {peak / 1e9:.0f} GFLOP/s"
            self._add(name, network, K, flops / peak / seconds, seconds, flops / peak, note)

    def epochs(self, network: Backbone) -> None:
        """Time epochs of the base CNN: ours, the usual loop around a DataLoader, bare steps."""
        base = CNN(network, C, "kaiming", 0)
        steps = min(max(round(5e8 / count_macs(base, network.input_shape)), 3), 40)
        steps = max(steps, math.ceil(C / self.batch))  # an image of every class
        data = self._data(steps)
        window = network.input_shape[1:]
        crops = window == data.image_shape[1:]
        recipe = Recipe(1, 1e-4, batch_size=self.batch, flips=True, padding=4 if crops else 0)
        preprocess = Preprocess.measure(data, "standardised", window)
        model = ImageNetwork(preprocess, base, self.machine.precision).to(self.machine.device)
        batches = Batches(data.train, recipe, 0, self.machine.device, window)
        task = Classification(recipe, data.val)

        def ours() -> None:
            fit(model, network.parameter_groups(model, recipe), task, batches, recipe)

        usual = _UsualLoop(network, data, recipe, preprocess, self.machine)
        batch = next(batches.epoch(0))
        inputs = preprocess(batch.images, batch.drawn)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        step = self._step(self._ready(CNN(network, C, "kaiming", 0)), inputs, batch.labels)

        def bare() -> None:
            for _ in range(steps):
                step()

        epoch, theirs, only_steps = self._in_turn(ours, usual.epoch, bare)
        count = f"{steps} steps, {steps * self.batch / epoch:.0f} images/s"
        self._add("epoch", network, None, theirs / epoch, epoch, theirs, count)
        self._add("overhead", network, None, 1 - only_steps / epoch, epoch, only_steps, count)

    def profile(self, network: Backbone) -> pd.DataFrame:
        """Profile one step of the NofE: one row an operation, most expensive first.

        share: of the step's time on the device.  The profiler slows the step down a little.
        """
        nofe = self._nofe(network, EXPERTS)
        nofe.grouped = True
        images = self._pixels(network.input_shape, self.batch).float()
        labels = torch.arange(self.batch, device=self.machine.device) % C
        inputs = images.to(memory_format=torch.channels_last)
        step = self._step(nofe, inputs, labels)
        step()
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints into the notebook
        with torch.profiler.profile() as profiler:
            step()
            self.machine.synchronize()
        on_gpu = self.machine.device.type == "cuda"
        kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
        rows = [
            {
                "operation": event.key,
                "calls": event.count,
                "ms": (event.self_device_time_total if on_gpu else event.self_cpu_time_total)
                / 1000,
            }
            for event in profiler.key_averages()
            # kernels of a GPU are listed twice: also under the operation that launched them
            if event.device_type == kind and not event.is_user_annotation
        ]
        table = pd.DataFrame(rows).sort_values("ms", ascending=False, ignore_index=True)
        return table.assign(share=table["ms"] / table["ms"].sum())

    def assignments(self) -> None:
        """Time the exact balanced map, for as many classes as in ImageNet and in the slowest case:
        all classes prefer the first specialty and are indifferent to the others."""
        for classes, K in ((1000, 100), (21_841, 200)):
            affinity = np.random.default_rng(0).random((classes, K)) * 1e-3
            affinity[:, 0] += 0.5
            current = np.arange(classes) % K
            started = time.perf_counter()
            assign("optimal", affinity, current)
            seconds = time.perf_counter() - started
            note = f"{classes} classes; the slowest case known"
            self._add("assignment", None, K, math.nan, seconds, math.nan, note)

    def imports(self) -> None:
        """Time ``import nofe_lab`` after ``import torch``, against the latter."""
        code = (
            "import time; a = time.perf_counter(); import torch; b = time.perf_counter(); "
            "import nofe_lab; print(time.perf_counter() - b, b - a)"
        )
        each = []
        for _ in range(self.repeats):
            command = [sys.executable, "-c", code]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            each.append([float(word) for word in said.split()])
        ours, theirs = (statistics.median(side) for side in zip(*each, strict=True))
        self._add("import", None, None, ours / theirs, ours, theirs, "against import torch")

    # --- parts of the comparisons

    def _in_turn(self, *sides: Side) -> list[float]:
        return median_seconds(self.machine, self.repeats, sides)

    def _add(
        self,
        name: str,
        network: Backbone | None,
        K: int | None,
        ratio: float,
        ours: float,
        theirs: float,
        note: str,
    ) -> None:
        row = {
            "name": name,
            "network": network.name if network is not None else "",
            "K": K,
            "batch": self.batch if network is not None else None,
            "precision": self.machine.precision,
            "device": str(self.machine.device),
            "ratio": ratio,
            "ours_s": ours,
            "theirs_s": theirs,
            "note": note,
            "repeats": 1 if name == "assignment" else self.repeats,
            "hardware": self.machine.name,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "revision": code_revision(),
            "date": time.strftime("%Y-%m-%d"),
        }
        self.rows.append(row)
        log.info(
            f"{name:24}{row['network']:15}{ratio:7.3f}  {ours:8.4f} s  {theirs:8.4f} s  {note}"
        )

    def _ready(self, network: Any) -> Any:
        """The network on the device in training mode, with ImageNetwork's memory layout."""
        return network.to(self.machine.device, memory_format=torch.channels_last).train()

    def _nofe(self, network: Backbone, K: int, width: float = 1.0) -> Any:
        specialties = Specialties.random(tuple(map(str, range(C))), K, 0)
        return self._ready(NofE(network, specialties, "kaiming", 0, width))

    def _pixels(self, shape: tuple[int, ...], n: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator)
        return pixels.to(self.machine.device)

    def _features(self, network: Backbone, nofe: NofE) -> Tensor:
        """The branches' input for a batch of standardised noise."""
        images = self._pixels(network.input_shape, self.batch).float() / 128 - 1
        with torch.no_grad():
            features = nofe.shared(nofe.trunk(images.to(memory_format=torch.channels_last)))
        return features.detach().requires_grad_()

    def _through(self, nofe: NofE, features: Tensor, grouped: bool) -> None:
        nofe.grouped = grouped
        with autocast(self.machine.device, self.machine.precision):
            logits = nofe.experts(features)
        logits.float().logsumexp(1).sum().backward()
        nofe.zero_grad()
        features.grad = None

    def _step(self, network: nn.Module, images: Tensor, labels: Tensor) -> Side:
        """A function that does one training step and nothing else."""
        recipe = Recipe(1, 1e-6)
        groups = [{"params": list(network.parameters())}]
        optimiser = sgd(groups, recipe, self.machine.device)

        def step() -> None:
            with autocast(self.machine.device, self.machine.precision):
                logits = network(images)
            cross_entropy(logits.float(), labels).backward()
            optimiser.step()
            optimiser.zero_grad()

        return step

    def _product(self, side: int) -> Side:
        dtype = torch.bfloat16 if self.machine.precision == "bf16" else torch.float32
        one, other = torch.randn(2, side, side, device=self.machine.device, dtype=dtype)
        return lambda: [one @ other for _ in range(PRODUCTS)]

    def _data(self, steps: int) -> Dataset:
        images = self._pixels((3, 32, 32), self.batch * steps).cpu()
        split = Resident(images, torch.arange(len(images)) % C)
        return Dataset("noise", tuple(map(str, range(C))), split, split[:0], split[:0])


class _Pictures(TorchDataset[tuple[Any, int]]):
    """Images one by one, as torchvision's CIFAR data sets return them."""

    def __init__(self, split: Source, transform: Callable[[Image.Image], Tensor]) -> None:
        images = split.sample(torch.arange(len(split)))
        self.pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = split.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


class _UsualLoop:
    """The loop of the popular CIFAR repositories: torchvision's transforms, a DataLoader with two
    workers, and a network in torch's default memory layout."""

    def __init__(
        self,
        network: Backbone,
        data: Dataset,
        recipe: Recipe,
        preprocess: Preprocess,
        machine: Machine,
    ) -> None:
        self.machine = machine
        self.network = CNN(network, C, "kaiming", 0).to(machine.device).train()
        self.optimiser = torch.optim.SGD(
            self.network.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum
        )
        import_torchvision()
        from torchvision import transforms

        mean = preprocess.mean.flatten() / 255
        deviation = 1 / preprocess.scale.flatten() / 255
        transform = transforms.Compose(
            [
                transforms.RandomCrop(network.input_shape[1:], padding=recipe.padding or None),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean.tolist(), deviation.tolist()),
            ]
        )
        self.loader = DataLoader(
            _Pictures(data.train, transform),
            batch_size=recipe.batch_size,
            shuffle=True,
            num_workers=2,
            drop_last=True,
            persistent_workers=True,
            pin_memory=machine.device.type == "cuda",
        )

    def epoch(self) -> None:
        """Train for one pass over the images."""
        device = self.machine.device
        loss_sum, correct = 0.0, 0
        for images, labels in self.loader:
            images, labels = images.to(device), labels.to(device)
            self.optimiser.zero_grad()
            with autocast(device, self.machine.precision):
                outputs = self.network(images)
                loss = cross_entropy(outputs, labels)
            loss.backward()
            self.optimiser.step()
            loss_sum += loss.item()
            correct += (outputs.argmax(1) == labels).sum().item()


def flops_of(step: Side) -> int:
    """Floating-point operations of one training step, two a multiply-accumulate, by torch."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def measure(bench: Bench, output: str | None, command: str) -> None:
    """Run a benchmark and print its targets.

    output: a CSV file for the table, written even if the benchmark is interrupted; its first line
    is `command`.
    """
    target = writable_path("output", output) if output is not None else None
    try:
        write_line(against_targets(bench.run()).to_string(index=False), sys.stdout)
    finally:
        if target is not None and bench.rows:
            text = f"# {command}\n{bench.table.to_csv(index=False)}"
            target.write_text(text, "utf-8")
