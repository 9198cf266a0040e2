"""A run with cached prefixes is the run without, and does less."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import IterableDataset
from torchvision.transforms import v2

from lit_finetune.callbacks import FrozenPrefixCache
from lit_finetune.datamodules import DigitsDataModule
from tests.callbacks.prefix_runs import Net, Pictures, Run, are_equal, cached, epochs, loader

GRADUAL = {0: "head", 1: "layer2", 2: "all"}
AGAIN = [
    {"modules": "all"},
    {"epoch": 1, "freeze": ["stem", "layer1"]},
    {"epoch": 2, "freeze": "layer2"},
]
SCHEDULES: dict[str, tuple[Any, list[str]]] = {
    "the head alone": ("head_only", ["head", "head", "head"]),
    "block by block": (GRADUAL, ["head", "layer2", "pictures"]),
    "frozen again": (AGAIN, ["pictures", "layer2", "head"]),
    "amid an epoch": (
        [{"modules": "head"}, {"step": 6, "modules": "layer2"}, {"step": 9, "modules": "layer1"}],
        ["head", "head pictures", "layer2 pictures"],
    ),
    "all of it": ("full", ["pictures", "pictures", "pictures"]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_run_ends_with_the_bits_that_it_would_have_ended_with(name: str) -> None:
    schedule, entries = SCHEDULES[name]

    run = cached(schedule)

    assert are_equal(run, Run(schedule))
    assert epochs(run) == entries


OPTIONS: dict[str, dict[str, Any]] = {
    "workers": {"num_workers": 1},
    "kept workers": {"num_workers": 1, "persistent_workers": True},
    "channels last": {"model": {"channels_last": True}},
    "accumulated gradients": {"accumulate_grad_batches": 2},
    "label smoothing": {"model": {"label_smoothing": 0.1}},
    "validation twice an epoch": {"val_check_interval": 2},
    "half precision": {"precision": "bf16-mixed"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_so_it_is_whatever_the_run_is_like(name: str) -> None:
    def options() -> dict[str, Any]:
        given = dict(OPTIONS[name])
        workers = {key: given.pop(key) for key in list(given) if "workers" in key}
        return {**given, "train": loader(Pictures(32), shuffle=True, **workers)}

    run = cached(GRADUAL, **options())

    assert are_equal(run, Run(GRADUAL, **options()))
    assert "head" in epochs(run)


def test_so_it_is_with_our_own_data() -> None:
    def data() -> DigitsDataModule:
        return DigitsDataModule(
            digits=[0, 1, 2], batch_size=8, image_size=8, train_augmentation="none", num_workers=0
        )

    options = {"limit_train_batches": 4, "limit_val_batches": 2}

    assert are_equal(cached(GRADUAL, data=data(), **options), Run(GRADUAL, data=data(), **options))


def test_each_picture_is_asked_for_once_and_the_frozen_blocks_run_once() -> None:
    train, val, network, seen = Pictures(32), Pictures(12), Net(), []
    network.stem.register_forward_hook(lambda *a: seen.extend(a[2] if type(a[2]) is Tensor else ()))

    cached("head_only", train=loader(train, shuffle=True), val=loader(val), network=lambda: network)
    few = train.asked, val.asked, len(seen)
    cached(
        "head_only",
        train=loader(train, shuffle=True),
        val=loader(val),
        network=lambda: network,
        max_epochs=9,
    )

    assert (train.asked, val.asked, len(seen)) == tuple(2 * number for number in few)


class Meddling(Callback):
    """Changes a weight of the frozen part behind everybody's back."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            pl_module.backbone.stem[0].weight.data.add_(0.1)


def test_what_has_changed_is_never_served() -> None:
    run = cached("head_only", Meddling())

    assert are_equal(run, Run("head_only", Meddling()))
    assert epochs(run) == ["head", "head", "head"]


def test_statistics_that_move_are_not_kept(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    class Waking(Callback):
        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, *_: Any
        ) -> None:
            pl_module.backbone.layer1.train()

        on_train_epoch_start = on_train_batch_start

    run = cached("head_only", Waking())

    assert epochs(run) == ["layer1", "layer1", "layer1"]
    assert "`layer1` is frozen but in training mode" in caplog.text + capsys.readouterr().err


NOISE = v2.GaussianNoise()


def test_pictures_that_vary_are_refused_unless_it_is_said_how_many_of_each() -> None:
    with pytest.raises(ValueError, match=r"varies its pictures at random.*`views`"):
        cached("head_only", train=loader(Pictures(32, NOISE)))


def rarely(image: Tensor) -> Tensor:
    return image.flip(-1) if torch.rand(()) < 1e-6 else image


def test_chance_that_is_hardly_ever_seen_is_found() -> None:
    with pytest.raises(ValueError, match="at random"):
        cached("head_only", train=loader(Pictures(32, rarely)))


def test_views_are_shown_in_turn() -> None:
    seen: list[Tensor] = []

    class Look(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            seen.append(args[3][0].values)

    cached("head_only", Look(), views=2, train=loader(Pictures(8, NOISE)), max_epochs=4)

    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1])


