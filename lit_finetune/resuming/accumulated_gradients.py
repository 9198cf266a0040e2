"""Save the gradients of an unfinished accumulated step in a checkpoint, and restore them.

Lightning leaves them out: a resumed run would make that step from its other batches only.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_finetune.distributed.wrapping import shards_parameters
from lit_finetune.resuming.position import ResumePoint


def num_accumulated(point: ResumePoint, accumulate: int) -> int:
    """The number of batches accumulated for the next step.

    >>> num_accumulated(ResumePoint(epoch=0, batches=5), 3)
    2
    >>> num_accumulated(ResumePoint(epoch=0, batches=5, is_last_batch=True), 3)
    0

    Args:
        point: The position of the checkpoint.
        accumulate: The batches of a step; the last step of an epoch may have fewer.
    """
    return 0 if point.is_last_batch else point.batches % accumulate


def accumulated_gradients(trainer: Any, point: ResumePoint) -> dict[str, Tensor] | None:
    """The accumulated gradients by parameter name; None if there are none, or they are sharded.

    With several processes it is their mean, so that the step is the same except for rounding.

    Args:
        trainer: It saves a checkpoint, in all processes.
        point: The position of the checkpoint.
    """
    module = trainer.lightning_module
    if not num_accumulated(point, trainer.accumulate_grad_batches) or shards_parameters(
        trainer.strategy
    ):
        return None
    if not module.automatic_optimization:
        return None
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trained:
        return {}
    has_gradient = [float(p.grad is not None) for p in trained.values()]
    shares = trainer.strategy.reduce(
        torch.tensor(has_gradient, device=module.device), reduce_op="mean"
    )
    return {
        name: trainer.strategy.reduce(_gradient(p).clone(), reduce_op="mean")
        for (name, p), share in zip(trained.items(), shares.tolist(), strict=True)
        if share
    }


def restore_gradients(trainer: Any, point: ResumePoint, gradients: object) -> None:
    """Restore the gradients of an unfinished step, or warn that they are lost.

    Args:
        trainer: It resumes, and has accumulated nothing yet.
        point: The position of the checkpoint.
        gradients: The gradients in the checkpoint; None if it has none.

    Raises:
        ValueError: They are not those of this module's parameters.
    """
    num_batches = num_accumulated(point, trainer.accumulate_grad_batches)
    if not num_batches or not trainer.lightning_module.automatic_optimization:
        return
    if gradients is None:
        warnings.warn(
            f"The run resumes within an accumulated step, after {num_batches} of its"
            f" {trainer.accumulate_grad_batches} batches, but the checkpoint does not hold their"
            " gradients: this step is made from its other batches only. Resume from a checkpoint of"
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
            " changed. Start a new run from its weights alone, passed as `weights`."
        )
    for name, gradient in gradients.items():
        if parameters[name].requires_grad:
            parameters[name].grad = gradient.to(parameters[name], copy=True)


def _gradient(parameter: Tensor) -> Tensor:
    gradient = parameter.grad
    return torch.zeros_like(parameter) if gradient is None else gradient.detach()


def _fits(gradient: Tensor, parameter: Tensor) -> bool:
    return gradient.shape == parameter.shape and gradient.dtype == parameter.dtype
