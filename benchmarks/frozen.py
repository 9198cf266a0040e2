"""Ten epochs that train the head, or unfreeze block by block: with what is frozen run once, or not.

Photographs of ants and bees, SqueezeNet 1.1 with its published weights and ResNet-18, without
augmentation, the same batches, optimizer and rate for all. Ours keeps what the frozen blocks give
(FrozenPrefixCache), or fits the head in one pass (LinearProbe). The peers are Lightning's
`BackboneFinetuning`, finetuning-scheduler (where it is installed) and the loop of PyTorch's
tutorial. Seconds are of `fit` as a whole, validation after each epoch included; accuracies are
means over the rounds, each of which has a seed of its own.

    LIT_FINETUNE_DATA=… python -m benchmarks.frozen
"""

import logging
import os
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from benchmarks.harness import Comparison, cost, in_turn, parser, quicker, report
from lit_finetune.callbacks import FreezeUnfreezeCallback, FrozenPrefixCache, LinearProbe
from lit_finetune.classifier import FinetuneClassifier
from lit_finetune.datamodules import ImageFolderDataModule

WEIGHTS = {"squeezenet1_1": "squeezenet1_1-imagenet.safetensors", "resnet18": None}
GRADUAL: dict[str, Any] = {
    "the last two blocks after 4 and 8": {0: "head", 4: -2, 8: -3},
    "gradual down to the first block": "gradual",
}
LR = 1e-2
Run = Callable[[], float]


def pictures(root: Path) -> ImageFolderDataModule:
    """The photographs, as the tutorial validates them, for training too."""
    return ImageFolderDataModule(
        root / "hymenoptera", batch_size=32, num_workers=1, train_augmentation="none", cache="none"
    )


def network(root: Path, backbone: str, seed: int, **options: Any) -> FinetuneClassifier:
    """The network of all the ways; a ResNet-18 has no published weights here, and needs none."""
    seed_everything(seed, verbose=False)
    file = WEIGHTS[backbone]
    weights = file and str(root / "weights" / file)
    return FinetuneClassifier(
        backbone, num_classes=2, weights=weights, lr=LR, lr_scheduler="constant", **options
    )


class Benchmark:
    """The ways of one network, which leave behind how good they were.

    Args:
        root: The folder of photographs and weights.
        backbone: Its name.
        epochs: Of each way.
    """

    def __init__(self, root: Path, backbone: str, epochs: int) -> None:
        self.root, self.backbone, self.epochs = root, backbone, epochs
        self.accuracy: defaultdict[str, list[float]] = defaultdict(list)

    def fit(
        self,
        name: str,
        make: Callable[[], list[Callback]],
        epochs: int | None = None,
        **options: Any,
    ) -> float:
        """Seconds of a run of ours with these callbacks."""
        return self._fit(name, self._network(name, **options), make(), epochs)

    def fit_peer(self, name: str, make: Callable[[], list[Callback]]) -> float:
        """Seconds of a peer's run."""
        return self._fit(name, PeerModule(self._network(name).backbone), make(), None)

    def _network(self, name: str, **options: Any) -> FinetuneClassifier:
        """The network of this way's next round."""
        return network(self.root, self.backbone, seed=len(self.accuracy[name]), **options)

    def _fit(
        self, name: str, model: LightningModule, callbacks: list[Callback], epochs: int | None
    ) -> float:
        with tempfile.TemporaryDirectory() as folder:  # finetuning-scheduler writes its schedule
            trainer = Trainer(
                max_epochs=self.epochs if epochs is None else epochs,
                accelerator="cpu",
                callbacks=callbacks,
                default_root_dir=folder,
                logger=False,
                enable_checkpointing=any("Scheduler" in type(it).__name__ for it in callbacks),
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
            )
            began = time.perf_counter()
            trainer.fit(model, pictures(self.root))
            seconds = time.perf_counter() - began
        logged = trainer.callback_metrics
        if "val/acc" in logged:  # a probe alone validates nothing
            self.accuracy[name].append(float(logged["val/acc"]))
        return seconds

    def raw_loop(self, name: str) -> float:
        """Seconds of the loop in PyTorch's transfer-learning tutorial, head only."""
        model, data = self._network(name), pictures(self.root)
        data.setup("fit")
        loaders = {"train": data.train_dataloader(), "val": data.val_dataloader()}
        net, head = model.backbone, model.get_classifier()
        for parameter in net.parameters():
            parameter.requires_grad = False
        for parameter in head.parameters():
            parameter.requires_grad = True
        optimizer = torch.optim.AdamW(head.parameters(), lr=LR)
        began = time.perf_counter()
        for _ in range(self.epochs):
            for part, loader in loaders.items():
                net.train(part == "train")
                right, total = 0, 0
                for images, labels in loader:
                    optimizer.zero_grad()
                    with torch.set_grad_enabled(part == "train"):
                        logits = net(images)
                        loss = F.cross_entropy(logits, labels)
                    if part == "train":
                        loss.backward()  # type: ignore[no-untyped-call]  # by torch
                        optimizer.step()
                    right += int((logits.argmax(1) == labels).sum())
                    total += len(labels)
        self.accuracy[name].append(right / total)
        return time.perf_counter() - began

    def with_accuracy(self, row: Comparison, ours: str, theirs: str) -> Comparison:
        """A row that also says how good both were on the validation pictures, on average."""
        own, other = (statistics.mean(self.accuracy[name]) for name in (ours, theirs))
        return replace(row, remark=f"val/acc {own:.4f}, theirs {other:.4f}")

    def one_pass(self) -> float:
        """Seconds of one pass over all pictures, training and validation, and nothing else."""
        model, data = self._network("one pass").eval(), pictures(self.root)
        data.setup("fit")
        began = time.perf_counter()
        with torch.inference_mode():
            for loader in (data.train_dataloader(), data.val_dataloader()):
                for images, _ in loader:
                    model(images)
        return time.perf_counter() - began


