"""What two processes send each other in each phase, and how long a step takes there.

ResNet-18 on noise, three phases: the head, with `layer4`, all. Ours wraps the network anew at each
phase; the peer wraps it once with everything in it and `find_unused_parameters`, as one must who
freezes by hand and wants the replicas to stay equal.

    python -m benchmarks.ddp_phases
"""

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.models import resnet18
from typing_extensions import override

from benchmarks.harness import Comparison, in_turn, parser, quicker, report
from lit_finetune.callbacks import FreezeUnfreezeCallback

WAYS = ("ours", "wrapped once")
PHASES = ("head", "head and layer4", "all")
STEPS = 6


class Net(LightningModule):
    """A ResNet-18 that learns noise."""

    def __init__(self) -> None:
        super().__init__()
        self.net = resnet18(num_classes=10)

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch), torch.zeros(len(batch), dtype=torch.long))

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class ByHand(Callback):
    """Freezes once all is wrapped, and unfreezes by hand."""

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        starts = (("net.fc",), ("net.fc", "net.layer4"), ("",))[trainer.current_epoch]
        for name, parameter in pl_module.named_parameters():
            parameter.requires_grad_(name.startswith(starts))
            parameter.grad = None


class Record(Callback):
    """Milliseconds a step, the first left out, and mebibytes of gradients a step, by epoch."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.phases: list[tuple[float, float]] = []

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
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
        self.steps.append(1000 * (time.perf_counter() - self.began))

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        wrapper = trainer.strategy.model
        assert isinstance(wrapper, torch.nn.parallel.DistributedDataParallel)
        noted = wrapper._get_ddp_logging_data()  # type: ignore[no-untyped-call]  # by torch
        sizes = noted.get("bucket_sizes", "").split(",")
        sent = sum(int(size) for size in sizes if size.strip()) / 2**20
        self.phases.append((statistics.median(self.steps[1:]), sent))
        self.steps = []


def train(way: str, out: Path) -> None:
    """Train in two processes; the first writes down what each phase took."""
    torch.manual_seed(0)
    record = Record()
    schedule = {0: "head", 1: "net.layer4", 2: "all"}
    by = FreezeUnfreezeCallback(schedule) if way == "ours" else ByHand()
    trainer = Trainer(
        max_epochs=len(PHASES),
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(find_unused_parameters=way != "ours"),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[by, record],
    )
    batches = torch.randn(16, 3, 64, 64).expand(STEPS, -1, -1, -1, -1)
    trainer.fit(Net(), DataLoader(batches, batch_size=None))  # type: ignore[arg-type]  # a tensor
    if trainer.is_global_zero:
        out.write_text(json.dumps(record.phases), encoding="utf-8")


def run(way: str, kept: dict[str, list[tuple[float, float]]]) -> float:
    """Milliseconds of the head's steps; all that was recorded is kept."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "phases.json"
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.ddp_phases"]
        subprocess.run([*command, "--way", way, "--phases", str(out)], check=True)
        kept.setdefault(way, []).extend(map(tuple, json.loads(out.read_text(encoding="utf-8"))))
    return kept[way][-len(PHASES)][0]


def comparisons(kept: dict[str, list[tuple[float, float]]]) -> list[Comparison]:
    """Time and bytes of each phase; what the warming up gave is left out."""
    rows = []
    for phase, name in enumerate(PHASES):
        of = {way: records[len(PHASES) :][phase :: len(PHASES)] for way, records in kept.items()}
        times = {way: [step for step, _ in records] for way, records in of.items()}
        sent = {way: [max(size, 1e-6) for _, size in records] for way, records in of.items()}
        rows.append(quicker(f"DDP step, {name}, ms", times, *WAYS, ">= 1"))
        rows.append(quicker(f"DDP gradients, {name}, MiB a step", sent, *WAYS, ">= 1"))
    return rows


def main() -> None:
    """Run the comparison, or one way of it."""
    arguments = parser(__doc__, times=3)
    arguments.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments.add_argument("--phases", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if given.way:
        train(given.way, given.phases)
        return
    kept: dict[str, list[tuple[float, float]]] = {}
    print("ResNet-18, two processes, milliseconds of a head-only step:", flush=True)
    in_turn({way: partial(run, way, kept) for way in WAYS}, times=given.times)
    report(comparisons(kept), given.out)


if __name__ == "__main__":
    main()
