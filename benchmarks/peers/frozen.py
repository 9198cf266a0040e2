"""Is frozen frozen? What should stand still, watched during a training."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Optimizer

from benchmarks.peers.systems import Request, System
from benchmarks.peers.training import Stage, TinyNet, make_model, moved, train

UNFREEZE_AT = 2


def all_that_require_grad(model: TinyNet) -> Optimizer:
    """What Lightning's hint for its finetuning callbacks has; with a weight decay to be seen."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return AdamW(parameters, lr=0.01, weight_decay=0.1)


class Watch:
    """Compares what a frozen block does while the head trains with what it does in evaluation."""

    def __init__(self, model: TinyNet) -> None:
        self.model = model
        self.largest_difference = 0.0
        self.dropped = 0
        for stage in model.backbone:
            assert isinstance(stage, Stage)
            stage.norm.register_forward_hook(self.see_norm)
            stage.drop.register_forward_hook(self.see_dropout)

    def see_norm(self, norm: nn.BatchNorm2d, inputs: tuple[Tensor], output: Tensor) -> None:
        """How far the output is from that of the running statistics."""
        if self.model.current_epoch < UNFREEZE_AT:
            statistics = norm.running_mean, norm.running_var
            wanted = functional.batch_norm(
                inputs[0], *statistics, norm.weight, norm.bias, training=False, eps=norm.eps
            )
            difference = (output - wanted).abs().max().item()
            self.largest_difference = max(self.largest_difference, difference)

    def see_dropout(self, drop: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        """Whether anything was dropped."""
        if self.model.current_epoch < UNFREEZE_AT:
            self.dropped += not torch.equal(inputs[0], output)


def frozen(system: System, folder: Path) -> Iterator[float]:
    """Two epochs with a frozen backbone, under weight decay, each with a validation."""
    request = Request({UNFREEZE_AT: ("backbone.layer2", "backbone.layer1")}, max_epochs=3)
    model = make_model(system, request, make_optimizer=all_that_require_grad)
    watch = Watch(model)
    run = train(system, request, folder, model=model)
    before, after = run.seen.weights[-1], run.seen.weights[UNFREEZE_AT - 1]
    yield largest(before, after, [name for name in before if "running" in name])
    yield watch.largest_difference
    yield float(watch.dropped)
    yield largest(before, after, [n for n in moved(before, after, model) if "backbone" in n])


def largest(before: dict[str, Any], after: dict[str, Any], names: list[str]) -> float:
    """The largest difference in some of the values; 0 where there are none."""
    return max(((before[n] - after[n]).abs().max().item() for n in names), default=0.0)
