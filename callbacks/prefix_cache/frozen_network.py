"""A run whose frozen blocks are kept, and what it makes of pictures."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lit_finetune.blocks.block import Block
from lit_finetune.classifier import FinetuneClassifier
from lit_finetune.feature_cache.key import prefix_tensors
from lit_finetune.splitting.split import forward_between


@dataclass(slots=True)
class Run:
    """A run, and the network that it trains."""

    trainer: Trainer
    module: FinetuneClassifier
    blocks: list[Block] = field(init=False)

    def __post_init__(self) -> None:
        self.blocks = self.module.blocks

    def names(self) -> list[str]:
        """Of the blocks, from the input to the head."""
        return [block.name for block in self.blocks]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What the blocks before the one of this name hold."""
        return prefix_tensors(self.module, self.blocks[: self.names().index(name)])

    def on_device(self, batch: Any) -> list[Any]:
        """A batch as a step is given it."""
        batch = self.trainer.precision_plugin.convert_input(batch)
        moved: list[Any] = self.trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        return moved

    def between(self, h: Tensor, start: str, upto: str, image_shape: tuple[int, ...]) -> Tensor:
        """What enters a block, from what enters an earlier one."""
        network, head_name = self.module.backbone, self.module.head_name
        options: dict[str, Any] = {"head_name": head_name, "image_shape": image_shape}
        return forward_between(network, h, start, upto, **options)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the network as a step does, without a trace on what is drawn later."""
        precision = self.trainer.precision_plugin.forward_context()
        with isolate_rng(), torch.inference_mode(False), torch.no_grad(), precision:
            yield
