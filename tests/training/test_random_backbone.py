"""A backbone that was never trained and does not train is warned of, and no other is."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune.callbacks import FreezeUnfreezeCallback, FrozenPrefixCache, LinearProbe
from lit_finetune.classifier import FinetuneClassifier


class Tiny(nn.Module):
    def __init__(self, has_norm: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4) if has_norm else nn.Identity()
        self.layer1 = nn.Linear(4, 4)
        self.fc = nn.Linear(4, 2)
        self.data_config = {"image_size": [8, 8]}

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.layer1(self.norm(self.stem(images)).relu().mean((2, 3))))


def pretrained() -> Tiny:
    network = Tiny()
    network.norm.running_mean += 1
    return network


def loader() -> DataLoader[Any]:
    torch.manual_seed(0)
    return DataLoader(TensorDataset(torch.rand(8, 3, 8, 8), torch.arange(8) % 2), batch_size=4)


def warned(model: Any, *callbacks: Any, epochs: int = 1, **kwargs: Any) -> list[str]:
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        trainer.fit(model, loader(), **kwargs)
    return [str(each.message) for each in seen if "random weights" in str(each.message)]


def classifier(backbone: Any = Tiny, **kwargs: Any) -> FinetuneClassifier:
    return FinetuneClassifier(backbone, num_classes=2, lr_scheduler="constant", **kwargs)


HEAD_ONLY = "head_only"
GRADUAL = {0: "head", 1: "all"}


@pytest.mark.parametrize("schedule", [HEAD_ONLY, GRADUAL])
@pytest.mark.parametrize(
    "backbone", [Tiny, lambda: Tiny(has_norm=False), "test_random_backbone.Tiny", Tiny()]
)
def test_a_frozen_random_backbone_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, backbone: Any, schedule: Any
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    said = warned(classifier(backbone), FreezeUnfreezeCallback(schedule), epochs=2)
    assert len(said) == 1
    assert "`weights`" in said[0]


def test_other_ways_to_use_random_features_are_warned_of() -> None:
    assert "a head is fitted" in warned(classifier(), LinearProbe())[0]
    assert len(warned(classifier(), LinearProbe(), FreezeUnfreezeCallback("head_only"))) == 1
    assert warned(classifier(), FrozenPrefixCache(), FreezeUnfreezeCallback("head_only"))
    assert warned(classifier(lora={"r": 2}))
    by_hand = classifier()
    by_hand.backbone.stem.requires_grad_(False)
    assert warned(by_hand)


def test_a_random_backbone_that_trains_is_not_warned_of() -> None:
    assert not warned(classifier())
    assert not warned(classifier(), FreezeUnfreezeCallback("full"))


@pytest.mark.parametrize("backbone", [pretrained, pretrained(), Tiny(has_norm=False)])
def test_a_network_that_may_have_learnt_is_not_warned_of(backbone: Any) -> None:
    assert not warned(classifier(backbone), FreezeUnfreezeCallback("head_only"))


def test_weights_of_any_origin_are_not_warned_of(tmp_path: Path) -> None:
    torch.save(Tiny().state_dict(), tmp_path / "a.pth")
    of_file = classifier(weights=str(tmp_path / "a.pth"))
    assert not warned(of_file, FreezeUnfreezeCallback("head_only"))
    by_hand = classifier()
    by_hand.backbone.load_state_dict(Tiny().state_dict())
    assert not warned(by_hand, FreezeUnfreezeCallback("head_only"))


def test_a_checkpoint_is_not_warned_of(tmp_path: Path) -> None:
    model, trainer = classifier(), Trainer(max_epochs=1, accelerator="cpu", logger=False)
    trainer.fit(model, loader())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = FinetuneClassifier.load_from_checkpoint(tmp_path / "a.ckpt", backbone=Tiny)
    assert not warned(loaded, FreezeUnfreezeCallback("head_only"))
    assert not warned(classifier(), epochs=2, ckpt_path=tmp_path / "a.ckpt")


class Deep(nn.Module):
    """As many layers as a file may lack one of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.blocks = nn.Sequential(*(nn.Linear(8, 8) for _ in range(12)))
        self.fc = nn.Linear(8, 2)
        self.data_config = {"image_size": [8, 8]}

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(images).relu().mean((2, 3))))


