"""Find how the names in a weights file become those of a network."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, product

import torch
from torch import Tensor

# Where a file holds a network twice and both fit: the averaged copy is the better one, the
# momentum encoder of MoCo and BYOL the worse one.
_AVERAGED = re.compile(r"(^|[._])(ema|teacher)([._]|$)")
_SECOND_COPY = re.compile(r"encoder_k|momentum|target")
# Magnitude and direction of a weight-normalised layer, as old and new torch call them.
_WEIGHT_NORM = {
    "weight_g": "weight_v",
    "parametrizations.weight.original0": "parametrizations.weight.original1",
}

_MOST_DOTS = 32
"""No network is so deep; a damaged name may be."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read a file: the entry to take, the prefix to take off, the one to put on."""

    entry: str
    stripped: str = ""
    added: str = ""

    def rename(self, name: str) -> str:
        """The network's name for a name in the file.

        >>> Reading("state_dict", stripped="module.").rename("module.fc.bias")
        'fc.bias'
        """
        inside = name.startswith(self.stripped)
        return self.added + name.removeprefix(self.stripped) if inside else name

    def of(self, entries: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of the entry by the network's names."""
        tensors = entries[self.entry]
        # Last and so in force, should two names become one: those that had the prefix.
        names = sorted(tensors, key=lambda name: name.startswith(self.stripped))
        return {self.rename(name): tensors[name] for name in names}

    @property
    def rank(self) -> int:
        """1 for an averaged copy of the network, -1 for a momentum encoder, else 0."""
        label = f"{self.entry}.{self.stripped}"
        return bool(_AVERAGED.search(label)) - bool(_SECOND_COPY.search(label))


def best_reading(
    entries: Mapping[str, Mapping[str, Tensor]], network: Mapping[str, Tensor]
) -> Reading:
    """The reading under which the most of a network is filled, counted in elements.

    Any prefix that stands in the file's names may be taken off, several stacked ones too, and any
    under which most of the network lies may be put on.
    """
    roots = _roots(network)
    elements: Counter[Reading] = Counter()
    names: Counter[Reading] = Counter()
    for entry, name, tensor in _tensors(entries):
        for stripped, added in product(_prefixes(name), roots):
            target = network.get(added + name.removeprefix(stripped))
            if target is not None:
                reading = Reading(entry, stripped, added)
                names[reading] += 1
                elements[reading] += tensor.numel() if fits(tensor, target) else 0

    def worth(reading: Reading) -> tuple[int, int, int, int]:
        length = len(reading.stripped) + len(reading.added)
        return elements[reading], names[reading], reading.rank, -length

    return max(names, key=worth, default=Reading(main_entry(entries)))


def main_entry(entries: Mapping[str, Mapping[str, Tensor]]) -> str:
    """The entry that holds the network, where no network is there to compare with.

    It is the largest, unless an averaged copy is about as large.
    """
    sizes = {entry: sum(map(Tensor.numel, tensors.values())) for entry, tensors in entries.items()}
    large = [entry for entry, size in sizes.items() if 2 * size >= max(sizes.values())]
    return max(large, key=lambda entry: (Reading(entry).rank, sizes[entry]))


def fits(tensor: Tensor, target: Tensor) -> bool:
    """Whether a tensor can be copied into another one and mean the same."""
    kinds = [(each.is_floating_point(), each.is_complex()) for each in (tensor, target)]
    return tensor.shape == target.shape and kinds[0] == kinds[1]


def fold_weight_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the two factors of every weight-normalised layer made one `weight`."""
    folded = dict(tensors)
    for magnitude, direction in _WEIGHT_NORM.items():
        for name in tensors:
            stem = name.removesuffix(magnitude)
            if stem != name and stem + direction in tensors:
                weight = _scaled(tensors[name], tensors[stem + direction])
                if weight is not None:
                    del folded[name], folded[stem + direction]
                    folded[f"{stem}weight"] = weight
    return folded


def _scaled(magnitude: Tensor, direction: Tensor) -> Tensor | None:
    """The direction at the magnitude given, or None if their shapes are of no weight norm."""
    if magnitude.dim() != direction.dim():
        return None
    over = [axis for axis, size in enumerate(magnitude.shape) if size == 1]
    norm = torch.linalg.vector_norm(direction.float(), dim=over, keepdim=True)
    return direction * (magnitude / norm) if norm.shape == magnitude.shape else None


def _tensors(entries: Mapping[str, Mapping[str, Tensor]]) -> Iterator[tuple[str, str, Tensor]]:
    for entry, tensors in entries.items():
        for name, tensor in tensors.items():
            yield entry, name, tensor


def _roots(network: Mapping[str, Tensor]) -> list[str]:
    """The prefixes under which most of the network lies, "" among them."""
    sizes: Counter[str] = Counter()
    for name, tensor in network.items():
        for prefix in _prefixes(name):
            sizes[prefix] += tensor.numel()
    return [prefix for prefix, size in sizes.items() if 2 * size >= sizes[""]]


def _prefixes(name: str) -> list[str]:
    """The starts of a name that end with a dot, shortest first, and "".

    >>> _prefixes("module.conv1.weight")
    ['', 'module.', 'module.conv1.']
    """
    return ["", *(name[: dot.end()] for dot in islice(re.finditer(r"\.", name), _MOST_DOTS))]
