"""Check the metrics that callbacks monitor before the first training step."""

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches

from lit_finetune._errors import nearest


def monitors_of(callbacks: Iterable[object]) -> dict[str, str]:
    """The metric that each callback monitors, with the callback's name."""
    pairs = ((getattr(each, "monitor", None), type(each).__name__) for each in callbacks)
    return {monitor: name for monitor, name in pairs if isinstance(monitor, str)}


def refuse_unknown_monitors(monitors: Mapping[str, str], logged: Collection[str]) -> None:
    """Refuse monitored metrics that validation does not log, if it logs one of a similar name.

    A metric of another name may be logged later, for example by a callback of the user's.

    >>> refuse_unknown_monitors({"val/accuracy": "EarlyStopping"}, ["val/acc", "val/loss"])
    Traceback (most recent call last):
    ...
    ValueError: EarlyStopping monitors 'val/accuracy', which validation does not log. Did you ...

    Args:
        monitors: From the metric to the name of the callback.
        logged: The metrics of a validation.

    Raises:
        ValueError: Names the callback and the similar metrics.
    """
    for monitor, callback in monitors.items():
        is_validated = monitor.startswith(("val/", "val_")) and monitor not in logged
        if is_validated and get_close_matches(monitor, logged):
            raise ValueError(
                f"{callback} monitors {monitor!r}, which validation does not log."
                f"{nearest(monitor, logged)}"
            )
