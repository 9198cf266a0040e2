"""Augmentation of whole batches, against torchvision's of single pictures."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from datamodules.transforms.batch_augment import RandomAffine, RandomHorizontalFlip, RandomTranslate
from datamodules.transforms.random_crop import RandomResizedCrop
from datamodules.transforms.random_numbers import uniforms

MOVES = [RandomTranslate((2, 3)), RandomHorizontalFlip(), RandomAffine(10, translate=0.1, zoom=0.1)]


def pictures(count: int = 50, size: tuple[int, int] = (12, 20)) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8)


def draws(count: int, numbers: int) -> np.ndarray:
    return uniforms(np.full(count, 5), np.arange(count), numbers)


def test_draws_are_even_and_unlike_each_other():
    found = uniforms(np.full(20_000, 3), np.arange(20_000), 4)

    assert found.min() >= 0
    assert found.max() < 1
    assert np.abs(np.histogram(found, 10)[0] / 8000 - 1).max() < 0.05
    assert np.abs(np.corrcoef(found.T) - np.eye(4)).max() < 0.03
    assert np.unique(found).size == found.size


@pytest.mark.parametrize("other", [(4, 8), (3, 9)])
def test_draws_differ_by_seed_and_by_picture(other):
    seed, picture = other
    one = uniforms(np.array([3]), np.array([8]), 50)

    assert not np.isin(one, uniforms(np.array([seed]), np.array([picture]), 50)).any()


@pytest.mark.parametrize("move", MOVES, ids=repr)
def test_what_happens_to_a_picture_does_not_depend_on_the_others(move):
    batch, numbers = pictures(), draws(50, move.num_draws)
    together = move.augment(batch.clone(), numbers)
    alone = [move.augment(batch[i : i + 1].clone(), numbers[i : i + 1]) for i in range(50)]

    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together, batch)


def test_shifts_are_crops_of_the_padded_picture():
    batch, numbers = pictures(300), draws(300, 2)
    shifted = RandomTranslate((2, 3)).augment(batch.clone(), numbers)
    seen = set()
    for before, after, (down, right) in zip(batch, shifted, numbers, strict=True):
        top, left = int(down * 5), int(right * 7)
        padded = functional.pad(before, [3, 2])
        assert torch.equal(after, functional.crop(padded, top, left, 12, 20))
        seen.add((top, left))
    assert len(seen) == 35


def test_a_shift_by_nothing_changes_nothing():
    batch = pictures(3)
    assert torch.equal(RandomTranslate((0, 0)).augment(batch.clone(), draws(3, 2)), batch)


def test_every_other_picture_is_mirrored():
    batch, numbers = pictures(1000), draws(1000, 1)
    mirrored = RandomHorizontalFlip().augment(batch.clone(), numbers)
    chosen = numbers[:, 0] < 0.5

    assert 400 < chosen.sum() < 600
    assert torch.equal(mirrored[chosen], functional.horizontal_flip(batch[chosen]))
    assert torch.equal(mirrored[~chosen], batch[~chosen])


def test_turns_shifts_and_zooms_are_those_of_torchvision():
    batch, numbers = pictures(40, (16, 24)), draws(40, 4)
    batch = functional.gaussian_blur(batch, [3, 3])
    moved = RandomAffine(10, translate=0.1, zoom=0.1).augment(batch.clone(), numbers)
    for before, after, (turn, right, down, zoom) in zip(batch, moved, numbers * 2 - 1, strict=True):
        expected = functional.affine(
            before,
            angle=turn * 10,
            translate=[round(right * 2.4), round(down * 1.6)],
            scale=1 + zoom * 0.1,
            shear=[0.0],
            interpolation=v2.InterpolationMode.BILINEAR,
        )
        assert (after.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(30, 50), (300, 200)])
def test_a_cut_is_torchvisions_crop_and_resize(interpolation, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    step = RandomResizedCrop((24, 32), interpolation=interpolation)
    for row in draws(10, step.num_draws).tolist():
        box = step.box(*size, row)
        picture = torch.from_numpy(pixels).permute(2, 0, 1)
        mode = v2.InterpolationMode(interpolation)
        expected = functional.resized_crop(picture, *box, [24, 32], mode, antialias=True)
        assert torch.equal(step.crop(pixels, box), expected)


def test_the_nearest_pixels_are_those_that_pillow_takes():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    step = RandomResizedCrop((16, 16), interpolation="nearest")
    box = step.box(50, 70, draws(1, step.num_draws)[0].tolist())
    mode = v2.InterpolationMode.NEAREST
    expected = functional.resized_crop(Image.fromarray(pixels), *box, [16, 16], mode)

    assert torch.equal(step.crop(pixels, box), functional.pil_to_tensor(expected))


def test_cuts_have_the_areas_and_proportions_of_torchvisions():
    step = RandomResizedCrop((24, 24), interpolation="bilinear")
    boxes = [step.box(375, 500, row) for row in draws(4000, step.num_draws).tolist()]
    picture = torch.zeros(3, 375, 500)
    torchvisions = partial(TorchvisionCrop.get_params, picture, [0.08, 1.0], [3 / 4, 4 / 3])
    theirs = [torchvisions() for _ in range(4000)]
    for measure in (lambda b: b[2] * b[3], lambda b: math.log(b[3] / b[2]), lambda b: b[0]):
        ours, reference = (np.array([measure(b) for b in each]) for each in (boxes, theirs))
        spread = reference.std()
        assert abs(ours.mean() - reference.mean()) < 0.1 * spread
        assert abs(ours.std() - spread) < 0.1 * spread
    assert all(b.top + b.height <= 375 and b.left + b.width <= 500 for b in boxes)


@pytest.mark.parametrize(
    ("size", "box"), [((10, 500), (0, 243, 10, 13)), ((500, 10), (243, 0, 13, 10))]
)
def test_of_an_extreme_picture_the_middle_is_cut(size, box):
    step = RandomResizedCrop((24, 24), interpolation="bilinear", scale=(1.0, 1.0))

    assert step.box(*size, draws(1, step.num_draws)[0].tolist()) == box


@pytest.mark.gpu
@pytest.mark.parametrize("move", MOVES, ids=repr)
def test_a_gpu_moves_as_a_processor_does(move):
    batch, numbers = pictures(), draws(50, move.num_draws)
    here = move.augment(batch.clone(), numbers)
    there = move.augment(batch.cuda(), numbers)

    assert there.is_cuda
    most = 1 if isinstance(move, RandomAffine) else 0
    assert (there.cpu().int() - here.int()).abs().max() <= most
