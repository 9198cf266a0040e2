"""Position embeddings for pictures of another size: as timm resamples them."""

import pytest
import torch
from torch import Tensor

from lit_finetune.backbones.position_embeddings import resample_positions

CHANNELS = 6


def positions(*shape: int) -> Tensor:
    return torch.randn(*shape)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize(("old", "new"), [(14, 24), (14, 7), (4, 6)])
def test_tokens_are_resampled_as_in_timm(prefix: int, old: int, new: int) -> None:
    timm = pytest.importorskip("timm.layers.pos_embed")
    saved = positions(1, old * old + prefix, CHANNELS)
    found = resample_positions("pos_embed", saved, torch.Size((1, new * new + prefix, CHANNELS)))
    wanted = timm.resample_abs_pos_embed(saved, [new, new], num_prefix_tokens=prefix)
    assert found is not None
    assert found.equal(wanted)
    assert found[:, :prefix].equal(saved[:, :prefix])


def test_a_table_of_embeddings_is_resampled_like_a_parameter() -> None:
    saved = positions(17, CHANNELS)
    found = resample_positions("position_embedding.weight", saved, torch.Size((37, CHANNELS)))
    wanted = resample_positions("position_embeddings", saved[None], torch.Size((1, 37, CHANNELS)))
    assert found is not None
    assert wanted is not None
    assert found.equal(wanted[0])


@pytest.mark.parametrize("channels_first", [True, False])
def test_a_grid_is_resampled_whichever_way_it_lies(channels_first: bool) -> None:
    grid = positions(1, CHANNELS, 4, 4)
    wanted = torch.nn.functional.interpolate(grid, (7, 7), mode="bicubic", antialias=True)
    if channels_first:
        found = resample_positions("pos_embed", grid, wanted.shape)
    else:
        wanted = wanted.permute(0, 2, 3, 1)
        found = resample_positions("pos_embed", grid.permute(0, 2, 3, 1), wanted.shape)
    assert found is not None
    assert found.equal(wanted)


@pytest.mark.parametrize("extra", [0, 3])
def test_a_table_of_relative_biases_is_resampled_as_in_timm(extra: int) -> None:
    timm = pytest.importorskip("timm.layers.pos_embed_rel")
    saved, shape = positions(13 * 13 + extra, 4), torch.Size((23 * 23 + extra, 4))
    found = resample_positions("attn.relative_position_bias_table", saved, shape)
    wanted = timm.resize_rel_pos_bias_table_simple(saved, (12, 12), shape)
    assert found is not None
    assert found.equal(wanted)


def test_offsets_along_an_axis_are_resampled() -> None:
    found = resample_positions(
        "attn.rel_pos_h", torch.linspace(0, 1, 7)[:, None], torch.Size((13, 1))
    )
    assert found is not None
    assert found.shape == (13, 1)
    assert found.flatten().diff().min() >= 0


def test_half_precision_stays_half() -> None:
    found = resample_positions("pos_embed", positions(1, 17, 4).half(), torch.Size((1, 26, 4)))
    assert found is not None
    assert found.dtype == torch.float16


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("pos_embed", (1, 197, 4), (1, 576, 4)),  # a class token too many
        ("pos_embed", (1, 17, 4), (1, 26, 5)),  # another width
        ("pos_embed", (1, 17, 4), (26, 4)),
        ("relative_position_bias_table", (169, 4), (170, 4)),
        ("relative_position_bias_table", (169, 4), (529, 5)),
        ("attention_biases", (4, 49), (4, 64)),
    ],
)
def test_what_is_unclear_is_left_alone(name: str, old: tuple[int], new: tuple[int]) -> None:
    assert resample_positions(name, positions(*old), torch.Size(new)) is None
