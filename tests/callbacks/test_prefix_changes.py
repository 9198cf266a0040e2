"""Frozen blocks that change while `FrozenPrefixCache` serves what they gave: seen, or refused."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import Tensor, nn
from torch.ao.quantization import get_default_qat_qconfig, prepare_qat
from torch.nn.utils import parametrizations, prune
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback, FrozenPrefixCache


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.layer1 = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer1(self.stem(x)).mean((2, 3)))


Change = Callable[[nn.Module], Any]


def fit(
    *others: Callback, is_cached: bool, change: Change = lambda net: None, **options: Any
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What a run leaves, and what it logged at last."""
    torch.manual_seed(0)
    network = Net()
    change(network)
    model = FinetuneClassifier(
        network,
        num_classes=3,
        lr=0.1,
        lr_scheduler="constant",
        optimizer=partial(SGD, momentum=0.9),
    )
    x, y = torch.randn(16, 3, 10, 10), torch.arange(16) % 3
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    cache = [FrozenPrefixCache()] if is_cached else []
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*others, FreezeUnfreezeCallback({0: "head", 2: "layer1"}), *cache],
        **options,
    )
    trainer.fit(model, loader, loader)
    return model.state_dict(), {k: float(v) for k, v in trainer.callback_metrics.items()}


def assert_the_same(make: Callable[[], list[Callback]], **options: Any) -> None:
    (plain, logged), (cached, again) = (
        fit(*make(), is_cached=is_cached, **options) for is_cached in (False, True)
    )
    assert [name for name in plain if not torch.equal(plain[name], cached[name])] == []
    assert again == logged


class Writes(Callback):
    """It changes frozen weights or statistics in one of its hooks."""

    def __init__(self, write: Change, hook: str) -> None:
        @torch.no_grad()
        def hooked(trainer: Trainer, pl_module: Any, *_: Any, **__: Any) -> None:
            write(pl_module.backbone.stem)

        setattr(self, hook, hooked)


def scale(stem: Any) -> None:
    stem[0].weight.mul_(1.01)


def exchange(stem: Any) -> None:
    stem[0].weight.data = stem[0].weight * 1.01


def shift_statistics(stem: Any) -> None:
    stem[1].running_mean.add_(0.1)


def scale_unseen(stem: Any) -> None:
    stem[0].weight.data.mul_(1.01)


def scale_in_numpy(stem: Any) -> None:
    stem[0].weight.detach().numpy()[...] *= 1.01


@pytest.mark.parametrize(
    ("hook", "write"),
    [
        ("on_train_batch_start", scale),
        ("on_train_batch_end", exchange),
        ("on_train_batch_end", shift_statistics),
        ("on_validation_batch_end", scale),
    ],
)
def test_frozen_tensors_that_a_hook_writes_to_count_at_once(hook: str, write: Change) -> None:
    assert_the_same(lambda: [Writes(write, hook)])


@pytest.mark.parametrize(
    ("hook", "write"),
    [("on_train_batch_end", scale_unseen), ("on_validation_batch_end", scale_in_numpy)],
)
def test_what_is_written_past_torch_amid_an_epoch_ends_the_run(hook: str, write: Change) -> None:
    with pytest.raises(ValueError, match=r"before `head` have other weights.*`.data`, NumPy"):
        fit(Writes(write, hook), is_cached=True)


def test_what_is_written_past_torch_between_epochs_counts() -> None:
    assert_the_same(lambda: [Writes(scale_unseen, "on_train_epoch_end")])


AVERAGES: dict[str, Callable[[], Callback]] = {
    "ema": partial(EMAWeightAveraging, decay=0.7),
    "swa": partial(StochasticWeightAveraging, 0.05, swa_epoch_start=1),
    "average": WeightAveraging,
}


@pytest.mark.parametrize("name", AVERAGES)
def test_beside_averages_of_weights_the_run_is_the_one_without_a_cache(name: str) -> None:
    assert_the_same(lambda: [AVERAGES[name]()], val_check_interval=0.5)


@pytest.mark.parametrize("permanent", [True, False])
def test_pruning_beside_the_cache_is_refused_at_the_start(permanent: bool) -> None:
    pruning = ModelPruning("l1_unstructured", amount=0.2, make_pruning_permanent=permanent)
    with pytest.raises(ValueError, match="cannot be used beside ModelPruning"):
        fit(pruning, is_cached=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda net: parametrizations.spectral_norm(net.stem[0]),
        lambda net: parametrizations.weight_norm(net.stem[0]),
        lambda net: prune.l1_unstructured(net.stem[0], "weight", 0.3),
        lambda net: net.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,)),
    ],
    ids=["spectral norm", "weight norm", "pruned before", "a hook on the input"],
)
def test_frozen_layers_with_other_parametrisations_are_kept_as_they_are(change: Change) -> None:
    assert_the_same(list, change=change)


class Counts(nn.Module):
    """It does something else each time, in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x


def for_quantisation(net: Any) -> None:
    net.qconfig = get_default_qat_qconfig("x86")
    prepare_qat(net, inplace=True)


@pytest.mark.filterwarnings("ignore:.*deprecated.*", "ignore:.*reduce_range.*")
@pytest.mark.parametrize(
    "change", [lambda net: net.stem.append(Counts()), for_quantisation], ids=["counts", "qat"]
)
def test_frozen_layers_that_move_in_evaluation_are_refused(change: Change) -> None:
    with pytest.raises(ValueError, match="has nothing to keep before `head`"):
        fit(is_cached=True, change=change)


def test_layers_that_get_other_parameters_amid_the_run_are_refused() -> None:
    class Prunes(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                prune.l1_unstructured(pl_module.backbone.stem[0], "weight", 0.3)

    with pytest.raises(ValueError, match=r"other parameters than.*backbone.stem.0.weight"):
        fit(Prunes(), is_cached=True)
