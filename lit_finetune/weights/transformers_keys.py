"""Translate the names in a file of Hugging Face transformers to those of its modules.

Since version 5, many networks' modules have other names than their tensors in a file:
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

_MAX_PREFIXES = 4


def to_network_names(
    network: nn.Module, entries: Mapping[str, Mapping[str, Tensor]]
) -> Mapping[str, Mapping[str, Tensor]]:
    """Translate the entries of a weights file to the names of a network of transformers.

    For other networks, the entries are returned unchanged. Prefixes before the names are kept.
    """
    inner = _transformers_model(network)
    if inner is None:
        return entries
    return {entry: _translate(inner, tensors) for entry, tensors in entries.items()}


def _transformers_model(network: nn.Module) -> Any:
    """The outermost module that is a model of transformers; None if there is none."""
    transformers = sys.modules.get("transformers")  # not imported: there is no such model
    if transformers is None:
        return None
    models = (m for m in network.modules() if isinstance(m, transformers.PreTrainedModel))
    return next(models, None)


def _translate(inner: Any, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Translate the names under the prefix with which most of them are recognised."""
    own_names = {plain_name(name) for name in inner.state_dict()}
    best, best_count = tensors, _num_own_names(tensors, own_names)
    for prefix in _prefixes(tensors):
        if best_count >= min(len(own_names), len(tensors)):
            break
        with_prefix = {
            n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)
        }
        renamed = _load_with_transformers(inner, with_prefix)
        if len(renamed) > best_count:
            without_prefix = {n: t for n, t in tensors.items() if not n.startswith(prefix)}
            best = {**without_prefix, **{prefix + n: t for n, t in renamed.items()}}
            best_count = len(renamed)
    return best


def _num_own_names(names: Iterable[str], own_names: set[str]) -> int:
    """The number of names that are the network's, after the prefix with which most are."""
    prefixes: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts)))
        prefixes.update(name.removesuffix(end) for end in ends if end in own_names)
    return max(prefixes.values(), default=0)


def _prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """The empty prefix, and those that most of the names share, shortest first; at most four."""
    prefixes, names = [""], list(tensors)
    while names and len(prefixes) < _MAX_PREFIXES:
        last = prefixes[-1]
        longer = [last + n[len(last) :].partition(".")[0] + "." for n in names]
        prefix = max(set(longer), key=longer.count)
        names = [n for n in names if n.startswith(prefix)]
        if 2 * len(names) < len(tensors):
            break
        prefixes.append(prefix)
    return prefixes


def _load_with_transformers(inner: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names of the model's modules, as transformers loads them."""
    config = deepcopy(inner.config)
    config.dtype = None  # keep the tensors' dtype
    with _silence_transformers(), hub_offline():
        loaded, info = type(inner).from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    not_found = re.compile("|".join(loaded._keys_to_ignore_on_load_missing or ["$^"]))
    renamed = {name: tensor for name, tensor in tensors.items() if name in info["unexpected_keys"]}
    for name, tensor in loaded.state_dict().items():
        if name not in info["missing_keys"] and (name in tensors or not not_found.search(name)):
            renamed[name] = tensor
    for name, shape, _ in info["mismatched_keys"]:
        renamed[name] = _find_by_shape(shape, name, tensors)
    return renamed


def _find_by_shape(shape: torch.Size, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """The tensor in the file that belongs to a name but has another shape than the network's."""
    ends = (f".{name}", name.partition(".")[2])
    candidates = (t for n, t in tensors.items() if t.shape == shape and f".{n}".endswith(ends))
    return next(
        candidates, torch.empty(shape, device="meta")
    )  # on the meta device: it cannot be loaded


@contextmanager
def _silence_transformers() -> Iterator[None]:
    """Silence the messages of transformers about a file: our own report follows."""
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
