"""Advice on the precision of a device."""

import torch


def precision_hint(device: torch.device, precision: str) -> str | None:
    """Advice for training in full precision on hardware with fast bfloat16; None if there is none.

    >>> precision_hint(torch.device("cpu"), "bf16-mixed") is None
    True

    Args:
        device: The device that trains.
        precision: The Trainer's precision.
    """
    if precision != "32-true":
        return None
    if device.type == "cpu" and _has_amx():
        return (
            "This CPU has matrix units for bfloat16 (AMX), which full precision leaves idle: try"
            " Trainer(precision='bf16-mixed')."
        )
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return (
            "This GPU computes in bfloat16 many times as fast as in full precision: try"
            " Trainer(precision='bf16-mixed')."
        )
    return None


def _has_amx() -> bool:
    is_supported = getattr(torch.cpu, "_is_amx_tile_supported", None)  # not in every torch
    return is_supported is not None and bool(is_supported())
