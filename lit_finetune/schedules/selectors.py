"""Selectors: from a name, glob, index or kind to a network's parameters."""

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from lit_finetune._errors import nearest
from lit_finetune.blocks.block import Block
from lit_finetune.modules.compiled import plain_name
from lit_finetune.schedules.phases import Selector

_T = TypeVar("_T")
_SLICE = re.compile(r"(-?\d+)?(:)?(-?\d+)?")
_CHILDREN = re.compile(r"children\[(.+)\]")
_BIAS = re.compile(r"(^|[._])bias$")
KINDS = ("norms", "biases")
"""The kinds of parameters that a selector may name, alone or after a slash."""


def select(selector: Selector, blocks: Sequence[Block]) -> tuple[str, ...]:
    """The names of the parameters that a selector matches, in the network's order.

    Args:
        selector: `all`; a block's name (`layer4`, `head`); a block's index or slice (`-1`, `-2:`);
            a module's or a parameter's name (`layer4.1.bn2`); a glob over such names
            (`layer4.*`); `re:` and a regular expression that matches a whole name; `children[:6]`
            for the network's first six children; `norms` for the parameters of all normalisation
            layers, `biases` for all biases, `layer4/norms` for those of a module. A text such
            as `"3"` is the block of that name if there is one, else an index; a number is always
            an index. Names are those without `torch.compile`.
        blocks: The network's blocks. Parameters that the user froze before the run are returned
            only if the selector matches no others.

    Raises:
        ValueError: The selector matches no parameter; the message names the closest match.

    >>> blocks = [Block("stem", ("conv",), ("conv.w",)), Block("head", ("fc",), ("fc.w", "fc.b"))]
    >>> select("head", blocks), select(0, blocks), select("re:c.*v", blocks)
    (('fc.w', 'fc.b'), ('conv.w',), ('conv.w',))
    """
    text = plain_name(str(selector).strip())
    base, slash, kind = text.rpartition("/")
    if slash and kind in KINDS:
        within = set(select(base, blocks))
        found = tuple(name for name in _select_kind(kind, blocks) if name in within)
    else:
        found = _select_parameters(selector, text, blocks)
    if not found:
        have = [block.name for block in blocks]
        names = [
            n
            for p in _parameters(blocks)
            for n in _path_names(plain_name(p), _network_prefix(blocks))
        ]
        raise ValueError(
            f"{selector!r} matches nothing.{nearest(text, have + names)}"
            f" The blocks are: {', '.join(have)}."
        )
    free = {name for block in blocks for name in block.free}
    if free.isdisjoint(found):
        raise ValueError(
            f"{selector!r} matches only base weights, such as {found[0]!r}: they stay frozen, and"
            " the adapters (`lora`) train instead."
        )
    user_frozen = {name for block in blocks for name in block.user_frozen}
    trainable = tuple(name for name in found if name in free and name not in user_frozen)
    return trainable or tuple(name for name in found if name in free)


def may_overlap(selector: Selector) -> bool:
    """Whether a selector may match parameters that train already: it adds the remaining ones.

    >>> [may_overlap(selector) for selector in ("all", "norms", "layer4/biases", "layer4")]
    [True, True, True, False]
    """
    text = str(selector).strip()
    return text == "all" or selects_kind(selector)


def selects_kind(selector: Selector) -> bool:
    """Whether a selector selects a kind of parameters: norms or biases."""
    return str(selector).strip().rpartition("/")[2] in KINDS


def selects_by_index(selector: Selector) -> bool:
    """Whether a selector selects blocks or children by index, not by name.

    >>> [selects_by_index(selector) for selector in (0, "-2:", "children[:3]", "layer4")]
    [True, True, True, False]
    """
    text = str(selector).strip()
    return _is_slice(text) or bool(_CHILDREN.fullmatch(text))


