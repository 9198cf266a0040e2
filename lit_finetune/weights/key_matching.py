"""Map the names in a weights file to those of a network."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, product

import torch
from torch import Tensor

from lit_finetune.weights.state_dict_choice import choose_state_dict, is_untrained

# If a file holds a network twice and both fit, the averaged copy is the better one, the momentum
# encoder of MoCo and BYOL the worse one.
_AVERAGED = re.compile(r"(^|[._])(ema|teacher)([._]|$)")
_SECOND_COPY = re.compile(r"encoder_k|momentum|target")
# Magnitude and direction of a weight-normalised layer, under the names of old and new torch.
_WEIGHT_NORM = {
    "weight_g": "weight_v",
    "parametrizations.weight.original0": "parametrizations.weight.original1",
}

_MAX_DOTS = 32
"""The most dots of a name that are considered: damaged names may have more."""


@dataclass(frozen=True, slots=True)
class KeyMapping:
    """A mapping of a file's names: the entry to read, the prefix to strip, the prefix to add."""

    entry: str
    stripped: str = ""
    added: str = ""

    def rename(self, name: str) -> str:
        """The network's name for a name in the file.

        >>> KeyMapping("state_dict", stripped="module.").rename("module.fc.bias")
        'fc.bias'
        """
        has_prefix = name.startswith(self.stripped)
        return self.added + name.removeprefix(self.stripped) if has_prefix else name

    def apply(self, entries: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of the entry, by the network's names."""
        tensors = entries[self.entry]
        # If two names become the same, the one that had the prefix comes last and wins.
        names = sorted(tensors, key=lambda name: name.startswith(self.stripped))
        return {self.rename(name): tensors[name] for name in names}

    @property
    def label(self) -> str:
        """The tensors' prefix in the file, such as `state_dict.module.`."""
        return f"{self.entry}.{self.stripped}"

    def is_disjoint_from(self, other: "KeyMapping") -> bool:
        """Whether the two read different tensors, not the same ones with different prefixes."""
        return self.label != other.label and (
            self.entry != other.entry or not self.stripped.startswith(other.stripped)
        )

    @property
    def preference(self) -> int:
        """1 for an averaged copy of the network, -1 for a momentum encoder, else 0."""
        label = self.label
        return bool(_AVERAGED.search(label)) - bool(_SECOND_COPY.search(label))


def best_mapping(
    entries: Mapping[str, Mapping[str, Tensor]], network: Mapping[str, Tensor]
) -> KeyMapping:
    """The mapping that fills the most elements of a network.

    Any prefix of the file's names may be stripped, also several levels, and any prefix of most of
    the network may be added.

    Raises:
        NoWeightsError: Several mappings fit equally well, and their names do not show which one is
            the network.
    """

    def matching_tensors(mapping: KeyMapping) -> dict[str, Tensor]:
        tensors = mapping.apply(entries)
        return {n: t for n, t in tensors.items() if n in network and fits(t, network[n])}

    network_prefixes = _network_prefixes(network)
    elements: Counter[KeyMapping] = Counter()
    names: Counter[KeyMapping] = Counter()
    for entry, name, tensor in _iter_tensors(entries):
        for stripped, added in product(_prefixes(name), network_prefixes):
            target = network.get(added + name.removeprefix(stripped))
            if target is not None:
                mapping = KeyMapping(entry, stripped, added)
                names[mapping] += 1
                elements[mapping] += tensor.numel() if fits(tensor, target) else 0

    def sort_key(mapping: KeyMapping) -> tuple[int, int, int, int]:
        length = len(mapping.stripped) + len(mapping.added)
        return elements[mapping], names[mapping], mapping.preference, -length

    if not names:
        return KeyMapping(max(entries, key=lambda entry: _size(entries[entry])))
    mappings = _drop_untrained(names, lambda mapping: names[mapping])
    best, *others = sorted(mappings, key=sort_key, reverse=True)
    if not elements[best]:
        return best
    tied = [best]
    for other in others:
        is_equal = sort_key(other)[:3] == sort_key(best)[:3] and best.is_disjoint_from(other)
        is_new_entry = other.entry not in {candidate.entry for candidate in tied}
        is_close = (
            10 * elements[other] >= 9 * elements[best] and other.preference == best.preference
        )
        if is_equal or (is_close and is_new_entry):
            tied.append(other)
    return choose_state_dict(
        tied, label=lambda mapping: mapping.label, tensors=lambda mapping: matching_tensors(mapping)
    )


def main_entry(entries: Mapping[str, Mapping[str, Tensor]]) -> str:
    """The entry that holds the network, without a network to compare with.

    It is the largest one, or an averaged copy that is about as large.

    Raises:
        NoWeightsError: Several are equally large, and their names do not show which one is the
            network.
    """
    sizes = {entry: _size(tensors) for entry, tensors in entries.items()}
    mappings = _drop_untrained(map(KeyMapping, entries), lambda mapping: sizes[mapping.entry])
    candidates = [each for each in mappings if 2 * sizes[each.entry] >= max(sizes.values())]
    best, *others = sorted(
        candidates or mappings, key=lambda each: (each.preference, sizes[each.entry]), reverse=True
    )
    similar = [
        o
        for o in others
        if o.preference == best.preference and 10 * sizes[o.entry] >= 9 * sizes[best.entry]
    ]
    return choose_state_dict(
        [best, *similar], label=lambda each: each.label, tensors=lambda each: entries[each.entry]
    ).entry


def _drop_untrained(
    mappings: Iterable[KeyMapping], size: Callable[[KeyMapping], int]
) -> list[KeyMapping]:
    """The mappings without those of masks, gradients, etc., if enough remains."""
    mappings = list(mappings)
    trained = [each for each in mappings if not is_untrained(each.label)]
    largest = max(map(size, mappings))
    return trained if 2 * max(map(size, trained), default=0) >= largest else mappings


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(map(Tensor.numel, tensors.values()))


def fits(tensor: Tensor, target: Tensor) -> bool:
    """Whether a tensor can be copied into another one: same shape, same kind of numbers."""
    types = [(is_float(each), each.is_complex()) for each in (tensor, target)]
    return tensor.shape == target.shape and types[0] == types[1]


def is_float(tensor: Tensor) -> bool:
    """Whether a tensor's numbers are the weights themselves; float8 needs scales."""
    return tensor.is_floating_point() and tensor.element_size() > 1


def fold_weight_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold the two factors of every weight-normalised layer into one `weight`."""
    folded = dict(tensors)
    for magnitude, direction in _WEIGHT_NORM.items():
        for name in tensors:
            stem = name.removesuffix(magnitude)
            if stem != name and stem + direction in tensors:
                weight = _rescale(tensors[name], tensors[stem + direction])
                if weight is not None:
                    del folded[name], folded[stem + direction]
                    folded[f"{stem}weight"] = weight
    return folded


def _rescale(magnitude: Tensor, direction: Tensor) -> Tensor | None:
    """The direction scaled to the magnitude; None if their shapes are not those of weight norm."""
    if magnitude.dim() != direction.dim():
        return None
    dims = [axis for axis, size in enumerate(magnitude.shape) if size == 1]
    norm = torch.linalg.vector_norm(direction.float(), dim=dims, keepdim=True)
    return direction * (magnitude / norm) if norm.shape == magnitude.shape else None


def _iter_tensors(entries: Mapping[str, Mapping[str, Tensor]]) -> Iterator[tuple[str, str, Tensor]]:
    for entry, tensors in entries.items():
        for name, tensor in tensors.items():
            yield entry, name, tensor


def _network_prefixes(network: Mapping[str, Tensor]) -> list[str]:
    """The prefixes of most of the network's elements, "" among them."""
    sizes: Counter[str] = Counter()
    for name, tensor in network.items():
        for prefix in _prefixes(name):
            sizes[prefix] += tensor.numel()
    return [prefix for prefix, size in sizes.items() if 2 * size >= sizes[""]]


def _prefixes(name: str) -> list[str]:
    """The prefixes of a name up to each dot, shortest first, and the empty one.

    >>> _prefixes("module.conv1.weight")
    ['', 'module.', 'module.conv1.']
    """
    return ["", *(name[: dot.end()] for dot in islice(re.finditer(r"\.", name), _MAX_DOTS))]
