"""See through `torch.compile`, which wraps a module and so puts `_orig_mod.` into names."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def plain_name(name: str) -> str:
    """The name of a module or a parameter as it would be without `torch.compile`.

    >>> plain_name("net._orig_mod.layer4._orig_mod.0.weight"), plain_name("layer4._orig_mod")
    ('net.layer4.0.weight', 'layer4')
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def unwrapped(module: Any) -> Any:
    """A module that `torch.compile` wrapped, without the wrapper, and compiled as it was.

    So its parameters have the same names as in an eager run. Anything else is returned as it is.
    """
    dynamo = sys.modules.get("torch._dynamo")  # takes seconds to import; compiling has done so
    if dynamo is None or not isinstance(module, dynamo.OptimizedModule):
        return module
    original = module._orig_mod
    original._compiled_call_impl = module.dynamo_ctx(original._call_impl)  # as Module.compile does
    return original


@contextmanager
def eagerly() -> Iterator[None]:
    """Run what is compiled as if it were not: compiled code calls no hook that it has not seen."""
    if "torch._dynamo" not in sys.modules:  # takes seconds to import; compiling has done so
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
