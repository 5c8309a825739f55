"""One `backbone(...)` for every CNN: the published six, torchvision's, timm's, or your own."""

from __future__ import annotations

import copy
import difflib
import re
import secrets
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized
from torch.optim.swa_utils import AveragedModel

from nofe_lab.compat import import_torchvision
from nofe_lab.config import (
    PRESETS,
    InvalidInput,
    first_line,
    one_of,
    shown,
)
from nofe_lab.files import (
    UnreadableFile,
    all_finite,
    as_written,
    check_regular,
    digest_of_tensors,
    memory,
    read_tensors,
    user_path,
)
from nofe_lab.networks.backbone import Backbone, never_again, seeded
from nofe_lab.networks.digests import CannotDigest, digest_of
from nofe_lab.networks.paper import PAPER
from nofe_lab.networks.surgery import SplitNetwork
from nofe_lab.networks.widths import is_plain
from nofe_lab.recipes import Preset, strong_preset

Network = str | Backbone | nn.Module | Callable[[], nn.Module]
"""What `backbone` accepts."""

TRANSFORMERS = ("vit_", "swin_", "maxvit_")
"""How the names of torchvision's classifiers that are no CNNs begin."""

AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}
"""torchvision's networks with further classifiers, which only training would use."""

FORMER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])(?=\.)")
"""How names in torchvision's files of densenets differ: ``norm.1`` is now ``norm1``."""


def backbone(
    network: Network,
    *,
    split: str | None = None,
    stem: str = "auto",
    weights: str | Path | None = None,
) -> Backbone:
    """A CNN as a backbone: what a base CNN, a generalist and a network of experts are made of.

    network: a published network (``alexnet_quick`` ...), a classification CNN of
    torchvision.models (``resnet18``), ``timm:NAME``, or your own: a torch module, which brings its
    weights along, or a class or function that makes one, which begins afresh with every seed.  A
    `Backbone` is returned as it is.

    The others are for all but the published networks and Backbones, which have their own parts:
    split: the module where the trunk ends and the branches begin; None chooses one and says so.
    stem: ``small`` keeps the size of small images in the first layers, ``original`` leaves these as
    they are, ``auto`` is small where images of less than 64 pixels would be shrunk away otherwise,
    unless weights are given.
    weights: pretrained ones for trunk and head, from a local file (.safetensors, or a state dict
    saved by torch), or by a name of torchvision (``IMAGENET1K_V1``) or timm (``a1_in1k``), or
    ``DEFAULT``; these two are downloaded.

    >>> backbone("resnet18", split="layer4").make_branch(5, width=0.25)

    Raises InvalidInput with the nearest names if network or split is unknown, and if the network
    cannot be split, has no classifier, or the weights are not its own.
    """
    if isinstance(network, type) and issubclass(network, Backbone):
        network = network()
    if isinstance(network, Backbone) or (isinstance(network, str) and network in PAPER):
        given = {"split": split, "weights": weights, "stem": None if stem == "auto" else stem}
        for option, value in given.items():
            if value is not None:
                name = network if isinstance(network, str) else network.name
                raise InvalidInput(
                    f"{option} is for networks of torchvision, timm or your own, which are split; "
                    f"{name!r} has its own parts; got {value!r}."
                )
        return network if isinstance(network, Backbone) else PAPER[network]()
    network = _unwrapped(str(network) if isinstance(network, Path) else network)
    if not isinstance(network, (str, nn.Module)) and not callable(network):
        raise InvalidInput(
            f"backbone must be a name, a torch module, or what makes one; got {shown(network)}."
        )
    if isinstance(network, nn.Module):
        _check_layers(type(network).__name__, network)
    name, build, owner = _maker(network, weights)
    own, said = "", []
    if owner in ("module", "function"):
        with seeded(0):
            begun = build()
        _check_layers(name, begun)
        _check_tensors(name, begun)
        try:
            own = digest_of(begun)
        except CannotDigest as error:
            own = secrets.token_hex(8)
            said.append(never_again(str(error)))
    made = SplitNetwork(name, build, split=split, stem=stem, own=own)
    if weights is not None:
        made.weights, more = _weights(made, owner, weights)
        said += more
    elif isinstance(network, nn.Module):
        made.weights = _of_module(network, own)
    made.said = tuple(said)
    return made


