"""Load a weights file into a network, and say what of it fitted."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import floor
from pathlib import Path

from torch import Tensor, nn

from lit_finetune._errors import nearest
from lit_finetune.backbones.input_adaptation import channels_adapted, input_layer
from lit_finetune.backbones.position_embeddings import is_positional, resampled
from lit_finetune.files.diagnose import NoWeightsError, advice_on
from lit_finetune.files.terminal_text import printable
from lit_finetune.heads.find import auxiliary_heads, find_head, replaced_layers
from lit_finetune.modules.compiled import plain_name
from lit_finetune.modules.python_types import refuse_other_than_module, refuse_other_than_path
from lit_finetune.weights.coverage import ENOUGH, FilledLayers, filled_layers
from lit_finetune.weights.files import read_entries
from lit_finetune.weights.key_matching import (
    Reading,
    best_reading,
    fits,
    fold_weight_norm,
    main_entry,
)
from lit_finetune.weights.quantized import quantised_layers, told, unlike
from lit_finetune.weights.transformers_keys import in_names_of
from lit_finetune.weights.useless_numbers import refuse_useless


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What of a weights file went into a network, by the network's names without `_orig_mod`."""

    path: str
    entry: str
    """The entry of the file that was taken, as `model_ema`, or "" for the file itself."""
    stripped: str
    """The prefix taken off the file's names, as `module.`."""
    added: str
    """The prefix put in front of them, where the network wraps the one that was saved."""
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    """The network's tensors that the file does not have."""
    unexpected: tuple[str, ...]
    """The file's tensors that the network does not have."""
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    """Name, shape in the file, and shape in the network; those of a dropped head too."""
    head_dropped: tuple[str, ...]
    """The head's tensors in the file, where they are not of this network's head."""
    adapted: tuple[str, ...]
    """The tensors that were made to fit: a first convolution for other channels, position
    embeddings for another image size."""
    share: float
    """The share of the backbone's parameters, head excluded, that the file filled."""
    layers: FilledLayers = field(default_factory=FilledLayers)
    """How many of the backbone's layers the file filled."""
    quantised: Mapping[str, str] = field(default_factory=dict)
    """The layers that are quantised in the file, and so were not read, and how they are."""

    def __str__(self) -> str:
        return f"{self.path}: {self.share:.1%} of the backbone's parameters loaded\n{self.table()}"

    def table(self) -> str:
        """A line for each thing that there is to say."""
        shapes = [
            f"{name} ({_by(file)} in the file, {_by(own)} here)"
            for name, file, own in self.mismatched
        ]
        rows = {
            "entry": self.entry,
            "prefix off": self.stripped,
            "prefix on": self.added,
            "matched": str(len(self.matched)),
            "filled": str(self.layers) if self.layers.total else "",
            "missing": _some(self.missing),
            "unexpected": _some(self.unexpected),
            "other shape": _some(shapes),
            "head dropped": _some(self.head_dropped),
            "adapted": _some(self.adapted),
            "quantised": told(self.quantised),
        }
        return "\n".join(f"  {title:<13}{printable(row)}" for title, row in rows.items() if row)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors in a weights file, by the names in the file.

    Read are `.pth .pt .th .bin .safetensors .ckpt .tar .t7` and the like, whatever the suffix, and
    an index of sharded files. No code in the file is run. Of several entries the largest is taken,
    or an averaged copy (EMA) of it.

    Raises:
        FileNotFoundError: There is no such file; the message names the nearest ones.
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
    """Copy the weights in a file into a network: all that fit, or none.

    Of all entries of the file, and of all prefixes that can be taken off its names, those are used
    that fit the network best, by name and shape. A head that does not fit is left out. What
    `torch.compile` put into names, in the file or in the network, does not count. The first
    convolution of a file for other channels is summed or repeated, and position embeddings for
    another image size are resampled; both are told.

    Args:
        network: The network to fill. It keeps its dtype and device.
        path: A weights file, see `read_state_dict`.
        min_match: The least share of the backbone's parameters that the file has to fill. Of its
            layers, and of its convolutions alone, it has to fill as much or four fifths. Below four
            fifths, blocks of which it has nothing may stand before those that it fills, and layers
            may be quantised in it, which are not read.
        head_name: The name of the module that is the head; found if it is not given.

    Raises:
        FileNotFoundError: There is no such file; the message names the nearest ones.
        ValueError: The file cannot be read, or fits too little; the network is as it was.
    """
    if not 0 <= min_match <= 1:
        raise ValueError(f"`min_match` is a share between 0 and 1, but got {min_match}.")
    refuse_other_than_module(network)
    refuse_other_than_path(path)
    head, aside = _head_prefixes(network, head_name)
    targets = _tensors_of(network)
    entries: Mapping[str, Mapping[str, Tensor]] = _with_plain_names(read_entries(path))
    entries = in_names_of(network, entries)
    if not any(name.endswith(("weight_g", "weight.original0")) for name in targets):
        entries = {entry: fold_weight_norm(tensors) for entry, tensors in entries.items()}
    try:
        reading = best_reading(entries, targets)
    except NoWeightsError as error:
        raise ValueError(f"{path} {error}") from error
    tensors = reading.of(entries)
    adapted, unclear = _adapted(network, tensors, targets)
    tensors |= adapted
    report = _compare(tensors, targets, head=head, aside=aside, path=path, reading=reading)
    matched = set(report.matched)
    report = replace(
        report,
        adapted=tuple(name for name in adapted if name in matched),
        layers=filled_layers(network, matched, aside=aside, head_name=head_name),
        quantised=quantised_layers({n: t for n, t in tensors.items() if n not in matched}),
    )
    has_weights = any(targets[name].ndim > 1 for name in matched)
    _refuse_quantised(report, min_match if has_weights else 1, aside=aside)
    _refuse_little(report, min_match)
    filling = {name: tensors[name] for name in report.matched}
    refuse_useless(filling, targets, path=path, aside=aside)
    if unclear:
        raise ValueError(
            f"{path} has position embeddings for another image size that cannot be resampled, so "
            f"the network was left as it is.\n{report.table()}\nBuild the network for the size and "
            f"the tokens that the file was made with: {', '.join(unclear)}."
        )
    state = network.state_dict()  # with the version numbers that some modules ask for
    own = {plain_name(name): name for name in state}
    state.update((own[name], tensor) for name, tensor in filling.items())
    network.load_state_dict(state)
    return report


