"""The report on a loaded weights file: which tensors matched, and which did not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lit_finetune.files.terminal_text import printable
from lit_finetune.weights.coverage import FilledLayers
from lit_finetune.weights.quantized import format_quantised


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The result of loading a weights file, by the network's names without `_orig_mod`."""

    path: str
    entry: str
    """The entry of the file that was read, such as `model_ema`; "" for the file itself."""
    stripped: str
    """The prefix stripped from the file's names, such as `module.`."""
    added: str
    """The prefix added to them, if the network wraps the saved one."""
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    """The network's tensors that the file does not have."""
    unexpected: tuple[str, ...]
    """The file's tensors that the network does not have."""
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    """Name, shape in the file, and shape in the network; also of a dropped head."""
    head_dropped: tuple[str, ...]
    """The head's tensors in the file, if they do not fit this network's head."""
    adapted: tuple[str, ...]
    """The tensors that were converted: a first convolution for other channels, position embeddings
    for another image size."""
    share: float
    """The share of the backbone's parameters, without the head, that the file filled."""
    layers: FilledLayers = field(default_factory=FilledLayers)
    """The number of the backbone's layers that the file filled."""
    quantised: Mapping[str, str] = field(default_factory=dict)
    """The layers that are quantised in the file and so were not loaded, with a description."""

    def __str__(self) -> str:
        return f"{self.path}: {self.share:.1%} of the backbone's parameters loaded\n{self.table()}"

    def table(self) -> str:
        """The report as a table, one line for each field that is not empty."""
        shapes = [
            f"{name} ({_shape_text(saved)} in the file, {_shape_text(own)} here)"
            for name, saved, own in self.mismatched
        ]
        rows = {
            "entry": self.entry,
            "prefix off": self.stripped,
            "prefix on": self.added,
            "matched": str(len(self.matched)),
            "filled": str(self.layers) if self.layers.total else "",
            "missing": _first_names(self.missing),
            "unexpected": _first_names(self.unexpected),
            "other shape": _first_names(shapes),
            "head dropped": _first_names(self.head_dropped),
            "adapted": _first_names(self.adapted),
            "quantised": format_quantised(self.quantised),
        }
        return "\n".join(f"  {title:<13}{printable(row)}" for title, row in rows.items() if row)


def _shape_text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _first_names(names: Sequence[str]) -> str:
    more = ", …" if len(names) > 3 else ""
    return f"{len(names)}: {', '.join(names[:3])}{more}" if names else ""
