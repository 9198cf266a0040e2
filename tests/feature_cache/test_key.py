import os
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lit_finetune.blocks.block import list_blocks
from lit_finetune.datamodules import DigitsDataModule
from lit_finetune.feature_cache.key import content_digest, network_digest, prefix_tensors, stamp
from lit_finetune.files.fingerprint import describe


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def names(net: nn.Module) -> tuple[str, tuple[int, ...]]:
    tensors = prefix_tensors(net, list_blocks(net)[:-1])
    return network_digest(net, tensors), stamp(tensors)


def in_place(net: nn.Module) -> None:
    with torch.no_grad():
        net[0].weight[0, 0] += 1e-6


def by_data(net: nn.Module) -> None:
    net[0].weight.data[0, 0] += 1e-6


def statistics(net: nn.Module) -> None:
    net[1].running_mean += 1e-6


def other_data(net: nn.Module) -> None:
    net[0].weight.data = net[0].weight.data + 1e-6


@pytest.mark.parametrize("change", [in_place, by_data, statistics, other_data])
def test_a_changed_prefix_has_another_name(change) -> None:
    net = network()
    before = names(net)

    change(net)

    after = names(net)
    assert after[0] != before[0]
    assert after[1] != before[1]


def test_the_name_is_that_of_an_equal_network_and_does_not_hang_on_what_comes_behind() -> None:
    net, other = network(), network()
    with torch.no_grad():
        other[3].weight += 1

    assert names(net)[0] == names(other)[0]


def test_another_forward_has_another_name() -> None:
    net, other = network(), network()

    class Sequential(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x * 2)

    assert names(net)[0] != names(Sequential(*other))[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    return tmp_path


def test_a_changed_picture_or_transform_gives_a_folder_another_name(folder: Path) -> None:
    made = partial(ImageFolder, str(folder))
    before = content_digest(made(transform=v2.Resize(8)))

    assert before == content_digest(made(transform=v2.Resize(8))) is not None
    assert before != content_digest(made(transform=v2.Resize(9)))
    assert before != content_digest(made(transform=v2.Resize(8), target_transform=lambda y: 1 - y))
    os.utime(folder / "b/3.png", ns=(0, 0))
    assert before != content_digest(made(transform=v2.Resize(8)))


def test_tensors_and_parts_of_them_have_names() -> None:
    data = TensorDataset(torch.arange(6.0), torch.arange(6))

    assert content_digest(data) != content_digest(TensorDataset(torch.zeros(6), torch.arange(6)))
    assert content_digest(Subset(data, [0, 1])) != content_digest(Subset(data, [1, 0])) is not None


def test_our_own_data_has_a_name() -> None:
    found = []
    for size in (8, 8, 16):
        data = DigitsDataModule(image_size=size)
        data.setup("fit")
        found.append(content_digest(data.train_dataloader().dataset))

    assert found[0] == found[1] != found[2]
    assert found[0] is not None


def test_an_unknown_dataset_has_none() -> None:
    class Own(Dataset[int]):
        def __getitem__(self, index: int) -> int:
            return index

    assert content_digest(Own()) is None


def test_descriptions_tell_functions_apart() -> None:
    def times(factor: int):
        return lambda x: x * factor

    assert describe(times(2)) == describe(times(2)) != describe(times(3))
    assert describe(partial(max, 1)) != describe(partial(max, 2))
    assert " at 0x" not in describe([times(2), v2.Compose([v2.Resize(8), times(2)]), object()])


def test_a_description_ends_where_things_hold_each_other() -> None:
    first: dict[str, object] = {}
    first["second"] = {"first": first}

    assert describe(first)
