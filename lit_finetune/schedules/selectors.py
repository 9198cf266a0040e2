"""From what a user writes to the parameters that are meant."""

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
"""Kinds of parameters that a selector may ask for, behind a slash or alone."""


def select(selector: Selector, blocks: Sequence[Block]) -> tuple[str, ...]:
    """The names of the parameters that a selector means, in the network's order.

    Args:
        selector: `all`; a block's name (`layer4`, `head`); a block's index or slice (`-1`, `-2:`);
            a module's or a parameter's name (`layer4.1.bn2`); a glob over such names
            (`layer4.*`); `re:` and a regular expression that matches a whole name; `children[:6]`
            for the network's first six children; `norms` for the parameters of all normalisation
            layers, `biases` for all biases, `layer4/norms` for those of a part. A text such as
            `"3"` is the block of that name if there is one, and else an index; a number is always
            an index. Names are as they would be without `torch.compile`.
        blocks: What there is. Their parameters that were fixed before are found only by a selector
            that matches nothing else.

    Raises:
        ValueError: The selector matches no parameter; the message names the nearest.

    >>> blocks = [Block("stem", ("conv",), ("conv.w",)), Block("head", ("fc",), ("fc.w", "fc.b"))]
    >>> select("head", blocks), select(0, blocks), select("re:c.*v", blocks)
    (('fc.w', 'fc.b'), ('conv.w',), ('conv.w',))
    """
    text = plain_name(str(selector).strip())
    base, slash, kind = text.rpartition("/")
    if slash and kind in KINDS:
        inside = set(select(base, blocks))
        found = tuple(name for name in _of_kind(kind, blocks) if name in inside)
    else:
        found = _find(selector, text, blocks)
    if not found:
        have = [block.name for block in blocks]
        names = [n for p in _parameters(blocks) for n in _names(plain_name(p), _prefix(blocks))]
        raise ValueError(
            f"{selector!r} matches nothing.{nearest(text, have + names)}"
            f" The blocks are: {', '.join(have)}."
        )
    free = {name for block in blocks for name in block.free}
    if free.isdisjoint(found):
        raise ValueError(
            f"{selector!r} matches weights of the network alone, such as {found[0]!r}: they stay"
            " frozen, and the adapters (`lora`) train in their place."
        )
    user_frozen = {name for block in blocks for name in block.user_frozen}
    moving = tuple(name for name in found if name in free and name not in user_frozen)
    return moving or tuple(name for name in found if name in free)


def means_the_rest(selector: Selector) -> bool:
    """Whether a selector means what is left, so that it may overlap with others.

    >>> [means_the_rest(selector) for selector in ("all", "norms", "layer4/biases", "layer4")]
    [True, True, True, False]
    """
    text = str(selector).strip()
    return text == "all" or of_a_kind(selector)


def of_a_kind(selector: Selector) -> bool:
    """Whether a selector asks for parameters of a kind: norms or biases."""
    return str(selector).strip().rpartition("/")[2] in KINDS


def counts_blocks(selector: Selector) -> bool:
    """Whether a selector counts blocks or children instead of naming them.

    >>> [counts_blocks(selector) for selector in (0, "-2:", "children[:3]", "layer4")]
    [True, True, True, False]
    """
    text = str(selector).strip()
    return _is_slice(text) or bool(_CHILDREN.fullmatch(text))


def _find(selector: Selector, text: str, blocks: Sequence[Block]) -> tuple[str, ...]:
    """What a selector means that asks for no kind behind a slash; nothing where it fits nothing."""
    if text == "all":
        return _parameters(blocks)
    if isinstance(selector, str) and text in [block.name for block in blocks]:
        return _parameters(block for block in blocks if block.name == text)
    if _is_slice(text):
        return _parameters(_cut(text, blocks, selector))
    if children := _CHILDREN.fullmatch(text):
        return _of_children(children[1], blocks, selector)
    if text.startswith("re:"):
        return _matching(blocks, _pattern(text[3:], selector).fullmatch)
    if any(character in text for character in "*?["):
        return _matching(blocks, lambda name: fnmatchcase(name, text))
    return _matching(blocks, lambda name: name == text) or _of_kind(text, blocks)


def _of_kind(kind: str, blocks: Iterable[Block]) -> tuple[str, ...]:
    """The parameters of normalisation layers, or those that are biases."""
    if kind == "norms":
        return tuple(name for block in blocks for name in block.norms)
    biases = (name for name in _parameters(blocks) if _BIAS.search(name))
    return tuple(biases) if kind == "biases" else ()


def _parameters(blocks: Iterable[Block]) -> tuple[str, ...]:
    return tuple(name for block in blocks for name in block.parameters)


def _is_slice(text: str) -> bool:
    return bool(text) and bool(_SLICE.fullmatch(text))


def _cut(text: str, items: Sequence[_T], selector: Selector) -> Sequence[_T]:
    """What an index or a slice, as text, takes of the items."""
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


def _of_children(text: str, blocks: Sequence[Block], selector: Selector) -> tuple[str, ...]:
    prefix = _prefix(blocks)
    modules = (
        plain_name(name).removeprefix(prefix)
        for block in blocks
        for name in (*block.modules, *block.parameters)
    )
    children = list(dict.fromkeys(name.split(".")[0] for name in modules))
    chosen = set(_cut(text, children, selector))
    return tuple(
        name
        for name in _parameters(blocks)
        if plain_name(name).removeprefix(prefix).split(".")[0] in chosen
    )


def _matching(blocks: Sequence[Block], matches: Callable[[str], object]) -> tuple[str, ...]:
    """Parameters of which the block, a module around them, or their own name matches."""
    prefix = _prefix(blocks)
    return tuple(
        parameter
        for block in blocks
        for parameter in block.parameters
        if matches(block.name) or any(map(matches, _names(plain_name(parameter), prefix)))
    )


def _names(parameter: str, prefix: str) -> list[str]:
    """A parameter's name and those of the modules around it, with the network's prefix and without.

    >>> _names("net.fc.weight", prefix="net.")
    ['net', 'net.fc', 'net.fc.weight', 'fc', 'fc.weight']
    """
    variants = [parameter] if not prefix else [parameter, parameter.removeprefix(prefix)]
    return [
        ".".join(parts[:length])
        for parts in (variant.split(".") for variant in variants)
        for length in range(1, len(parts) + 1)
    ]


def _prefix(blocks: Sequence[Block]) -> str:
    """The way to the network in a module that holds it: `backbone.`; empty for a bare network.

    A block is called as its module is in the network, but for the stem and the head.
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
