"""A classifier of one's own: loss, metrics, head and optimizer, one small method each.

    python -m examples.subclass
    python -m examples.subclass fit --config configs/quickstart.yaml --model.gamma 1

With arguments it is the command line for this classifier, where `gamma` is an option like all
others. Without, it fits a small network to a few drawings: seconds.
"""

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAUROC
from typing_extensions import override

from examples.demo_data import draw_shapes
from lit_finetune import FinetuneClassifier, cli


class FocalClassifier(FinetuneClassifier):
    """It looks most at what it gets wrong (focal loss, arXiv 1708.02002).

    Args:
        gamma: How little is made of pictures that are told apart well; 0 is cross-entropy.
        **kwargs: Those of `FinetuneClassifier`.
    """

    def __init__(self, backbone: str | nn.Module, *, gamma: float = 2.0, **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)
        self.save_hyperparameters("gamma")

    @override
    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, target, reduction="none")
        return ((1 - torch.exp(-loss)) ** self.hparams["gamma"] * loss).mean()

    @override
    def metrics(self, num_classes: int, prefix: str) -> MetricCollection:
        metrics = super().metrics(num_classes, prefix)
        metrics.add_metrics({"auroc": MulticlassAUROC(num_classes, thresholds=200)})
        return metrics

    @override
    def make_head(self, in_features: int, num_classes: int) -> nn.Module:
        return nn.Sequential(nn.LayerNorm(in_features), nn.Linear(in_features, num_classes))

    @override
    def make_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        return SGD(groups, momentum=0.9, nesterov=True)


def main(args: list[str] | None = None) -> None:
    """Run the command line for this classifier, with the words of the process if none are given."""
    cli.main(FocalClassifier, args)


def small_run() -> list[str]:
    """The arguments of a run that takes seconds."""
    return [
        "fit",
        "--model.backbone=examples.digits_net.DigitsNet",
        "--data=lit_finetune.datamodules.ImageFolderDataModule",
        f"--data.data_dir={draw_shapes(num_classes=3)}",
        "--data.image_size=32",
        "--data.num_workers=0",
        "--trainer.max_epochs=3",
    ]


if __name__ == "__main__":
    main(None if sys.argv[1:] else small_run())