def _check_layers(name: str, network: nn.Module) -> None:
    """Refuse layers whose weights are not there yet, or are where nobody would find them."""
    for path, layer in network.named_modules():
        where = f"the module {path!r}" if path else "the network"
        if isinstance(layer, torch.jit.ScriptModule):
            raise InvalidInput(
                f"backbone {name!r} cannot be split: {where} is compiled by TorchScript, which "
                "hides its weights; accepted: the module as it was before torch.jit."
            )
        if "forward" in vars(layer):
            raise InvalidInput(
                f"backbone {name!r} cannot be split: {where} has a forward of its own that is not "
                "its class's, which would go on using this object's weights; accepted: a class "
                "with that forward."
            )
        tensors = (*layer._parameters.values(), *layer._buffers.values())
        if any(isinstance(t, Tensor) and t.is_meta for t in tensors):
            raise InvalidInput(
                f"backbone {name!r} has no weights: {where} is on torch's meta device; accepted: a "
                "network with numbers."
            )
        if any(isinstance(t, (UninitializedParameter, UninitializedBuffer)) for t in tensors):
            raise InvalidInput(
                f"backbone {name!r} has layers without weights, which the first images would give "
                f"them ({path or 'its own parameters'}); accepted: a network that has been run "
                "once on an image, or layers that are not lazy."
            )


def _check_tensors(name: str, network: nn.Module) -> None:
    """Refuse a network whose state holds what is no plain tensor, as quantised ones do."""
    for key, value in network.state_dict().items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
            raise InvalidInput(
                f"backbone {name!r} cannot be trained: {key!r} is no plain tensor "
                f"({type(value).__name__}); accepted: a network before it was quantised or packed."
            )


def _unwrapped(network: Any) -> Any:
    """The network inside what trains several copies of one, averages it, or compiles it."""
    inside = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
    while isinstance(network, nn.Module):
        if isinstance(network, inside):
            network = network.module
        elif hasattr(network, "_orig_mod"):
            network = network._orig_mod
        else:
            break
    return network


def preset(name: str, backbone: Backbone) -> Preset:
    """The recipes called `name` for a backbone: ``quick``, ``paper`` or ``strong``.

    Raises InvalidInput if the name is unknown, or ``paper`` and nothing was published.
    """
    if one_of("preset", name, PRESETS) == "quick":
        return backbone.quick_preset()
    if name == "strong":
        return strong_preset(backbone.quick_preset())
    try:
        return backbone.published_preset()
    except NotImplementedError:
        raise InvalidInput(
            f"preset 'paper' is for the published networks ({', '.join(PAPER)}); "
            f"{backbone.name!r} accepts 'quick' and 'strong'."
        ) from None


def _maker(network: Any, weights: Any) -> tuple[str, Callable[[], nn.Module], str]:
    """A network's name, a function that makes it, and whose it is."""
    if isinstance(network, nn.Module):
        try:
            kept = copy.deepcopy(network)
        except (RuntimeError, TypeError) as error:
            raise InvalidInput(
                f"backbone {type(network).__name__!r} cannot be copied ({first_line(error)}); "
                "accepted: a network whose weights are its own parameters: prune.remove and "
                "remove_weight_norm make them so."
            ) from error
        return type(network).__name__, partial(_begun_anew, kept), "module"
    if callable(network):
        with seeded(0):
            try:
                made = network()
            except Exception as error:  # whatever a maker of a user's own may raise
                if isinstance(error, InvalidInput):
                    raise
                raise InvalidInput(
                    f"backbone {network!r} must make a torch module when it is called without "
                    f"arguments ({type(error).__name__}: {first_line(error)})."
                ) from error
        if not isinstance(made, nn.Module):
            raise InvalidInput(
                f"backbone {network!r} must make a torch module; it made {type(made).__name__}."
            )
        return type(made).__name__, network, "function"
    if isinstance(network, str) and network.startswith("timm:"):
        return network, _timm_maker(network.removeprefix("timm:")), "timm"
    if network in torchvision_names():
        from torchvision.models import get_model

        own = {}
        if network in AUXILIARY:  # torchvision's weights of these expect pixels of another scale
            named = weights is not None and not _is_file(weights)
            own = {"aux_logits": False, "init_weights": True, "transform_input": named}
        return network, partial(get_model, network, weights=None, **own), "torchvision"
    names = [*PAPER, *torchvision_names()]
    one_of("backbone", network, names, also="'timm:NAME'")
    raise AssertionError("unreachable: one_of refuses every other name")


