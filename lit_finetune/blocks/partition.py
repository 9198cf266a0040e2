"""The parts that a network's blocks are made of: whole modules, in forward order."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from lit_finetune.blocks.forward_order import declared_ranks, recorded_ranks
from lit_finetune.modules.compiled import plain_name

Span = tuple[float, float]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True, slots=True)
class Part:
    """A whole module, or the parameters that an opened module holds directly."""

    path: str
    is_module: bool
    parameters: tuple[str, ...]
    has_layers: bool
    """Whether it is more than an activation or a norm."""
    is_big: bool
    """Whether it is more than one layer and no plain chain of layers, as a stem may be."""
    in_trunk: bool
    """Whether it is a member of a sequence that makes up much of the network."""
    is_container: bool
    span: Span | None
    """The ranks of its first and last parameter in the forward order; None if unknown."""


def find_parts(network: nn.Module, heads: Sequence[str]) -> tuple[list[Part], bool]:
    """The parts of a network in forward order, and whether this differs from registration.

    The order is that of registration, unless timm or a run on meta tensors gives another one. Then
    a list of modules that are used at different times (the patch embeddings of all stages) is
    opened, and a part of unknown rank stays behind the part before it.

    Args:
        network: The network.
        heads: The names of its heads; each becomes a part, and they come last.
    """
    declared = declared_ranks(network)
    spans = _spans(declared or recorded_ranks(network))
    opened, trunks = _opened(network, heads)
    parts = _parts(network, opened, trunks, spans)
    while spread := [part.path for part in parts if _is_spread(part, parts)]:
        opened.update(spread)
        parts = _parts(network, opened, trunks, spans)
    body = [part for part in parts if part.path not in heads]
    ordered = _sort_parts(body, is_exact=not declared)
    if ordered == body:
        return parts, False
    return ordered + [part for part in parts if part.path in heads], True


def _spans(ranks: Mapping[str, float]) -> Mapping[str, Span]:
    """The ranks of the first and last parameter in each module; for a parameter, its own twice."""
    spans: dict[str, Span] = {}
    for name, rank in ranks.items():
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            path = ".".join(parts[:depth])
            first, last = spans.get(path, (rank, rank))
            spans[path] = min(first, rank), max(last, rank)
    return spans


def _parts(
    network: nn.Module, opened: set[str], trunks: Sequence[str], spans: Mapping[str, Span]
) -> list[Part]:
    """The parts in order of registration."""
    modules = dict(_unopened_modules(network, opened))
    owned: dict[str, list[str]] = {path: [] for path in modules}
    for name, _ in network.named_parameters():
        owned.setdefault(_owner(name, modules), []).append(name)
    parts: list[Part] = []
    for path in (path for path, _ in network.named_modules() if path in owned):
        if path in modules:
            # By path: parameters added after the run (LoRA) have no rank of their own.
            span = spans.get(plain_name(path)) if owned[path] else None
            parts.append(_part(path, modules[path], owned[path], trunks, span))
        else:
            by_span = _group_by_span(owned[path], spans)
            parts += [_part(path, None, names, trunks, span) for span, names in by_span.items()]
    return parts


def _group_by_span(names: list[str], spans: Mapping[str, Span]) -> dict[Span | None, list[str]]:
    """Group the parameters that an opened module holds directly by where they are used."""
    by_span: dict[Span | None, list[str]] = {}
    for name in names:
        by_span.setdefault(spans.get(plain_name(name)), []).append(name)
    return by_span


def _is_spread(part: Part, parts: list[Part]) -> bool:
    """Whether a list of modules is used before and after another part."""
    if part.span is None or not part.is_container or part.in_trunk:
        return False
    first, last = part.span
    others = [other.span for other in parts if other.is_module and other.span is not None]
    return any(first < span[0] and span[1] < last for span in others)


def _sort_parts(parts: list[Part], *, is_exact: bool) -> list[Part]:
    """Sort the parts by rank.

    Each stays behind the parts registered before it, unless its use begins before theirs; if the
    ranks are timm's groups (not exact), unless its use ends before theirs begins.
    """
    ordered: list[list[Part]] = []  # each with the parts of unknown rank behind it
    for part in parts:
        if part.span is None and ordered:
            ordered[-1].append(part)
            continue
        end = part.span and part.span[0 if is_exact else 1]
        later = (i for i, (other, *_) in enumerate(ordered) if _starts_after(other, end))
        ordered.insert(next(later, len(ordered)), [part])
    return [part for bundle in ordered for part in bundle]


def _starts_after(part: Part, end: float | None) -> bool:
    return end is not None and part.span is not None and end < part.span[0]


def _owner(parameter: str, modules: dict[str, nn.Module]) -> str:
    """The unopened module that contains a parameter, or else the opened module that holds it."""
    path = parent = parameter.rpartition(".")[0]
    while path and path not in modules:
        path = path.rpartition(".")[0]
    return path if path in modules else parent


def _part(
    path: str,
    module: nn.Module | None,
    names: Sequence[str],
    trunks: Sequence[str],
    span: Span | None,
) -> Part:
    # All its parameters are tied to others: no layers of its own.
    layers = _num_layers(module) if module is not None and names else 0
    return Part(
        path=path,
        is_module=module is not None,
        parameters=tuple(names),
        has_layers=layers > 0,
        is_big=module is not None and layers > 1 and not _is_chain_of_layers(module),
        in_trunk=any(path.startswith(f"{trunk}.") for trunk in trunks),
        is_container=isinstance(module, _CONTAINERS),
        span=span,
    )


def _unopened_modules(
    module: nn.Module, opened: set[str], path: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    if path not in opened:
        yield path, module
        return
    for name, child in module.named_children():
        yield from _unopened_modules(child, opened, _join(path, name))


def _opened(network: nn.Module, heads: Sequence[str]) -> tuple[set[str], list[str]]:
    """The modules whose members are the parts, and the sequences that are the trunk.

    Opened are the heads' ancestors, and from the network down each child with most of the layers.
    """
    head_paths = [head.split(".") for head in heads if head]
    opened = {".".join(names[:depth]) for names in head_paths for depth in range(len(names))}
    path = "" if next(network.children(), None) else None
    trunks: list[str] = []
    while path is not None:
        module = network.get_submodule(path)
        if path and isinstance(module, _CONTAINERS):
            trunks = [path]
        opened.add(path)
        path = _main_child(module, path, heads)
    second = _second_trunk(network, opened, heads)
    return opened | set(second), trunks + second


def _main_child(module: nn.Module, path: str, heads: Sequence[str]) -> str | None:
    """The child to open: it holds most layers, is not one of several stages, and not one block."""
    layers = {name: _num_layers(child) for name, child in module.named_children()}
    on_way = [n for n in layers if any(f"{h}.".startswith(f"{_join(path, n)}.") for h in heads)]
    rest = {name: n for name, n in layers.items() if name not in on_way}
    for name, size in rest.items():
        is_majority = 2 * size > sum(rest.values())
        if is_majority and _is_only_of_kind(name, rest) and _can_open(module.get_submodule(name)):
            return _join(path, name)
    for name in on_way:
        if _join(path, name) not in heads and 2 * layers[name] > sum(layers.values()):
            return _join(path, name)
    return None


def _second_trunk(network: nn.Module, opened: set[str], heads: Sequence[str]) -> list[str]:
    """A transformer's blocks behind a large convolutional network: a third of all layers."""
    rest = [name for name, _ in network.named_children() if name not in opened | set(heads)]
    sequences = [name for name in rest if _is_sequence_of_blocks(network.get_submodule(name))]
    sizes = [_num_layers(network.get_submodule(name)) for name in sequences]
    return sequences if len(sizes) == 1 and 3 * sizes[0] > _num_layers(network) else []


