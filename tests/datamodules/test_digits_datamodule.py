import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lit_finetune.datamodules import DigitsDataModule


def test_the_pictures_are_scikit_learns(network, trainer):
    data = DigitsDataModule(val_split=0)
    samples = data.read_samples("train")
    grey = np.stack([np.asarray(samples.load(i)) for i in range(5)])[..., 0]
    assert np.abs(grey / 255 * 16 - load_digits().images[:5]).max() < 0.1
    assert samples.labels == load_digits().target.tolist()


def test_chosen_digits_get_labels_from_zero_and_keep_their_names():
    data = DigitsDataModule(digits=[5, 6, 7, 8, 9])
    data.setup("fit")
    truth = load_digits().target
    for part in ("train", "val"):
        samples = data.read_samples(part)
        chosen = [int(name.removeprefix("digit_")) for name in samples.names]
        assert [int(data.classes[label]) for label in samples.labels] == truth[chosen].tolist()
    assert data.classes == ["5", "6", "7", "8", "9"]
    assert data.num_classes == 5


def test_every_digit_is_in_exactly_one_part():
    data = DigitsDataModule(val_split=0.2, test_split=0.1)
    names = [name for part in ("train", "val", "test") for name in data.read_samples(part).names]
    assert len(names) == len(set(names)) == 1797
    again = DigitsDataModule(val_split=0.2, test_split=0.1)
    assert again.read_samples("val").names == data.read_samples("val").names


def test_the_whole_digit_is_seen_at_the_size_that_is_asked_for():
    data = DigitsDataModule(image_size=8, mean=0.0, std=1.0)
    data.setup("validate")
    pixels, label = data.val_dataloader().dataset[0]
    index = int(data.read_samples("val").names[0].removeprefix("digit_"))
    assert torch.allclose(
        pixels[0] * 16, torch.tensor(load_digits().images[index]).float(), atol=0.1
    )
    assert label == load_digits().target[index]


def test_training_runs_without_a_validation_part(network, trainer):
    data = DigitsDataModule(digits=[0, 1], val_split=0)
    with pytest.warns(UserWarning, match="Total length of `list`"):
        trainer.fit(network, data)
    assert len(torch.cat(network.seen)) == 360


def test_validating_without_a_validation_part_is_refused(network, trainer):
    with pytest.raises(ValueError, match="no pictures for val"):
        trainer.validate(network, DigitsDataModule(digits=[0, 1], val_split=0))


@pytest.mark.parametrize("digits", [[], [1], [1, 1], [1, 10], [-1, 2]])
def test_digits_that_cannot_be_told_apart_are_refused(digits):
    with pytest.raises(ValueError, match="two or more of 0 to 9"):
        DigitsDataModule(digits=digits)


@pytest.mark.parametrize(("test_split", "count"), [(0.0, 72), (0.1, 36)])
def test_predictions_are_named_by_the_number_of_the_digit(network, trainer, test_split, count):
    data = DigitsDataModule(digits=[0, 1], test_split=test_split)
    labels = torch.cat(trainer.predict(network, data))
    assert len(data.predict_names) == len(labels) == count
    assert data.predict_names[0].startswith("digit_")
