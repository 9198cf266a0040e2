"""What `create_backbone` gives."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lit_finetune.images.data_config import DataConfig


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network and what it expects."""

    network: nn.Module
    """The whole network, with the head it was built with."""
    data_config: DataConfig
    """What pictures it expects."""
    name: str
    """What it was made from: the name that was asked for, or the network's class."""
    weights_file: Path | None = None
    """The file that holds its weights and is not yet loaded, as in a Hugging Face folder."""
    classes: tuple[str, ...] = ()
    """What its own head calls the classes, if it has learnt them and does."""
    has_head: bool = True
    """False for a network that is known to end in features."""
    rebuild_args: tuple[str, dict[str, Any]] | None = None
    """A name and `backbone_kwargs` that build the same network without the folder or the hub that
    it came from; None where those that were asked for do."""
