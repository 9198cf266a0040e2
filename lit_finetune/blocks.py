"""Any network as an ordered list of named blocks, from the input to the head.

How the blocks are found, by the order of registration:

* The modules below the network are taken whole (`layer1`, `fc1`), except for those that hold most
  of the layers without having brothers of their kind (`features`, `blocks`, `encoder.layers`), and
  those that contain the head: these are opened, and their members taken instead (`features.3`).
* A module with weights opens a block. One without (an activation), or with vectors only (a norm),
  joins the block before it; the activations, pools and dropouts around the head join the head.
* What comes before the opened sequence, or else before the first big module, is the block `stem`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import nn

from lit_finetune._names import nearest
from lit_finetune.adapters import adapted_names, is_adapter, without_adapters
from lit_finetune.compiled import plain_name
from lit_finetune.head_search import find_head
from lit_finetune.norms import norm_parameters


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a network that is frozen and trained as one."""

    name: str
    """The name of its module in the network, or `stem`, or `head`; without `_orig_mod`."""
    modules: tuple[str, ...]
    """The modules it is made of, by their full names."""
    parameters: tuple[str, ...]
    """All its parameters, by their full names."""
    norms: tuple[str, ...] = ()
    """Those of normalisation layers."""
    fixed: tuple[str, ...] = ()
    """Those that never train: the weights of a network whose adapters (LoRA) train instead."""
    still: tuple[str, ...] = ()
    """Those that were fixed before any schedule came: they train where they alone are selected."""

    @property
    def free(self) -> tuple[str, ...]:
        """The parameters that may train."""
        return tuple(name for name in self.parameters if name not in self.fixed)


def list_blocks(model: nn.Module, head_name: str | None = None) -> list[Block]:
    """The blocks of a network, or of the network that a module holds: every parameter in one.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> for block in list_blocks(net):
    ...     print(block.name, block.modules, block.parameters)
    0 ('0',) ('0.weight', '0.bias')
    head ('1', '2') ('2.weight', '2.bias')

    Args:
        model: A network, or a module that holds one and no other parameters.
        head_name: The network's classifier, if it is not the one that `find_head` finds. Where
            there is none to be found, the last block is the head.

    Raises:
        ValueError: There is no module `head_name`.
    """
    with without_adapters(model) as layers:
        prefix, network = _network_in(model)
        head = _head_path(network, prefix, head_name)
        groups = _grouped(_parts(network, head), head)
        blocks = [_block(name, parts, prefix) for name, parts in groups]
    norms = norm_parameters(model)
    return [_told(block, norms, layers) for block in blocks]


def _told(block: Block, norms: frozenset[str], layers: Mapping[str, nn.Module]) -> Block:
    """A block of the plain network with what is to be said of its parameters, and adapters."""
    names = adapted_names(block.parameters, layers)
    trains = block.name == "head" or not layers
    return replace(
        block,
        parameters=names,
        norms=tuple(name for name in names if name in norms),
        fixed=() if trains else tuple(name for name in names if not is_adapter(name, layers)),
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """A module that is taken whole, or what parameters an opened module holds itself."""

    path: str
    is_module: bool
    parameters: tuple[str, ...]
    has_layers: bool
    """Whether it is more than an activation or a norm."""
    is_big: bool
    """Whether it is more than a layer, or a plain chain of layers, as a stem may be."""
    in_trunk: bool
    """Whether it is a member of the sequence that makes up most of the network."""


def _network_in(model: nn.Module) -> tuple[str, nn.Module]:
    """The network that a module holds as its only child with parameters, and the way to it."""
    prefix = ""
    while next(model.parameters(recurse=False), None) is None:
        inner = [item for item in model.named_children() if _has_parameters(item[1])]
        if len(inner) != 1 or not any(map(_has_parameters, inner[0][1].children())):
            break
        prefix, model = f"{prefix}{inner[0][0]}.", inner[0][1]
    return prefix, model


def _head_path(network: nn.Module, prefix: str, head_name: str | None) -> str | None:
    """The head's name in the network, if it has one."""
    if head_name is not None:
        named = list(network.named_modules(remove_duplicate=False))
        modules = {plain_name(name): module for name, module in reversed(named)}
        plain = plain_name(head_name)
        wanted = modules.get(plain, modules.get(plain.removeprefix(plain_name(prefix))))
        if wanted is None:
            hint = nearest(head_name, modules)
            raise ValueError(f"The network has no module `head_name={head_name!r}`.{hint}")
        return next(name for name, module in network.named_modules() if module is wanted)
    try:
        return find_head(network)
    except ValueError:
        return None


def _parts(network: nn.Module, head: str | None) -> list[_Part]:
    """What the blocks are made of, in order of registration."""
    opened, trunk = _opened(network, head)
    modules = dict(_unopened(network, opened))
    owned: dict[str, list[str]] = {path: [] for path in modules}
    for name, _ in network.named_parameters():
        owned.setdefault(_owner(name, modules), []).append(name)
    order = [path for path, _ in network.named_modules() if path in owned]
    return [_part(path, modules.get(path), tuple(owned[path]), trunk) for path in order]


def _owner(parameter: str, modules: dict[str, nn.Module]) -> str:
    """The module taken whole that a parameter is in, or else the opened one that holds it."""
    path = parent = parameter.rpartition(".")[0]
    while path and path not in modules:
        path = path.rpartition(".")[0]
    return path if path in modules else parent


def _part(path: str, module: nn.Module | None, parameters: tuple[str, ...], trunk: str) -> _Part:
    # None of its own if all are tied.
    layers = _num_layers(module) if module is not None and parameters else 0
    return _Part(
        path=path,
        is_module=module is not None,
        parameters=parameters,
        has_layers=layers > 0,
        is_big=module is not None and layers > 1 and not _is_chain_of_layers(module),
        in_trunk=bool(trunk) and path.startswith(f"{trunk}."),
    )


def _unopened(
    module: nn.Module, opened: set[str], path: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    if path not in opened:
        yield path, module
        return
    for name, child in module.named_children():
        yield from _unopened(child, opened, _join(path, name))


def _opened(network: nn.Module, head: str | None) -> tuple[set[str], str]:
    """The modules whose members are taken instead, and the sequence that is the trunk ("": none).

    These are the head's ancestors, and from the network down each child that holds most layers.
    """
    way = head.split(".") if head else []
    opened = {".".join(way[:depth]) for depth in range(len(way))}
    path = "" if next(network.children(), None) else None
    trunk = ""
    while path is not None:
        module = network.get_submodule(path)
        if path and isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            trunk = path
        opened.add(path)
        path = _main_child(module, path, head)
    return opened, trunk


def _main_child(module: nn.Module, path: str, head: str | None) -> str | None:
    """The child to open: it holds most layers, is no stage among stages, and not one block."""
    layers = {name: _num_layers(child) for name, child in module.named_children()}
    on_way = [name for name in layers if f"{head}.".startswith(f"{_join(path, name)}.")]
    rest = {name: n for name, n in layers.items() if name not in on_way}
    for name, size in rest.items():
        peers = [other for other, n in rest.items() if n > 1 and _kind_of(other) == _kind_of(name)]
        most = 2 * size > sum(rest.values())
        if most and peers == [name] and _can_open(module.get_submodule(name)):
            return _join(path, name)
    for name in on_way:
        if _join(path, name) != head and 2 * layers[name] > sum(layers.values()):
            return _join(path, name)
    return None


def _can_open(module: nn.Module) -> bool:
    """Whether a module is a sequence of several layers, or holds more than single layers."""
    sizes = [_num_layers(child) for child in module.children()]
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return sum(size > 0 for size in sizes) > 1
    return any(size > 1 for size in sizes)


def _kind_of(name: str) -> str:
    """A name without its digits: what `layer1` and `layer2` have in common."""
    return re.sub(r"\d+", "#", name)


def _num_layers(module: nn.Module) -> int:
    """How many layers a module is made of."""
    return sum(map(_is_layer, module.modules()))


def _is_layer(module: nn.Module) -> bool:
    """Whether a module itself holds weights: parameters that are more than a vector."""
    return any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))


