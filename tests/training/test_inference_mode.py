"""An evaluation runs in inference mode, and a training that comes later must not notice."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric, MetricCollection
from typing_extensions import override

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback, FrozenPrefixCache, LinearProbe
from lit_finetune.training.inference_mode import clone_inference_tensors


class CountInPlace(Metric):
    """A metric of a user's own, which counts as torchmetrics' documentation shows it."""

    count: Tensor
    seen: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("seen", [], dist_reduce_fx="cat")

    @override
    def update(self, preds: Tensor, target: Tensor) -> None:
        self.count += len(target)
        self.seen.append(preds.sum())

    @override
    def compute(self) -> Tensor:
        return self.count


class KeepsPositions(nn.Module):
    """A network that makes a table when it first sees a picture, and keeps it as a buffer."""

    positions: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 3)
        self.register_buffer("positions", None, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images).mean((2, 3))
        if self.positions is None:
            self.positions = torch.ones(4)
        return self.fc(features * self.positions)


class Counting(FinetuneClassifier):
    @override
    def metrics(self, num_classes: int, prefix: str) -> MetricCollection:
        return MetricCollection(
            {"acc": super().metrics(num_classes, prefix)["acc"], "count": CountInPlace()},
            prefix=prefix,
        )


def pictures() -> DataLoader[Any]:
    images = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.arange(12) % 3), batch_size=4)


def make_trainer(folder: Path, *callbacks: Callback) -> Trainer:
    return Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
    )


@pytest.mark.parametrize("with_new_trainer", [False, True])
@pytest.mark.parametrize("before", ["validate", "test", "predict", "fit validate", "validate test"])
@pytest.mark.parametrize("kind", [FinetuneClassifier, Counting])
def test_a_fit_after_an_evaluation_ends_in_the_weights_of_a_fit_without(
    kind: type[FinetuneClassifier], before: str, with_new_trainer: bool, tmp_path: Path
) -> None:
    def run(steps: list[str]) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model, trainer = kind(KeepsPositions(), num_classes=3), make_trainer(tmp_path)
        for step in steps:
            torch.manual_seed(1)
            if with_new_trainer:
                trainer = make_trainer(tmp_path)
            if step == "fit":
                trainer.fit_loop.max_epochs = trainer.current_epoch + 1
                trainer.fit(model, pictures(), pictures())
            else:
                getattr(trainer, step)(model, pictures())
        assert trainer.global_step > 0
        return model.state_dict()

    found, expected = run([*before.split(), "fit"]), run(["fit"] * (1 + ("fit" in before)))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: [FreezeUnfreezeCallback({0: "head"}), FrozenPrefixCache()],
        lambda: [FreezeUnfreezeCallback({0: "head"}), LinearProbe()],
    ],
)
def test_a_fit_with_callbacks_of_ours_works_after_an_evaluation(make: Any, tmp_path: Path) -> None:
    model, callbacks = FinetuneClassifier(KeepsPositions(), num_classes=3), make()
    make_trainer(tmp_path, *callbacks).validate(model, pictures())
    trainer = make_trainer(tmp_path, *callbacks)
    trainer.fit(model, pictures(), pictures())
    assert trainer.global_step == 3


def test_what_was_counted_stays(tmp_path: Path) -> None:
    metric = CountInPlace()
    with torch.inference_mode():
        metric.reset()
        metric.update(torch.zeros(4, 2), torch.zeros(4))
    clone_inference_tensors(metric)
    metric.update(torch.zeros(4, 2), torch.zeros(4))
    assert metric.compute() == 8
