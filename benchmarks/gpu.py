"""Pictures per second on a GPU, beside the bare loop.

ResNet-50 and ViT-B/16 in bf16, all of the network and the head alone, on batches that lie on the
GPU; the share of the card's peak counts the floating-point operations of the layers. It needs a GPU
and says so where there is none.

    python -m benchmarks.gpu
"""

import logging
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50, vit_b_16
from typing_extensions import override

from benchmarks.harness import Comparison, cost, in_turn, parser, report
from benchmarks.step_overhead import Stopwatch
from lit_finetune.callbacks import FreezeUnfreezeCallback
from lit_finetune.classifier import FinetuneClassifier

PEAK_BF16 = {"NVIDIA H200": 989e12, "NVIDIA H100": 989e12, "NVIDIA A100": 312e12}
"""Dense floating-point operations a second, from the data sheets, by how the card's name begins."""
STEPS, SKIP, BATCH = 60, 20, 256


class Same(Dataset[tuple[Tensor, Tensor]]):
    """One batch, again and again, that lies on the GPU."""

    def __init__(self, images: Tensor, labels: Tensor, steps: int) -> None:
        self.batch = images, labels
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    @override
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.batch


def noise(size: int, pixels: int) -> tuple[Tensor, Tensor]:
    """A batch of noise on the GPU."""
    images = torch.randn(size, 3, pixels, pixels, device="cuda")
    return images, torch.randint(10, (size,), device="cuda")


def bare(make: Callable[[], nn.Module], batch: tuple[Tensor, Tensor], head: str | None) -> float:
    """Seconds a step of the loop that everybody writes."""
    network = make().cuda().to(memory_format=torch.channels_last).train()
    if head is not None:
        network.eval().requires_grad_(False).get_submodule(head).requires_grad_(True)
    optimizer = torch.optim.AdamW(
        (parameter for parameter in network.parameters() if parameter.requires_grad), fused=True
    )
    images, labels = batch[0].contiguous(memory_format=torch.channels_last), batch[1]
    began = 0.0
    for step in range(STEPS):
        if step == SKIP:
            torch.cuda.synchronize()
            began = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]  # by torch
        optimizer.step()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / (STEPS - SKIP)


class GpuStopwatch(Stopwatch):
    """The stopwatch that waits for the GPU at its start and at its end."""

    @override
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):  # type: ignore[no-untyped-def]
        if trainer.global_step == self.skip:
            torch.cuda.synchronize()
            self.began = time.perf_counter()

    @override
    def on_train_epoch_end(self, trainer, pl_module):  # type: ignore[no-untyped-def]
        torch.cuda.synchronize()
        self.ended = time.perf_counter()

    @override
    def on_train_batch_end(self, *_):  # type: ignore[no-untyped-def]
        pass


def ours(make: Callable[[], nn.Module], batch: tuple[Tensor, Tensor], schedule: str) -> float:
    """Seconds a step of ours."""
    watch = GpuStopwatch(SKIP)
    trainer = Trainer(
        max_epochs=1,
        accelerator="gpu",
        devices=1,
        precision="bf16-mixed",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[FreezeUnfreezeCallback(schedule), watch],
    )
    model = FinetuneClassifier(make(), num_classes=10, lr_scheduler="constant", channels_last=True)
    trainer.fit(model, DataLoader(Same(*batch, STEPS), batch_size=None))
    return (watch.ended - watch.began) / (STEPS - SKIP)


def operations(make: Callable[[], nn.Module], batch: tuple[Tensor, Tensor]) -> int:
    """Floating-point operations of a training step of the whole network."""
    network = make().cuda()
    with FlopCounterMode(display=False) as counter:
        network(batch[0][:2]).sum().backward()
    return int(counter.get_total_flops() * len(batch[0]) / 2)


def compare(name: str, make: Callable[[], nn.Module], head: str, times: int) -> list[Comparison]:
    """All of the network and its head alone."""
    batch, rows = noise(BATCH, 224), []
    for schedule, trained in (("full", None), ("head_only", head)):
        ways = {
            "ours": partial(ours, make, batch, schedule),
            "bare loop": partial(bare, make, batch, trained),
        }
        print(f"{name}, {schedule}, seconds a step:", flush=True)
        figures = in_turn(ways, times=times)
        what = f"{name} in bf16, {schedule}, s a step of {BATCH}"
        rows.append(cost(what, figures, "ours", "bare loop", "<= 1.03"))
        print(f"  {BATCH / rows[-1].ours:.0f} pictures a second", flush=True)
    peaks = [
        top for card, top in PEAK_BF16.items() if torch.cuda.get_device_name().startswith(card)
    ]
    if peaks:
        share = operations(make, batch) / rows[0].ours / peaks[0]
        print(f"  share of the card's peak, full: {share:.1%}", flush=True)
    return rows


def main() -> None:
    """Run the comparisons, where there is a GPU."""
    arguments = parser(__doc__, times=3).parse_args()
    if not torch.cuda.is_available():
        print("There is no GPU here: nothing is measured.")
        return
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_float32_matmul_precision("high")
    networks = {
        "ResNet-50": (partial(resnet50, num_classes=10), "fc"),
        "ViT-B/16": (partial(vit_b_16, num_classes=10), "heads.head"),
    }
    for name, (make, head) in networks.items():
        report(compare(name, make, head, arguments.times), arguments.out)


if __name__ == "__main__":
    main()
