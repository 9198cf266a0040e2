"""Measure what a pickle would build, how deep and how large, without building it.

Hashing a nested tuple as a dictionary key recurses in C: a very deep key crashes the process. A
value that contains another one twice, which does the same in turn, is small in the file, but takes
exponential time to traverse. A value that contains itself takes forever.
"""

import pickletools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

MAX_DEPTH = 100
"""No configuration and no state is nested as deep."""
_MAX_SHARED_VALUES = 1_000_000
"""Values beyond ten per opcode that may come from references to the same value."""
_LARGEST_BUFFER = 1 << 24
_MUTATING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
_CALLING = {"REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST"}
_STORING = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_FETCHING = {"GET", "BINGET", "LONG_BINGET"}
_UNSAFE_CALLS = {
    "torch._utils _rebuild_nested_tensor": "a nested tensor, whose sizes are not checked",
}
_BUFFER = "a buffer whose size is only claimed"


class PickleError(Exception):
    """A pickle is refused. The message completes "the file …"."""


@dataclass(slots=True)
class _StackValue:
    """The measures of a value on the stack of a pickle."""

    depth: int = 0
    size: int = 1
    is_contained: bool = False
    has_buffer: bool = False
    has_large_number: bool = False


def check_pickle(file: IO[bytes]) -> None:
    """Read one pickle from an open file, and build nothing.

    >>> import io, pickle
    >>> check_pickle(io.BytesIO(pickle.dumps({"a": [1, 2]}, protocol=2)))

    Raises:
        PickleError: It would build something too deep, endless, or much larger than itself.
        Exception: The pickle is damaged; any kind of exception.
    """
    stack: list[Any] = []
    memo: dict[int, _StackValue] = {}
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        value = _execute(opcode, argument, stack, memo)
        if value is not None and value.depth > MAX_DEPTH:
            raise PickleError(f"holds values within values, more than {MAX_DEPTH} deep")
        if value is not None and value.size > 10 * number + _MAX_SHARED_VALUES:
            raise PickleError("holds the same values within each other again and again")


def _execute(
    opcode: pickletools.OpcodeInfo, argument: Any, stack: list[Any], memo: dict[int, _StackValue]
) -> _StackValue | None:
    """Execute an opcode on measures instead of values.

    Returns:
        The measures of the value that was made or changed.
    """
    name = opcode.name
    if name in _STORING:
        memo[len(memo) if argument is None else argument] = stack[-1]
    elif name in _FETCHING:
        stack.append(memo[argument])
    elif name == "DUP":
        stack.append(stack[-1])
    elif name == "MARK":
        stack.append(None)
    elif not opcode.stack_before:
        stack.extend(_new(name, argument) for _ in opcode.stack_after)
    else:
        arguments = _pop_arguments(opcode, stack)
        return _combine(name, arguments, stack, has_result=bool(opcode.stack_after))
    return None


def _new(name: str, argument: Any) -> _StackValue:
    """The measures of a number, a text, an empty container or a global."""
    if name == "GLOBAL" and argument in _UNSAFE_CALLS:
        raise PickleError(f"holds {_UNSAFE_CALLS[argument]}")
    is_number = isinstance(argument, int | float)
    return _StackValue(
        has_buffer=name == "GLOBAL" and str(argument).endswith(" bytearray"),
        has_large_number=is_number and abs(argument) > _LARGEST_BUFFER,
    )


def _pop_arguments(opcode: pickletools.OpcodeInfo, stack: list[Any]) -> list[_StackValue]:
    """Pop the arguments of an opcode from the stack, the lowest first."""
    before = opcode.stack_before
    count = len(before)
    if pickletools.markobject in before:
        mark = len(stack) - 1
        while stack[mark] is not None:
            mark -= 1
        del stack[mark]
        count = before.index(pickletools.markobject) + len(stack) - mark
    if count > len(stack):
        raise ValueError("The pickle pops from an empty stack.")
    arguments: list[_StackValue] = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return arguments


def _combine(
    name: str, arguments: Sequence[_StackValue], stack: list[Any], *, has_result: bool
) -> _StackValue | None:
    """Push the result of an opcode: its first argument with the others in it, or a new value."""
    if not has_result:
        return None
    mutates = name in _MUTATING
    inside = arguments[1:] if mutates else arguments
    for each in inside:
        each.is_contained = True
    value = arguments[0] if mutates else _StackValue()
    if mutates and value.is_contained:
        raise PickleError("holds a value that holds itself")
    value.depth = max([value.depth, *(each.depth + 1 for each in inside)])
    value.size += sum(each.size for each in inside)
    value.has_buffer |= any(each.has_buffer for each in inside)
    value.has_large_number |= any(each.has_large_number for each in inside)
    if name in _CALLING:
        if value.has_buffer and value.has_large_number:
            raise PickleError(f"holds {_BUFFER}")
        value.has_buffer = False
    stack.append(value)
    return value
