"""Named schedules: common recipes, for a network's blocks and a run's length."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lit_finetune._errors import one_of
from lit_finetune.schedules.parse import parse_plateau
from lit_finetune.schedules.phases import Phase, Schedule, Selection
from lit_finetune.schedules.triggers import Plateau


def head_only() -> Schedule:
    """Train the head, and nothing else."""
    return (_phase(0, "head"),)


def full() -> Schedule:
    """Train everything from the start."""
    return (_phase(0, "all"),)


def norm_only() -> Schedule:
    """Train the head and the normalisation layers, their statistics too (arXiv 2003.00152)."""
    return (_phase(0, "head", "all/norms"),)


def bitfit() -> Schedule:
    """Train the head and the biases (BitFit, arXiv 2106.10199); batch statistics stand still."""
    return (_phase(0, "head", "all/biases"),)


def gradual(
    block_names: Sequence[str],
    max_epochs: int | None,
    every: int | None = None,
    on_plateau: Plateau | None = None,
) -> Schedule:
    """Unfreeze one block every few epochs, from the head down (ULMFiT, arXiv 1801.06146).

    Args:
        block_names: The blocks from the input to the head.
        max_epochs: The length of the run; None if it has no such limit.
        every: Epochs from one block to the next. By default the blocks are spread evenly over the
            run, several at a time if there are more blocks than epochs.
        on_plateau: Instead of `every`: the metric that must stall before the next block starts.

    >>> [(p.epoch, p.adds[0].modules) for p in gradual(["stem", "layer1", "head"], None, every=2)]
    [(0, ('head',)), (2, ('layer1',)), (4, ('stem',))]
    >>> [p.epoch for p in gradual(["stem", "layer1", "head"], max_epochs=9)]
    [0, 3, 6]
    >>> stalls = Plateau(monitor="val/loss")
    >>> [p.start_text for p in gradual(["stem", "head"], max_epochs=9, on_plateau=stalls)]
    ['epoch 0', 'when val/loss stalls (patience 2)']
    """
    if on_plateau:
        if every is not None:
            raise ValueError("`gradual` takes `every` or `on_plateau`, not both.")
        head, *others = (_phase(0, name) for name in reversed(block_names))
        return (head, *(replace(phase, epoch=None, on_plateau=on_plateau) for phase in others))
    if every is None and max_epochs is None:
        raise ValueError("`gradual` needs `every` where the Trainer has no `max_epochs`.")
    starts: dict[int, list[str]] = {}
    for index, name in enumerate(reversed(block_names)):
        epoch = index * every if every else index * (max_epochs or 0) // len(block_names)
        starts.setdefault(epoch, []).append(name)
    return tuple(_phase(epoch, *names) for epoch, names in starts.items())


def lp_ft(
    max_epochs: int | None, is_probed: bool = False, head_epochs: int | None = None
) -> Schedule:
    """Train the head first, then all of it (LP-FT, arXiv 2202.10054).

    Args:
        max_epochs: The length of the run; None if it has no such limit.
        is_probed: Whether the head is fitted before the first epoch.
        head_epochs: Epochs in which only the head trains; by default a third of the run, or none
            if the head was fitted before.

    >>> [phase.epoch for phase in lp_ft(max_epochs=10)]
    [0, 3]
    >>> lp_ft(max_epochs=10, is_probed=True) == full()
    True
    """
    if head_epochs is None and is_probed:
        return full()
    if head_epochs is None:
        if max_epochs is None:
            raise ValueError("`lp_ft` needs `head_epochs` where the Trainer has no `max_epochs`.")
        head_epochs = max(1, max_epochs // 3)
    return (_phase(0, "head"), _phase(head_epochs, "all"))


def last_n(block_names: Sequence[str], n: int) -> Schedule:
    """Train the last n blocks, the head among them; the others stay frozen."""
    return (_phase(0, *block_names[len(block_names) - _count(n, block_names) :]),)


def first_n_frozen(block_names: Sequence[str], n: int) -> Schedule:
    """Freeze the first n blocks; the others train. For children, select `children[n:]`."""
    if n == len(block_names):
        raise ValueError(f"`first_n_frozen` of n = {n} would freeze every block.")
    return (_phase(0, *block_names[_count(n, block_names) :]),)


STRATEGIES: Mapping[str, Callable[..., Schedule]] = {
    function.__name__: function
    for function in (
        head_only,
        full,
        norm_only,
        bitfit,
        gradual,
        lp_ft,
        last_n,
        first_n_frozen,
    )
}


def split_strategy(
    schedule: str | Mapping[Any, Any] | Sequence[Any],
) -> tuple[str, dict[str, Any]] | None:
    """A strategy's name and arguments; None if the schedule gives epochs or entries.

    >>> split_strategy({"gradual": {"every": 2}})
    ('gradual', {'every': 2})
    >>> split_strategy({0: "head"}) is None
    True

    Raises:
        ValueError: There is no such strategy, or it takes no such argument or value.
    """
    if isinstance(schedule, str):
        if schedule.lstrip().startswith(("{", "[")):
            raise ValueError(
                f"The schedule {schedule!r} is text that YAML cannot read: give each epoch once,"
                " as in {0: head, 2: layer4}."
            )
        schedule = {schedule: {}}
    if not isinstance(schedule, Mapping) or len(schedule) != 1:
        return None
    keys = list(schedule)
    if not isinstance(keys[0], str) or keys[0].strip().lstrip("-").isdigit():
        return None
    name = one_of(keys[0], STRATEGIES, "strategy")
    arguments = {} if schedule[name] is None else schedule[name]
    return name, _read_arguments(name, arguments)


def make_schedule(
    name: str,
    arguments: Mapping[str, Any],
    *,
    block_names: Sequence[str],
    max_epochs: int | None,
    is_probed: bool = False,
) -> Schedule:
    """The schedule of a named strategy for a network of these blocks, and a run of this length.

    Args:
        name: The strategy's name.
        arguments: The user's arguments of it.
        block_names: The blocks from the input to the head.
        max_epochs: The length of the run; None if it has no such limit.
        is_probed: Whether a LinearProbe fits the head before the first epoch.
    """
    strategy = STRATEGIES[name]
    known = {"block_names": block_names, "max_epochs": max_epochs, "is_probed": is_probed}
    needed = inspect.signature(strategy).parameters
    missing = [
        key for key, p in needed.items() if p.default is p.empty and key not in (*known, *arguments)
    ]
    if missing:
        raise ValueError(
            f"The strategy {name!r} needs `{missing[0]}`: {{{name}: {{{missing[0]}: …}}}}."
        )
    return strategy(**{k: v for k, v in known.items() if k in needed}, **arguments)


def _phase(epoch: int, *modules: str) -> Phase:
    return Phase(epoch=epoch, adds=(Selection(modules=modules),))


def _read_arguments(name: str, arguments: Any) -> dict[str, Any]:
    """A strategy's arguments, checked: counts, or `on_plateau`, by name."""
    options = _options(name)
    if not options and arguments != {}:
        raise ValueError(f"The strategy {name!r} takes no arguments, but got {arguments!r}.")
    if not isinstance(arguments, Mapping):
        raise ValueError(
            f"Write the strategy's arguments by name: {{{name}: {{{options[0]}: …}}}}."
        )
    read = dict(arguments)
    for argument, value in arguments.items():
        one_of(str(argument), options, f"argument of the strategy {name!r}")
        if argument == "on_plateau":
            read[argument] = parse_plateau(value)
        elif type(value) is not int or value < 1:
            raise ValueError(
                f"`{argument}` of the strategy {name!r} is a whole number from 1 on,"
                f" but got {value!r}."
            )
    return read


def _options(name: str) -> list[str]:
    """The arguments of a strategy that the user may give."""
    parameters = inspect.signature(STRATEGIES[name]).parameters
    return [key for key in parameters if key not in ("block_names", "max_epochs", "is_probed")]


def _count(n: int, block_names: Sequence[str]) -> int:
    if not 1 <= n <= len(block_names):
        raise ValueError(
            f"`n` counts blocks, from 1 to {len(block_names)} here ({', '.join(block_names)}),"
            f" but got {n}."
        )
    return n
