"""Build a user's own network by its import path."""

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from torch import nn

from lit_finetune._errors import nearest


def create(path: str, kwargs: dict[str, Any]) -> nn.Module:
    """Build the network of an import path to a class, or to a function that returns a network."""
    return call(_import_object(path), path, kwargs)


def call(factory: Any, path: str, kwargs: dict[str, Any]) -> nn.Module:
    """Call a class or a function that returns a network; messages name it by its path."""
    if not callable(factory):
        raise ValueError(f"`{path}` is {factory!r}: not a class, and not a function.")
    _check_arguments(path, factory, kwargs)
    network = factory(**kwargs)
    if not isinstance(network, nn.Module):
        raise ValueError(f"`{path}` must return an `nn.Module`, but it returned {network!r}.")
    return network


def _import_object(path: str) -> Any:
    module_name, _, name = path.rpartition(".")
    module = _import_module(module_name, path)
    if not hasattr(module, name):
        options = [option for option in vars(module) if not option.startswith("_")]
        hint = nearest(name, options)
        raise ValueError(f"The module `{module_name}` has no {name!r}.{hint}")
    return getattr(module, name)


def _import_module(name: str, path: str) -> Any:
    """Import a module; the working directory is searched last."""
    cwd = str(Path.cwd())
    if cwd not in sys.path:
        sys.path.append(cwd)  # it stays there: the user's file may import its neighbours later
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module exists, but not one that it imports
        raise ModuleNotFoundError(
            f"There is no module `{error.name}` for the backbone {path!r}, neither installed nor "
            f"in {cwd}. A backbone is a torchvision name (`resnet18`), `timm/<name>`, or the "
            "import path of a class or function (`my_package.nets.ResNet`).",
            name=error.name,
        ) from error


def _check_arguments(path: str, factory: Any, kwargs: dict[str, Any]) -> None:
    try:
        signature = inspect.signature(factory)
    except ValueError:  # some classes written in C have none
        return
    try:
        signature.bind(**kwargs)
    except TypeError as error:
        raise ValueError(
            f"`backbone_kwargs` do not fit `{path}`: {error}. It takes {signature}."
        ) from error
