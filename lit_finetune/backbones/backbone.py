"""The result of `create_backbone`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lit_finetune.images.data_config import DataConfig


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network, its data config, and its source."""

    network: nn.Module
    """The whole network, with the head it was built with."""
    data_config: DataConfig
    """The images that it expects."""
    name: str
    """The requested name, or the name of the network's class."""
    weights_file: Path | None = None
    """The file with its weights that is still to be loaded, as in a Hugging Face folder."""
    classes: tuple[str, ...] = ()
    """The classes of its own trained head, if they are known."""
    has_head: bool = True
    """False if the network is known to end in features."""
    rebuild_args: tuple[str, dict[str, Any]] | None = None
    """A name and `backbone_kwargs` that build the same network without its folder or the hub; None
    if the requested ones do."""
