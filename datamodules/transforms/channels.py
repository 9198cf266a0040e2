"""Options of a data module that have one value per channel."""

from typing import Any

from lit_finetune.images.data_config import statistics_problems


def per_channel(value: float | tuple[float, ...], channels: int, name: str) -> tuple[float, ...]:
    """One value for each channel; a single number counts for all channels.

    >>> per_channel(0.5, 3, "mean")
    (0.5, 0.5, 0.5)
    """
    values = (value,) * channels if isinstance(value, (int, float)) else tuple(value)
    if len(values) != channels:
        raise ValueError(
            f"`{name}` has {len(values)} channels, {values}, but the network takes {channels}."
        )
    return values


def validate_options(**options: Any) -> dict[str, Any]:
    """The options that are not None.

    Raises:
        ValueError: `mean` or `std` is invalid.
    """
    given = {name: value for name, value in options.items() if value is not None}
    statistics = {
        name: value if isinstance(value, list | tuple) else (value,)
        for name, value in given.items()
        if name in ("mean", "std")
    }
    if problems := statistics_problems(**statistics):
        raise ValueError(f"The data cannot be normalised so: {'; '.join(problems)}.")
    return given
