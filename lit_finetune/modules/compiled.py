"""Names and modules without the wrapper of `torch.compile`, which adds `_orig_mod.` to names."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def plain_name(name: str) -> str:
    """The name of a module or a parameter without the parts that `torch.compile` adds.

    >>> plain_name("net._orig_mod.layer4._orig_mod.0.weight"), plain_name("layer4._orig_mod")
    ('net.layer4.0.weight', 'layer4')
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def unwrap_compiled(module: Any) -> Any:
    """A module without the wrapper of `torch.compile`, but still compiled.

    So its parameters have the same names as in an eager run. Other values are returned unchanged.
    """
    dynamo = sys.modules.get("torch._dynamo")  # takes seconds to import; compiling has done so
    if dynamo is None or not isinstance(module, dynamo.OptimizedModule):
        return module
    original = module._orig_mod
    original._compiled_call_impl = module.dynamo_ctx(original._call_impl)  # as Module.compile does
    return original


@contextmanager
def force_eager() -> Iterator[None]:
    """Run compiled modules eagerly: compiled code does not call hooks that were added later."""
    if "torch._dynamo" not in sys.modules:  # takes seconds to import; compiling has done so
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def forget_graphs() -> None:
    """Reset `torch.compile`: modules are compiled again at their next call."""
    if dynamo := sys.modules.get("torch._dynamo"):
        dynamo.reset()
