"""One `backbone(...)` for every CNN: the six published ones, torchvision's, timm's, or your own."""

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
from torch.optim.swa_utils import AveragedModel

from nofe_lab.compat import import_torchvision
from nofe_lab.config import PRESETS, InvalidInput, first_line, one_of, shown
from nofe_lab.files import (
    UnreadableFile,
    all_finite,
    check_regular,
    digest_of_tensors,
    memory,
    read_tensors,
    redact_path,
    user_path,
)
from nofe_lab.machine import seeded
from nofe_lab.networks.backbone import Backbone, cannot_reuse
from nofe_lab.networks.control import FlatControl
from nofe_lab.networks.digests import CannotDigest, digest_of
from nofe_lab.networks.paper import PAPER
from nofe_lab.networks.surgery import SplitNetwork
from nofe_lab.recipes import Preset, Statistics, strong_preset

Network = str | Backbone | nn.Module | Callable[[], nn.Module]
"""Types that `backbone` accepts."""

TRANSFORMERS = ("vit_", "swin_", "maxvit_")
"""Prefixes of torchvision's classifiers that are not CNNs."""

AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}
"""torchvision's networks with auxiliary classifiers, which are left out."""

OLD_DENSENET_NAME = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])(?=\.)")
"""Names in torchvision's weight files of densenets: ``norm.1`` is now ``norm1``."""


def backbone(
    network: Network,
    *,
    split: str | None = None,
    stem: str = "auto",
    weights: str | Path | None = None,
) -> Backbone:
    """Make a backbone, the source of base CNN, generalist and network of experts, from a CNN.

    network: a published network (``alexnet_quick`` ...), ``alexnet_quick_bn``, a classification CNN
    of torchvision.models (``resnet18``), ``timm:NAME``, or your own: a torch module, which keeps
    its weights, or a class or function that makes one, with fresh weights for each seed.  A
    `Backbone` is returned as it is.

    Published networks and Backbones have their own parts and take none of these:
    split: the module where the trunk ends and the branches begin; None chooses one and says so.
    stem: ``small`` keeps the size of small images in the first layers, ``original`` leaves these as
    they are, ``auto`` is small if images of less than 64 pixels would be downsampled too far and no
    weights are given.
    weights: pretrained ones for trunk and head: a local file (.safetensors, or a state dict saved
    by torch), or ``DEFAULT`` or a name of torchvision (``IMAGENET1K_V1``) or timm (``a1_in1k``),
    which is downloaded.

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
            f"backbone must be a name, a torch module, or a function; got {shown(network)}."
        )
    if isinstance(network, nn.Module):
        _check_layers(type(network).__name__, network)
    name, build, owner = _maker(network, weights)
    own, notes = "", []
    if owner == "own":
        split = split or OWN[name][1]
    if owner in ("module", "function"):
        with seeded(0):
            first = build()
        _check_layers(name, first)
        _check_tensors(name, first)
        try:
            own = digest_of(first)
        except CannotDigest as error:
            own = secrets.token_hex(8)
            notes.append(cannot_reuse(str(error)))
    made = SplitNetwork(name, build, split=split, stem=stem, own=own)
    if weights is not None:
        made.weights, more = _load_weights(made, owner, weights)
        notes += more
        made.input_statistics, made.usual_side = _trained_on(made.name, owner, weights)
    elif isinstance(network, nn.Module):
        made.weights = _weights_of_module(network, own)
        made.input_statistics, made.usual_side = _trained_on_by(network)
    made.weight_notes = tuple(notes)
    return made


def is_named(name: str) -> bool:
    """Whether a name tells the library which network is meant, as far as the name shows."""
    return name in (*PAPER, *OWN, *torchvision_names()) or name.startswith("timm:")


def described(
    description: Mapping[str, Any],
    image_shape: tuple[int, int, int],
    network: Network | None = None,
) -> Backbone:
    """Make a backbone again from its `description`, for images (channels, height, width).

    network: the network, where it is not one of the library's.  A description never names code to
    import.  Raises InvalidInput if the network is unknown or does not fit the description.
    """
    name = description["name"]
    if network is None:
        if not is_named(name):
            raise InvalidInput(
                f"the network {name!r} is not one of the library's; pass it as it was passed for "
                "training: load(run, network=...)."
            )
        network = name
    cut = {key: description[key] for key in ("split", "stem") if key in description}
    if isinstance(network, Backbone):
        found: Backbone = network
    elif "transform_input" in description:  # with pretrained weights, whose pixels it rescales
        found = SplitNetwork(name, _maker(network, "DEFAULT")[1], **cut)
    else:
        found = backbone(network, **cut)
    if "experts" in description and not isinstance(found, FlatControl):
        found = FlatControl(found, description["experts"], description["width"])
    made = found.original.name if isinstance(found, FlatControl) else found.name
    if made != name:
        raise InvalidInput(f"the run is of the network {name!r}; got {made!r}.")
    return found.for_images(image_shape)


def _trained_on(name: str, owner: str, weights: str | Path) -> tuple[Statistics | None, int | None]:
    """The statistics and the side of the images that weights were made with.

    Of a local file, those that are usual for its network; else ImageNet's.
    """
    if owner == "torchvision":
        from torchvision.models import get_model_weights

        known = get_model_weights(name)
        made_by = known.__members__.get("DEFAULT" if _is_file(weights) else str(weights))
        if made_by is not None:
            usual = made_by.transforms()
            return (tuple(usual.mean), tuple(usual.std)), int(usual.crop_size[0])
    if owner == "timm":
        timm, bare = _import_timm(), name.removeprefix("timm:")
        tagged = bare if _is_file(weights) or weights == "DEFAULT" else f"{bare}.{weights}"
        found = timm.models.get_pretrained_cfg(tagged, allow_unregistered=True)
        if found is not None and found.mean:
            return (tuple(found.mean), tuple(found.std)), int(found.input_size[-1])
    return IMAGENET, IMAGENET_SIDE


def _trained_on_by(network: nn.Module) -> tuple[Statistics | None, int | None]:
    """The same of a module's own weights, if it says so as timm's networks do."""
    config = getattr(network, "pretrained_cfg", None)
    if not isinstance(config, Mapping) or not {"mean", "std"} <= set(config):
        return None, None
    side = config.get("input_size", (None,))[-1]
    return (tuple(config["mean"]), tuple(config["std"])), side


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation of ImageNet's images in each channel, for pixels from 0 to 1."""

