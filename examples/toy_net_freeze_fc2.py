"""A toy net: trained whole, saved, loaded, and trained on with `fc2` frozen at first.

    python -m examples.toy_net_freeze_fc2

The callback works with any `LightningModule`: this one knows nothing about freezing, and its
optimizer is made of all parameters. At epoch 2 those of `fc2` join the running optimizer as a new
group. Printed is how far each parameter moved, which for a frozen one is exactly 0.
"""

from pathlib import Path

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lit_finetune import load_weights
from lit_finetune.callbacks import FreezeUnfreezeCallback


class ToyNet(LightningModule):
    """Three layers, from 8 numbers to 2 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 16)
        self.fc2 = nn.Linear(16, 16)
        self.fc3 = nn.Linear(16, 2)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, labels = batch
        return F.cross_entropy(self(x), labels)

    @override
    def configure_optimizers(self) -> Optimizer:
        return SGD(self.parameters(), lr=0.1, momentum=0.9)


class PrintMoves(Callback):
    """Tell after each epoch how far each parameter moved, and which groups the optimizer has."""

    def __init__(self) -> None:
        self.starts: list[dict[str, Tensor]] = []
        self.moves: list[dict[str, float]] = []
        self.groups: list[list[str]] = []

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        named = pl_module.named_parameters()
        self.starts.append({name: parameter.detach().clone() for name, parameter in named})

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        before = self.starts[-1]
        named = pl_module.named_parameters()
        moves = {name: float((after - before[name]).abs().max()) for name, after in named}
        self.moves.append(moves)
        groups = trainer.optimizers[0].param_groups
        self.groups.append([group.get("name", "its own") for group in groups])
        told = ", ".join(f"{name} {distance:.3g}" for name, distance in moves.items())
        print(f"epoch {trainer.current_epoch}: groups {self.groups[-1]}; moved {told}")


def main(path: str = "data/toy_net.pth") -> PrintMoves:
    """Train the net twice, the second time in phases, and return what was seen.

    Args:
        path: Where the trained net is saved.
    """
    x = torch.randn(256, 8)
    loader = DataLoader(TensorDataset(x, (x.sum(dim=1) > 0).long()), batch_size=32, shuffle=True)

    net = ToyNet()
    Trainer(max_epochs=2, logger=False, enable_checkpointing=False).fit(net, loader)
    Path(path).parent.mkdir(exist_ok=True)
    torch.save(net.state_dict(), path)

    net = ToyNet()
    print(load_weights(net, path, min_match=1.0))
    watch = PrintMoves()
    phases = FreezeUnfreezeCallback({0: ["fc1", "fc3"], 2: "fc2"})
    trainer = Trainer(
        max_epochs=4, logger=False, enable_checkpointing=False, callbacks=[phases, watch]
    )
    trainer.fit(net, loader)
    return watch


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