def _is_chain_of_layers(module: nn.Module) -> bool:
    """Whether it is a sequence of layers, each of which may have a norm with it: no blocks."""
    return isinstance(module, nn.Sequential) and all(
        _num_layers(child) <= sum(map(_is_layer, [child, *child.children()])) <= 1
        for child in module.children()
    )


def _grouped(parts: list[_Part], head: str | None) -> list[tuple[str, list[_Part]]]:
    """The name and the parts of each block: the stem first if there is one, the head last."""
    body, tail = (parts, []) if head is None else _split_off_head(parts, head)
    start = _end_of_stem(body)
    groups: list[tuple[str, list[_Part]]] = []
    waiting = body[:start]
    if any(part.parameters for part in waiting):
        groups.append(("stem", waiting))
        waiting = []
    for part in body[start:]:
        if part.has_layers:
            groups.append((_free(plain_name(part.path), groups), [*waiting, part]))
            waiting = []
        else:
            groups[-1][1].append(part)
    if head is None:
        return [*groups[:-1], *(("head", group) for _, group in groups[-1:])]
    return [*groups, ("head", [*waiting, *tail])]


def _free(name: str, groups: list[tuple[str, list[_Part]]]) -> str:
    """The name, or another for a module that is called like the stem or the head but is not it."""
    taken = {"head", *(name for name, _ in groups)}
    return f"{name}_" if name in taken else name


def _split_off_head(parts: list[_Part], head: str) -> tuple[list[_Part], list[_Part]]:
    """The parts without the head, and the head with what has no parameters around it."""
    here = next(i for i, part in enumerate(parts) if part.path == head)
    first, end = here, here + 1
    while first > 0 and not parts[first - 1].parameters:
        first -= 1
    while end < len(parts) and not parts[end].parameters:
        end += 1
    return parts[:first] + parts[end:], parts[first:end]


def _end_of_stem(body: list[_Part]) -> int:
    """How many parts come before the trunk, or else before its first big part."""
    trunk = [i for i, part in enumerate(body) if part.in_trunk] or list(range(len(body)))
    if any(part.has_layers for part in body[: trunk[0] if trunk else 0]):
        return trunk[0]
    big = [i for i in trunk if body[i].is_big]
    layered = [i for i in range(len(body)) if body[i].has_layers]
    return (big or layered or [len(body)])[0]


def _block(name: str, parts: list[_Part], prefix: str) -> Block:
    return Block(
        name=name,
        modules=tuple(prefix + part.path for part in parts if part.is_module),
        parameters=tuple(prefix + parameter for part in parts for parameter in part.parameters),
    )


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
