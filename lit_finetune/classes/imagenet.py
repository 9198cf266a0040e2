"""Convert the several names of ImageNet-1k's classes to torchvision's."""

from collections.abc import Sequence
from hashlib import sha256

NUM_CLASSES = 1000
_SYNSETS = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
"""SHA-256 of the thousand WordNet ids (`n01440764`), sorted, one a line."""
_MIN_MATCHES = 990
"""The number of synonyms, of 1000, that have to match: some lists spell a few differently."""


def imagenet_categories() -> list[str]:
    """Torchvision's names of ImageNet-1k's classes, in the order of their labels."""
    from torchvision.models import ResNet18_Weights

    return list(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


def as_categories(names: Sequence[str]) -> list[str] | None:
    """Torchvision's names for these classes; None if they are not ImageNet-1k's.

    They may be WordNet ids, in any order (labels follow the sorted ids), or, in the order of the
    labels, synonyms as in timm and Hugging Face: `tench, Tinca tinca`.

    >>> as_categories(["ant", "bee"]) is None
    True
    """
    if len(names) != NUM_CLASSES:
        return None
    categories, ids = imagenet_categories(), sorted(names)
    if sha256("\n".join(ids).encode(errors="replace")).hexdigest() == _SYNSETS:
        by_id = dict(zip(ids, categories, strict=True))
        return [by_id[name] for name in names]
    pairs = zip(names, categories, strict=True)
    num_matches = sum(name.split(",")[0].casefold() == known.casefold() for name, known in pairs)
    return categories if num_matches >= _MIN_MATCHES else None
