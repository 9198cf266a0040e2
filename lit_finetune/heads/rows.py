"""The outputs of a head: put into another order, or begun anew, in place."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_finetune.heads.find import Layer, last_layer, replaced_layers
from lit_finetune.heads.replace import FIRST_STD
from lit_finetune.images.data_config import DataConfig
from lit_finetune.modules.dry_run import num_channels
from lit_finetune.modules.eval_mode import eval_mode
from lit_finetune.modules.outputs import logits_of

Rows = list[tuple[Tensor, int]]
"""Tensors that hold something for each class, and in which dimension."""


@torch.no_grad()
def reorder_outputs(
    network: nn.Module, head_name: str, order: Sequence[int], *, data_config: DataConfig
) -> None:
    """Let output k of a network be what output `order[k]` was.

    What the head holds for each class is moved, in heads beside it as well, and the network is run
    before and after: the same logits must come in the new order, or else all is put back.

    Args:
        network: It is changed.
        head_name: The name of its head.
        order: For each new output the place of the old one.
        data_config: What pictures it takes.

    Raises:
        ValueError: The head computes its outputs in another way; the network is as it was.
    """
    images = _drawn_images(network, data_config)
    wanted = _logits(network, images)[:, list(order)]
    for from_last_layer in (True, False):
        rows = _rows(network, head_name, len(order), from_last_layer=from_last_layer)
        kept = [tensor.clone() for tensor, _ in rows]
        for tensor, dim in rows:
            tensor.copy_(tensor.index_select(dim, torch.tensor(order, device=tensor.device)))
        if rows and _is_close(_logits(network, images), wanted, images.dtype):
            return
        for (tensor, _), before in zip(rows, kept, strict=True):
            tensor.copy_(before)
    raise ValueError(
        f"What the head `{head_name}` ({type(network.get_submodule(head_name)).__name__}) holds for"
        " each class cannot be put into another order. Give the data the head's order."
    )


@torch.no_grad()
def begin_anew(
    network: nn.Module,
    head_name: str,
    *,
    state: Mapping[str, Tensor] | None,
    seed: int,
) -> None:
    """Give a head, and those beside it, the weights of a new one.

    Args:
        network: It is changed.
        head_name: The name of its head.
        state: What the heads began with, by the network's names; None for linear layers, which can
            be drawn again.
        seed: What they are drawn by.

    Raises:
        ValueError: A head is no single layer, and its beginning is not known.
    """
    if state is not None:
        own = network.state_dict(keep_vars=True)
        for name, tensor in state.items():
            own[name].copy_(tensor)
        return
    layers = [network.get_submodule(name) for name in replaced_layers(network, head_name)]
    generator = torch.Generator().manual_seed(seed % 2**63)
    for layer in layers:
        if not isinstance(layer, Layer) or "weight" not in layer._parameters:
            raise ValueError(
                f"The head `{head_name}` is of type {type(layer).__name__}: a new one cannot take"
                " its place by itself. Pass one as `head`."
            )
        drawn = torch.empty(layer.weight.shape).normal_(std=FIRST_STD, generator=generator)
        layer.weight.copy_(drawn)
        if layer.bias is not None:
            layer.bias.zero_()


def head_state(network: nn.Module, head_name: str) -> dict[str, Tensor]:
    """A copy of what the heads of a network hold, by the network's names."""
    starts = tuple(f"{name}." for name in replaced_layers(network, head_name))
    state = network.state_dict()
    return {name: value.clone() for name, value in state.items() if name.startswith(starts)}


def refuse_parts(network: nn.Module, head_name: str, why: str) -> None:
    """Refuse to change a head of which this process has only a part.

    Args:
        network: It may be sharded.
        head_name: The name of its head.
        why: What the change is for.

    Raises:
        ValueError: It has.
    """
    heads = [network.get_submodule(name) for name in replaced_layers(network, head_name)]
    tensors = [p for head in heads for p in head.parameters()]
    if any(p.is_meta or isinstance(p, DTensor) or hasattr(p, "_is_flat_param") for p in tensors):
        raise ValueError(
            f"{why} That cannot be done with the head in parts: do it on one device, or give the"
            " data the same classes in the same order."
        )


def note_names(network: nn.Module, names: Sequence[str]) -> None:
    """Bring up to date what a network of Hugging Face calls its classes."""
    config: Any = vars(network).get("config")
    if isinstance(getattr(config, "id2label", None), dict):
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}


def _rows(network: nn.Module, head_name: str, num_classes: int, *, from_last_layer: bool) -> Rows:
    """What the heads hold for each class: in all of them, or from their last layers on."""
    found: dict[int, tuple[Tensor, int]] = {}
    for name in replaced_layers(network, head_name):
        head = network.get_submodule(name)
        modules, last = list(head.modules()), last_layer(head)
        first = next((i for i, m in enumerate(modules) if m is last), 0) if from_last_layer else 0
        for module in modules[first:]:
            own: list[Tensor] = [
                *module.parameters(recurse=False),
                *module.buffers(recurse=False),
            ]
            for tensor in own:
                if num_classes in tensor.shape:
                    found[id(tensor)] = tensor, list(tensor.shape).index(num_classes)
    return list(found.values())


def _drawn_images(network: nn.Module, config: DataConfig) -> Tensor:
    """A few pictures of noise, as the network takes them."""
    parameter = next(p for p in network.parameters() if p.is_floating_point())
    shape = (4, num_channels(network, config), *config.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return images.to(device=parameter.device, dtype=parameter.dtype)


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    with torch.compiler.set_stance("force_eager"), eval_mode(network):
        output: Any = network(images)
    return logits_of(output).float()


def _is_close(found: Tensor, wanted: Tensor, precision: torch.dtype) -> bool:
    """Whether logits are the same but for rounding, measured by how far they lie apart."""
    share = 1e-3 if precision.itemsize >= 4 else 3e-2
    allowed = share * float(wanted.max() - wanted.min())
    return bool(torch.isfinite(found).all()) and float((found - wanted).abs().max()) <= allowed
