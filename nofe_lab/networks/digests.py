"""Digests of a user's network: its weights, its code and all of its settings.

A run is found by a digest of what was asked for.  For a user's network that includes the functions
and configuration objects that its layers hold, and the code behind them.  Anything left out here
could pass another network's results off as this one's.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import logging
import pickle
import sys
import sysconfig
import types
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from nofe_lab.files import digest_of_tensors
from nofe_lab.networks.tracing import HOOKS, is_from_library

_NOT_SETTINGS = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"}
_HOOK_SETTINGS = (
    "hook",  # in the names of torch's attributes for hooks and their settings
    "_is_full_backward",
    "_load_state",
    "_state_dict",
)


class CannotDigest(Exception):
    """The content of a setting cannot be determined; the message names it."""


class Digest:
    """A digest of Python objects by content, not by address."""

    def __init__(self) -> None:
        self.sha = hashlib.sha256()
        self.paths: dict[int, str] = {}
        """Paths, by id, of a network's modules, which are digested one by one."""
        self.seen: dict[int, int] = {}
        self.alive: list[Any] = []  # keeps Python from reusing their ids

    def hexdigest(self) -> str:
        """16 hexadecimal digits."""
        return self.sha.hexdigest()[:16]

    def write(self, *words: object) -> None:
        """Add the text of each word."""
        for word in words:
            text = str(word).encode("utf-8", "surrogatepass")
            self.sha.update(f"{len(text)}:".encode() + text)

    def add(self, name: str, value: Any) -> None:
        """Add a named value.  Raises CannotDigest with its name."""
        self.write(name)
        try:
            self._add(value)
        except CannotDigest as error:
            raise CannotDigest(f"{name}.{error}" if str(error) else name) from error
        except (RecursionError, RuntimeError, TypeError, ValueError) as error:
            raise CannotDigest(name) from error

    def add_module(self, path: str, module: nn.Module) -> None:
        """Add one module of a network: its class, settings and hooks, not its children."""
        self.write("module", path)
        self._add(type(module))
        if isinstance(module, fx.GraphModule):
            self.write(module.code)
            return
        for name, value in sorted(vars(module).items()):
            is_hooks = any(part in name for part in _HOOK_SETTINGS) and name.startswith("_")
            if name not in _NOT_SETTINGS and not is_hooks:
                self.add(name, value)
        for hooks in HOOKS:
            for hook in getattr(module, hooks).values():
                self.add("a hook", hook)

    def _add(self, value: Any) -> None:
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
            self.write(type(value).__name__, repr(value))
        elif isinstance(value, Tensor):
            self.write("tensor", value.requires_grad, digest_of_tensors({"": value}))
        elif isinstance(value, np.ndarray) and value.dtype != object:
            self.write("array", value.dtype, value.shape)
            self.sha.update(value.tobytes())
        elif isinstance(value, np.ndarray):
            self._add(value.tolist())
        elif isinstance(value, torch.Generator):
            self._add(value.get_state())
        elif isinstance(value, (torch.dtype, torch.device, torch.Size, torch.memory_format, range)):
            self.write("plain", repr(value))
        elif id(value) in self.paths:
            self.write("module at", self.paths[id(value)])
        elif id(value) in self.seen:
            self.write("seen", self.seen[id(value)])
        else:
            self.seen[id(value)] = len(self.seen)
            self.alive.append(value)
            self._add_object(value)

    def _add_object(self, value: Any) -> None:
        if isinstance(value, type):
            self._add_class(value)
        elif isinstance(value, functools.partial):
            self.write("partial")
            self._add([value.func, value.args, value.keywords])
        elif isinstance(value, types.MethodType):
            self.write("method")
            self._add([value.__self__, value.__func__])
        elif isinstance(value, types.FunctionType):
            self._add_function(value)
        elif isinstance(value, types.ModuleType):
            self.write("library", value.__name__)
        elif callable(value) and hasattr(value, "__name__") and _is_built_in(value):
            self.write("built in", getattr(value, "__module__", None), value.__name__)
        elif isinstance(value, Enum):
            self.write("enum", type(value).__qualname__, value.name)
        elif isinstance(value, (Mapping, Sequence, set, frozenset)):
            self._add_container(value)
        elif isinstance(value, nn.Module):
            self.write("network", digest_of(value))
        elif isinstance(value, logging.Logger):  # does not affect results
            self.write("logger", value.name)
        elif _is_all_python(type(value)):
            self._add(type(value))
            for name, inner in sorted(_settings(value).items()):
                self.add(name, inner)
        else:
            try:
                self.write("pickled", type(value).__qualname__)
                self.sha.update(pickle.dumps(value, protocol=4))
            except Exception as error:  # pickle may raise anything
                raise CannotDigest from error

    def _add_container(self, value: Any) -> None:
        self.write(type(value).__name__, len(value))
        if isinstance(value, Mapping):
            for i, (key, inner) in enumerate(value.items()):
                self._add(key)
                self.add(repr(key)[:40] if isinstance(key, (str, int)) else f"[{i}]", inner)
        elif isinstance(value, Sequence):
            for i, inner in enumerate(value):
                self.add(f"[{i}]", inner)
        else:
            parts = []
            for inner in value:
                alone = Digest()
                alone.paths = self.paths
                alone._add(inner)
                parts.append(alone.hexdigest())
            self.write(*sorted(parts))

    def _add_class(self, kind: type) -> None:
        self.write("class", kind.__module__, kind.__qualname__)
        if issubclass(kind, Enum):
            self._add([(each.name, each.value) for each in kind])
        elif not is_from_library(kind):
            for base in kind.__mro__:
                if not is_from_library(base):
                    for name, value in sorted(vars(base).items()):
                        self._add_attribute(name, value)

    def _add_attribute(self, name: str, value: Any) -> None:
        """Add a method, property or constant of a class; skip what Python itself adds."""
        if isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        if isinstance(value, property):
            self.add(name, [value.fget, value.fset])
        elif isinstance(value, functools.cached_property):
            self.add(name, value.func)
        elif isinstance(value, types.FunctionType) or not (
            name.startswith(("__", "_abc_")) or isinstance(value, _DESCRIPTORS)
        ):
            self.add(name, value)

    def _add_function(self, function: types.FunctionType) -> None:
        self.write("function", function.__module__, function.__qualname__)
        if is_from_library(function):
            return
        self.write(source_of(function))
        self._add([function.__defaults__, function.__kwdefaults__])
        cells = function.__closure__ or ()
        for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
            try:
                inner = cell.cell_contents
            except ValueError:  # not filled yet
                continue
            if name != "__class__":
                self.add(name, inner)
        names, attributes = _names_in(function.__code__)
        for name in sorted(names & set(function.__globals__)):
            value = function.__globals__[name]
            if not isinstance(value, types.ModuleType):
                self.add(name, value)
            elif _is_user_file(value):  # a user's file: only what is used of it
                for attribute in sorted(attributes & set(vars(value))):
                    if not isinstance(inner := vars(value)[attribute], types.ModuleType):
                        self.add(f"{name}.{attribute}", inner)


