"""Any network as an ordered list of named blocks, from the input to the head.

How the blocks are found, in forward order (`forward_order.py`):

* Each child of the network is one part (`layer1`, `fc1`), except for a child that holds most of
  the layers and has no sibling of its kind (`features`, `blocks`, `encoder.layers`), and for one
  that contains the head: these are opened, and their members are the parts (`features.3`).
* A module with weights starts a block. One without (an activation), or with vectors only (a norm),
  joins the block before it; the activations, pools and dropouts around the head join the head.
* The parts before the opened sequence, or else before the first big module, are the block `stem`.
* All heads are one block: those that compute the logits together (a distilled DeiT), and auxiliary
  ones (GoogLeNet), which have to learn new classes as the head has.
* If a network is registered in another order than it runs in, a part between two of its large
  sequences (an embedding) joins the later one, unless the earlier one uses it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from lit_finetune._errors import nearest
from lit_finetune.blocks.adapter_layers import adapted_names, is_adapter, without_adapters
from lit_finetune.blocks.norm_layers import norm_parameters
from lit_finetune.blocks.partition import Part, find_parts
from lit_finetune.heads.find import all_heads, find_head
from lit_finetune.modules.compiled import plain_name
from lit_finetune.modules.python_types import refuse_other_than_module


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a network that is frozen and trained as one."""

    name: str
    """The name of its module in the network, or `stem`, or `head`; without `_orig_mod`."""
    modules: tuple[str, ...]
    """The full names of its modules."""
    parameters: tuple[str, ...]
    """The full names of its parameters."""
    norms: tuple[str, ...] = ()
    """Those of its parameters that belong to normalisation layers."""
    fixed: tuple[str, ...] = ()
    """Those that never train: the base weights of a network that trains adapters (LoRA) instead."""
    user_frozen: tuple[str, ...] = ()
    """Those that the user froze before the run; a selector means them if it matches no others."""

    @property
    def free(self) -> tuple[str, ...]:
        """The parameters that may train."""
        return tuple(name for name in self.parameters if name not in self.fixed)


def list_blocks(model: nn.Module, head_name: str | None = None) -> list[Block]:
    """The blocks of a network, or of the network that a module holds; each parameter is in one.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> for block in list_blocks(net):
    ...     print(block.name, block.modules, block.parameters)
    0 ('0',) ('0.weight', '0.bias')
    head ('1', '2') ('2.weight', '2.bias')

    Args:
        model: A network, or a module that holds one and no other parameters.
        head_name: The network's classifier; by default the one that `find_head` finds. If it
            finds none, the last block is the head.

    Raises:
        ValueError: There is no module `head_name`.
    """
    refuse_other_than_module(model)
    with without_adapters(model) as layers:
        prefix, network = _inner_network(model)
        groups = _named_parts(network, _head_path(network, prefix, head_name))
        blocks = [_block(name, parts, prefix) for name, parts in groups]
    norms = norm_parameters(model)
    return [_complete(block, norms, layers) for block in blocks]


def _complete(block: Block, norms: frozenset[str], layers: Mapping[str, nn.Module]) -> Block:
    """Add the adapters to a block of the plain network; say which parameters are norms or fixed."""
    names = adapted_names(block.parameters, layers)
    trains = block.name == "head" or not layers
    return replace(
        block,
        parameters=names,
        norms=tuple(name for name in names if name in norms),
        fixed=() if trains else tuple(name for name in names if not is_adapter(name, layers)),
    )


def _named_parts(network: nn.Module, head: str | None) -> "Groups":
    """The name and the parts of each block, in forward order."""
    heads = () if head is None else all_heads(network, head)
    parts, is_reordered = find_parts(network, heads)
    body, tail = _split_off_heads(parts, heads)
    groups, pending = _group_parts(body, _end_of_stem(body), is_reordered=is_reordered)
    if heads:
        groups.append(("head", [*pending, *tail]))
    else:
        groups[-1:] = [("head", parts) for _, parts in groups[-1:]]
    return groups


def _inner_network(model: nn.Module) -> tuple[str, nn.Module]:
    """The prefix of the network that a module holds as its only child with parameters, and it."""
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


Groups = list[tuple[str, list[Part]]]


def _group_parts(body: list[Part], start: int, *, is_reordered: bool) -> tuple[Groups, list[Part]]:
    """The stem, which ends at `start`, and the other blocks; and the parts behind the last one."""
    stages = _stages(body) if is_reordered else []
    end = max(stages, default=-1)
    has_stem = any(part.parameters for part in body[:start])
    groups: Groups = [("stem", body[:start])] if has_stem else []
    pending = [] if has_stem else body[:start]
    stage: Part | None = None
    for i, part in enumerate(body[start:], start):
        if stages and i not in stages and stage and _is_used_within(part, stage):
            groups[-1][1].append(part)
        elif i < end and i not in stages:
            pending.append(part)
        elif part.has_layers:
            groups.append((_unused_name(plain_name(part.path), groups), [*pending, part]))
            stage, pending = part, []
        else:
            groups[-1][1].append(part)
    return groups, pending


def _stages(body: list[Part]) -> list[int]:
    """The indices of the trunk's members, or else of the large sequences."""
    trunk = [i for i, part in enumerate(body) if part.in_trunk]
    return trunk or [i for i, part in enumerate(body) if part.is_big and part.is_container]


def _is_used_within(part: Part, stage: Part) -> bool:
    """Whether a part is used before the last use of a stage, or has no layers to use."""
    if part.span is None or stage.span is None:
        return not part.has_layers
    return part.span[0] <= stage.span[1]


def _unused_name(name: str, groups: Groups) -> str:
    """The name; with `_` behind it if another block has it, or if it is `head`."""
    taken = {"head", *(name for name, _ in groups)}
    return f"{name}_" if name in taken else name


def _split_off_heads(parts: list[Part], heads: Sequence[str]) -> tuple[list[Part], list[Part]]:
    """The parts of the body, and the heads with the parts without parameters around them."""
    is_head = [part.is_module and part.path in heads for part in parts]
    for i in (i for i, part in enumerate(parts) if part.is_module and part.path in heads):
        for side in (range(i - 1, -1, -1), range(i + 1, len(parts))):
            for other in side:
                if parts[other].parameters:
                    break
                is_head[other] = True
    paired = list(zip(parts, is_head, strict=True))
    return [part for part, own in paired if not own], [part for part, own in paired if own]


def _end_of_stem(body: list[Part]) -> int:
    """The number of parts before the trunk, or else before its first big part."""
    trunk = [i for i, part in enumerate(body) if part.in_trunk] or list(range(len(body)))
    if any(part.has_layers for part in body[: trunk[0] if trunk else 0]):
        return trunk[0]
    big = [i for i in trunk if body[i].is_big]
    layered = [i for i in range(len(body)) if body[i].has_layers]
    return (big or layered or [len(body)])[0]


def _block(name: str, parts: list[Part], prefix: str) -> Block:
    return Block(
        name=name,
        modules=tuple(prefix + part.path for part in parts if part.is_module),
        parameters=tuple(prefix + parameter for part in parts for parameter in part.parameters),
    )


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
