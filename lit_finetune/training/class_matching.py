"""Match a classifier's head with the classes of its data, by name."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lit_finetune.classes.data import loader_classes, refuse_contradiction
from lit_finetune.classes.dataset import declared_classes
from lit_finetune.classes.head_classes import (
    CHECKPOINT,
    HeadClasses,
    Match,
    match_classes,
    other_number,
    unnamed,
)
from lit_finetune.distributed.wrapping import shards_parameters
from lit_finetune.freezing.weight_averaging import copy_into_averages
from lit_finetune.heads.class_outputs import refuse_sharded_head, reorder_outputs, reset_head
from lit_finetune.training.class_weights import balanced_weights
from lit_finetune.weights.own_checkpoint import classes_in, num_classes_in


def prepare_data_classes(module: Any, datamodule: Any, *, trains: bool) -> None:
    """Read the classes of a run's data, before a checkpoint may be loaded.

    Args:
        module: A `ClassifierSteps`; it is changed.
        datamodule: It may have class names and counts; None for plain loaders.
        trains: Whether the run trains.
    """
    names = module.data_classes = declared_classes(datamodule)
    module.is_matched = module.is_resumed = module.has_loaded_checkpoint = False
    if not trains:
        return
    if names is not None:
        module.data_config = getattr(datamodule, "data_config", module.data_config)
    if module.hparams["class_weights"] == "balanced":
        counts = getattr(datamodule, "class_counts", None)
        module.set_class_weights(balanced_weights(counts, names or module.classes))
    if shards_parameters(module.trainer.strategy):
        # The head will be sharded. If matching fails now, it is tried again after a checkpoint has
        # been loaded.
        with suppress(ValueError):
            module.match_data_classes()


def match_head(module: Any, loaders: Any) -> str:
    """Make label k of the data and output k of a classifier's head the same class.

    Args:
        module: A `ClassifierSteps`; it is changed.
        loaders: The data's loaders, for class names that no data module has.

    Returns:
        The message to the user.

    Raises:
        ValueError: The data has other classes; the message shows both lists.
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
        module.name_outputs(HeadClasses(tuple(names), "trained"))
        module.data_classes, module.initial_head = names, None
    module.is_matched = True
    return match.message


def load_classes(module: Any, checkpoint: Mapping[str, Any]) -> None:
    """Name a classifier's outputs as a checkpoint does, before its weights are loaded.

    Raises:
        ValueError: The checkpoint has another number of classes.
    """
    names = classes_in(checkpoint)
    classes = HeadClasses(tuple(names), "trained", CHECKPOINT) if names else None
    classes = classes or unnamed(num_classes_in(checkpoint) or module.num_classes)
    if len(classes.names) != module.num_classes:
        raise ValueError(other_number(module.data_classes, classes, num_classes=module.num_classes))
    is_fit = module._trainer is not None and module.trainer.state.fn == "fit"
    module.is_resumed = is_fit and checkpoint.get("global_step", 0) > 0
    module.is_matched, module.has_loaded_checkpoint = False, True
    # The Tuner restores the same head, of before the first step.
    if module.is_resumed or classes.names != module.head_classes.names:
        module.name_outputs(classes)


def load_class_weights(module: Any, data: Mapping[str, Any]) -> None:
    """Load the class weights of a checkpoint's run, for an evaluation.

    A run that trains counts its own images.
    """
    is_fit = module._trainer is not None and module.trainer.state.fn == "fit"
    if module.hparams["class_weights"] != "balanced" or is_fit:
        return
    weights = data.get("class_weights")
    if weights is None or len(weights) != module.num_classes:
        rank_zero_warn(
            "The checkpoint does not have the weights of class_weights='balanced': losses are not"
            " weighted here. Give the numbers as `class_weights`."
        )
        weights = None
    module.set_class_weights(weights)


def refuse_unread_checkpoint(module: Any, path: Any) -> None:
    """Refuse a checkpoint of which a classifier has loaded only the weights.

    Args:
        module: A `ClassifierSteps`.
        path: The path of the checkpoint, if there is one.

    Raises:
        ValueError: A subclass overrides `on_load_checkpoint` without calling it.
    """
    if path and not module.has_loaded_checkpoint:
        raise ValueError(
            f"What `{type(module).__name__}` has as `on_load_checkpoint` does not call"
            " `super().on_load_checkpoint(checkpoint)`. So the classes of the checkpoint's head and"
            " the position of its run are unknown. Call it there."
        )


def _change_head(module: Any, match: Match) -> None:
    """Reorder or reset the head for the data."""
    is_fit = module.trainer.state.fn == "fit"
    refuse_sharded_head(module.backbone, module.head_name, match.message)
    if match.action == "reorder":
        head, order = module.head_classes, list(match.order)
        reorder_outputs(module.backbone, module.head_name, order, data_config=module.data_config)
        module.name_outputs(replace(head, names=tuple(head.names[i] for i in order)))
        weights = module.hparams["class_weights"]
        if head.origin == "trained" and isinstance(weights, list):
            module.hparams["class_weights"] = [weights[i] for i in order]
            module.set_class_weights(module.hparams["class_weights"])
        elif weights == "balanced" and module.class_weights is not None and not is_fit:
            # A run that trains has counted its images in the order of the data.
            module.set_class_weights(module.class_weights[order].tolist())
    else:
        broadcast = module.trainer.strategy.broadcast
        state, seed = broadcast(module.initial_head), broadcast(torch.initial_seed())
        reset_head(module.backbone, module.head_name, state=state, seed=seed)
    if is_fit:
        copy_into_averages(module, module.trainer.callbacks)
