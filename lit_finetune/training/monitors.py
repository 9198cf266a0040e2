"""Check the metrics that callbacks monitor before the first training step."""

from collections.abc import Collection, Iterable, Mapping

from lit_finetune._errors import nearest


def monitors_of(callbacks: Iterable[object]) -> dict[str, str]:
    """The metric that each callback monitors, with the callback's name."""
    pairs = ((getattr(each, "monitor", None), type(each).__name__) for each in callbacks)
    return {monitor: name for monitor, name in pairs if isinstance(monitor, str)}


def unlogged_line(monitors: Mapping[str, str], logged: Collection[str]) -> str | None:
    """The message about a monitored metric of validation that the sanity check did not log.

    >>> unlogged_line({"val/acc": "EarlyStopping"}, [])
    >>> unlogged_line({"val/accuracy": "EarlyStopping"}, ["val/acc", "val/loss"])
    "EarlyStopping monitors 'val/accuracy', which validation does not log. Did you mean 'val/acc'?"

    Args:
        monitors: From the metric to the name of the callback.
        logged: The metrics of a validation.
    """
    starts = ("val/", "val_")
    if not any(name.startswith(starts) for name in logged):
        return None  # there is no validation
    for monitor, callback in monitors.items():
        if monitor.startswith(starts) and monitor not in logged:
            hint = nearest(monitor, logged, most=1)
            return f"{callback} monitors {monitor!r}, which validation does not log.{hint}"
    return None


def may_log_later(kinds: Iterable[type], packages: Collection[str]) -> bool:
    """Whether a class of another package may log a metric that the sanity check did not.

    >>> may_log_later([dict, Mapping], ["builtins", "collections"]), may_log_later([dict], [])
    (False, True)

    Args:
        kinds: The classes of the module and the callbacks.
        packages: The packages whose classes log in each validation, in the sanity check too.
    """
    return not {kind.__module__.partition(".")[0] for kind in kinds} <= {*packages}
