"""A run whose frozen blocks are cached: its network, and what stays the same in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lit_finetune._errors import some_of
from lit_finetune.blocks.block import Block
from lit_finetune.classifier import FinetuneClassifier
from lit_finetune.feature_cache.key import prefix_tensors
from lit_finetune.freezing.prefix_watch import may_change_in_training
from lit_finetune.splitting.check import check_split
from lit_finetune.splitting.split import forward_between


@dataclass(slots=True)
class Run:
    """A Trainer and the classifier that it trains."""

    trainer: Trainer
    module: FinetuneClassifier
    blocks: list[Block] = field(init=False)

    def __post_init__(self) -> None:
        self.blocks = self.module.blocks

    def names(self) -> list[str]:
        """The names of the blocks, from the input to the head."""
        return [block.name for block in self.blocks]

    def blocks_before(self, name: str) -> list[Block]:
        """The blocks before the one of this name."""
        return self.blocks[: self.names().index(name)]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The parameters and buffers of the blocks before the one of this name."""
        return prefix_tensors(self.module, self.blocks_before(name))

    def modules_of(self, blocks: list[Block]) -> list[nn.Module]:
        """All modules of some blocks."""
        paths = [path for block in blocks for path in block.modules]
        return [m for path in paths for m in self.module.get_submodule(path).modules()]

    def on_device(self, batch: Any) -> list[Any]:
        """A batch as a step receives it."""
        batch = self.trainer.precision_plugin.convert_input(batch)
        moved: list[Any] = self.trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        return moved

    def forward_between(
        self, h: Tensor, start: str, upto: str, image_shape: tuple[int, ...]
    ) -> Tensor:
        """The input of a block, computed from the input of an earlier one."""
        network, head_name = self.module.backbone, self.module.head_name
        options: dict[str, Any] = {"head_name": head_name, "image_shape": image_shape}
        return forward_between(network, h, start, upto, **options)

    @contextmanager
    def no_grad(self) -> Iterator[None]:
        """Compute in the run's precision, without gradients or an effect on random generators."""
        precision = self.trainer.precision_plugin.forward_context()
        with isolate_rng(), torch.inference_mode(False), torch.no_grad(), precision:
            yield


def frozen_blocks(run: Run, *, check_modes: bool) -> tuple[list[Block], str | None]:
    """The first blocks whose output is the same in each epoch.

    Args:
        run: The run.
        check_modes: Stop at a block whose batch statistics or dropout are active.

    Returns:
        The blocks, and the name of the next block if only its training mode excludes it.

    Raises:
        ValueError: Parameters of the network are missing.
    """
    named = dict(run.module.named_parameters())
    if missing := [n for block in run.blocks for n in block.parameters if n not in named]:
        raise ValueError(
            "FrozenPrefixCache: the network has other parameters than when the run began:"
            f" {some_of(missing, 3)} is missing. Prune, exchange and reparametrise layers in"
            " `__init__` or `setup`."
        )
    frozen: list[Block] = []
    for block in run.blocks:
        if any(named[name].requires_grad for name in block.parameters):
            break
        if check_modes and any(
            m.training and may_change_in_training(m) for m in run.modules_of([block])
        ):
            return frozen, block.name
        frozen.append(block)
    return frozen, None


def split_problem(run: Run, images: Tensor, name: str) -> str | None:
    """Why the network cannot be split before a block; None if it can."""
    network, head_name = run.module.backbone, run.module.head_name
    with run.no_grad():
        problem = check_split(network, images, name, head_name=head_name, in_training=False)
        if problem is not None:
            return problem
        rows = run.module.forward_prefix(images, name)
        if len(rows) != len(images):
            return f"The input of `{name}` does not have one row for each picture."
        same_image = run.module.forward_prefix(images[[0, 0]], name)
        if not _is_close(rows[0], same_image[0]):
            return (
                f"The input of `{name}` depends on the other pictures of the batch: a block before"
                " it, such as BatchNorm without running statistics, combines pictures."
            )
    return None


def _is_close(one: Tensor, other: Tensor) -> bool:
    """Whether two rows are equal but for rounding."""
    one, other = one.float(), other.float()
    return torch.allclose(one, other, rtol=1e-2, atol=1e-2 * float(other.abs().mean()))
