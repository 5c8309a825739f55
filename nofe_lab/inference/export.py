"""Trained networks as files for other programs: ONNX and torch.export, checked when made.

A file takes raw images, uint8 [N, channels, height, width] for any N, and prepares them itself.
Its outputs are those of the model's `outputs`; class names and specialties are in its metadata.
"""

from __future__ import annotations

import copy
import io
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nofe_lab.config import InvalidInput, first_line, text
from nofe_lab.files import writable_path, write_file
from nofe_lab.runs import Run

OPSET = 20
"""Of ONNX; from 19 on, average pooling knows windows that reach over the edge."""

LOGITS, PROBABILITIES = 1e-3, 1e-4
"""Largest differences from torch: of logits as a share of the largest, and of probabilities."""

SMALLEST = 1e-6
"""The largest logit is taken to be at least this, since it may be 0."""

MOST_BYTES = 2**31 - 2**24
"""Of the weights in one ONNX file, with room for the rest of it."""

BATCHES = (1, 2, 5)
"""Numbers of images that a file is checked with."""

METADATA = "nofe_lab.json"
"""The metadata in a file of torch.export."""


class Exportable(Protocol):
    """A trained network that can be written as a file: a torch module of raw images."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that it takes."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """What a file says of it; lists and objects as JSON."""

    @property
    def outputs(self) -> Callable[..., dict[str, Tensor]]:
        """Gives what a file does for images uint8 [N, c, h, w], by name; first logits [N, n]."""

    def state_dict(self) -> dict[str, Tensor]:
        """Its weights."""


def metadata_of(
    run: Run, title: str, image_shape: tuple[int, int, int], names: Sequence[str]
) -> dict[str, str]:
    """What every file says; names: of the outputs."""
    return {
        "title": title,
        "run": run.id,
        "nofe_lab": version("nofe_lab"),
        "input": f"images uint8 [N, {', '.join(map(str, image_shape))}], RGB, 0 to 255",
        "class_names": json.dumps(names, ensure_ascii=False),
    }


Answer = Callable[[Tensor], tuple[NDArray[np.float32], ...]]


class Exported(NamedTuple):
    """A file that was written, and its largest differences from the network in torch."""

    path: Path
    bytes: int
    seconds: float
    """Of making and checking the file."""
    logits: float
    """As a share of the largest logit."""
    probabilities: float


class _Graph(nn.Module):
    """images uint8 [N, c, h, w] -> what a model has to say, as a tuple of tensors."""

    def __init__(self, model: Exportable, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.model: Any = copy.deepcopy(model).cpu().eval()  # type: ignore[attr-defined]
        self.model.precision = "fp32"
        self.options = dict(options)
        self.names = tuple(self.model.outputs(_images(model.image_shape, 1), **options))
        """Of the outputs."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.outputs(images, **self.options).values())


def exported_path(path: Path | str) -> Path:
    """The path of a file that is to be written.  Raises InvalidInput if it cannot be."""
    text("the file", path)
    if Path(path).suffix.lower() not in (".onnx", ".pt2"):
        raise InvalidInput(f"an exported file ends in .onnx or .pt2; got {str(path)!r}.")
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if not find_spec(name)]
    if missing and Path(path).suffix.lower() == ".onnx":
        raise InvalidInput(
            f"ONNX files need {', '.join(missing)}: pip install 'nofe_lab[export]'; '.pt2' files "
            "need nothing more."
        )
    return writable_path("the file", path).resolve()


