"""How long training stands still when a whole backbone is unfrozen, beside Lightning's own way.

Both unfreeze it between two epochs of a real run with AdamW, with groups for each block: ours by
`FreezeUnfreezeCallback`, the peer by `BaseFinetuning.unfreeze_and_add_param_group`.
What is timed is all that the callback does at the start of that epoch.

    python -m benchmarks.unfreeze
"""

import logging
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.models import resnet152, vit_b_16
from typing_extensions import override

from benchmarks.harness import Comparison, in_turn, parser, quicker, report
from lit_finetune.blocks.block import list_blocks
from lit_finetune.callbacks import FreezeUnfreezeCallback


class Classifier(LightningModule):
    """A backbone and a head, as in Lightning's documentation; no step calls the network.

    What is timed does not depend on what a step computes.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(1000, 10)

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.head(batch), torch.zeros(len(batch), dtype=torch.long))

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = (parameter for parameter in self.parameters() if parameter.requires_grad)
        return torch.optim.AdamW(trained, lr=1e-3)


class BlockByBlock(BaseFinetuning):
    """Lightning's class as its documentation shows it, with a group for each block."""

    @override
    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(pl_module.get_submodule("backbone"))

    @override
    def finetune_function(
        self, pl_module: LightningModule, epoch: int, optimizer: torch.optim.Optimizer
    ) -> None:
        if epoch != 1:
            return
        for block in self.blocks:
            modules = [pl_module.get_submodule(f"backbone.{name}") for name in block.modules]
            self.unfreeze_and_add_param_group(modules, optimizer)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.blocks = list_blocks(pl_module.get_submodule("backbone"))
        super().on_fit_start(trainer, pl_module)


def stand_still(network: Callable[[], nn.Module], make: Callable[[], Callback]) -> float:
    """Milliseconds that a callback takes at the start of the epoch in which it unfreezes."""
    callback, milliseconds = make(), 0.0
    begin = callback.on_train_epoch_start

    def timed(trainer: Trainer, module: LightningModule) -> None:
        nonlocal milliseconds
        began = time.perf_counter()
        begin(trainer, module)
        milliseconds = 1000 * (time.perf_counter() - began)

    setattr(callback, "on_train_epoch_start", timed)  # noqa: B010  # mypy: a method
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "barebones": False}
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[callback],
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    module = Classifier(network())
    trainer.fit(module, DataLoader(torch.randn(2, 1000), batch_size=2))  # type: ignore[arg-type]  # a tensor
    assert sum(not parameter.requires_grad for parameter in module.parameters()) < 3
    return milliseconds


def compare(name: str, network: Callable[[], nn.Module], times: int) -> Comparison:
    """Ours beside `BaseFinetuning`, for one network."""
    print(f"{name}:", flush=True)
    ours = partial(FreezeUnfreezeCallback, {0: "head", 1: "all"})
    ways = {
        "ours": partial(stand_still, network, ours),
        "BaseFinetuning": partial(stand_still, network, BlockByBlock),
    }
    figures = in_turn(ways, times=times)
    return quicker(f"unfreezing {name}, ms", figures, "ours", "BaseFinetuning", ">= 1")


def main() -> None:
    """Run the comparisons."""
    arguments = parser(__doc__, times=5).parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    networks = {"a ViT-B/16": vit_b_16, "a ResNet-152": resnet152}
    rows = [compare(name, network, arguments.times) for name, network in networks.items()]
    report(rows, arguments.out)


if __name__ == "__main__":
    main()
