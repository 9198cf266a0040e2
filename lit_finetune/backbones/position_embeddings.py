"""Resample the position embeddings of vision transformers for another image size."""

import math
import re

import torch
from torch import Tensor, nn
from torch.nn import functional

_ABSOLUTE = re.compile(r"(^|[._])pos(ition(al)?)?_?embed(ding)?s?(\.weight)?$")
_TABLE = re.compile(r"(relative_position_bias_table|rel_pos_bias\.table)$")
_AXIS = re.compile(r"rel_pos_[hw]$")
_OTHER = re.compile(r"attention_bias(es)?$")
_MAX_PREFIX_TOKENS = 5
"""A class token and four registers; with more, lengths would be squares by chance."""
_EXTRA_BIASES = (0, 3)
"""The numbers of entries behind those of the patches: BEiT has three for the class token."""


def is_positional(name: str) -> bool:
    """Whether a parameter's size depends on the image size, by its name.

    >>> [is_positional(name) for name in ("pos_embed", "encoder.pos_embedding", "fc.weight")]
    [True, True, False]
    """
    return any(pattern.search(name) for pattern in (_ABSOLUTE, _TABLE, _AXIS, _OTHER))


def resample_positions(name: str, positions: Tensor, shape: torch.Size) -> Tensor | None:
    """Resample a positional parameter to another shape; None if this is not possible.

    Embeddings of a grid are resampled as in timm, bicubic with antialiasing, and the tokens in
    front of the grid (class, registers) are kept. Tables of relative positions are resampled
    bicubic without antialiasing. Grids have to be square.
    """
    if positions.ndim != len(shape):
        return None
    full_precision = positions.float()
    if _ABSOLUTE.search(name):
        new = (
            _resample_grid(full_precision, shape)
            if positions.ndim == 4
            else _resample_tokens(full_precision, shape)
        )
    elif _TABLE.search(name) and positions.ndim == 2:
        new = _resample_table(full_precision, shape)
    elif _AXIS.search(name) and positions.ndim == 2:
        new = functional.interpolate(full_precision.T[None], size=shape[0], mode="linear")[0].T
    else:
        return None
    return new.to(positions.dtype) if new is not None and new.shape == shape else None


def num_prefix_tokens(old: int, new: int) -> int | None:
    """The number of prefix tokens with which both lengths leave a square grid; None if none does.

    >>> num_prefix_tokens(197, 577), num_prefix_tokens(196, 576), num_prefix_tokens(197, 576)
    (1, 0, None)
    """
    limit = min(old, new, _MAX_PREFIX_TOKENS + 1)
    return next((n for n in range(limit) if _square_side(old - n) and _square_side(new - n)), None)


def set_image_size(network: nn.Module, image_size: int) -> None:
    """Adapt torchvision's `VisionTransformer` to another image size; leave other networks alone."""
    encoder, patch = getattr(network, "encoder", None), getattr(network, "patch_size", None)
    positions = getattr(encoder, "pos_embedding", None)
    if not isinstance(positions, nn.Parameter) or not isinstance(patch, int):
        return
    if image_size % patch:
        raise ValueError(
            f"`image_size` is {image_size}, but {type(network).__name__} cuts pictures into patches"
            f" of {patch}: choose a multiple."
        )
    _, old, width = positions.shape
    before = (int(getattr(network, "image_size")) // patch) ** 2  # noqa: B009  # typed as a module
    length = (image_size // patch) ** 2 + old - before
    new = resample_positions("pos_embedding", positions.detach(), torch.Size((1, length, width)))
    assert new is not None, "both grids are square"
    encoder.pos_embedding = nn.Parameter(new, requires_grad=positions.requires_grad)  # type: ignore[union-attr]
    for attribute, value in (("image_size", image_size), ("seq_length", length)):
        setattr(network, attribute, value)


def _resample_tokens(positions: Tensor, shape: torch.Size) -> Tensor | None:
    """Resample embeddings (1, length, width) or (length, width)."""
    flat = positions.view(-1, positions.shape[-1])
    prefix = num_prefix_tokens(len(flat), shape[-2])
    if prefix is None:
        return None
    old, new = _square_side(len(flat) - prefix), _square_side(shape[-2] - prefix)
    grid = flat[prefix:].reshape(1, old, old, -1)
    resampled = _resize(grid.permute(0, 3, 1, 2), (new, new)).permute(0, 2, 3, 1)
    tokens = torch.cat([flat[:prefix], resampled.reshape(new * new, -1)])
    return tokens.view(*positions.shape[:-2], *tokens.shape)


def _resample_grid(positions: Tensor, shape: torch.Size) -> Tensor | None:
    """Resample embeddings (1, height, width, channels) or (1, channels, height, width)."""
    if positions.shape[1] == shape[1]:
        return _resize(positions, (shape[2], shape[3]))
    resampled = _resize(positions.permute(0, 3, 1, 2), (shape[1], shape[2]))
    return resampled.permute(0, 2, 3, 1)


def _resample_table(biases: Tensor, shape: torch.Size) -> Tensor | None:
    """Resample biases (offsets, heads): offsets from -n to n in both directions, and extra ones."""
    for extra in _EXTRA_BIASES:
        old, new = _square_side(len(biases) - extra), _square_side(shape[0] - extra)
        if old % 2 and new % 2:
            grid = biases[: old * old].T.reshape(1, -1, old, old)
            resampled = functional.interpolate(grid, size=(new, new), mode="bicubic")
            return torch.cat([resampled.view(-1, new * new).T, biases[old * old :]])
    return None


def _resize(grid: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(grid, size=size, mode="bicubic", antialias=True)


def _square_side(area: int) -> int:
    """The side of a square of this area; 0 if there is none."""
    side = math.isqrt(max(0, area))
    return side if side * side == area else 0
