"""Recognise the part of the data from the name of a folder."""

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


def split_from_name(name: str) -> Split | None:
    """The part that a folder's name denotes; None if the name contains other words.

    >>> [split_from_name(name) for name in ("Training", "seg_test", "valset", "dev", "train2017")]
    ['train', 'test', 'val', 'val', 'train']
    >>> [split_from_name(name) for name in ("training_shoes", "trains", "contest", "set")]
    [None, None, None, None]
    """
    found: set[Split | None] = set()
    for word in split_words(name):
        if word not in FILLERS and not word.isdigit():
            found.add(WORDS.get(word))
    return found.pop() if len(found) == 1 else None


def splits_mentioned(name: str) -> set[Split]:
    """The parts that the words of a name mention.

    >>> splits_mentioned("test_cats"), splits_mentioned("contest")
    ({'test'}, set())
    """
    return {WORDS[word] for word in split_words(name) if word in WORDS}


def split_words(name: str) -> list[str]:
    """The words of a name in lower case; a compound of two known words is split.

    >>> split_words("TrainSet"), split_words("testset_2"), split_words("dataset")
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
