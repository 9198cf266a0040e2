"""Names of weights under which Hugging Face transformers saves a network, but does not run it.

From its version 5 on, many a network's modules are called otherwise than its tensors in a file:
`layers.0.attention.q_proj` is saved as `encoder.layer.0.attention.attention.query`.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from lit_finetune.backbones.hub_offline import hub_offline
from lit_finetune.modules.compiled import plain_name

_MOST_PREFIXES = 4


def in_names_of(
    network: nn.Module, entries: Mapping[str, Mapping[str, Tensor]]
) -> Mapping[str, Mapping[str, Tensor]]:
    """The entries of a weights file, in the names that a network of transformers has here.

    A network that holds none is given what came in. Tensors keep the prefix before their name.
    """
    inner = _from_transformers(network)
    if inner is None:
        return entries
    return {entry: _translated(inner, tensors) for entry, tensors in entries.items()}


def _from_transformers(network: nn.Module) -> Any:
    """The outermost module that is a network of transformers, if there is one."""
    transformers = sys.modules.get("transformers")  # not loaded: then there is none
    if transformers is None:
        return None
    models = (m for m in network.modules() if isinstance(m, transformers.PreTrainedModel))
    return next(models, None)


def _translated(inner: Any, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors under the prefix that lets the most of them be understood."""
    own = {plain_name(name) for name in inner.state_dict()}
    best, most = tensors, _num_known(tensors, own)
    for prefix in _prefixes(tensors):
        if most >= min(len(own), len(tensors)):
            break
        inside = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        known = _understood(inner, inside)
        if len(known) > most:
            outside = {n: t for n, t in tensors.items() if not n.startswith(prefix)}
            best = {**outside, **{prefix + n: t for n, t in known.items()}}
            most = len(known)
    return best


def _num_known(names: Iterable[str], own: set[str]) -> int:
    """How many names are the network's own, after the one prefix for which it is the most."""
    prefixes: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts)))
        prefixes.update(name.removesuffix(end) for end in ends if end in own)
    return max(prefixes.values(), default=0)


def _prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """No prefix, and those that most of the names have in common, shortest first."""
    prefixes, counted = [""], list(tensors)
    while counted and len(prefixes) < _MOST_PREFIXES:
        last = prefixes[-1]
        starts = [last + n[len(last) :].partition(".")[0] + "." for n in counted]
        start = max(set(starts), key=starts.count)
        counted = [n for n in counted if n.startswith(start)]
        if 2 * len(counted) < len(tensors):
            break
        prefixes.append(start)
    return prefixes


def _understood(inner: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names here, where transformers finds a place for them."""
    config = deepcopy(inner.config)
    config.dtype = None  # that of the tensors
    with _quiet(), hub_offline():
        loaded, info = type(inner).from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    not_found = re.compile("|".join(loaded._keys_to_ignore_on_load_missing or ["$^"]))
    known = {name: tensor for name, tensor in tensors.items() if name in info["unexpected_keys"]}
    for name, tensor in loaded.state_dict().items():
        if name not in info["missing_keys"] and (name in tensors or not not_found.search(name)):
            known[name] = tensor
    for name, shape, _ in info["mismatched_keys"]:
        known[name] = _of_shape(shape, name, tensors)
    return known


def _of_shape(shape: torch.Size, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """The tensor of another shape than the network's that belongs to a name."""
    ends = (f".{name}", name.partition(".")[2])
    alike = (t for n, t in tensors.items() if t.shape == shape and f".{n}".endswith(ends))
    return next(alike, torch.empty(shape, device="meta"))  # without values: it cannot be loaded


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to ourselves what transformers says of a file: there is a report of our own."""
    logging: Any = import_module("transformers.utils.logging")
    level, shows_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shows_bar:
            logging.enable_progress_bar()