@pytest.fixture
def lacks_the_last(tmp_path: Path) -> str:
    state = {n: v for n, v in Deep().state_dict().items() if not n.startswith("blocks.11.")}
    torch.save(state, tmp_path / "a.pth")
    return str(tmp_path / "a.pth")


@pytest.mark.parametrize("callbacks", [[FreezeUnfreezeCallback(HEAD_ONLY)], [LinearProbe()]])
def test_a_layer_that_a_file_lacks_is_warned_of_where_it_does_not_train(
    lacks_the_last: str, callbacks: list[Any]
) -> None:
    (said,) = warned(classifier(Deep, weights=lacks_the_last), *callbacks)
    assert "do not train, 1: blocks.11.weight" in said
    assert not warned(classifier(Deep, weights=lacks_the_last))
    last = FreezeUnfreezeCallback({0: ["head", "blocks.11"]})
    assert not warned(classifier(Deep, weights=lacks_the_last), last)


def test_weights_put_in_by_hand_in_part_are_warned_of() -> None:
    model = classifier(Deep)
    state = {n: v for n, v in Deep().state_dict().items() if not n.startswith("blocks.3.")}
    model.backbone.load_state_dict(state, strict=False)
    (said,) = warned(model, FreezeUnfreezeCallback(HEAD_ONLY))
    assert "1: blocks.3.weight" in said


class FreezesAt(Callback):
    """Freezes the backbone in one of the hooks of a training."""

    def __init__(self, hook: str) -> None:
        def freeze(trainer: Trainer, module: Any, *args: Any) -> None:
            for name, parameter in module.backbone.named_parameters():
                parameter.requires_grad_(name.startswith("fc."))

        setattr(self, hook, freeze)


@pytest.mark.parametrize(
    "hook", ["on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start"]
)
def test_a_callback_of_the_users_own_that_freezes_is_warned_of(hook: str) -> None:
    assert len(warned(classifier(), FreezesAt(hook), epochs=2)) == 1


class TrainsTheHead(FinetuneClassifier):
    """Whose optimizer has the head alone."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.backbone.fc.parameters(), lr=0.1)


class FromTheStart(FinetuneClassifier):
    """Whose backbone does not train because of what its class does."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.backbone.stem.requires_grad_(False)


class HooksOfItsOwn(FinetuneClassifier):
    """Whose hooks do not call those of the classifier."""

    def on_train_start(self) -> None:
        self.backbone.stem.requires_grad_(False)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        pass


@pytest.mark.parametrize("kind", [TrainsTheHead, FromTheStart, HooksOfItsOwn])
def test_a_module_of_the_users_own_that_freezes_is_warned_of(
    kind: type[FinetuneClassifier],
) -> None:
    assert len(warned(kind(Tiny, num_classes=2, lr_scheduler="constant"))) == 1


def test_lightnings_own_callback_that_freezes_is_warned_of() -> None:
    class Finetuning(BaseFinetuning):
        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze([pl_module.backbone.stem, pl_module.backbone.layer1])

        def finetune_function(self, *args: Any) -> None:
            pass

    assert len(warned(classifier(), Finetuning())) == 1


def test_what_builders_are_told_is_no_pretraining() -> None:
    def build(init_weights: bool, grad_checkpointing: bool) -> nn.Module:
        return Tiny(has_norm=False)

    kwargs = {"init_weights": True, "grad_checkpointing": True}
    model = classifier(build, backbone_kwargs=kwargs)
    assert warned(model, FreezeUnfreezeCallback(HEAD_ONLY))

    def loaded(pretrained: bool) -> nn.Module:
        return Tiny(has_norm=False)

    model = classifier(loaded, backbone_kwargs={"pretrained": True})
    assert not warned(model, FreezeUnfreezeCallback(HEAD_ONLY))


@pytest.mark.parametrize("has_learnt", [False, True])
@pytest.mark.parametrize("is_given", [False, True])
def test_norms_without_statistics_tell_as_well(has_learnt: bool, is_given: bool) -> None:
    def build() -> nn.Module:
        network = Tiny()
        network.norm = nn.GroupNorm(2, 4)
        if has_learnt:
            nn.init.uniform_(network.norm.weight)
        return network

    model = classifier(build() if is_given else build)
    assert bool(warned(model, FreezeUnfreezeCallback(HEAD_ONLY))) != has_learnt
