"""A classifier's head and the classes of its data, brought together by name."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lit_finetune.classes.data import loader_classes, refuse_contradiction
from lit_finetune.classes.dataset import declared_classes
from lit_finetune.classes.head import (
    CHECKPOINT,
    HeadClasses,
    Match,
    match_classes,
    other_number,
    unnamed,
)
from lit_finetune.distributed.wrapping import shards_parameters
from lit_finetune.freezing.weight_averaging import copy_into_averages
from lit_finetune.heads.rows import refuse_sharded_head, reorder_outputs, reset_head
from lit_finetune.training.class_weights import balanced_weights
from lit_finetune.weights.own_checkpoint import classes_in, num_classes_in


def meet_data(module: Any, datamodule: Any, *, trains: bool) -> None:
    """Take note of what a run's data is, before it is known whether a checkpoint comes.

    Args:
        module: A `ClassifierSteps`; it is changed.
        datamodule: It may name its classes and count them; None for plain loaders.
        trains: Whether the run trains.
    """
    names = module.data_classes = declared_classes(datamodule)
    module.is_matched = module.is_resumed = module.has_taken_checkpoint = False
    if not trains:
        return
    if names is not None:
        module.data_config = getattr(datamodule, "data_config", module.data_config)
    if module.hparams["class_weights"] == "balanced":
        counts = getattr(datamodule, "class_counts", None)
        module.set_class_weights(balanced_weights(counts, names or module.classes))
    if shards_parameters(module.trainer.strategy):
        # Soon each process has only a part of the head. A checkpoint may come that makes it
        # another one: what is refused now is asked again then.
        with suppress(ValueError):
            module.match_data_classes()


def match_head(module: Any, loaders: Any) -> str:
    """Let label k of the data and output k of a classifier's head be the same class.

    Args:
        module: A `ClassifierSteps`; it is changed.
        loaders: Those of the data, which may know its classes where no data module does.

    Returns:
        What the user is to be told.

    Raises:
        ValueError: The data has other classes; both lists are named.
    """
    is_fit, head = module.trainer.state.fn == "fit", module.head_classes
    refuse_contradiction(module.data_classes, loaders)
    names = module.data_classes or loader_classes(loaders)
    has_names = names is not None and (head.is_named or module.data_classes)
    if names is None or module.is_matched or not (has_names or len(names) == module.num_classes):
        return ""
    new = module._new_head
    match = match_classes(
        names,
        head,
        trains=is_fit,
        is_resumed=module.is_resumed,
        is_new=new is not None and new.is_unchanged_in(module.backbone),
    )
    if match.action in ("reorder", "renew"):
        _change_head(module, match)
    if is_fit:
        module.call_outputs(HeadClasses(tuple(names), "trained"))
        module.data_classes, module.first_head = names, None
    module.is_matched = True
    return match.message


def take_classes(module: Any, checkpoint: Mapping[str, Any]) -> None:
    """Call a classifier's outputs as the checkpoint does whose weights come next.

    Raises:
        ValueError: It has another number of them.
    """
    names = classes_in(checkpoint)
    found = HeadClasses(tuple(names), "trained", CHECKPOINT) if names else None
    found = found or unnamed(num_classes_in(checkpoint) or module.num_classes)
    if len(found.names) != module.num_classes:
        raise ValueError(other_number(module.data_classes, found, num_classes=module.num_classes))
    is_fit = module._trainer is not None and module.trainer.state.fn == "fit"
    module.is_resumed = is_fit and checkpoint.get("global_step", 0) > 0
    module.is_matched, module.has_taken_checkpoint = False, True
    # The Tuner brings back the same head, of before the first step.
    if module.is_resumed or found.names != module.head_classes.names:
        module.call_outputs(found)


def take_class_weights(module: Any, own: Mapping[str, Any]) -> None:
    """Weigh the classes in an evaluation as the run did that wrote a checkpoint.

    A run that trains counts its own pictures.
    """
    is_fit = module._trainer is not None and module.trainer.state.fn == "fit"
    if module.hparams["class_weights"] != "balanced" or is_fit:
        return
    weights = own.get("class_weights")
    if weights is None or len(weights) != module.num_classes:
        rank_zero_warn(
            "The checkpoint does not say how class_weights='balanced' weighed the classes: losses"
            " are not weighted here. Give the numbers as `class_weights`."
        )
        weights = None
    module.set_class_weights(weights)


def refuse_unread_checkpoint(module: Any, path: Any) -> None:
    """Refuse a checkpoint of which a classifier has its weights alone.

    Args:
        module: A `ClassifierSteps`.
        path: Where the checkpoint lies, if there is one.

    Raises:
        ValueError: A subclass has taken the reading of it.
    """
    if path and not module.has_taken_checkpoint:
        raise ValueError(
            f"What `{type(module).__name__}` has as `on_load_checkpoint` does not call"
            " `super().on_load_checkpoint(checkpoint)`. So it is not known which classes the"
            " checkpoint's head tells apart, nor where its run stands. Call it there."
        )


def _change_head(module: Any, match: Match) -> None:
    """Make the head's outputs those of the data."""
    is_fit = module.trainer.state.fn == "fit"
    refuse_sharded_head(module.backbone, module.head_name, match.message)
    if match.action == "reorder":
        head, order = module.head_classes, list(match.order)
        reorder_outputs(module.backbone, module.head_name, order, data_config=module.data_config)
        module.call_outputs(replace(head, names=tuple(head.names[i] for i in order)))
        given = module.hparams["class_weights"]
        if head.origin == "trained" and isinstance(given, list):
            module.hparams["class_weights"] = [given[i] for i in order]
            module.set_class_weights(module.hparams["class_weights"])
        elif given == "balanced" and module.class_weights is not None and not is_fit:
            # A run that trains has counted its pictures in the order of the data.
            module.set_class_weights(module.class_weights[order].tolist())
    else:
        broadcast = module.trainer.strategy.broadcast
        state, seed = broadcast(module.first_head), broadcast(torch.initial_seed())
        reset_head(module.backbone, module.head_name, state=state, seed=seed)
    if is_fit:
        copy_into_averages(module, module.trainer.callbacks)
