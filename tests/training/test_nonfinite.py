"""A loss that is not finite ends a training before the weights are ruined, or is left out."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import LastCheckpoint
from tests.distributed.ranks import run_ranks
from tests.training.test_reference_scores import make_trainer, pictures

BATCH = 4


def network() -> nn.Module:
    torch.manual_seed(5)
    stem = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def model(net: nn.Module | None = None, kind: Any = FinetuneClassifier, **options: Any) -> Any:
    return kind(
        net or network(),
        num_classes=3,
        optimizer=lambda groups: SGD(groups, lr=0.1),
        lr_scheduler="constant",
        **options,
    )


def loader(bad: int | None = None, *, without: int | None = None, value: float = torch.nan) -> Any:
    """Six batches; a picture of one is bad, or one is left out."""
    images, labels = (tensor.clone() for tensor in pictures(6 * BATCH, 3).tensors)
    if bad is not None:
        images[bad * BATCH + 1, 0, 2, 2] = value
    kept = torch.ones(len(images), dtype=torch.bool)
    if without is not None:
        kept[without * BATCH : (without + 1) * BATCH] = False
    return DataLoader(TensorDataset(images[kept], labels[kept]), BATCH)


def state(net: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in net.state_dict().items() if "num_batches" not in k}


def same(one: nn.Module, other: nn.Module) -> bool:
    others = state(other)
    return all(torch.equal(value, others[name]) for name, value in state(one).items())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, {"gradient_clip_val": 1.0}])
@pytest.mark.parametrize("bad", [0, 3])
def test_the_step_is_not_made_and_the_checkpoint_of_before_stays(
    value: float, options: dict[str, Any], bad: int, tmp_path: Path
) -> None:
    stopped, before = model(), model()
    last = LastCheckpoint(tmp_path, every_n_train_steps=1)

    with pytest.raises(ValueError, match=rf"batch {bad} of epoch 0 \(step {bad}\)\. The pictures"):
        make_trainer(last, enable_checkpointing=True, **options).fit(
            stopped, loader(bad, value=value)
        )

    make_trainer(limit_train_batches=bad, **options).fit(before, loader())
    for one, other in zip(stopped.parameters(), before.parameters(), strict=True):
        assert torch.equal(one, other)
    assert (tmp_path / "last.ckpt").exists() == (bad > 0)
    if bad:
        kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
        assert kept["global_step"] == bad
        assert all(torch.equal(kept["state_dict"][k], v) for k, v in state(before).items())


@pytest.mark.parametrize("bad", [2, 3])
def test_of_accumulated_batches_each_is_looked_at(bad: int) -> None:
    stopped, before = model(), model()

    with pytest.raises(ValueError, match=rf"batch {bad} of epoch 0 \(step 1\)"):
        make_trainer(accumulate_grad_batches=2).fit(stopped, loader(bad))

    make_trainer(accumulate_grad_batches=2, limit_train_batches=2).fit(before, loader())
    for one, other in zip(stopped.parameters(), before.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}])
def test_a_user_may_have_such_steps_left_out(options: dict[str, Any]) -> None:
    went_on, without = model(error_if_nonfinite=False), model()

    with pytest.warns(UserWarning, match="batch 2 of epoch 0 .* is left out"):
        make_trainer(**options).fit(went_on, loader(2))

    make_trainer(**options).fit(without, loader(without=2))
    assert same(went_on, without)


def test_a_rate_far_too_high_is_named() -> None:
    net = FinetuneClassifier(network(), num_classes=3, lr=1e30, lr_scheduler="constant")

    with pytest.raises(ValueError, match=r"lower the learning rate \(the largest is 1e\+30\)"):
        make_trainer(max_epochs=3).fit(net, loader())


class Steep(FinetuneClassifier):
    """A loss that is finite where its gradient is not."""

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return super().loss(logits, target) + (0 * logits.sum()).abs().sqrt()


def test_weights_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    last = LastCheckpoint(tmp_path, every_n_train_steps=1)

    with pytest.raises(ValueError, match=r"After step 1, in epoch 0, weights .* no checkpoint"):
        make_trainer(last, enable_checkpointing=True).fit(model(kind=Steep), loader())

    assert not (tmp_path / "last.ckpt").exists()


def test_a_loss_of_ones_own_is_named_where_the_logits_are_finite() -> None:
    class Logarithm(FinetuneClassifier):
        def loss(self, logits: Tensor, target: Tensor) -> Tensor:
            return super().loss(logits, target) - (0 * logits.sum()).log()

    with pytest.raises(ValueError, match="The logits are finite, so it comes of the loss itself"):
        make_trainer().fit(model(kind=Logarithm), loader())


@pytest.mark.parametrize("scale", [2.0**10, 2.0**100])
def test_a_gradient_that_overflows_under_a_scaler_is_no_error(scale: float) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    net = model()
    before = [p.clone() for p in net.parameters()]

    make_trainer(plugins=[MixedPrecision("16-mixed", "cpu", scaler)]).fit(net, loader())

    moved = [not torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True)]
    assert any(moved) == (scale < 2**50)  # else all steps are left out, and the scale comes down
    assert scaler.get_scale() < scale or scale < 2**50


def test_a_bad_step_under_a_scaler_is_left_out() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    net = model(error_if_nonfinite=False)

    with pytest.warns(UserWarning, match="is left out"):
        make_trainer(plugins=[MixedPrecision("16-mixed", "cpu", scaler)]).fit(net, loader(1))

    assert all(bool(value.isfinite().all()) for value in state(net).values())
    assert scaler.get_scale() == 4.0


def test_a_search_for_the_rate_goes_on_until_lightning_ends_it() -> None:
    net = FinetuneClassifier(network(), num_classes=3)
    options = {"min_lr": 1e-3, "max_lr": 1e30, "num_training": 6, "early_stop_threshold": None}

    found = Tuner(make_trainer()).lr_find(net, loader(), update_attr=False, **options)

    assert found is not None
    assert len(found.results["loss"]) >= 5


@pytest.mark.long
def test_two_processes_end_together_where_one_has_such_a_loss(tmp_path: Path) -> None:
    from tests.distributed.nonfinite_run import main

    run_ranks(main, tmp_path, folder=tmp_path)

    said = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    assert "another process is not finite at batch 1 of epoch 0" in said[0]
    assert "The loss is nan at batch 1 of epoch 0" in said[1]


class OwnBackward(FinetuneClassifier):
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward()


class Manual(FinetuneClassifier):
    """Steps an optimizer after two batches."""

    is_raw, every = False, 2

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        loss.backward()
        optimizer: Any = self.optimizers(use_pl_optimizer=not self.is_raw)
        if (batch_idx + 1) % self.every == 0:
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()


class ManualAtOnce(Manual):
    every = 1


class Raw(ManualAtOnce):
    is_raw = True


KINDS = [OwnBackward, Manual, ManualAtOnce]


@pytest.mark.parametrize("kind", [*KINDS, Raw])
@pytest.mark.parametrize("bad", [2, 3])
def test_it_stops_also_if_the_subclass_runs_the_backward_pass(kind: Any, bad: int) -> None:
    stopped, before = model(kind=kind), model(kind=kind)
    advice = "may have made" if kind is Raw or (kind, bad) == (Manual, 2) else "was not made"

    with pytest.raises(ValueError, match=rf"batch {bad} of epoch 0 .*The pictures.*{advice}"):
        make_trainer().fit(stopped, loader(bad))

    make_trainer(limit_train_batches=bad).fit(before, loader())
    if kind is not Raw:
        for one, other in zip(stopped.parameters(), before.parameters(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("kind", [OwnBackward, ManualAtOnce])
def test_such_steps_are_left_out_also_if_the_subclass_runs_the_backward_pass(kind: Any) -> None:
    went_on, without = model(kind=kind, error_if_nonfinite=False), model(kind=kind)

    with pytest.warns(UserWarning, match="batch 2 of epoch 0 .* is left out"):
        make_trainer().fit(went_on, loader(2))

    make_trainer().fit(without, loader(without=2))
    assert same(went_on, without)


@pytest.mark.parametrize("kind", [OwnBackward, Raw])
def test_no_batch_is_kept_after_it(kind: Any) -> None:
    class References(Callback):
        def __init__(self) -> None:
            self.images: list[Any] = []
            self.count = 0

        def on_train_batch_start(self, *_: Any) -> None:
            alive = [ref for ref in self.images if ref() is not None]
            self.count = max(self.count, len(alive))

        def on_train_batch_end(
            self, trainer: Any, module: Any, outputs: Any, batch: Any, i: int
        ) -> None:
            self.images.append(weakref.ref(batch[0]))

    watch = References()
    make_trainer(watch).fit(model(kind=kind), loader())
    assert watch.count <= 1
