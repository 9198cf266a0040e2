"""Options of a data module that count for each channel, or not at all."""

from typing import Any


def per_channel(value: float | tuple[float, ...], channels: int, name: str) -> tuple[float, ...]:
    """One number for all channels, or what was given.

    >>> per_channel(0.5, 3, "mean")
    (0.5, 0.5, 0.5)
    """
    values = (value,) * channels if isinstance(value, (int, float)) else tuple(value)
    if len(values) != channels:
        raise ValueError(
            f"`{name}` has {len(values)} channels, {values}, but the network takes {channels}."
        )
    return values


def given_options(**options: Any) -> dict[str, Any]:
    """The options that were given at all."""
    return {name: value for name, value in options.items() if value is not None}