def digest_of(network: nn.Module) -> str:
    """A digest of all that determines what a user's network computes.

    Covers weights and buffers, which of them are trained, the code of its modules and of the
    functions that they use, their settings and their hooks.  Raises CannotDigest for a setting
    whose content cannot be determined.
    """
    digest = Digest()
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    tensors |= network.state_dict()
    digest.add("weights", digest_of_tensors(tensors))
    digest.add("frozen", [n for n, p in network.named_parameters() if not p.requires_grad])
    for path, module in network.named_modules():
        digest.paths[id(module)] = path
    for path, module in network.named_modules():
        try:
            digest.add_module(path, module)
        except CannotDigest as error:
            where = f"{type(module).__name__} {path!r}" if path else type(module).__name__
            raise CannotDigest(f"{error} of {where}") from error
    return digest.hexdigest()


def digest_of_class(kind: type) -> str:
    """A digest of the code of a class."""
    digest = Digest()
    digest._add(kind)
    return digest.hexdigest()


def source_of(function: types.FunctionType) -> str:
    """The source of a function if available; else, and for a lambda, its bytecode."""
    if function.__name__ != "<lambda>":
        try:
            return inspect.getsource(function)
        except (OSError, TypeError):
            pass
    return _bytecode(function.__code__)


def _bytecode(code: types.CodeType) -> str:
    return repr(
        (code.co_code.hex(), [*map(_constant, code.co_consts)], code.co_names, code.co_varnames)
    )


def _constant(value: Any) -> str:
    if isinstance(value, types.CodeType):
        return _bytecode(value)
    # sets are ordered differently in each process
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)


def _names_in(code: types.CodeType) -> tuple[set[str], set[str]]:
    """The globals that code uses, and the attributes that it reads."""
    names, attributes = set(), set()
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names.add(str(step.argval))
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            attributes.add(str(step.argval))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = _names_in(constant)
            names |= inner[0]
            attributes |= inner[1]
    return names, attributes


def _is_user_file(module: types.ModuleType) -> bool:
    """Whether a module is a user's file, not part of a library."""
    file = getattr(module, "__file__", None)
    libraries = {
        sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")
    }
    return file is not None and not any(file.startswith(str(place)) for place in libraries)


_DESCRIPTORS = (
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
)
"""Attributes that Python itself adds to classes."""


def _settings(value: Any) -> dict[str, Any]:
    """The attributes of an object, from its dict or its slots."""
    found = {str(name): inner for name, inner in getattr(value, "__dict__", {}).items()}
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                found[name] = getattr(value, name)
    return {name: inner for name, inner in found.items() if name not in ("__dict__", "__weakref__")}


def _is_built_in(value: Any) -> bool:
    kinds = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
    return isinstance(value, (*kinds, np.ufunc))


def _is_all_python(kind: type) -> bool:
    """Whether ``__dict__`` and slots hold all the state of a class's objects: no base is in C."""

    def is_python(base: type) -> bool:
        file = getattr(sys.modules.get(base.__module__), "__file__", None) or ""
        return base is object or base.__module__ == "__main__" or file.endswith((".py", ".pyc"))

    return all(map(is_python, kind.__mro__))
