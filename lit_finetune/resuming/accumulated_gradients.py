"""The gradients of an accumulated step, kept in a checkpoint that is written amid it.

Lightning leaves them out: a run that goes on would make that step of its other batches alone.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_finetune.distributed.wrapping import shards_parameters
from lit_finetune.resuming.position import ResumePoint


def num_waiting(point: ResumePoint, accumulate: int) -> int:
    """How many batches wait for their step.

    >>> num_waiting(ResumePoint(epoch=0, batches=5), 3)
    2
    >>> num_waiting(ResumePoint(epoch=0, batches=5, is_last_batch=True), 3)
    0

    Args:
        point: What is done.
        accumulate: The batches of a step; that of an epoch's last batch has what is left.
    """
    return 0 if point.is_last_batch else point.batches % accumulate


def waiting_gradients(trainer: Any, point: ResumePoint) -> dict[str, Tensor] | None:
    """By the names of parameters; None where no gradient waits, or none is whole.

    Of several processes it is their mean, so that the step is the same but for rounding.

    Args:
        trainer: It saves a checkpoint, in all processes.
        point: What is done.
    """
    module = trainer.lightning_module
    if not num_waiting(point, trainer.accumulate_grad_batches) or shards_parameters(
        trainer.strategy
    ):
        return None
    if not module.automatic_optimization:
        return None
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trained:
        return {}
    has_one = [float(p.grad is not None) for p in trained.values()]
    shares = trainer.strategy.reduce(torch.tensor(has_one, device=module.device), reduce_op="mean")
    return {
        name: trainer.strategy.reduce(_gradient(p).clone(), reduce_op="mean")
        for (name, p), share in zip(trained.items(), shares.tolist(), strict=True)
        if share
    }


def restore_gradients(trainer: Any, point: ResumePoint, gradients: object) -> None:
    """Let a step that has begun go on with its gradients, or say that they are lost.

    Args:
        trainer: It goes on, and has accumulated nothing yet.
        point: What is done.
        gradients: Those of a checkpoint, if it has any.

    Raises:
        ValueError: They are not those of this module's parameters.
    """
    waiting = num_waiting(point, trainer.accumulate_grad_batches)
    if not waiting or not trainer.lightning_module.automatic_optimization:
        return
    if gradients is None:
        warnings.warn(
            f"The run goes on amid an accumulated step, after {waiting} of its"
            f" {trainer.accumulate_grad_batches} batches, but the checkpoint does not hold their"
            " gradients: this step is made of its other batches alone. Resume from a checkpoint of"
            " a step's end to repeat the run.",
            stacklevel=2,
        )
        return
    parameters = dict(trainer.lightning_module.named_parameters())
    if not isinstance(gradients, Mapping) or not all(
        isinstance(gradient, Tensor) and name in parameters and _fits(gradient, parameters[name])
        for name, gradient in gradients.items()
    ):
        raise ValueError(
            "The gradients in the checkpoint are not those of this network: it is damaged, or was"
            " changed. Start anew from its weights alone, passed as `weights`."
        )
    for name, gradient in gradients.items():
        if parameters[name].requires_grad:
            parameters[name].grad = gradient.to(parameters[name], copy=True)


def _gradient(parameter: Tensor) -> Tensor:
    gradient = parameter.grad
    return torch.zeros_like(parameter) if gradient is None else gradient.detach()


def _fits(gradient: Tensor, parameter: Tensor) -> bool:
    return gradient.shape == parameter.shape and gradient.dtype == parameter.dtype
