"""The most memory that each phase of a fine-tuning takes, beside full fine-tuning and the peers.

Each phase runs for a few steps in a process of its own; what is compared is the peak of its memory
over that of a process that has only built the network and its batch. On a GPU it is what torch has
allocated there.

    python -m benchmarks.memory
"""

import argparse
import json
import logging
import resource
import statistics
import subprocess
import sys
import warnings
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models import resnet50

from benchmarks.harness import Comparison, in_turn, parser, quicker, report
from benchmarks.unfreeze import Classifier
from lit_finetune.callbacks import FreezeUnfreezeCallback

WAYS = ("nothing", "ours, head", "ours, layer4", "ours, all", "BackboneFinetuning", "all")
STEPS, BATCH, PIXELS = 3, 32, 128


class Whole(Classifier):
    """The network is called, too."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Train on noise."""
        return super().training_step(self.backbone(batch), batch_idx)


def callbacks_of(way: str) -> list[Callback]:
    """What decides on what trains."""
    if way.startswith("ours"):
        selector = way.partition(", ")[2]
        names = ["head"] if selector == "head" else ["head", f"backbone.{selector}"]
        return [FreezeUnfreezeCallback({0: "all" if selector == "all" else names})]
    if way == "BackboneFinetuning":
        return [BackboneFinetuning(unfreeze_backbone_at_epoch=10)]
    return []


def run_one(way: str) -> float:
    """Train for a few steps, or do all but that; mebibytes at the peak."""
    torch.manual_seed(0)
    module = Whole(resnet50())
    batches = torch.randn(BATCH, 3, PIXELS, PIXELS).expand(STEPS, -1, -1, -1, -1)
    on_gpu = torch.cuda.is_available()
    if way != "nothing":
        trainer = Trainer(
            max_epochs=1,
            accelerator="gpu" if on_gpu else "cpu",
            devices=1,
            callbacks=callbacks_of(way),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]  # a tensor
    if on_gpu:
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak(way: str) -> float:
    """What a process of its own takes for it."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", "--way", way]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(json.loads(output.splitlines()[-1]))


def main() -> None:
    """Run the comparisons, or one way of them."""
    arguments = parser(__doc__, times=3)
    arguments.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.way:
        warnings.filterwarnings("ignore")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        print(json.dumps(run_one(given.way)))
        return
    ways: dict[str, Any] = {way: partial(peak, way) for way in WAYS}
    print(f"ResNet-50, batches of {BATCH} at {PIXELS} px, MiB:", flush=True)
    figures = in_turn(ways, times=given.times)
    floor = statistics.median(figures["nothing"])
    above = {way: [most - floor for most in figures[way]] for way in WAYS}
    what = "memory of {}, MiB above the idle process"
    rows: list[Comparison] = [
        quicker(what.format("head only"), above, "ours, head", "BackboneFinetuning", ">= 0.9"),
        quicker(what.format("head only"), above, "ours, head", "all", ">= 1"),
        quicker(what.format("head and layer4"), above, "ours, layer4", "all", ">= 1"),
        quicker(what.format("all"), above, "ours, all", "all", ">= 0.9"),
    ]
    report(rows, given.out)


if __name__ == "__main__":
    main()