def _is_sequence_of_blocks(module: nn.Module) -> bool:
    """Whether a sequence has several members, all of one kind and each of several layers."""
    members = [*module.children()] if isinstance(module, _CONTAINERS) else []
    kinds = {type(member) for member in members}
    is_uniform = len(members) > 1 and len(kinds) == 1 and not kinds & set(_CONTAINERS)
    return is_uniform and all(_num_layers(member) > 1 for member in members)


def _is_only_of_kind(name: str, layers: Mapping[str, int]) -> bool:
    """Whether no other module of several layers has this name with another number."""
    peers = [other for other, n in layers.items() if n > 1 and _kind_of(other) == _kind_of(name)]
    return peers == [name]


def _can_open(module: nn.Module) -> bool:
    """Whether a module is a sequence of several layers, or has a child of several layers."""
    sizes = [_num_layers(child) for child in module.children()]
    if isinstance(module, _CONTAINERS):
        return sum(size > 0 for size in sizes) > 1
    return any(size > 1 for size in sizes)


def _kind_of(name: str) -> str:
    """A name with its digits replaced: `layer#` for `layer1` and `layer2`."""
    return re.sub(r"\d+", "#", name)


def _num_layers(module: nn.Module) -> int:
    """The number of layers in a module."""
    return sum(map(_is_layer, module.modules()))


def _is_layer(module: nn.Module) -> bool:
    """Whether a module directly holds a parameter of more than one dimension."""
    return any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))


def _is_chain_of_layers(module: nn.Module) -> bool:
    """Whether a module is a sequence of single layers, each with or without a norm."""
    return isinstance(module, nn.Sequential) and all(
        _num_layers(child) <= sum(map(_is_layer, [child, *child.children()])) <= 1
        for child in module.children()
    )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
