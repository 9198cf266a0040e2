"""Fewer pictures than processes: one would have none, and the others wait for it."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

_PARTS = {"train": "training pictures", "predict": "pictures to predict"}
"""Of validation and test pictures each counts once, however few there are."""


def refuse_few_pictures(num_pictures: int, num_replicas: int, what: str = "pictures") -> None:
    """Refuse fewer pictures than processes.

    Raises:
        ValueError: Says how many there are of either, and what can be done.
    """
    if num_pictures < num_replicas:
        raise ValueError(
            f"There are fewer {what} ({num_pictures}) than processes ({num_replicas}), and each"
            " process needs one at least. Use fewer processes (`Trainer(devices=1)`), or more"
            " pictures."
        )


def refuse_few_in_loaders(trainer: Any) -> None:
    """Let a Trainer refuse them in loaders of the user's own; the second time does nothing.

    Lightning trains on the same pictures in several processes, and ends a prediction with an
    AssertionError.
    """
    connector = trainer._data_connector
    if not isinstance(connector._prepare_dataloader, partial):
        connector._prepare_dataloader = partial(_prepare, connector._prepare_dataloader, trainer)


def _prepare(
    prepare: Callable[..., Any], trainer: Any, dataloader: Any, shuffle: bool, mode: Any
) -> Any:
    is_divided = isinstance(dataloader, DataLoader) and (
        trainer._data_connector._requires_distributed_sampler(dataloader)
    )
    if is_divided and mode.value in _PARTS:
        refuse_few_pictures(len(dataloader.sampler), trainer.world_size, _PARTS[mode.value])
    return prepare(dataloader, shuffle=shuffle, mode=mode)
