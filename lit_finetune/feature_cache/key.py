"""Cache keys: digests of everything that determines the output of a network's first blocks."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_finetune.blocks.block import Block
from lit_finetune.files.fingerprint import describe, digest, digest_tensors

_TRANSFORMS = ("transform", "target_transform", "transforms", "pipeline")


def prefix_tensors(network: nn.Module, blocks: Sequence[Block]) -> dict[str, Tensor]:
    """The parameters and buffers of some blocks, by name."""
    roots = tuple(f"{path}." for block in blocks for path in block.modules)
    parameters = {name for block in blocks for name in block.parameters}
    named = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {
        name: tensor
        for name, tensor in named.items()
        if name in parameters or f"{name}.".startswith(roots)
    }


def stamp(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Numbers that change when one of these tensors changes; costs a few milliseconds."""
    versions = [number for t in tensors.values() for number in (t.data_ptr(), t._version)]
    return (*bit_sums(tensors), *versions)


def bit_sums(tensors: Mapping[str, Tensor]) -> list[int]:
    """The sum of each tensor's elements, with their bits read as integers."""
    bits = [_bit_sum(tensor.detach()) for tensor in tensors.values()]
    sums: list[int] = torch.stack(bits).tolist() if bits else []
    return sums


def network_digest(network: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """A digest of the tensors' values and of the code of the network's modules."""
    kinds = {type(module) for module in network.modules()}
    code = sorted(f"{kind.__qualname__} {describe(kind.forward)}" for kind in kinds)
    return digest(repr(network), code, digest_tensors(tensors))


def content_digest(dataset: Any) -> str | None:
    """A digest of a dataset's images, labels and transforms.

    None for a dataset whose content is unknown: only ours, and those of torch and torchvision that
    list their files or hold their tensors, can be identified.
    """
    content = _content(dataset)
    if content is None:
        return None
    transforms = [getattr(dataset, name, None) for name in _TRANSFORMS]
    return digest(type(dataset).__qualname__, content, transforms)


def _content(dataset: Any) -> list[Any] | None:
    attributes = {**getattr(dataset, "__dict__", {})}
    if "dataset" in attributes and "indices" in attributes:  # torch's Subset
        inner = content_digest(dataset.dataset)
        return None if inner is None else [inner, list(dataset.indices)]
    if "tensors" in attributes:
        return list(dataset.tensors)
    if "data" in attributes and "targets" in attributes:  # torchvision's CIFAR and MNIST
        return [dataset.data, dataset.targets]
    samples = attributes.get("samples")
    if samples is not None and hasattr(samples, "names") and hasattr(samples, "labels"):
        stamps = _stamps(samples)
        return None if stamps is None else [list(samples.names), list(samples.labels), stamps]
    if isinstance(samples, list) and samples and isinstance(samples[0], tuple):  # ImageFolder
        return [samples, _file_stamps(path for path, _ in samples)]
    return None


def _stamps(samples: Any) -> list[Any] | None:
    """For one of our datasets: values that change when one of its images changes."""
    if hasattr(samples, "stamp"):
        return [list(samples.stamp(index)) for index in range(len(samples.names))]
    if hasattr(samples, "root"):
        return _file_stamps(Path(samples.root, name) for name in samples.names)
    images = getattr(samples, "images", None)
    return None if images is None else [images]


def _file_stamps(paths: Iterable[str | Path]) -> list[tuple[int, int]]:
    stats = [os.stat(path) for path in paths]
    return [(each.st_size, each.st_mtime_ns) for each in stats]


def _bit_sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor's elements, with their bits read as integers."""
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    flat = tensor.contiguous().reshape(-1)
    return flat.view(sizes[flat.element_size()]).sum(dtype=torch.int64).cpu()
