"""Reorder or reset the outputs of a head, in place."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_finetune.heads.find import Layer, last_layer, replaced_layers
from lit_finetune.heads.replace import INIT_STD
from lit_finetune.images.data_config import DataConfig
from lit_finetune.modules.dry_run import num_channels
from lit_finetune.modules.eval_mode import eval_mode
from lit_finetune.modules.outputs import logits_of

ClassTensors = list[tuple[Tensor, int]]
"""Tensors with an entry for each class, and the dimension of the classes."""


@torch.no_grad()
def reorder_outputs(
    network: nn.Module, head_name: str, order: Sequence[int], *, data_config: DataConfig
) -> None:
    """Reorder the outputs of a network: output k becomes the former output `order[k]`.

    The tensors with an entry for each class are permuted, in partner and auxiliary heads, too. The
    network runs before and after: unless its logits are the same in the new order, the tensors are
    restored.

    Args:
        network: It is changed in place.
        head_name: The name of its head.
        order: For each new output, the index of the old one.
        data_config: The images that the network takes.

    Raises:
        ValueError: Permuting its tensors does not permute the logits; the network is unchanged.
    """
    images = _random_images(network, data_config)
    expected = _logits(network, images)[:, list(order)]
    for from_last_layer in (True, False):
        tensors = _class_tensors(network, head_name, len(order), from_last_layer=from_last_layer)
        saved = [tensor.clone() for tensor, _ in tensors]
        for tensor, dim in tensors:
            tensor.copy_(tensor.index_select(dim, torch.tensor(order, device=tensor.device)))
        if tensors and _is_close(_logits(network, images), expected, images.dtype):
            return
        for (tensor, _), before in zip(tensors, saved, strict=True):
            tensor.copy_(before)
    raise ValueError(
        f"The outputs of the head `{head_name}`"
        f" ({type(network.get_submodule(head_name)).__name__}) cannot be put into another order."
        " Give the data the head's order."
    )


@torch.no_grad()
def reset_head(
    network: nn.Module,
    head_name: str,
    *,
    state: Mapping[str, Tensor] | None,
    seed: int,
) -> None:
    """Reset a head, its partners and the auxiliary heads to the weights of new ones.

    Args:
        network: It is changed in place.
        head_name: The name of its head.
        state: The heads' initial state, by the network's names; None to initialise linear layers.
        seed: The seed of their initial weights.

    Raises:
        ValueError: A head is not one layer, and `state` is None.
    """
    if state is not None:
        tensors = network.state_dict(keep_vars=True)
        for name, tensor in state.items():
            tensors[name].copy_(tensor)
        return
    layers = [network.get_submodule(name) for name in replaced_layers(network, head_name)]
    generator = torch.Generator().manual_seed(seed % 2**63)
    for layer in layers:
        if not isinstance(layer, Layer) or "weight" not in layer._parameters:
            raise ValueError(
                f"The head `{head_name}` is of type {type(layer).__name__}, which cannot be"
                " reset. Pass a new one as `head`."
            )
        drawn = torch.empty(layer.weight.shape).normal_(std=INIT_STD, generator=generator)
        layer.weight.copy_(drawn)
        if layer.bias is not None:
            layer.bias.zero_()


def head_state(network: nn.Module, head_name: str) -> dict[str, Tensor]:
    """A copy of the state of a network's heads, by the network's names."""
    prefixes = tuple(f"{name}." for name in replaced_layers(network, head_name))
    state = network.state_dict()
    return {name: value.clone() for name, value in state.items() if name.startswith(prefixes)}


def refuse_sharded_head(network: nn.Module, head_name: str, why: str) -> None:
    """Refuse to change a sharded head.

    Args:
        network: It may be sharded.
        head_name: The name of its head.
        why: The reason for the change, for the message.

    Raises:
        ValueError: The head is sharded.
    """
    heads = [network.get_submodule(name) for name in replaced_layers(network, head_name)]
    tensors = [p for head in heads for p in head.parameters()]
    if any(p.is_meta or isinstance(p, DTensor) or hasattr(p, "_is_flat_param") for p in tensors):
        raise ValueError(
            f"{why} That cannot be done with a sharded head: do it on one device, or give the data"
            " the same classes in the same order."
        )


def update_class_names(network: nn.Module, names: Sequence[str]) -> None:
    """Update the names of the classes in the config of a Hugging Face network."""
    config: Any = vars(network).get("config")
    if isinstance(getattr(config, "id2label", None), dict):
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}


def _class_tensors(
    network: nn.Module, head_name: str, num_classes: int, *, from_last_layer: bool
) -> ClassTensors:
    """The heads' tensors with an entry for each class: of all layers, or from the last one on."""
    found: dict[int, tuple[Tensor, int]] = {}
    for name in replaced_layers(network, head_name):
        head = network.get_submodule(name)
        modules, last = list(head.modules()), last_layer(head)
        first = next((i for i, m in enumerate(modules) if m is last), 0) if from_last_layer else 0
        for module in modules[first:]:
            tensors: list[Tensor] = [
                *module.parameters(recurse=False),
                *module.buffers(recurse=False),
            ]
            for tensor in tensors:
                if num_classes in tensor.shape:
                    found[id(tensor)] = tensor, list(tensor.shape).index(num_classes)
    return list(found.values())


def _random_images(network: nn.Module, config: DataConfig) -> Tensor:
    """A few images of noise, in the network's dtype and on its device."""
    parameter = next(p for p in network.parameters() if p.is_floating_point())
    shape = (4, num_channels(network, config), *config.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return images.to(device=parameter.device, dtype=parameter.dtype)


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    with torch.compiler.set_stance("force_eager"), eval_mode(network):
        output: Any = network(images)
    return logits_of(output).float()


def _is_close(actual: Tensor, expected: Tensor, precision: torch.dtype) -> bool:
    """Whether logits are equal except for rounding, relative to their range."""
    tolerance = 1e-3 if precision.itemsize >= 4 else 3e-2
    allowed = tolerance * float(expected.max() - expected.min())
    return bool(torch.isfinite(actual).all()) and float((actual - expected).abs().max()) <= allowed