IMAGENET_SIDE = 224
"""Side in pixels of the images that most networks are trained with on ImageNet."""


def _check_layers(name: str, network: nn.Module) -> None:
    """Refuse layers without weights, or with weights that cannot be found."""
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
                "network with real weights."
            )
        if any(isinstance(t, (UninitializedParameter, UninitializedBuffer)) for t in tensors):
            raise InvalidInput(
                f"backbone {name!r} has lazy layers without weights ({path or 'the network'}); "
                "accepted: a network that has been run once on an image."
            )


def _check_tensors(name: str, network: nn.Module) -> None:
    """Refuse a network with other than plain, finite tensors, such as a quantised one."""
    for key, value in network.state_dict().items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
            raise InvalidInput(
                f"backbone {name!r} cannot be trained: {key!r} is not a plain tensor "
                f"({type(value).__name__}); accepted: a network before it was quantised or packed."
            )
    for key, tensor in (*network.named_parameters(), *network.named_buffers()):
        if not all_finite(tensor):
            raise InvalidInput(
                f"backbone {name!r} cannot be trained: {key!r} holds values that are not finite."
            )


def _unwrapped(network: Any) -> Any:
    """The network inside wrappers for parallel training, averaging or compilation."""
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

    Raises InvalidInput if the name is unknown, or ``paper`` without a published recipe.
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
    """A network's name, a function that makes it, and where it comes from."""
    if isinstance(network, nn.Module):
        try:
            kept = copy.deepcopy(network).cpu()
        except (RuntimeError, TypeError) as error:
            raise InvalidInput(
                f"backbone {type(network).__name__!r} cannot be copied ({first_line(error)}); "
                "accepted: a network whose weights are its own parameters: prune.remove and "
                "remove_weight_norm make them so."
            ) from error
        return type(network).__name__, partial(copy.deepcopy, kept), "module"
    if callable(network):
        with seeded(0):
            try:
                made = network()
            except Exception as error:  # a user's function may raise anything
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
    if isinstance(network, str) and network in OWN:
        return network, OWN[network][0], "own"
    if isinstance(network, str) and network.startswith("timm:"):
        return network, _timm_maker(network.removeprefix("timm:")), "timm"
    if network in torchvision_names():
        from torchvision.models import get_model

        own = {}
        if network in AUXILIARY:  # torchvision's weights expect another pixel scale
            given = weights is not None
            own = {"aux_logits": False, "init_weights": True, "transform_input": given}
        return network, partial(get_model, network, weights=None, **own), "torchvision"
    names = [*PAPER, *OWN, *torchvision_names()]
    one_of("backbone", network, names, also="'timm:NAME'")
    raise AssertionError("unreachable: one_of refuses every other name")


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