def _refuse_little(report: LoadReport, min_match: float) -> None:
    """Raise where a file fills too little of the backbone's numbers, or of its layers."""
    fits = f"{report.path} fits {report.share:.1%} of the backbone's parameters"
    if report.share < min_match:
        little = f"{fits}, less than min_match={min_match}"
    elif not report.layers.are_at_least(min(min_match, ENOUGH)):
        little = f"{fits}, but only {report.layers}"
    else:
        return
    most = floor(100 * min(report.share, report.layers.share, 0.79 if report.layers.gap else 1))
    raise ValueError(
        f"{little}, so the network was left as it is.\n{report.table()}\n"
        "Is the file of another architecture? If only the head differs, name it with "
        f"`head_name`; to load what fits, lower `min_match`, to {most / 100:g} or less."
        f"{advice_on(report.unexpected)}"
    )


def _refuse_quantised(report: LoadReport, min_match: float, *, aside: tuple[str, ...]) -> None:
    """Raise where layers of the backbone are quantised, unless few are asked for."""
    layers = unlike(report.quantised, aside) if aside else report.quantised
    if layers and min_match >= ENOUGH:
        raise ValueError(
            f"{report.path} fits {report.share:.1%} of the backbone's parameters: it has quantised "
            f"layers, {printable(told(layers))}, whose numbers mean nothing without their scales. "
            "Give the file of before quantisation (float32, float16, bfloat16), or dequantise and "
            "save it again."
        )