def _begun_anew(network: nn.Module) -> nn.Module:
    """A copy with fresh weights: each layer's own initialisation, or Gaussian as those it has."""
    made = copy.deepcopy(network).cpu()
    with torch.no_grad():
        for layer in made.modules():
            if is_parametrized(layer):
                _redraw_parametrised(layer)
                continue
            # a layer whose weights are made of others has no use for its own initialisation
            if callable(reset := getattr(layer, "reset_parameters", None)) and is_plain(layer):
                reset()
                continue
            for parameter in layer.parameters(recurse=False):
                if parameter.ndim > 1:
                    parameter.normal_(float(parameter.mean()), float(parameter.std(correction=0)))
    return made


def _redraw_parametrised(layer: nn.Module) -> None:
    """Assign fresh weights to a layer that computes them from others, which then are fresh too."""
    for name in layer.parametrizations:  # type: ignore[union-attr, attr-defined]
        old = getattr(layer, name)
        fresh = torch.empty_like(old).normal_(float(old.mean()), float(old.std(correction=0)))
        try:
            setattr(layer, name, fresh)
        except (NotImplementedError, RuntimeError):  # a parametrisation without an inverse
            for parameter in layer.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(float(parameter.mean()), float(parameter.std(correction=0)))


@cache
def torchvision_names() -> tuple[str, ...]:
    """The classification CNNs of torchvision.models."""
    import_torchvision()
    from torchvision import models

    names = models.list_models(module=models)
    return tuple(name for name in names if not name.startswith(TRANSFORMERS))


def _import_timm() -> Any:
    import_torchvision()
    try:
        import timm
    except ImportError as error:
        raise InvalidInput(f"'timm:NAME' needs timm ({error}): pip install timm.") from error
    return timm


def _timm_maker(name: str) -> Callable[[], nn.Module]:
    timm = _import_timm()
    if "." in name:
        architecture, _, tag = name.partition(".")
        raise InvalidInput(
            f"backbone 'timm:{name}' names weights as well: take backbone 'timm:{architecture}' "
            f"with weights {tag!r}."
        )
    if not timm.is_model(name):
        names = timm.list_models()
        nearest = difflib.get_close_matches(name, names, n=5) or names[:5]
        raise InvalidInput(
            f"backbone 'timm:{name}' is unknown; the nearest are {', '.join(nearest)}; "
            f"timm.list_models() lists all {len(names)}."
        )
    return partial(timm.create_model, name, pretrained=False)


# --- pretrained weights: a state dict, and a digest of it for the run's identity


def _of_module(module: nn.Module, own: str) -> tuple[Mapping[str, Tensor], str]:
    state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    for name, tensor in state.items():
        if not all_finite(tensor):
            raise InvalidInput(
                f"backbone {type(module).__name__!r} cannot be trained on: {name!r} holds values "
                "that are not finite."
            )
    return state, f"{own} {digest_of_tensors(state)}"