def test_one_view_of_pictures_that_do_not_vary_is_the_picture() -> None:
    assert are_equal(cached("head_only", views=1), Run("head_only"))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_is_near(dtype: Any) -> None:
    run, exact = Run("head_only", FrozenPrefixCache(dtype=dtype)), Run("head_only")

    assert epochs(run) == ["head", "head", "head"]
    assert run.diary.losses == pytest.approx(exact.diary.losses, rel=0.02)
    assert run.diary.losses != exact.diary.losses


def test_a_last_batch_that_is_smaller_is_near() -> None:
    train = loader(Pictures(29), shuffle=True)

    run, exact = cached("head_only", train=train), Run("head_only", train=train)

    assert run.diary.losses == pytest.approx(exact.diary.losses, rel=1e-4)


def test_an_earlier_block_is_taken_where_the_network_cannot_be_split() -> None:
    class Skip(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            both = [self.layer2(self.layer1(x))[:, :4], x]
            return self.fc(self.drop(torch.cat(both, 1).mean((2, 3))))

    run = cached({0: ["head", "layer2"]}, network=Skip)

    assert epochs(run) == ["layer1", "layer1", "layer1"]
    assert are_equal(run, Run({0: ["head", "layer2"]}, network=Skip))


def test_a_network_that_cannot_be_split_at_all_is_refused_and_says_why() -> None:
    class Noisy(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.randn(()))

    with pytest.raises(ValueError, match=r"nothing to keep before `head`.*at random"):
        cached("head_only", network=Noisy)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.randn(3, 8, 8), 0)] * 8)

    def __len__(self) -> int:
        return 8


class Batches:
    def __iter__(self) -> Any:
        return iter([[torch.randn(8, 3, 8, 8), torch.zeros(8, dtype=torch.long)]])

    def __len__(self) -> int:
        return 1


class Hook(DigitsDataModule):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"model": {"mixup_alpha": 0.2}}, "`mixup_alpha`"),
        ({"train": loader(Stream())}, "Stream can only be read in its order"),
        ({"train": loader(Pictures(8), batch_size=None)}, "makes no batches"),
        ({"train": Batches()}, "not a Batches"),
        ({"data": Hook()}, "Hook.on_after_batch_transfer"),
    ],
)
def test_what_cannot_be_cached_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        cached("head_only", **options)


def test_another_module_is_refused() -> None:
    class Other(LightningModule):
        pass

    with pytest.raises(ValueError, match="trains a FinetuneClassifier, but this is a Other"):
        FrozenPrefixCache().setup(Trainer(accelerator="cpu", logger=False), Other(), "fit")


def test_a_second_fit_and_an_evaluation_see_pictures() -> None:
    cache = FrozenPrefixCache()
    run = Run("head_only", cache)
    assert are_equal(Run("head_only", cache), run)

    found = run.trainer.validate(run.model, loader(Pictures(12)), verbose=False)

    assert found[0]["val/loss"] == pytest.approx(run.diary.losses[-2], rel=1e-5)


@pytest.mark.parametrize("options", [{"views": -1}, {"memory_limit": -1.0}, {"dtype": "fp8"}])
def test_arguments_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        FrozenPrefixCache(**options)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_on_a_gpu_the_run_ends_near_the_run_without(precision: Any) -> None:
    options = {"accelerator": "auto", "devices": 1, "precision": precision}

    run, exact = cached(GRADUAL, **options), Run(GRADUAL, **options)

    assert epochs(run) == ["head", "layer2", "pictures"]
    assert run.diary.losses == pytest.approx(exact.diary.losses, rel=1e-2)


class CombinesImages(Net):
    """A stem that centres each batch: what it makes of an image depends on the others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x - x.mean(dim=0, keepdim=True))


class WithoutStatistics(Net):
    def __init__(self) -> None:
        super().__init__()
        self.stem[1] = torch.nn.BatchNorm2d(4, track_running_stats=False)


@pytest.mark.parametrize("network", [CombinesImages, WithoutStatistics])
def test_a_frozen_block_that_combines_the_images_of_a_batch_is_refused(network: type[Net]) -> None:
    with pytest.raises(ValueError, match="depends on the other pictures of the batch"):
        cached("head_only", network=network)


def test_in_double_precision_the_bits_are_those_of_a_run_without_a_cache() -> None:
    options = {"precision": "64-true", "train": loader(Pictures(16)), "val": loader(Pictures(8))}

    assert are_equal(cached("head_only", **options), Run("head_only", **options))


def test_a_step_sees_the_length_and_the_shape_of_its_images() -> None:
    seen: set[tuple[Any, ...]] = set()

    class Look(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, i: int) -> None:
            x = batch[0]
            seen.add((len(x), x.shape[0], x.size(0), *x.shape))

    cached("head_only", Look(), train=loader(Pictures(16)))

    assert {each[:4] for each in seen} == {(8, 8, 8, 8)}
    assert len(seen) == 1
