"""Compute the features of a Trainer's images for the linear probe, in all processes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from rich.progress import track
from torch import Tensor

from lit_finetune.modules.eval_mode import eval_mode
from lit_finetune.probe.features import HeadFeatures, collect_features
from lit_finetune.probe.head import Features

from .sequential_loader import sequential_loader


@dataclass(frozen=True, slots=True, eq=False)
class ProbeFeatures:
    """The features of a run's images."""

    train: Features | None
    """Of all processes, in the order of the dataset; None except in process 0."""
    val: Features | None
    """As `train`; None without validation as well."""
    first_batches: list[Features]
    """The images and the features of this process's first training and first validation batch."""


def train_loaders(trainer: Trainer) -> list[Any]:
    """The loader of this process's training images, without augmentation, in a list."""
    make = getattr(getattr(trainer, "datamodule", None), "plain_train_dataloader", None)
    if make is None:
        rank_zero_info(
            "The linear probe sees the training pictures as their dataset gives them. If that"
            " varies them at random, give the data module a `plain_train_dataloader`."
        )
        trainer.fit_loop.setup_data()
    loader = trainer.train_dataloader if make is None else make()
    return [_shard(trainer, loader, trainer.limit_train_batches, "training pictures")]


def val_loaders(trainer: Trainer) -> list[Any]:
    """The loaders of this process's validation images."""
    if not trainer.enable_validation:
        return []
    trainer.fit_loop.epoch_loop.val_loop.setup_data()
    loaders = trainer.val_dataloaders
    loaders = loaders if isinstance(loaders, list) else [loaders]
    limit = trainer.limit_val_batches
    return [_shard(trainer, loader, limit, "val pictures") for loader in loaders]


def compute_features(
    trainer: Trainer,
    pl_module: LightningModule,
    forward: HeadFeatures,
    train: list[Any],
    val: list[Any],
) -> ProbeFeatures:
    """Run the network once over the images of these loaders.

    Args:
        trainer: Its strategy gathers the features of all processes.
        pl_module: The network of `forward`.
        forward: From images to features.
        train: Loaders of this process's training images.
        val: Loaders of this process's validation images; may be empty.
    """
    first_batches: list[Features] = []
    with as_in_validation(trainer, pl_module):
        train_part, val_part = (
            collect_features(
                _record_first(forward, first_batches), _on_device(trainer, loaders, name)
            )
            if loaders
            else None
            for name, loaders in (("training", train), ("validation", val))
        )
    return ProbeFeatures(
        _gather(train_part, trainer.world_size),
        _gather(val_part, trainer.world_size),
        first_batches,
    )


@contextmanager
def as_in_validation(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Run the network as validation does, and restore the states of all random generators."""
    stage = trainer.state.stage
    precision = trainer.precision_plugin.forward_context()
    with isolate_rng(), eval_mode(pl_module), precision:
        trainer.state.stage = RunningStage.VALIDATING  # hooks may augment images in training
        try:
            yield
        finally:
            trainer.state.stage = stage


def interleave(parts: list[Features]) -> Features:
    """Join the features of all processes in the order of the dataset: one of each in turn.

    >>> even = torch.tensor([[0.0], [2.0]]), torch.tensor([0, 2])
    >>> odd = torch.tensor([[1.0]]), torch.tensor([1])
    >>> interleave([even, odd])[1]
    tensor([0, 1, 2])
    """
    counts = [len(labels) for _, labels in parts]
    indices = [torch.arange(count) * len(parts) + rank for rank, count in enumerate(counts)]
    order = torch.cat(indices).argsort()
    features, labels = (torch.cat(list(column))[order] for column in zip(*parts, strict=True))
    return features, labels


def _record_first(
    forward: HeadFeatures, first_batches: list[Features]
) -> Callable[[Tensor], Tensor]:
    """A function like `forward` that appends its first images and features to `first_batches`."""
    is_first = True

    def record(images: Tensor) -> Tensor:
        nonlocal is_first
        copied = images.clone() if is_first else None  # a network may change its input
        features = forward(images)
        if copied is not None:
            first_batches.append((copied, features[:, : forward.width].cpu()))
        is_first = False
        return features

    return record


def _shard(trainer: Trainer, loader: Any, limit: float, part: str) -> Any:
    ranks = {"rank": trainer.global_rank, "num_replicas": trainer.world_size}
    return sequential_loader(loader, **ranks, limit=limit, part=part)


def _on_device(trainer: Trainer, loaders: list[Any], name: str) -> Iterator[Features]:
    """Images and labels on the network's device, with a progress bar."""
    shows = trainer.is_global_zero and trainer.progress_bar_callback is not None
    is_sized = all(hasattr(loader, "__len__") for loader in loaders)
    total = sum(map(len, loaders)) if is_sized else None
    module = trainer.lightning_module
    batches = track(
        chain(*loaders),
        f"Linear probe: {name} pictures",
        total=total,
        transient=True,
        disable=not shows,
    )
    for batch in batches:
        converted = trainer.precision_plugin.convert_input(batch)
        converted = module._on_before_batch_transfer(converted)
        images, labels = trainer.strategy.batch_to_device(converted, module.device)[:2]
        yield images, labels


def _gather(features: Features | None, world_size: int) -> Features | None:
    """The features of all processes in process 0; None in the others."""
    if features is None or world_size == 1:
        return features
    is_first = torch.distributed.get_rank() == 0
    parts: list[Any] | None = [None] * world_size if is_first else None
    torch.distributed.gather_object(features, parts)
    return None if parts is None else interleave(parts)
