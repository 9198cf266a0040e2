"""ImageNet-1k has several names for each of its classes: they are brought to one."""

from collections.abc import Sequence
from hashlib import sha256

NUM_CLASSES = 1000
_SYNSETS = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
"""SHA-256 of the thousand WordNet ids (`n01440764`), sorted, one a line."""
_LEAST_ALIKE = 990
"""So many synonyms of a thousand in the right places make ImageNet-1k: a few are spelled anew."""


def imagenet_categories() -> list[str]:
    """What torchvision calls the classes of ImageNet-1k, in the order of their labels."""
    from torchvision.models import ResNet18_Weights

    return list(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


def as_categories(names: Sequence[str]) -> list[str] | None:
    """The categories that these names stand for; None where they are not of ImageNet-1k.

    They may be WordNet ids, in any order (the labels follow the sorted ids), or, in the order of
    the labels, synonyms as timm and Hugging Face list them: `tench, Tinca tinca`.

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
    alike = sum(name.split(",")[0].casefold() == known.casefold() for name, known in pairs)
    return categories if alike >= _LEAST_ALIKE else None
