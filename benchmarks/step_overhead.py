"""What a training step costs under `FinetuneClassifier`, over a bare PyTorch loop.

Both train the same network on the same batches in memory, with the same optimizer. Ours has all
that a run from the command line has: freezing, checkpoints, report, learning rates, a progress bar
and the logger.

    python -m benchmarks.step_overhead
"""

import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.models import resnet18
from typing_extensions import override

from benchmarks.harness import Comparison, cost, in_turn, parser, report
from lit_finetune.callbacks import (
    BestCheckpoint,
    FreezeUnfreezeCallback,
    LastCheckpoint,
    RunReport,
    SparingProgressBar,
)
from lit_finetune.classifier import FinetuneClassifier

Batches = list[tuple[Tensor, Tensor]]


class Stopwatch(Callback):
    """Seconds of the steps of a run, without the first ones."""

    def __init__(self, skip: int) -> None:
        self.skip = skip
        self.began = self.ended = 0.0

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
        if trainer.global_step == self.skip:
            self.began = time.perf_counter()

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        self.ended = time.perf_counter()


def small_network() -> nn.Module:
    """A network that takes about a millisecond a step."""
    layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


class Nothing(LightningModule):
    """A network, and nothing that Lightning does not ask for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), fused=True)


def empty_loop(make: Callable[[], nn.Module], batches: Batches, skip: int) -> float:
    """Seconds of the same steps under a Trainer that does nothing else: what it costs alone."""
    torch.manual_seed(0)
    watch = Stopwatch(skip)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[watch],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Nothing(make()), DataLoader(batches, batch_size=None))  # type: ignore[arg-type]  # a list
    return watch.ended - watch.began


def bare_loop(make: Callable[[], nn.Module], batches: Batches, skip: int) -> float:
    """Seconds of the loop that everybody writes."""
    torch.manual_seed(0)
    network = make().train()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    began = 0.0
    for step, (images, labels) in enumerate(batches):
        if step == skip:
            began = time.perf_counter()
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]  # by torch
        optimizer.step()
    return time.perf_counter() - began


def our_loop(make: Callable[[], nn.Module], batches: Batches, skip: int) -> float:
    """Seconds of the same steps under the Trainer, with the callbacks of a run."""
    torch.manual_seed(0)
    watch = Stopwatch(skip)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Path(folder) / "checkpoints"
        callbacks = [
            FreezeUnfreezeCallback("full"),
            LearningRateMonitor(),
            BestCheckpoint(dirpath=checkpoints, monitor="val/acc", mode="max"),
            LastCheckpoint(dirpath=checkpoints),
            RunReport(),
            SparingProgressBar(),
            watch,
        ]
        trainer = Trainer(
            max_epochs=1, accelerator="cpu", logger=CSVLogger(folder), callbacks=callbacks
        )
        model = FinetuneClassifier(make(), num_classes=10, lr_scheduler="constant")
        trainer.fit(model, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]  # a list
    return watch.ended - watch.began


def random_batches(count: int, size: int, pixels: int) -> Batches:
    """Batches of noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, 3, pixels, pixels, generator=generator)
    labels = torch.randint(10, (size,), generator=generator)
    return [(images, labels)] * count


def compare(
    name: str, make: Callable[[], nn.Module], batches: Batches, *, times: int, goal: str
) -> list[Comparison]:
    """The cost of our steps over those of others, in milliseconds a step."""
    skip = len(batches) // 5
    steps = len(batches) - skip
    ways = {
        "ours": lambda: 1000 * our_loop(make, batches, skip) / steps,
        "bare loop": lambda: 1000 * bare_loop(make, batches, skip) / steps,
        "empty Trainer": lambda: 1000 * empty_loop(make, batches, skip) / steps,
    }
    print(f"{name}: {steps} steps", flush=True)
    figures = in_turn(ways, times=times)
    goals = {"bare loop": goal, "empty Trainer": "<= 1.15"}
    what = f"step of {name}, ms"
    return [cost(what, figures, "ours", peer, wanted) for peer, wanted in goals.items()]


def main() -> None:
    """Run the comparisons."""
    arguments = parser(__doc__, times=5).parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    times = arguments.times
    tiny = random_batches(500, 32, 32)
    large = random_batches(8, 8, 224)
    resnet = partial(resnet18, num_classes=10)
    rows = [
        *compare("a network of 1 ms", small_network, tiny, times=times, goal="<= 1.3"),
        *compare("ResNet-18 at 224 px, batches of 8", resnet, large, times=times, goal="<= 1.03"),
    ]
    report(rows, arguments.out)


if __name__ == "__main__":
    main()
