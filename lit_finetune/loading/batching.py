"""How a run divides an epoch into batches, held against the run that goes on amid it."""

from collections.abc import Mapping
from typing import Any

_WORDS = {
    "processes": "{} processes",
    "batch_size": "batches of {}",
    "accumulate_grad_batches": "accumulate_grad_batches={}",
    "pictures": "{} training pictures",
    "batches": "{} batches an epoch",
}


def batching_of(trainer: Any) -> dict[str, int]:
    """What decides which pictures a batch holds, as far as the training loader tells."""
    found = {
        "processes": trainer.world_size,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "batches": trainer.num_training_batches,
    }
    loaders = getattr(trainer.fit_loop._combined_loader, "flattened", [])
    if len(loaders) == 1:
        found["batch_size"] = getattr(loaders[0], "batch_size", None)
        dataset: Any = getattr(loaders[0], "dataset", None)
        found["pictures"] = len(dataset) if hasattr(dataset, "__len__") else None
    return {name: value for name, value in found.items() if isinstance(value, int)}


def check_batching(saved: Mapping[str, int], now: Mapping[str, int], *, batches: int) -> None:
    """Refuse to go on amid an epoch that is divided in another way.

    >>> check_batching({"processes": 2}, {"processes": 1}, batches=0)

    Args:
        saved: Of the run that wrote the checkpoint; empty if it did not say.
        now: Of the run that resumes.
        batches: How many were done of the epoch.

    Raises:
        ValueError: Other pictures would be trained on twice, or not at all.
    """
    other = [name for name in _WORDS if name in saved and name in now and saved[name] != now[name]]
    if batches and other:
        then, today = (
            ", ".join(_WORDS[name].format(each[name]) for name in other) for each in (saved, now)
        )
        raise ValueError(
            f"The checkpoint was written amid an epoch of {then}, and this run has {today}: the"
            f" {batches} batches that were done of the epoch are not the same ones here. Resume"
            " with the same numbers, or from a checkpoint of an epoch's end."
        )
