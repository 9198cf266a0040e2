"""Mark untrained heads and networks in checkpoints, and report them when they are used."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_finetune.heads.untrained import NewHead, new_head_in
from lit_finetune.training.random_backbone import RandomLayers, is_never_trained
from lit_finetune.weights.own_checkpoint import untrained_head_in


def untrained_head(classifier: Any) -> str | None:
    """The mark of a classifier's head for a checkpoint: `random`, `given`, or None if trained.

    Args:
        classifier: A classifier with a `backbone`, and maybe a new head.
    """
    head: NewHead | None = classifier._new_head
    if head is None or not head.is_unchanged_in(classifier.backbone):
        return None
    return "random" if head.is_random else "given"


def saved_new_head(classifier: Any, checkpoint: Mapping[str, Any]) -> NewHead | None:
    """The head of a checkpoint that was written before the first step; None for others.

    Args:
        classifier: It is about to load the checkpoint's weights.
        checkpoint: Without weights if these are read shard by shard.
    """
    mark, state = untrained_head_in(checkpoint), checkpoint.get("state_dict")
    if mark is None or not state:
        return None
    prefix = "backbone."
    own = {n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)}
    is_random = mark == "random"
    return new_head_in(own, classifier.backbone, classifier.head_name, is_random=is_random)


def report_untrained(classifier: Any, random: RandomLayers | None, *, refuse: bool) -> None:
    """Report an untrained head, and warn of a user's untrained network.

    Args:
        classifier: It is about to be used.
        random: The random layers of its backbone, if known.
        refuse: Whether to raise, since predictions would not show it.

    Raises:
        ValueError: The head is random, and `refuse` is set.
    """
    head: NewHead | None = classifier._new_head
    if head and head.is_unchanged_in(classifier.backbone):
        if refuse and head.is_random:
            raise ValueError(str(head))
        rank_zero_info(str(head))
    elif refuse and random and is_never_trained(random, classifier.backbone):
        rank_zero_warn(
            f"The network {random.name} has random weights, as nothing has trained it since it was"
            " built, and its predictions mean nothing. Give `weights`, the checkpoint of a training"
            " (`ckpt_path`), or a network that is trained already."
        )
