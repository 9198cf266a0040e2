"""Refuse fewer images than processes: one would have none, and the others would wait for it."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

_NOUNS = {"train": "training pictures", "predict": "pictures to predict"}
"""The stages that need an image for each process, with the images' name in messages."""


def refuse_few_images(num_images: int, num_replicas: int, noun: str = "pictures") -> None:
    """Refuse fewer images than processes.

    Raises:
        ValueError: Names both numbers, and says what to do.
    """
    if num_images < num_replicas:
        raise ValueError(
            f"There are fewer {noun} ({num_images}) than processes ({num_replicas}), and each"
            " process needs one at least. Use fewer processes (`Trainer(devices=1)`), or more"
            " pictures."
        )


def refuse_few_images_in_loaders(trainer: Any) -> None:
    """Let a Trainer refuse them in a user's loaders, too; a second call does nothing.

    Lightning would train on the same images in several processes, and fail in prediction with an
    AssertionError.
    """
    connector = trainer._data_connector
    if not isinstance(connector._prepare_dataloader, partial):
        connector._prepare_dataloader = partial(
            _check_and_prepare, connector._prepare_dataloader, trainer
        )


def _check_and_prepare(
    prepare: Callable[..., Any], trainer: Any, dataloader: Any, shuffle: bool, mode: Any
) -> Any:
    is_divided = isinstance(dataloader, DataLoader) and (
        trainer._data_connector._requires_distributed_sampler(dataloader)
    )
    if is_divided and mode.value in _NOUNS:
        refuse_few_images(len(dataloader.sampler), trainer.world_size, _NOUNS[mode.value])
    return prepare(dataloader, shuffle=shuffle, mode=mode)
