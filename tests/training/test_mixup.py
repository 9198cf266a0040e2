import pytest
import torch
from torch import Tensor

from lit_finetune.training.mixup import make_mixing


def batch(classes: int = 4) -> tuple[Tensor, Tensor]:
    labels = torch.arange(8) % classes
    return labels.float()[:, None, None, None].expand(8, 3, 16, 16).clone(), labels


@pytest.mark.parametrize("alphas", [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)])
def test_labels_become_probabilities_in_the_proportion_of_the_pictures(
    alphas: tuple[float, float],
) -> None:
    mixing = make_mixing(4, mixup_alpha=alphas[0], cutmix_alpha=alphas[1])
    assert mixing is not None
    for _ in range(10):
        images, labels = batch()
        mixed, target = mixing(images, labels)
        assert mixed.shape == images.shape
        assert target.shape == (8, 4)
        assert torch.allclose(target.sum(dim=1), torch.ones(8))
        # A picture is filled with its label: its mean is the expected label.
        expected = target @ torch.arange(4.0)
        assert torch.allclose(mixed.mean(dim=(1, 2, 3)), expected, atol=1e-4)


def test_with_both_each_has_its_turn() -> None:
    mixing = make_mixing(4, mixup_alpha=1.0, cutmix_alpha=1.0)
    assert mixing is not None
    batches = [mixing(*batch())[0] for _ in range(30)]
    whole = [torch.equal(images, images.round()) for images in batches]
    assert 0 < sum(whole) < 30, "CutMix leaves each pixel as it is, MixUp blends"


def test_without_either_nothing_is_mixed() -> None:
    assert make_mixing(4, mixup_alpha=0.0, cutmix_alpha=0.0) is None
