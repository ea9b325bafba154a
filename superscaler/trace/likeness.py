"""Which modules of a model are alike: traced once, they stand for each other."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_OWN = frozenset(vars(nn.Module()))
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)
FEWEST = 3  # fewer alike are traced as quickly one by one


@dataclass(frozen=True)
class Alike:
    """Modules that differ at most in the attributes ``varying`` (path of the submodule, name): one value for each."""

    paths: tuple[str, ...]
    varying: tuple[tuple[str, str], ...]


def alike(model: nn.Module) -> list[Alike]:
    """The outermost groups of like members in the lists of a model."""
    found: list[Alike] = []
    inside: list[str] = []
    for path, module in model.named_modules():
        if any(path.startswith(outer) for outer in inside) or not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        members = [(f"{path}.{name}" if path else name, child) for name, child in module.named_children()]
        groups = _grouped(members)
        found.extend(groups)
        inside.extend(f"{member}." for group in groups for member in group.paths)
    return found


def _grouped(members: list[tuple[str, nn.Module]]) -> list[Alike]:
    by_structure: dict[Hashable, list[tuple[str, nn.Module]]] = defaultdict(list)
    for path, module in members:
        if sum(1 for _ in module.modules()) >= FEWEST and "forward" not in vars(module):
            by_structure[_structure(module)].append((path, module))
    found: list[Alike] = []
    for group in by_structure.values():
        found.extend(_by_settings(group))
    return found


def _by_settings(group: list[tuple[str, nn.Module]]) -> Iterator[Alike]:
    """Split a group by its settings; one whose value is another in every member is a name or number of its own."""
    if len(group) < FEWEST:
        return
    settings = [_settings(module) for _, module in group]
    varying = tuple(key for key in settings[0] if len({repr(told[key]) for told in settings}) == len(group))
    same: dict[Hashable, list[str]] = defaultdict(list)
    for (path, _), told in zip(group, settings, strict=True):
        same[tuple(repr(value) for key, value in told.items() if key not in varying)].append(path)
    yield from (Alike(tuple(paths), varying) for paths in same.values() if len(paths) >= FEWEST)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in sorted(vars(module).items()) if name not in _OWN}


def _settings(module: nn.Module) -> dict[tuple[str, str], Any]:
    """Every number, name and flag in a module and below it."""
    return {
        (path, name): value
        for path, child in module.named_modules()
        for name, value in _attributes(child).items()
        if isinstance(value, _PLAIN)
    }


def _structure(module: nn.Module) -> Hashable:
    """All of a module but the values of its tensors and settings; equal for like modules only."""
    tensors: dict[int, int] = {}  # tensors by order of appearance, so that sharing inside the module is seen

    def described(x: Tensor | None) -> Hashable:
        if x is None:
            return None
        return tensors.setdefault(id(x), len(tensors)), tuple(x.shape), x.dtype, x.requires_grad

    def one(path: str, child: nn.Module) -> Hashable:
        own = vars(child)
        state = [(n, described(x)) for kind in ("_parameters", "_buffers") for n, x in own[kind].items()]
        hooks = [id(f) for name in _OWN if name.endswith("_hooks") for f in own[name].values()]
        held = [(name, _held(value)) for name, value in _attributes(child).items()]
        return path, type(child), child.training, tuple(state), tuple(hooks), tuple(held)

    return tuple(one(path, child) for path, child in module.named_modules(remove_duplicate=False))


def _held(value: Any) -> Hashable:
    """An attribute for comparison: settings by their type, collections by their contents, the rest by identity."""
    if isinstance(value, _PLAIN):
        return type(value)
    if type(value) in (list, tuple):
        return type(value), tuple(_exactly(item) for item in value)
    if type(value) is dict:
        return dict, tuple((repr(key), _exactly(item)) for key, item in value.items())
    return _exactly(value)


def _exactly(value: Any) -> Hashable:
    if isinstance(value, _PLAIN):
        return repr(value)
    if type(value) in (list, tuple, dict):
        return _held(value)
    if isinstance(value, functools.partial):
        return functools.partial, _exactly(value.func), _held(value.args), _held(value.keywords)
    return id(value)
