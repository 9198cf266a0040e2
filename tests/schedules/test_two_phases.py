"""On backbones of three kinds the right parameters move in each of two phases, and no other."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback


class Moved(Callback):
    """Which tensors of the network each epoch changed, running statistics among them."""

    def __init__(self) -> None:
        self.epochs: list[set[str]] = []
        self.before: dict[str, Tensor] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.before = {name: t.clone() for name, t in pl_module.backbone.state_dict().items()}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        after = pl_module.backbone.state_dict()
        self.epochs.append({name for name in after if not after[name].equal(self.before[name])})


BACKBONES: dict[str, tuple[str, int, dict[str, Any], list[str]]] = {
    "a network of torchvision": ("mobilenet_v3_small", 32, {}, ["classifier"]),
    "a transformer of timm": ("timm/test_vit", 32, {"img_size": 32}, ["head"]),
    "two heads": (
        "timm/deit_tiny_distilled_patch16_224",
        32,
        {"img_size": 32, "depth": 3},
        ["head", "head_dist"],
    ),
    "auxiliary heads": ("googlenet", 64, {"init_weights": False}, ["fc", "aux1", "aux2"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BACKBONES)
def test_what_each_phase_says_moves_and_nothing_else(kind: str) -> None:
    backbone, size, kwargs, heads = BACKBONES[kind]
    if backbone.startswith("timm/"):
        pytest.importorskip("timm")
    model = FinetuneClassifier(backbone, num_classes=3, backbone_kwargs=kwargs, lr=0.01)
    last = model.blocks[-2]
    data = TensorDataset(torch.randn(8, 3, size, size), torch.arange(8) % 3)
    moved = Moved()
    trainer = Trainer(
        max_epochs=2,
        callbacks=[FreezeUnfreezeCallback({0: "head", 1: last.name}), moved],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(data, batch_size=4))

    of_block = {
        block.name: named_tensors(model, block.modules) for block in (last, model.blocks[-1])
    }
    first, second = moved.epochs
    assert first == of_block["head"]
    assert second == of_block["head"] | of_block[last.name]
    assert {name.split(".")[0] for name in first} == set(heads)


def named_tensors(model: FinetuneClassifier, modules: tuple[str, ...]) -> set[str]:
    """The parameters and running statistics of modules, by their names in the backbone."""
    inside = tuple(f"{name.removeprefix('backbone.')}." for name in modules)
    state = model.backbone.state_dict()
    return {name for name in state if name.startswith(inside)}
