"""Find how the names in a weights file become those of a network."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, product

import torch
from torch import Tensor

from lit_finetune.weights.state_dict_choice import choose, is_not_trained

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
    def label(self) -> str:
        """Under what the tensors stand in the file, as `state_dict.module.`."""
        return f"{self.entry}.{self.stripped}"

    def is_apart_from(self, other: "Reading") -> bool:
        """Whether the two read other tensors, and not the same under other prefixes."""
        return self.label != other.label and (
            self.entry != other.entry or not self.stripped.startswith(other.stripped)
        )

    @property
    def rank(self) -> int:
        """1 for an averaged copy of the network, -1 for a momentum encoder, else 0."""
        label = self.label
        return bool(_AVERAGED.search(label)) - bool(_SECOND_COPY.search(label))


def best_reading(
    entries: Mapping[str, Mapping[str, Tensor]], network: Mapping[str, Tensor]
) -> Reading:
    """The reading under which the most of a network is filled, counted in elements.

    Any prefix that stands in the file's names may be taken off, several stacked ones too, and any
    under which most of the network lies may be put on.

    Raises:
        NoWeightsError: Several fit as well, and their names do not tell which one is meant.
    """

    def fitting(reading: Reading) -> dict[str, Tensor]:
        tensors = reading.of(entries)
        return {n: t for n, t in tensors.items() if n in network and fits(t, network[n])}

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

    if not names:
        return Reading(max(entries, key=lambda entry: _size(entries[entry])))
    readings = _trained(names, lambda reading: names[reading])
    best, *others = sorted(readings, key=worth, reverse=True)
    if not elements[best]:
        return best
    rivals = [best]
    for other in others:
        is_twin = worth(other)[:3] == worth(best)[:3] and best.is_apart_from(other)
        is_first = other.entry not in {rival.entry for rival in rivals}
        is_near = 10 * elements[other] >= 9 * elements[best] and other.rank == best.rank
        if is_twin or (is_near and is_first):
            rivals.append(other)
    return choose(
        rivals, label=lambda reading: reading.label, tensors=lambda reading: fitting(reading)
    )


def main_entry(entries: Mapping[str, Mapping[str, Tensor]]) -> str:
    """The entry that holds the network, where no network is there to compare with.

    It is the largest, unless an averaged copy is about as large.

    Raises:
        NoWeightsError: Several are as large, and their names do not tell which one is meant.
    """
    sizes = {entry: _size(tensors) for entry, tensors in entries.items()}
    trained = _trained(map(Reading, entries), lambda reading: sizes[reading.entry])
    large = [each for each in trained if 2 * sizes[each.entry] >= max(sizes.values())]
    best, *others = sorted(
        large or trained, key=lambda each: (each.rank, sizes[each.entry]), reverse=True
    )
    near = [
        o for o in others if o.rank == best.rank and 10 * sizes[o.entry] >= 9 * sizes[best.entry]
    ]
    return choose(
        [best, *near], label=lambda each: each.label, tensors=lambda each: entries[each.entry]
    ).entry


def _trained(readings: Iterable[Reading], size: Callable[[Reading], int]) -> list[Reading]:
    """The readings but for those of masks, gradients and the like, if enough is left."""
    readings = list(readings)
    trained = [each for each in readings if not is_not_trained(each.label)]
    most = max(map(size, readings))
    return trained if 2 * max(map(size, trained), default=0) >= most else readings


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(map(Tensor.numel, tensors.values()))


def fits(tensor: Tensor, target: Tensor) -> bool:
    """Whether a tensor can be copied into another one and mean the same."""
    kinds = [(is_float(each), each.is_complex()) for each in (tensor, target)]
    return tensor.shape == target.shape and kinds[0] == kinds[1]


def is_float(tensor: Tensor) -> bool:
    """Whether a tensor's numbers are the weights themselves; float8 goes with scales."""
    return tensor.is_floating_point() and tensor.element_size() > 1


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
