"""What is logged of training is right, and costs the step no wait for the device."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lit_finetune import FinetuneClassifier


def batches(count: int) -> DataLoader[Any]:
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.arange(count) % 3), batch_size=4)


def fit(*callbacks: Callback, **options: Any) -> Trainer:
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )
    model = FinetuneClassifier("timm/test_resnet", num_classes=3, lr_scheduler="constant")
    trainer.fit(model, batches(18))
    return trainer


class Outputs(Callback):
    """Keeps the logits and labels of each training batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def keep(module: Any, args: Any, logits: torch.Tensor) -> None:
            self.seen.append((logits.detach(), self.labels))

        pl_module.backbone.register_forward_hook(keep)  # type: ignore[union-attr]

    @override
    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        self.labels = batch[1]


def test_the_epochs_loss_and_accuracy_count_each_picture_once() -> None:
    outputs = Outputs()
    logged = fit(outputs).callback_metrics

    logits, labels = map(torch.cat, zip(*outputs.seen, strict=True))
    assert len(labels) == 18  # the last batch holds two
    torch.testing.assert_close(logged["train/loss"], F.cross_entropy(logits, labels))
    torch.testing.assert_close(logged["train/acc"], (logits.argmax(1) == labels).float().mean())


class Reads(TorchDispatchMode):
    """Counts how often a value is read from a tensor, for which a GPU would have to be awaited."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class CountReads(Callback):
    """The reads of each step, from the batch's start to its end."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    @override
    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        self.mode = Reads()
        self.mode.__enter__()

    @override
    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.mode.__exit__(None, None, None)
        self.counts.append(self.mode.count)


def test_reading_a_value_is_counted() -> None:
    with Reads() as reads:
        torch.ones(1).item()

    assert reads.count == 1


@pytest.mark.parametrize("option", [{}, {"gradient_clip_val": 1.0}])
def test_no_step_waits_for_the_device(option: dict[str, Any]) -> None:
    reads = CountReads()
    fit(reads, **option)

    assert reads.counts == [0] * 5
