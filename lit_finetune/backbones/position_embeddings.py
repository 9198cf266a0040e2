"""Position embeddings of vision transformers, for pictures of another size."""

import math
import re

import torch
from torch import Tensor, nn
from torch.nn import functional

_ABSOLUTE = re.compile(r"(^|[._])pos(ition(al)?)?_?embed(ding)?s?(\.weight)?$")
_TABLE = re.compile(r"(relative_position_bias_table|rel_pos_bias\.table)$")
_AXIS = re.compile(r"rel_pos_[hw]$")
_OTHER = re.compile(r"attention_bias(es)?$")
_MOST_PREFIX_TOKENS = 5
"""A class token and four registers; more would find squares by chance."""
_EXTRA_BIASES = (0, 3)
"""Entries of a table for the class token, as BEiT has them, behind those for the patches."""


def is_positional(name: str) -> bool:
    """Whether a parameter's size depends on the size of the pictures, by its name.

    >>> [is_positional(name) for name in ("pos_embed", "encoder.pos_embedding", "fc.weight")]
    [True, True, False]
    """
    return any(kind.search(name) for kind in (_ABSOLUTE, _TABLE, _AXIS, _OTHER))


def resample_positions(name: str, positions: Tensor, shape: torch.Size) -> Tensor | None:
    """What a parameter that speaks of positions becomes in another shape; None if that is unclear.

    Embeddings of a grid are resampled as timm does it, bicubic with antialiasing, and the tokens
    in front of the grid (class, registers) are kept; tables of relative positions bicubic without.
    Grids are taken to be square.
    """
    if positions.ndim != len(shape):
        return None
    exact = positions.float()
    if _ABSOLUTE.search(name):
        new = _grid(exact, shape) if positions.ndim == 4 else _tokens(exact, shape)
    elif _TABLE.search(name) and positions.ndim == 2:
        new = _table(exact, shape)
    elif _AXIS.search(name) and positions.ndim == 2:
        new = functional.interpolate(exact.T[None], size=shape[0], mode="linear")[0].T
    else:
        return None
    return new.to(positions.dtype) if new is not None and new.shape == shape else None


def num_prefix_tokens(old: int, new: int) -> int | None:
    """How many tokens stand in front of two square grids, which two lengths have in common.

    >>> num_prefix_tokens(197, 577), num_prefix_tokens(196, 576), num_prefix_tokens(197, 576)
    (1, 0, None)
    """
    least = min(old, new, _MOST_PREFIX_TOKENS + 1)
    return next((n for n in range(least) if _side(old - n) and _side(new - n)), None)


def set_image_size(network: nn.Module, image_size: int) -> None:
    """Make torchvision's `VisionTransformer` take pictures of another size; leave others alone."""
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


def _tokens(positions: Tensor, shape: torch.Size) -> Tensor | None:
    """Of (1, length, width) or (length, width)."""
    flat = positions.view(-1, positions.shape[-1])
    prefix = num_prefix_tokens(len(flat), shape[-2])
    if prefix is None:
        return None
    old, new = _side(len(flat) - prefix), _side(shape[-2] - prefix)
    grid = flat[prefix:].reshape(1, old, old, -1)
    moved = _resize(grid.permute(0, 3, 1, 2), (new, new)).permute(0, 2, 3, 1)
    tokens = torch.cat([flat[:prefix], moved.reshape(new * new, -1)])
    return tokens.view(*positions.shape[:-2], *tokens.shape)


def _grid(positions: Tensor, shape: torch.Size) -> Tensor | None:
    """Of (1, height, width, channels) or (1, channels, height, width)."""
    if positions.shape[1] == shape[1]:
        return _resize(positions, (shape[2], shape[3]))
    moved = _resize(positions.permute(0, 3, 1, 2), (shape[1], shape[2]))
    return moved.permute(0, 2, 3, 1)


def _table(biases: Tensor, shape: torch.Size) -> Tensor | None:
    """Of (offsets, heads): those from -n to n in both directions, and some more behind."""
    for extra in _EXTRA_BIASES:
        old, new = _side(len(biases) - extra), _side(shape[0] - extra)
        if old % 2 and new % 2:
            grid = biases[: old * old].T.reshape(1, -1, old, old)
            moved = functional.interpolate(grid, size=(new, new), mode="bicubic")
            return torch.cat([moved.view(-1, new * new).T, biases[old * old :]])
    return None


def _resize(grid: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(grid, size=size, mode="bicubic", antialias=True)


def _side(area: int) -> int:
    """The side of a square; 0 if it is none."""
    side = math.isqrt(max(0, area))
    return side if side * side == area else 0