def _weights(
    made: SplitNetwork, owner: str, weights: str | Path
) -> tuple[tuple[Mapping[str, Tensor], str], list[str]]:
    said: list[str] = []
    if _is_file(weights):
        try:
            state, said = _network_in(_read(user_path(weights)), made, user_path(weights))
        except InvalidInput as error:
            raise InvalidInput(as_written(str(error), weights)) from error
    elif owner == "torchvision":
        state = _torchvision_weights(made.name, str(weights))
    elif owner == "timm":
        state = _timm_weights(made.name.removeprefix("timm:"), str(weights))
    else:
        raise InvalidInput(f"weights {str(weights)!r}: there is no such file.")
    auxiliary = tuple(f"{part}." for part in AUXILIARY.get(made.name, ()))
    state = {
        FORMER.sub(r"\1\2", key): tensor
        for key, tensor in state.items()
        if not key.startswith(auxiliary)
    }
    _check_state(made, state, weights)
    if f"{made.classifier}.weight" not in state:
        said.append(f"{made.name}: the weights have no classifier, which begins anew.")
    return (state, digest_of_tensors(state)), said


def _is_file(weights: str | Path) -> bool:
    path = user_path(weights)
    return path.is_file() or path.suffix in (".safetensors", ".pt", ".pth", ".bin")


def _read(path: Path) -> Any:
    """What a file holds: tensors by name, or a container with them somewhere inside."""
    try:
        if path.suffix == ".safetensors":
            return read_tensors(path, links=True)[0]
        check_regular(path, memory(), links=True)
    except UnreadableFile as error:
        raise InvalidInput(f"weights {str(path)!r} cannot be read: {error}") from error
    try:
        # of pickled files torch reads tensors and plain containers alone, and runs no code
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds, for files of many kinds
        raise InvalidInput(
            f"weights {str(path)!r} cannot be read ({first_line(error)}); accepted: .safetensors, "
            "or a state dict saved by torch.save."
        ) from error
    return state


def _network_in(
    found: Any, made: SplitNetwork, path: Path
) -> tuple[Mapping[str, Tensor], list[str]]:
    """The state dict of a network in what a checkpoint holds, and what was taken off to get it.

    Checkpoints keep a network beside its optimiser, and wrappers leave a prefix in the names of its
    tensors.  Raises InvalidInput, which names the keys or the prefix, if there is more than one
    network, or none.
    """
    said = []
    where = f"weights {str(path)!r}"
    for _ in range(DEEPEST):
        if not isinstance(found, Mapping) or _is_state(found):
            break
        inner = [key for key in found if isinstance(key, str) and _is_state(found[key])]
        known = [key for key in inner if key in CONTAINERS]
        deeper = [key for key in found if key in CONTAINERS and isinstance(found[key], Mapping)]
        choice = known or inner or deeper
        if len(choice) != 1:
            keys = ", ".join(repr(key) for key in (choice or [*found][:8])) or "nothing"
            raise InvalidInput(
                f"{where} hold {keys}; accepted: a state dict, tensors by name, or one network "
                "in a checkpoint: save that one alone."
            )
        found = found[choice[0]]
        said.append(f"{made.name}: the weights are what the checkpoint keeps as {choice[0]!r}.")
    if not isinstance(found, Mapping) or not _is_state(found):
        raise InvalidInput(
            f"{where} hold {type(found).__name__}; accepted: a state dict, tensors by name."
        )
    state = {str(key): tensor for key, tensor in found.items() if key != "n_averaged"}
    own = set(made.skeleton.state_dict())
    while state and not own & set(state):
        inside = {key.partition(".")[0] for key in state} & set(PREFIXES)
        taken = inside.pop() if len(inside) == 1 else ""
        if not taken:
            firsts = ", ".join(sorted({repr(key.partition(".")[0] + ".") for key in state})[:6])
            raise InvalidInput(
                f"{where} are not those of {made.name!r}: none of its tensors' names is there, "
                f"they begin with {firsts}."
            )
        others = [key for key in state if not key.startswith(f"{taken}.")]
        state = {
            key.removeprefix(f"{taken}."): tensor
            for key, tensor in state.items()
            if key not in others
        }
        left = f", without {len(others)} others such as {others[0]!r}" if others else ""
        said.append(f"{made.name}: the weights' names begin with '{taken}.', which is cut{left}.")
    return state, said