def _select_parameters(selector: Selector, text: str, blocks: Sequence[Block]) -> tuple[str, ...]:
    """The parameters of a selector without a kind after a slash; empty if it matches none."""
    if text == "all":
        return _parameters(blocks)
    if isinstance(selector, str) and text in [block.name for block in blocks]:
        return _parameters(block for block in blocks if block.name == text)
    if _is_slice(text):
        return _parameters(_take(text, blocks, selector))
    if children := _CHILDREN.fullmatch(text):
        return _select_children(children[1], blocks, selector)
    if text.startswith("re:"):
        return _match_names(blocks, _pattern(text[3:], selector).fullmatch)
    if any(character in text for character in "*?["):
        return _match_names(blocks, lambda name: fnmatchcase(name, text))
    return _match_names(blocks, lambda name: name == text) or _select_kind(text, blocks)


def _select_kind(kind: str, blocks: Iterable[Block]) -> tuple[str, ...]:
    """The parameters of normalisation layers, or all biases."""
    if kind == "norms":
        return tuple(name for block in blocks for name in block.norms)
    biases = (name for name in _parameters(blocks) if _BIAS.search(name))
    return tuple(biases) if kind == "biases" else ()


def _parameters(blocks: Iterable[Block]) -> tuple[str, ...]:
    return tuple(name for block in blocks for name in block.parameters)


def _is_slice(text: str) -> bool:
    return bool(text) and bool(_SLICE.fullmatch(text))


def _take(text: str, items: Sequence[_T], selector: Selector) -> Sequence[_T]:
    """The items at an index or in a slice, given as text."""
    match = _SLICE.fullmatch(text)
    if not match:
        raise ValueError(f"{selector!r} is no index or slice, such as 0, -1, 2: or :6.")
    start, colon, stop = match.groups()
    if colon:
        return items[slice(int(start) if start else None, int(stop) if stop else None)]
    index = int(start)
    if not -len(items) <= index < len(items):
        raise ValueError(
            f"{selector!r} is out of range: there are {len(items)}, from 0 or back from -1."
        )
    return [items[index]]


def _select_children(text: str, blocks: Sequence[Block], selector: Selector) -> tuple[str, ...]:
    prefix = _network_prefix(blocks)
    modules = (
        plain_name(name).removeprefix(prefix)
        for block in blocks
        for name in (*block.modules, *block.parameters)
    )
    children = list(dict.fromkeys(name.split(".")[0] for name in modules))
    chosen = set(_take(text, children, selector))
    return tuple(
        name
        for name in _parameters(blocks)
        if plain_name(name).removeprefix(prefix).split(".")[0] in chosen
    )


def _match_names(blocks: Sequence[Block], matches: Callable[[str], object]) -> tuple[str, ...]:
    """The parameters whose block, whose own name, or one of whose parent modules matches."""
    prefix = _network_prefix(blocks)
    return tuple(
        parameter
        for block in blocks
        for parameter in block.parameters
        if matches(block.name) or any(map(matches, _path_names(plain_name(parameter), prefix)))
    )


def _path_names(parameter: str, prefix: str) -> list[str]:
    """A parameter's name and its parent modules', with the network's prefix and without.

    >>> _path_names("net.fc.weight", prefix="net.")
    ['net', 'net.fc', 'net.fc.weight', 'fc', 'fc.weight']
    """
    variants = [parameter] if not prefix else [parameter, parameter.removeprefix(prefix)]
    return [
        ".".join(parts[:length])
        for parts in (variant.split(".") for variant in variants)
        for length in range(1, len(parts) + 1)
    ]


def _network_prefix(blocks: Sequence[Block]) -> str:
    """The prefix of the network in the module that holds it: `backbone.`; empty for a bare network.

    Except for the stem and the head, a block has the name of its module in the network.
    """
    for block in blocks:
        for module in map(plain_name, block.modules):
            if block.name not in ("stem", "head") and f".{module}".endswith(f".{block.name}"):
                return module.removesuffix(block.name)
    first = {plain_name(name).split(".")[0] for name in _parameters(blocks)}
    return f"{first.pop()}." if len(first) == 1 else ""


def _pattern(expression: str, selector: Selector) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
        raise ValueError(f"{selector!r} is no regular expression: {error}.") from error
