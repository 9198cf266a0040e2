"""Load a weights file into a network."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import floor
from pathlib import Path

from torch import Tensor, nn

from lit_finetune._errors import nearest
from lit_finetune.backbones.input_adaptation import adapt_channel_weights, input_layer
from lit_finetune.backbones.position_embeddings import is_positional, resample_positions
from lit_finetune.files.diagnose import NoWeightsError, advice_for
from lit_finetune.files.terminal_text import printable
from lit_finetune.heads.find import auxiliary_heads, find_head, replaced_layers
from lit_finetune.modules.compiled import plain_name
from lit_finetune.modules.python_types import refuse_other_than_module, refuse_other_than_path
from lit_finetune.weights.coverage import MIN_LAYER_SHARE, filled_layers
from lit_finetune.weights.files import read_entries
from lit_finetune.weights.key_matching import (
    KeyMapping,
    best_mapping,
    fits,
    fold_weight_norm,
    main_entry,
)
from lit_finetune.weights.quantized import format_quantised, quantised_layers, without_prefixes
from lit_finetune.weights.report import LoadReport
from lit_finetune.weights.transformers_keys import to_network_names
from lit_finetune.weights.unusable_weights import refuse_unusable


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors in a weights file, by the names in the file.

    Reads the formats of `.pth .pt .th .bin .safetensors .ckpt .tar .t7`, whatever the suffix, and
    an index of sharded files. No code in the file is run. Of several entries, the largest is read,
    or an averaged copy (EMA) of it.

    Raises:
        FileNotFoundError: There is no such file; the message names the closest ones.
        ValueError: The file is damaged, holds no weights, or would have to run code.
    """
    entries = read_entries(path)
    try:
        entry = main_entry(entries)
    except NoWeightsError as error:
        raise ValueError(f"{path} {error}") from error
    return {name: tensor.clone() for name, tensor in entries[entry].items()}


def load_weights(
    network: nn.Module, path: str | Path, *, min_match: float = 0.9, head_name: str | None = None
) -> LoadReport:
    """Copy the weights in a file into a network: all that match, or none.

    Uses the entry of the file and the prefixes of its names that match the network best, by name
    and shape. A head that does not fit is left out. The parts that `torch.compile` adds to names,
    in the file or in the network, are ignored. The first convolution for other channels is summed
    or repeated, and position embeddings for another image size are resampled; the report names
    both.

    Args:
        network: The network to fill. It keeps its dtype and device.
        path: A weights file, see `read_state_dict`.
        min_match: The least share of the backbone's parameters that the file has to fill. It also
            has to fill this share, or 0.8 if that is less, of the layers and of the convolutions.
            Below 0.8, blocks without weights in the file may come before filled ones, and layers
            that are quantised in the file are not loaded.
        head_name: The name of the head's module; by default it is found.

    Raises:
        FileNotFoundError: There is no such file; the message names the closest ones.
        ValueError: The file cannot be read, or matches too little; the network is unchanged.
    """
    if not 0 <= min_match <= 1:
        raise ValueError(f"`min_match` is a share between 0 and 1, but got {min_match}.")
    refuse_other_than_module(network)
    refuse_other_than_path(path)
    head, excluded = _head_prefixes(network, head_name)
    targets = _network_tensors(network)
    entries: Mapping[str, Mapping[str, Tensor]] = _with_plain_names(read_entries(path))
    entries = to_network_names(network, entries)
    if not any(name.endswith(("weight_g", "weight.original0")) for name in targets):
        entries = {entry: fold_weight_norm(tensors) for entry, tensors in entries.items()}
    try:
        mapping = best_mapping(entries, targets)
    except NoWeightsError as error:
        raise ValueError(f"{path} {error}") from error
    tensors = mapping.apply(entries)
    adapted, unresampled = _adapt_tensors(network, tensors, targets)
    tensors |= adapted
    report = _compare(tensors, targets, head=head, excluded=excluded, path=path, mapping=mapping)
    matched = set(report.matched)
    report = replace(
        report,
        adapted=tuple(name for name in adapted if name in matched),
        layers=filled_layers(network, matched, excluded=excluded, head_name=head_name),
        quantised=quantised_layers({n: t for n, t in tensors.items() if n not in matched}),
    )
    has_weights = any(targets[name].ndim > 1 for name in matched)
    _refuse_quantised(report, min_match if has_weights else 1, excluded=excluded)
    _refuse_low_match(report, min_match)
    matched_tensors = {name: tensors[name] for name in report.matched}
    refuse_unusable(matched_tensors, targets, path=path, excluded=excluded)
    if unresampled:
        raise ValueError(
            f"{path} has position embeddings for another image size that cannot be resampled, so "
            f"the network was left as it is.\n{report.table()}\nBuild the network for the size and "
            f"the tokens that the file was made with: {', '.join(unresampled)}."
        )
    state = network.state_dict()  # with the version numbers that some modules need
    own_names = {plain_name(name): name for name in state}
    state.update((own_names[name], tensor) for name, tensor in matched_tensors.items())
    network.load_state_dict(state)
    return report