def export(model: Exportable, path: Path | str, **options: Any) -> Exported:
    """Write a trained network as one file: ``.onnx`` or, for torch.export, ``.pt2``.

    options: of the model's `outputs`; the metadata tells them.
    The file is checked before it is written: onnxruntime, or torch with what was read back, must
    give what the network gives.  Raises InvalidInput if it does not, or the network cannot be
    exported, or onnx, onnxscript and onnxruntime are not installed.
    """
    target, title = exported_path(path), model.metadata["title"]
    is_onnx = target.suffix.lower() == ".onnx"
    size = sum(4 * tensor.numel() for tensor in model.state_dict().values())
    if is_onnx and size > MOST_BYTES:
        raise InvalidInput(
            f"{title} has {size / 1e9:.1f} GB of weights, one ONNX file holds "
            f"{MOST_BYTES / 1e9:.1f}; accepted: a '.pt2' file."
        )
    began = time.perf_counter()
    about = {**model.metadata, **{name: str(value) for name, value in options.items()}}
    write = _onnx if is_onnx else _pt2
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporters' own, about their own code
        try:
            graph = _Graph(model, options)
            content, answer = write(graph, _images(model.image_shape, 2), about)
            differences = _checked(graph, answer, title)
        except InvalidInput:
            raise
        except Exception as error:  # exporters and runtimes raise almost anything
            raise InvalidInput(
                f"{title} cannot be exported: {first_line(error).rstrip('.')}; accepted: networks "
                "of which torch.export makes one graph for any number of images."
            ) from error
    write_file(target, content)
    return Exported(target, len(content), time.perf_counter() - began, *differences)


def _onnx(graph: _Graph, images: Tensor, about: Mapping[str, str]) -> tuple[bytes, Answer]:
    """The content of an ONNX file, and what onnxruntime answers with it."""
    import onnxruntime

    program = torch.onnx.export(
        _exported(graph, images),
        input_names=["images"],
        output_names=list(graph.names),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    for node in program.model.graph.all_nodes():  # where the code lies on this machine
        node.metadata_props.clear()
    program.model.metadata_props.update(about)
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda images: tuple(session.run(None, {"images": images.numpy()}))


def _pt2(graph: _Graph, images: Tensor, about: Mapping[str, str]) -> tuple[bytes, Answer]:
    """The content of a file of torch.export, and what torch answers with it."""
    packed = io.BytesIO()
    extra = {METADATA: json.dumps(dict(about), ensure_ascii=False)}
    torch.export.save(_exported(graph, images), packed, extra_files=extra)
    read = torch.export.load(io.BytesIO(packed.getvalue())).module()
    return packed.getvalue(), lambda images: tuple(each.numpy() for each in read(images))


def _exported(graph: _Graph, images: Tensor) -> torch.export.ExportedProgram:
    any_number = {"images": {0: torch.export.Dim("N", min=1)}}
    program = torch.export.export(graph, (images,), dynamic_shapes=any_number)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # where the code lies on this machine
    return program


def _images(image_shape: tuple[int, int, int], n: int) -> Tensor:
    """n images of blocks of every brightness: uint8 [n, c, h, w]."""
    channels, height, width = image_shape
    rng = np.random.default_rng(n)
    blocks = rng.integers(256, size=(n, channels, 8, 8), dtype=np.uint8)
    rows, columns = (np.arange(side) * 8 // side for side in (height, width))
    return torch.from_numpy(blocks[:, :, rows][:, :, :, columns])


def _checked(graph: _Graph, answer: Answer, title: str) -> tuple[float, float]:
    """How far a file's answers are from the network's; raises InvalidInput if it is too far."""
    largest = dict.fromkeys(graph.names, 0.0)
    for n in BATCHES:
        images = _images(graph.model.image_shape, n)
        expected = dict(zip(graph.names, graph(images), strict=True))
        for (name, here), there in zip(expected.items(), answer(images), strict=True):
            apart, limit = float(np.abs(here.numpy() - there).max()), PROBABILITIES
            if name != "probabilities":
                # a margin is a difference of sums of logits: it is as exact as they are
                scale = max(float(expected[each].abs().max()) for each in {name, "logits"})
                apart, limit = apart / max(scale, SMALLEST), LOGITS
            if not apart <= limit:
                raise InvalidInput(
                    f"{title} was not written: the {name} of the file differ from those of the "
                    f"network by {apart:.2g}, for {n} images; accepted: up to {limit:g}."
                )
            largest[name] = max(largest[name], apart)
    return largest["logits"], largest["probabilities"]
