"""Norms, dropout and drop-path of frozen blocks stand still, in every loop."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune.callbacks import FreezeUnfreezeCallback

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "batch without weights": partial(nn.BatchNorm2d, affine=False),
    "batch with a cumulative mean": partial(nn.BatchNorm2d, momentum=None),
    "batch over processes": nn.SyncBatchNorm,
    "instance": partial(nn.InstanceNorm2d, affine=True, track_running_stats=True),
    "instance without weights": partial(nn.InstanceNorm2d, track_running_stats=True),
    "group": partial(nn.GroupNorm, 2),
    "layer": lambda width: nn.LayerNorm([width, 8, 8]),
    "rms": lambda width: nn.RMSNorm([width, 8, 8]),
}
WITHOUT_WEIGHTS = {"batch without weights", "instance without weights"}


class Net(nn.Module):
    """Two stages with a norm and dropout, and a head."""

    def __init__(self, make_norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.layer1 = self.stage(3, make_norm)
        self.layer2 = self.stage(4, make_norm)
        self.fc = nn.Linear(4, 3)

    def stage(self, width: int, make_norm: Callable[[int], nn.Module]) -> nn.Module:
        convolution = nn.Conv2d(width, 4, 3, padding=1)
        return nn.Sequential(convolution, make_norm(4), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


class Plain(LightningModule):
    """Any module with all loops."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.net(batch[0])

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.net(batch[0])

    def configure_optimizers(self) -> SGD:
        return SGD(self.net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)


def loader(size: int = 8) -> DataLoader[Any]:
    images = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.arange(8) % 3), batch_size=4)


def fit(net: nn.Module, *callbacks: Callback, size: int = 8) -> Trainer:
    trainer = Trainer(
        max_epochs=2,
        val_check_interval=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    model = Plain(net)
    trainer.fit(model, loader(size), loader(size))
    trainer.test(model, loader(size), verbose=False)
    return trainer


def moved(net: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, now in net.state_dict().items() if not torch.equal(now, before[name])}


def copy_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("name", NORMS)
def test_a_frozen_norm_keeps_weights_and_statistics(name: str) -> None:
    net = Net(NORMS[name])
    before = copy_of(net)
    fit(net, FreezeUnfreezeCallback({0: "head", 1: "layer2"}))

    changed = moved(net, before)
    assert not {key for key in changed if key.startswith("layer1")}
    assert {"layer2.0.weight", "fc.weight"} <= changed
    statistics = [key for key in before if key.startswith("layer2.1.running")]
    assert set(statistics) <= changed


@pytest.mark.parametrize("name", NORMS)
def test_train_bn_trains_any_norm_of_a_frozen_block_and_nothing_else_of_it(name: str) -> None:
    net = Net(NORMS[name])
    before = copy_of(net)
    trainer = fit(net, FreezeUnfreezeCallback("head_only", train_bn=True))

    norms = {key for key in before if ".1." in key and "num_batches" not in key}
    changed = {key for key in moved(net, before) if "num_batches" not in key}
    assert changed == norms | {"fc.weight", "fc.bias"}
    groups = [group.get("name") for group in trainer.optimizers[0].param_groups]
    assert groups == [None, *([] if name in WITHOUT_WEIGHTS else ["layer1/norm", "layer2/norm"])]


class Features(Callback):
    """Whether a module gives in training what it gives in evaluation, for each batch."""

    def __init__(self, module: nn.Module) -> None:
        self.is_same: list[bool] = []
        self.module = module
        self.inputs: Tensor | None = None
        module.register_forward_hook(self.note)

    def note(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self.inputs, self.output = inputs[0].detach(), output.detach()

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        in_training, given = self.output, self.inputs
        modes = {module: module.training for module in self.module.modules()}
        self.module.eval()
        self.is_same.append(torch.equal(self.module(given), in_training))
        for module, mode in modes.items():
            module.training = mode


@pytest.mark.parametrize(
    ("name", "options", "frozen"),
    [
        ("test_vit", {"img_size": 32, "drop_rate": 0.3, "attn_drop_rate": 0.3}, "blocks"),
        ("test_convnext", {}, "stages"),
        ("test_resnet", {}, "layer4"),
        ("test_efficientnet", {}, "blocks"),
    ],
)
def test_drop_path_of_frozen_blocks_is_off(name: str, options: Any, frozen: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=3, drop_path_rate=0.5, **options)
    body = net.get_submodule(frozen)
    watch = Features(body)
    fit(net, FreezeUnfreezeCallback({0: "head", 1: "all"}), watch, size=32)

    assert watch.is_same[:2] == [True, True]
    assert False in watch.is_same[2:]


def test_a_frozen_spectral_norm_iterates_no_further() -> None:
    net = Net(nn.BatchNorm2d)
    spectral_norm(net.layer1[0])
    spectral_norm(net.layer2[0])
    before = copy_of(net)
    fit(net, FreezeUnfreezeCallback({0: "head", 1: "layer2"}))

    changed = moved(net, before)
    assert not {key for key in changed if key.startswith("layer1")}
    assert "layer2.0.parametrizations.weight.0._u" in changed


def test_attention_in_a_frozen_block_drops_nothing() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.MultiheadAttention(12, 2, dropout=0.5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attend(x, x, x, need_weights=False)[0]

    net = nn.Sequential(nn.Flatten(2), nn.Linear(64, 12), Attention(), nn.Flatten())
    net.append(nn.Linear(36, 3))
    watch = Features(net[2])
    fit(net, FreezeUnfreezeCallback({0: "head", 1: "2.attend"}), watch)

    assert watch.is_same == [True, True, False, False]
