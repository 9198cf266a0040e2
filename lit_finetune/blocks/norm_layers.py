"""Normalisation layers and their parameters."""

import re

from torch import nn

from lit_finetune.modules.fsdp1 import modules_by_name

NORM_LAYERS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
"""Batch, instance, layer, group and RMS normalisation."""

# Libraries define norm classes of their own: timm's `RmsNorm`, ConvNeXt's `GlobalResponseNorm`.
_CUSTOM_NORM_NAME = re.compile(r"(Batch|Instance|Layer|Group|RMS|Rms|Response)_?Norm")


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer: one of torch's, or one by the name of its class.

    >>> is_norm(nn.BatchNorm2d(4)), is_norm(nn.Linear(4, 4))
    (True, False)
    """
    if isinstance(module, NORM_LAYERS):
        return True
    parameters = [parameter for parameter in module._parameters.values() if parameter is not None]
    if not parameters:
        return False
    name = type(module).__name__
    is_flat = all(parameter.numel() == max(parameter.shape, default=1) for parameter in parameters)
    has_norm_name = _CUSTOM_NORM_NAME.search(name) or (is_flat and re.search(r"[Nn]orm|GRN$", name))
    return bool(has_norm_name) and len(parameters) == len(list(module.parameters()))


def norm_parameters(model: nn.Module) -> frozenset[str]:
    """The names of the parameters that belong to normalisation layers."""
    return frozenset(
        f"{module_name}.{name}" if module_name else name
        for module_name, module in modules_by_name(model)
        if is_norm(module)
        for name, _ in module.named_parameters(recurse=False)
    )