def _weights_of_module(module: nn.Module, own: str) -> tuple[Mapping[str, Tensor], str]:
    state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    return state, f"{own} {digest_of_tensors(state)}"


def _load_weights(
    made: SplitNetwork, owner: str, weights: str | Path
) -> tuple[tuple[Mapping[str, Tensor], str], list[str]]:
    notes: list[str] = []
    if _is_file(weights):
        try:
            state, notes = _find_state_dict(_read(user_path(weights)), made, user_path(weights))
        except InvalidInput as error:
            raise InvalidInput(redact_path(str(error), weights)) from error
    elif owner == "torchvision":
        state = _torchvision_weights(made.name, str(weights))
    elif owner == "timm":
        state = _timm_weights(made.name.removeprefix("timm:"), str(weights))
    else:
        raise InvalidInput(f"weights {str(weights)!r}: there is no such file.")
    auxiliary = tuple(f"{part}." for part in AUXILIARY.get(made.name, ()))
    state = {
        OLD_DENSENET_NAME.sub(r"\1\2", key): tensor
        for key, tensor in state.items()
        if not key.startswith(auxiliary)
    }
    _check_state(made, state, weights)
    if f"{made.classifier}.weight" not in state:
        notes.append(f"{made.name}: the weights have no classifier; it is initialised.")
    return (state, digest_of_tensors(state)), notes


def _is_file(weights: str | Path) -> bool:
    path = user_path(weights)
    return path.is_file() or path.suffix in (".safetensors", ".pt", ".pth", ".bin")


def _read(path: Path) -> Any:
    """Read a file: tensors by name, or a container with such a state dict inside."""
    try:
        if path.suffix == ".safetensors":
            return read_tensors(path, links=True)[0]
        check_regular(path, memory(), links=True)
    except UnreadableFile as error:
        raise InvalidInput(f"weights {str(path)!r} cannot be read: {error}") from error
    try:
        # weights_only: loading never executes code
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load may raise anything
        raise InvalidInput(
            f"weights {str(path)!r} cannot be read ({first_line(error)}); accepted: .safetensors, "
            "or a state dict saved by torch.save."
        ) from error
    return state


