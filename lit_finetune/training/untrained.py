"""Heads and networks that nobody has trained: marked in checkpoints, told where they are used."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_finetune.heads.untrained import NewHead, new_head_in
from lit_finetune.training.random_backbone import RandomLayers, was_never_trained
from lit_finetune.weights.own_checkpoint import untrained_head_in


def untrained_head(classifier: Any) -> str | None:
    """What a checkpoint says of a classifier's head: `random`, `given`, or None if it is trained.

    Args:
        classifier: It has a `backbone`, and perhaps a new head.
    """
    head: NewHead | None = classifier._new_head
    if head is None or not head.is_unchanged_in(classifier.backbone):
        return None
    return "random" if head.is_random else "given"


def saved_new_head(classifier: Any, checkpoint: Mapping[str, Any]) -> NewHead | None:
    """The head of a checkpoint that was written before its first step; None for any other.

    Args:
        classifier: It is about to load the checkpoint's weights.
        checkpoint: Its weights are missing where they are read shard by shard.
    """
    mark, state = untrained_head_in(checkpoint), checkpoint.get("state_dict")
    if mark is None or not state:
        return None
    prefix = "backbone."
    own = {n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)}
    is_random = mark == "random"
    return new_head_in(own, classifier.backbone, classifier.head_name, is_random=is_random)


def tell_untrained(classifier: Any, random: RandomLayers | None, *, refuse: bool) -> None:
    """Say it where a head has not been trained, and warn where a network of the user's has not.

    Args:
        classifier: It is about to be used.
        random: What of its backbone was drawn at random, if that is known.
        refuse: Whether nothing would show it: the classifier predicts.

    Raises:
        ValueError: The head is random, and predicts.
    """
    head: NewHead | None = classifier._new_head
    if head and head.is_unchanged_in(classifier.backbone):
        if refuse and head.is_random:
            raise ValueError(str(head))
        rank_zero_info(str(head))
    elif refuse and random and was_never_trained(random, classifier.backbone):
        rank_zero_warn(
            f"The network {random.name} has random weights, as nothing has trained it since it was"
            " built, and its predictions mean nothing. Give `weights`, the checkpoint of a training"
            " (`ckpt_path`), or a network that is trained already."
        )