CONTAINERS = ("state_dict", "model", "net", "network", "model_state_dict", "model_state", "weights",
              "model_ema", "ema", "state_dict_ema", "ema_state_dict", "module")  # fmt: skip
"""Keys under which checkpoints keep networks."""

DEEPEST = 5
"""How many containers a network may lie in."""

PREFIXES = ("module", "_orig_mod", "model", "net", "network", "backbone", "encoder")
"""What wrappers put before the names of a network's tensors."""


def _is_state(found: Any) -> bool:
    return (
        isinstance(found, Mapping)
        and bool(found)
        and all(isinstance(tensor, Tensor) for tensor in found.values())
    )


def _check_state(made: SplitNetwork, state: Mapping[str, Tensor], weights: str | Path) -> None:
    """Raise InvalidInput unless the tensors are those of the network.

    Its classifier is resized in any case, so theirs may have another number of outputs; and files
    of old lack the counters of batch normalisations.
    """
    odd = [
        key
        for key, tensor in state.items()
        if tensor.is_nested or tensor.layout != torch.strided or tensor.is_complex()
    ]
    if odd or any(not tensor.numel() for key, tensor in state.items() if tensor.ndim):
        odd = odd or [key for key, tensor in state.items() if not tensor.numel()]
        raise InvalidInput(
            f"weights {str(weights)!r} cannot be trained on: {odd[0]!r} holds no plain real "
            "numbers."
        )
    own = {key: list(tensor.shape) for key, tensor in made.skeleton.state_dict().items()}
    classifier = state.get(f"{made.classifier}.weight")
    if classifier is not None and classifier.ndim:
        for key in {f"{made.classifier}.weight", f"{made.classifier}.bias"} & set(own):
            own[key][0] = len(classifier)
    parts = {f"{made.classifier}.weight", f"{made.classifier}.bias"}
    optional = parts if not parts & set(state) else set()  # it is made anew
    missing = [
        key
        for key in own
        if key not in state and not key.endswith("num_batches_tracked") and key not in optional
    ]
    wrong = [
        *(f"{key!r} is missing" for key in missing),
        *(f"{key!r} is not one of its tensors" for key in state if key not in own),
        *(
            f"{key!r} is {list(state[key].shape)}, not {shape}"
            for key, shape in own.items()
            if key in state and list(state[key].shape) != shape
        ),
    ]
    if wrong:
        more = f" and {len(wrong) - 1} more differences" if len(wrong) > 1 else ""
        raise InvalidInput(
            f"weights {str(weights)!r} are not those of {made.name!r}: {wrong[0]}{more}."
        )
    for key, tensor in state.items():
        if not all_finite(tensor):
            raise InvalidInput(
                f"weights {str(weights)!r} cannot be trained on: {key!r} holds values that are "
                "not finite."
            )


def _torchvision_weights(name: str, weights: str) -> Mapping[str, Tensor]:
    from torchvision.models import get_model, get_model_weights

    known = get_model_weights(name)
    one_of(f"weights of {name}", weights, known.__members__, also="a local file")
    wanted = known[weights]
    return _downloaded(weights, lambda: get_model(name, weights=wanted).state_dict())


def _timm_weights(name: str, tag: str) -> Mapping[str, Tensor]:
    timm = _import_timm()
    full = [known for known in timm.list_pretrained() if known.split(".")[0] == name]
    tags = [known.partition(".")[2] for known in full]
    one_of(f"weights of timm:{name}", tag, [*tags, "DEFAULT"], also="a local file")
    wanted = name if tag == "DEFAULT" else f"{name}.{tag}"
    return _downloaded(tag, lambda: timm.create_model(wanted, pretrained=True).state_dict())


def _downloaded(weights: str, download: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    try:
        return download()
    except (OSError, RuntimeError, ValueError) as error:
        raise InvalidInput(
            f"weights {weights!r} could not be downloaded ({first_line(error)}): name a local file "
            "instead."
        ) from error