class PeerModule(LightningModule):
    """The same network as the peers' documentation has it: a backbone and a head."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        parts = dict(network.named_children())
        if "features" in parts:
            self.backbone, self.head = parts["features"], parts["classifier"]
        else:
            *body, self.head = parts.values()
            self.backbone = nn.Sequential(*body, nn.Flatten())

    @override
    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(images))
        return logits.mean((2, 3)) if logits.ndim == 4 else logits

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        right = (self(batch[0]).argmax(1) == batch[1]).float()
        self.log("val/acc", right.mean(), batch_size=len(right))

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = (parameter for parameter in self.parameters() if parameter.requires_grad)
        return torch.optim.AdamW(trained, lr=LR)


def lightnings() -> list[Callback]:
    """Lightning's own callback, for the head alone."""
    return [BackboneFinetuning(unfreeze_backbone_at_epoch=10**6)]


def finetuning_scheduler() -> list[Callback]:
    """finetuning-scheduler, told to train the head alone."""
    package = import_module("finetuning_scheduler")
    schedule = {0: {"params": [r"head\..*"], "max_transition_epoch": 10**6}}
    return [
        package.FinetuningScheduler(ft_schedule=schedule, epoch_transitions_only=True),
        package.FTSCheckpoint(monitor="val/acc", mode="max"),  # it asks for one
    ]


def ours(schedule: Any) -> list[Callback]:
    """Our callbacks: what is frozen runs once."""
    return [FreezeUnfreezeCallback(schedule), FrozenPrefixCache()]


def uncached(schedule: Any) -> list[Callback]:
    """The same schedule, with every picture through the whole network in every epoch."""
    return [FreezeUnfreezeCallback(schedule)]


def head_only(benchmark: Benchmark, times: int) -> list[Comparison]:
    """Benchmark 1."""
    cached = partial(ours, "head_only")
    last = "ours, channels last"
    ways: dict[str, Run] = {
        "ours": partial(benchmark.fit, "ours", cached),
        last: partial(benchmark.fit, last, cached, channels_last=True),
        "BackboneFinetuning": partial(benchmark.fit_peer, "BackboneFinetuning", lightnings),
        "raw loop": partial(benchmark.raw_loop, "raw loop"),
        "ours, probe": partial(benchmark.fit, "ours, probe", lambda: [LinearProbe()], epochs=0),
        "one pass": benchmark.one_pass,
    }
    if find_spec("finetuning_scheduler"):
        name = "finetuning-scheduler"
        ways[name] = partial(benchmark.fit_peer, name, finetuning_scheduler)
    print(f"{benchmark.backbone}, {benchmark.epochs} epochs of the head:", flush=True)
    figures = in_turn(ways, times=times, warm_up=False)
    peers = [name for name in ways if name != "one pass" and not name.startswith("ours")]
    what = f"{benchmark.epochs} head-only epochs, {benchmark.backbone}"
    rows = [
        benchmark.with_accuracy(quicker(title, figures, way, name, ">= 8"), way, name)
        for way, title in (("ours", f"{what}, s"), (last, f"{what}, channels last, s"))
        for name in peers
    ]
    probe = f"a probe's head, {benchmark.backbone}, s"
    return [*rows, cost(probe, figures, "ours, probe", "one pass", "<= 1.3")]


def gradual(benchmark: Benchmark, times: int) -> list[Comparison]:
    """Benchmark 2."""
    rows = []
    for name, schedule in GRADUAL.items():
        ways: dict[str, Run] = {
            "ours": partial(benchmark.fit, f"{name}, ours", partial(ours, schedule)),
            "uncached": partial(benchmark.fit, f"{name}, uncached", partial(uncached, schedule)),
        }
        print(f"{benchmark.backbone}, {benchmark.epochs} epochs, {name}:", flush=True)
        figures = in_turn(ways, times=times, warm_up=False)
        what = f"{benchmark.epochs} epochs, {name}, {benchmark.backbone}, s"
        row = quicker(what, figures, "ours", "uncached", ">= 2")
        rows.append(benchmark.with_accuracy(row, f"{name}, ours", f"{name}, uncached"))
    return rows


PARTS = {"head_only": head_only, "gradual": gradual}


def main() -> None:
    """Run the comparisons."""
    arguments = parser(__doc__, times=1)
    arguments.add_argument("--epochs", type=int, default=10)
    arguments.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments.add_argument("--backbones", nargs="+", default=list(WEIGHTS))
    given = arguments.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if "LIT_FINETUNE_DATA" not in os.environ:
        arguments.error("set LIT_FINETUNE_DATA to the folder with `hymenoptera` and `weights`")
    root = Path(os.environ["LIT_FINETUNE_DATA"])
    for backbone in given.backbones:
        benchmark = Benchmark(root, backbone, given.epochs)
        for part in given.parts:
            report(PARTS[part](benchmark, given.times), given.out)


if __name__ == "__main__":
    main()
