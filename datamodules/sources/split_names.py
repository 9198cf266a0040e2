"""Which part of the data a folder's name speaks of."""

import re
from collections.abc import Mapping
from typing import Literal

Split = Literal["train", "val", "test"]

WORDS: Mapping[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("evaluation", "development"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
FILLERS = (
    *("set", "sets", "data", "dataset", "split", "part", "folder", "dir", "seg", "all", "files"),
    *("images", "image", "imgs", "img", "pictures", "pics", "photos", "samples", "jpg", "png"),
)


def split_of(name: str) -> Split | None:
    """The part that a folder's name stands for and nothing else; None if there may be more to it.

    >>> [split_of(name) for name in ("Training", "seg_test", "valset", "dev", "train2017")]
    ['train', 'test', 'val', 'val', 'train']
    >>> [split_of(name) for name in ("training_shoes", "trains", "contest", "set")]
    [None, None, None, None]
    """
    found: set[Split | None] = set()
    for word in words_of(name):
        if word not in FILLERS and not word.isdigit():
            found.add(WORDS.get(word))
    return found.pop() if len(found) == 1 else None


def splits_mentioned(name: str) -> set[Split]:
    """The parts that words of a name speak of.

    >>> splits_mentioned("test_cats"), splits_mentioned("contest")
    ({'test'}, set())
    """
    return {WORDS[word] for word in words_of(name) if word in WORDS}


def words_of(name: str) -> list[str]:
    """The words of a name in lower case; what stands together is cut where both halves are known.

    >>> words_of("TrainSet"), words_of("testset_2"), words_of("dataset")
    (['train', 'set'], ['test', 'set', '2'], ['dataset'])
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    found: list[str] = []
    for word in re.findall(r"[^\W\d_]+|\d+", spaced):
        halves = [
            (word[: len(start)], word[len(start) :])
            for start in WORDS
            if word.startswith(start) and word[len(start) :] in FILLERS
        ]
        found.extend(halves[0] if halves else [word])
    return found
