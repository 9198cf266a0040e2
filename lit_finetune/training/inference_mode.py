"""Replace tensors that an evaluation made in inference mode, which training cannot use."""

from torch import nn
from torchmetrics import Metric


def clone_inference_tensors(module: nn.Module) -> None:
    """Replace the metric states and buffers that were made in inference mode by normal tensors.

    `validate`, `test` and `predict` run in inference mode: tensors that metrics or the network
    create there cannot be changed in place or used by autograd in a later `fit`.

    Args:
        module: It is changed in place; the values stay.
    """
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_inference():
                part._buffers[name] = buffer.clone()
        if isinstance(part, Metric):
            _clone_states(part)


def _clone_states(metric: Metric) -> None:
    for name in metric._defaults:
        state = getattr(metric, name)
        if isinstance(state, list):
            setattr(metric, name, [each.clone() if each.is_inference() else each for each in state])
        elif state.is_inference():
            setattr(metric, name, state.clone())
    for name, default in metric._defaults.items():
        if not isinstance(default, list) and default.is_inference():
            metric._defaults[name] = default.clone()
