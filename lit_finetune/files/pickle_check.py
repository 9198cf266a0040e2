"""What a pickle would build, found out before anything is built: how deep it is, and how large.

A key of a dictionary is hashed by calls within calls, as deep as its tuples go: a very deep one
ends the process without an error. A value that holds another one twice, which does so in turn, is
small in the file and without end for whoever goes through it. So is one that holds itself.
"""

import pickletools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

MOST_LEVELS = 100
"""As deep as that no configuration and no state is."""
_ROOM = 1_000_000
"""So many values may be in others more than once."""
_LARGEST_BUFFER = 1 << 24
_CHANGING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
_CALLING = {"REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST"}
_KEEPING = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_REPEATING = {"GET", "BINGET", "LONG_BINGET"}
_UNSAFE_CALLS = {
    "torch._utils _rebuild_nested_tensor": "a nested tensor, whose sizes nobody checks",
}
_BUFFER = "a buffer of a size that is only claimed"


class PickleError(Exception):
    """Why a pickle is not followed, as the end of a sentence that begins with its file."""


@dataclass(slots=True)
class _Value:
    """What stands on a pickle's stack."""

    levels: int = 0
    size: int = 1
    is_held: bool = False
    has_buffer: bool = False
    has_large_number: bool = False


def check_pickle(file: IO[bytes]) -> None:
    """Read a pickle from where a file stands to the pickle's end, and build nothing.

    >>> import io, pickle
    >>> check_pickle(io.BytesIO(pickle.dumps({"a": [1, 2]}, protocol=2)))

    Raises:
        PickleError: It would build something too deep, without end, or much larger than itself.
        Exception: It is damaged; of any kind.
    """
    stack: list[Any] = []
    memo: dict[int, _Value] = {}
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        value = _step(opcode, argument, stack, memo)
        if value is not None and value.levels > MOST_LEVELS:
            raise PickleError(f"holds values within values, more than {MOST_LEVELS} deep")
        if value is not None and value.size > 10 * number + _ROOM:
            raise PickleError("holds the same values within each other again and again")


def _step(
    opcode: pickletools.OpcodeInfo, argument: Any, stack: list[Any], memo: dict[int, _Value]
) -> _Value | None:
    """Do a step of a pickle with the measures of values; the value that it has made or changed."""
    name = opcode.name
    if name in _KEEPING:
        memo[len(memo) if argument is None else argument] = stack[-1]
    elif name in _REPEATING:
        stack.append(memo[argument])
    elif name == "DUP":
        stack.append(stack[-1])
    elif name == "MARK":
        stack.append(None)
    elif not opcode.stack_before:
        stack.extend(_new(name, argument) for _ in opcode.stack_after)
    else:
        return _combine(name, _taken(opcode, stack), stack, gives=bool(opcode.stack_after))
    return None


def _new(name: str, argument: Any) -> _Value:
    """A number, a text, an empty container, or something with a name."""
    if name == "GLOBAL" and argument in _UNSAFE_CALLS:
        raise PickleError(f"holds {_UNSAFE_CALLS[argument]}")
    is_number = isinstance(argument, int | float)
    return _Value(
        has_buffer=name == "GLOBAL" and str(argument).endswith(" bytearray"),
        has_large_number=is_number and abs(argument) > _LARGEST_BUFFER,
    )


def _taken(opcode: pickletools.OpcodeInfo, stack: list[Any]) -> list[_Value]:
    """The values that a step takes from the stack, the lowest first."""
    before = opcode.stack_before
    count = len(before)
    if pickletools.markobject in before:
        mark = len(stack) - 1
        while stack[mark] is not None:
            mark -= 1
        del stack[mark]
        count = before.index(pickletools.markobject) + len(stack) - mark
    if count > len(stack):
        raise ValueError("The pickle takes what is not there.")
    taken: list[_Value] = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return taken


def _combine(name: str, taken: Sequence[_Value], stack: list[Any], *, gives: bool) -> _Value | None:
    """Put what a step makes of values, or the first of them with the others in it, on the stack."""
    if not gives:
        return None
    is_change = name in _CHANGING
    inside = taken[1:] if is_change else taken
    for each in inside:
        each.is_held = True
    value = taken[0] if is_change else _Value()
    if is_change and value.is_held:
        raise PickleError("holds a value that holds itself")
    value.levels = max([value.levels, *(each.levels + 1 for each in inside)])
    value.size += sum(each.size for each in inside)
    value.has_buffer |= any(each.has_buffer for each in inside)
    value.has_large_number |= any(each.has_large_number for each in inside)
    if name in _CALLING:
        if value.has_buffer and value.has_large_number:
            raise PickleError(f"holds {_BUFFER}")
        value.has_buffer = False
    stack.append(value)
    return value