def _with_plain_names(entries: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    return {
        entry: {plain_name(name): tensor for name, tensor in tensors.items()}
        for entry, tensors in entries.items()
    }


def _tensors_of(network: nn.Module) -> dict[str, Tensor]:
    state = network.state_dict(keep_vars=True)
    return {plain_name(name): value for name, value in state.items() if isinstance(value, Tensor)}


def _adapted(
    network: nn.Module, tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """What can be made to fit of the tensors that do not, and what should be and cannot."""
    first = input_layer(network)
    adapted: dict[str, Tensor | None] = {}
    for name, target in targets.items():
        tensor = tensors.get(name)
        if tensor is None or not isinstance(target, nn.Parameter) or tensor.shape == target.shape:
            continue
        if first and name == f"{plain_name(first[0])}.weight":
            channels = target.shape[1]
            if tensor.ndim == 4 and tensor[:, :1].shape == target[:, :1].shape:
                adapted[name] = channels_adapted(tensor, channels)
        elif is_positional(name):
            adapted[name] = resampled(name, tensor, target.shape)
    unclear = [name for name, tensor in adapted.items() if tensor is None]
    return {name: tensor for name, tensor in adapted.items() if tensor is not None}, unclear


def _head_prefixes(
    network: nn.Module, head_name: str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The start of the names in each head, and in all that is no backbone: auxiliary heads too.

    There are none where there is no head beside a backbone.
    """
    found = _find_head(network) if head_name is None else head_name
    name = None if found is None else plain_name(found)
    in_head = [plain_name(start).startswith(f"{name}.") for start, _ in network.named_parameters()]
    if head_name is not None and not any(in_head):
        near = nearest(head_name, (module for module, _ in network.named_modules()))
        raise ValueError(f"The network has no parameters in a head {head_name!r}.{near}")
    if found is None or all(in_head):
        return (), ()
    heads = [_prefix(path) for path in replaced_layers(network, found)]
    return tuple(heads), (*heads, *map(_prefix, auxiliary_heads(network, found)))


def _prefix(path: str) -> str:
    return f"{plain_name(path)}."


def _find_head(network: nn.Module) -> str | None:
    try:
        return find_head(network)
    except ValueError:  # A network that ends in features: all of it is backbone.
        return None


def _compare(
    tensors: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    *,
    head: tuple[str, ...],
    aside: tuple[str, ...],
    path: str | Path,
    reading: Reading,
) -> LoadReport:
    shared = [name for name in targets if name in tensors]
    fitting = {name for name in shared if fits(tensors[name], targets[name])}
    unfit = tuple(
        start
        for start in head
        if not fitting.issuperset(_to_tell(name for name in targets if name.startswith(start)))
    )
    dropped = [name for name in tensors if name.startswith(unfit)]
    matched = [name for name in shared if name in fitting and name not in dropped]
    others = [name for name in shared if name not in fitting]
    known = {*targets, *dropped}
    return LoadReport(
        path=str(path),
        entry=reading.entry,
        stripped=reading.stripped,
        added=reading.added,
        matched=tuple(matched),
        missing=_to_tell(name for name in targets if name not in tensors),
        unexpected=_to_tell(name for name in tensors if name not in known),
        mismatched=tuple(
            (name, tuple(tensors[name].shape), tuple(targets[name].shape))
            for name in _to_tell(others)
        ),
        head_dropped=tuple(dropped),
        adapted=(),
        share=_share(matched, targets, aside),
    )


def _to_tell(names: Iterable[str]) -> tuple[str, ...]:
    """The names but for BatchNorm's counters: without them nothing is lost."""
    return tuple(name for name in names if not name.endswith("num_batches_tracked"))


def _share(matched: Sequence[str], targets: Mapping[str, Tensor], aside: tuple[str, ...]) -> float:
    sizes = {
        name: target.numel()
        for name, target in targets.items()
        if isinstance(target, nn.Parameter) and not name.startswith(aside)
    }
    return sum(sizes.get(name, 0) for name in matched) / max(1, sum(sizes.values()))


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _some(names: Sequence[str]) -> str:
    more = ", …" if len(names) > 3 else ""
    return f"{len(names)}: {', '.join(names[:3])}{more}" if names else ""