def _find_state_dict(
    found: Any, made: SplitNetwork, path: Path
) -> tuple[Mapping[str, Tensor], list[str]]:
    """The state dict in a checkpoint, and notes on the container and prefix that were removed.

    Checkpoints keep a network beside its optimiser, and wrappers add a prefix to the names of its
    tensors.  Raises InvalidInput unless there is exactly one network.
    """
    notes = []
    where = f"weights {str(path)!r}"
    for _ in range(MAX_NESTING):
        if not isinstance(found, Mapping) or _is_state_dict(found):
            break
        inner = [key for key in found if isinstance(key, str) and _is_state_dict(found[key])]
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
        notes.append(
            f"{made.name}: the weights are those that the checkpoint keeps as {choice[0]!r}."
        )
    if not isinstance(found, Mapping) or not _is_state_dict(found):
        raise InvalidInput(
            f"{where} hold {type(found).__name__}; accepted: a state dict, tensors by name."
        )
    state = {str(key): tensor for key, tensor in found.items() if key != "n_averaged"}
    own = set(made.skeleton.state_dict())
    while state and not own & set(state):
        inside = {key.partition(".")[0] for key in state} & set(PREFIXES)
        prefix = inside.pop() if len(inside) == 1 else ""
        if not prefix:
            firsts = ", ".join(sorted({repr(key.partition(".")[0] + ".") for key in state})[:6])
            raise InvalidInput(
                f"{where} are not those of {made.name!r}: none of its tensor names occurs; "
                f"these begin with {firsts}."
            )
        others = [key for key in state if not key.startswith(f"{prefix}.")]
        state = {
            key.removeprefix(f"{prefix}."): tensor
            for key, tensor in state.items()
            if key not in others
        }
        left = f", without {len(others)} others such as {others[0]!r}" if others else ""
        notes.append(f"{made.name}: the weights' names begin with '{prefix}.', which is cut{left}.")
    return state, notes


CONTAINERS = ("state_dict", "model", "net", "network", "model_state_dict", "model_state", "weights",
              "model_ema", "ema", "state_dict_ema", "ema_state_dict", "module")  # fmt: skip
"""Keys under which checkpoints keep networks."""

MAX_NESTING = 5
"""Most containers around a state dict."""

PREFIXES = ("module", "_orig_mod", "model", "net", "network", "backbone", "encoder")
"""Prefixes that wrappers add to the names of a network's tensors."""


def _is_state_dict(found: Any) -> bool:
    return (
        isinstance(found, Mapping)
        and bool(found)
        and all(isinstance(tensor, Tensor) for tensor in found.values())
    )


def _check_state(made: SplitNetwork, state: Mapping[str, Tensor], weights: str | Path) -> None:
    """Raise InvalidInput unless the tensors are those of the network.

    The classifier is resized anyway, so theirs may have any number of outputs; old files may lack
    the counters of batch normalisations.
    """
    unusable = [
        key
        for key, tensor in state.items()
        if tensor.is_nested or tensor.layout != torch.strided or tensor.is_complex()
    ]
    if unusable or any(not tensor.numel() for key, tensor in state.items() if tensor.ndim):
        unusable = unusable or [key for key, tensor in state.items() if not tensor.numel()]
        raise InvalidInput(
            f"weights {str(weights)!r} cannot be trained on: {unusable[0]!r} holds no plain real "
            "numbers."
        )
    own = {key: list(tensor.shape) for key, tensor in made.skeleton.state_dict().items()}
    classifier = state.get(f"{made.classifier}.weight")
    if classifier is not None and classifier.ndim:
        for key in {f"{made.classifier}.weight", f"{made.classifier}.bias"} & set(own):
            own[key][0] = len(classifier)
    parts = {f"{made.classifier}.weight", f"{made.classifier}.bias"}
    optional = parts if not parts & set(state) else set()  # then it is initialised
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


class AlexNetQuickBN(nn.Module):
    """AlexNet-Quick's convolutions with batch normalisation: any layer may begin the branches."""

    def __init__(self, classes: int = 100) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 32, 5, padding=2, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.norm2 = nn.Conv2d(32, 32, 5, padding=2, bias=False), nn.BatchNorm2d(32)
        self.conv3, self.norm3 = nn.Conv2d(32, 64, 5, padding=2, bias=False), nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(2)
        self.last_pool = nn.AdaptiveMaxPool2d(4)  # as the others, for images of 32 pixels
        self.fc = nn.Linear(64 * 4 * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.norm1(self.conv1(x)).relu())
        x = self.pool(self.norm2(self.conv2(x)).relu())
        x = self.last_pool(self.norm3(self.conv3(x)).relu())
        logits: Tensor = self.fc(x.flatten(1))
        return logits


OWN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "alexnet_quick_bn": (AlexNetQuickBN, "conv3")
}
"""The library's networks that were not published, by name, with their usual split."""
