"""Compare how a run and its checkpoint divide an epoch into batches."""

from collections.abc import Mapping
from typing import Any

_TEMPLATES = {
    "processes": "{} processes",
    "batch_size": "batches of {}",
    "accumulate_grad_batches": "accumulate_grad_batches={}",
    "pictures": "{} training pictures",
    "batches": "{} batches an epoch",
}


def batching_of(trainer: Any) -> dict[str, int]:
    """The numbers that determine the images of a batch, as far as the training loader has them."""
    values = {
        "processes": trainer.world_size,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "batches": trainer.num_training_batches,
    }
    loaders = getattr(trainer.fit_loop._combined_loader, "flattened", [])
    if len(loaders) == 1:
        values["batch_size"] = getattr(loaders[0], "batch_size", None)
        dataset: Any = getattr(loaders[0], "dataset", None)
        values["pictures"] = len(dataset) if hasattr(dataset, "__len__") else None
    return {name: value for name, value in values.items() if isinstance(value, int)}


def check_batching(saved: Mapping[str, int], current: Mapping[str, int], *, batches: int) -> None:
    """Refuse to resume within an epoch that is divided in another way.

    >>> check_batching({"processes": 2}, {"processes": 1}, batches=0)

    Args:
        saved: The numbers in the checkpoint; empty if it has none.
        current: The numbers of the run that resumes.
        batches: The number of batches of the epoch that were done.

    Raises:
        ValueError: Images would be trained on twice, or not at all.
    """
    different = [
        name
        for name in _TEMPLATES
        if name in saved and name in current and saved[name] != current[name]
    ]
    if batches and different:
        saved_text, current_text = (
            ", ".join(_TEMPLATES[name].format(each[name]) for name in different)
            for each in (saved, current)
        )
        raise ValueError(
            f"The checkpoint was written within an epoch of {saved_text}, and this run has"
            f" {current_text}: the {batches} batches of the epoch that were done are not the same"
            " ones here. Resume"
            " with the same numbers, or from a checkpoint of an epoch's end."
        )