def _refuse_low_match(report: LoadReport, min_match: float) -> None:
    """Raise if a file fills too few of the backbone's parameters or layers."""
    fits = f"{report.path} fits {report.share:.1%} of the backbone's parameters"
    if report.share < min_match:
        problem = f"{fits}, less than min_match={min_match}"
    elif not report.layers.reach(min(min_match, MIN_LAYER_SHARE)):
        problem = f"{fits}, but only {report.layers}"
    else:
        return
    limit = floor(100 * min(report.share, report.layers.share, 0.79 if report.layers.gap else 1))
    raise ValueError(
        f"{problem}, so the network was left as it is.\n{report.table()}\n"
        "Is the file of another architecture? If only the head differs, name it with "
        f"`head_name`; to load what fits, lower `min_match`, to {limit / 100:g} or less."
        f"{advice_for(report.unexpected)}"
    )


def _refuse_quantised(report: LoadReport, min_match: float, *, excluded: tuple[str, ...]) -> None:
    """Raise if layers of the backbone are quantised, unless `min_match` is low."""
    layers = without_prefixes(report.quantised, excluded) if excluded else report.quantised
    if layers and min_match >= MIN_LAYER_SHARE:
        raise ValueError(
            f"{report.path} fits {report.share:.1%} of the backbone's parameters: it has quantised "
            f"layers, {printable(format_quantised(layers))}, whose numbers mean nothing without "
            "their scales. Give the file of before quantisation (float32, float16, bfloat16), or "
            "dequantise and save it again."
        )


def _with_plain_names(entries: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    return {
        entry: {plain_name(name): tensor for name, tensor in tensors.items()}
        for entry, tensors in entries.items()
    }


def _network_tensors(network: nn.Module) -> dict[str, Tensor]:
    state = network.state_dict(keep_vars=True)
    return {plain_name(name): value for name, value in state.items() if isinstance(value, Tensor)}


def _adapt_tensors(
    network: nn.Module, tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Convert tensors of other shapes that can be converted; and the names of those that cannot."""
    first = input_layer(network)
    adapted: dict[str, Tensor | None] = {}
    for name, target in targets.items():
        tensor = tensors.get(name)
        if tensor is None or not isinstance(target, nn.Parameter) or tensor.shape == target.shape:
            continue
        if first and name == f"{plain_name(first[0])}.weight":
            channels = target.shape[1]
            if tensor.ndim == 4 and tensor[:, :1].shape == target[:, :1].shape:
                adapted[name] = adapt_channel_weights(tensor, channels)
        elif is_positional(name):
            adapted[name] = resample_positions(name, tensor, target.shape)
    unresampled = [name for name, tensor in adapted.items() if tensor is None]
    return {name: tensor for name, tensor in adapted.items() if tensor is not None}, unresampled


def _head_prefixes(
    network: nn.Module, head_name: str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The prefixes of the heads' names, and of all names outside of the backbone.

    The latter include auxiliary heads. Both are empty if the network has no head or is one.
    """
    found = _find_head(network) if head_name is None else head_name
    name = None if found is None else plain_name(found)
    in_head = [plain_name(start).startswith(f"{name}.") for start, _ in network.named_parameters()]
    if head_name is not None and not any(in_head):
        hint = nearest(head_name, (module for module, _ in network.named_modules()))
        raise ValueError(f"The network has no parameters in a head {head_name!r}.{hint}")
    if found is None or all(in_head):
        return (), ()
    heads = [_prefix(path) for path in replaced_layers(network, found)]
    return tuple(heads), (*heads, *map(_prefix, auxiliary_heads(network, found)))


def _prefix(path: str) -> str:
    return f"{plain_name(path)}."


def _find_head(network: nn.Module) -> str | None:
    try:
        return find_head(network)
    except ValueError:  # a network without a head: all of it is backbone
        return None


def _compare(
    tensors: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    *,
    head: tuple[str, ...],
    excluded: tuple[str, ...],
    path: str | Path,
    mapping: KeyMapping,
) -> LoadReport:
    shared = [name for name in targets if name in tensors]
    fitting = {name for name in shared if fits(tensors[name], targets[name])}
    unfit_heads = tuple(
        start
        for start in head
        if not fitting.issuperset(_reportable(name for name in targets if name.startswith(start)))
    )
    dropped = [name for name in tensors if name.startswith(unfit_heads)]
    matched = [name for name in shared if name in fitting and name not in dropped]
    others = [name for name in shared if name not in fitting]
    known = {*targets, *dropped}
    return LoadReport(
        path=str(path),
        entry=mapping.entry,
        stripped=mapping.stripped,
        added=mapping.added,
        matched=tuple(matched),
        missing=_reportable(name for name in targets if name not in tensors),
        unexpected=_reportable(name for name in tensors if name not in known),
        mismatched=tuple(
            (name, tuple(tensors[name].shape), tuple(targets[name].shape))
            for name in _reportable(others)
        ),
        head_dropped=tuple(dropped),
        adapted=(),
        share=_loaded_share(matched, targets, excluded),
    )


def _reportable(names: Iterable[str]) -> tuple[str, ...]:
    """The names without BatchNorm's counters, which are not needed."""
    return tuple(name for name in names if not name.endswith("num_batches_tracked"))


def _loaded_share(
    matched: Sequence[str], targets: Mapping[str, Tensor], excluded: tuple[str, ...]
) -> float:
    sizes = {
        name: target.numel()
        for name, target in targets.items()
        if isinstance(target, nn.Parameter) and not name.startswith(excluded)
    }
    return sum(sizes.get(name, 0) for name in matched) / max(1, sum(sizes.values()))
