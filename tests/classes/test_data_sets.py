"""Whichever attribute of a data set has its classes, and whatever wraps it, they go by name."""

import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, random_split
from torchvision import datasets

from lit_finetune.classes.dataset import dataset_classes
from tests.classes.test_by_name import NAMES, ORDERS, Data, Pictures, classifier, trainer

OTHER = ORDERS[1]  # cats, ants, bees


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that tells ants, bees and cats apart."""
    torch.manual_seed(0)
    model, run = classifier(), trainer(max_epochs=15)
    run.fit(model, Data(NAMES))
    path = tmp_path_factory.mktemp("run") / "own.ckpt"
    run.save_checkpoint(path)
    return path


class Named(Pictures):
    """The same pictures, named by whatever attributes are given."""

    def __init__(self, order: Sequence[str] = OTHER, **attributes: Any) -> None:
        super().__init__(order)
        del self.classes
        vars(self).update(attributes)


class ClassLabel:
    """What a column of classes is in a data set of Hugging Face."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names


class Transformed(Dataset[Any]):
    """What people wrap parts in, to have transforms of their own for each."""

    def __init__(self, subset: Any) -> None:
        self.subset, self.transform = subset, lambda image: image

    def __len__(self) -> int:
        return len(self.subset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.subset[index]
        return self.transform(image), label


class Forwarding(Transformed):
    """The same, and what it has not is asked of what it wraps."""

    def __getattr__(self, name: str) -> Any:
        if name == "subset":
            raise AttributeError(name)
        return getattr(self.subset, name)


class Renumbered(Forwarding):
    """Puts labels in the order of a checkpoint, as people do by hand."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.subset[index]
        return image, NAMES.index(OTHER[label])


def indexed(order: Sequence[str]) -> dict[str, int]:
    return {name: index for index, name in enumerate(order)}


SETS: dict[str, Callable[[], Any]] = {
    "class_to_idx": lambda: Named(class_to_idx=indexed(OTHER)),
    "idx_to_class": lambda: Named(idx_to_class=dict(enumerate(OTHER))),
    "idx_to_class of JSON": lambda: Named(
        idx_to_class=json.loads(json.dumps(dict(enumerate(OTHER))))
    ),
    "class_names": lambda: Named(class_names=np.array(OTHER)),
    "categories": lambda: Named(categories=tuple(OTHER)),
    "synonyms": lambda: Named(classes=[("cats", "Felidae"), ("ants",), ("bees", "Apidae")]),
    "features": lambda: Named(features={"image": object(), "label": ClassLabel(OTHER)}),
    "two columns": lambda: Named(features={"coarse": ClassLabel("ab"), "label": ClassLabel(OTHER)}),
    "random_split": lambda: random_split(Named(class_names=OTHER), [20, 4])[0],
    "concatenated": lambda: ConcatDataset([Named(class_names=OTHER), Pictures(OTHER)]),
    "wrapped": lambda: Transformed(Subset(Named(class_to_idx=indexed(OTHER)), range(1, 24, 2))),
    "forwarding": lambda: Forwarding(Named(class_names=OTHER)),
    "renumbered": lambda: Renumbered(Named(class_names=OTHER)),
}


@pytest.mark.parametrize("kind", list(SETS))
def test_classes_are_seen_wherever_a_data_set_has_them(checkpoint: Path, kind: str) -> None:
    loader = DataLoader(SETS[kind](), batch_size=5)

    for how in ("validate", "test"):
        run = trainer()
        getattr(run, how)(classifier(weights=str(checkpoint)), loader, verbose=False)
        assert run.callback_metrics[f"{'val' if how == 'validate' else how}/acc"] == 1
    model, run = classifier(weights=str(checkpoint), lr=1e-12), trainer()
    run.fit(model, loader, loader)
    assert run.callback_metrics["val/acc"] == 1


def test_a_target_transform_turns_the_names_as_it_turns_the_labels() -> None:
    named = Named(NAMES, classes=NAMES, target_transform=lambda label: 2 - label)
    assert dataset_classes(named) == NAMES[::-1]
    for lost in (lambda label: 0, lambda label: label + 1, lambda label: [label], len):
        named.target_transform = lost
        assert dataset_classes(named) is None


@pytest.mark.parametrize("wrap", [lambda data: data, Transformed])
def test_attributes_that_contradict_each_other_are_refused_with_both_lists(
    checkpoint: Path, wrap: Callable[[Any], Any]
) -> None:
    data = Named(classes=NAMES, class_to_idx=indexed(OTHER))

    with pytest.raises(ValueError, match=r"`classes` has .*'ants', 'bees'.*'cats', 'ants'"):
        trainer().validate(classifier(weights=str(checkpoint)), DataLoader(wrap(data)))


class Contradicting(LightningDataModule):
    """Names the classes otherwise than the data sets of its loaders."""

    def __init__(self, attribute: str, value: Any) -> None:
        super().__init__()
        setattr(self, attribute, value)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Named(class_names=OTHER), batch_size=6)

    val_dataloader = test_dataloader = train_dataloader


@pytest.mark.parametrize("how", ["fit", "validate", "test"])
@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("classes", NAMES),
        ("class_names", NAMES),
        ("class_to_idx", {"Ants": 0, "Bees": 1, "Cats": 2}),
    ],
)
def test_a_data_module_that_contradicts_its_data_sets_is_refused_before_the_first_step(
    checkpoint: Path, how: str, attribute: str, value: Any
) -> None:
    model, run = classifier(), trainer()

    with pytest.raises(ValueError, match=r"The data module has .*nts.*'cats', 'ants', 'bees'"):
        getattr(run, how)(model, datamodule=Contradicting(attribute, value))
    assert run.global_step == 0


def test_training_and_validation_sets_of_other_orders_are_refused() -> None:
    train, val = DataLoader(Named(NAMES, class_names=NAMES)), DataLoader(Named(categories=OTHER))

    with pytest.raises(ValueError, match=r"The validation data has.*the training data"):
        trainer(num_sanity_val_steps=0).fit(classifier(), train, val)


class Unsorted(datasets.ImageFolder):
    """Has classes that are sorted, and labels that are not."""

    def find_classes(self, directory: Any) -> tuple[list[str], dict[str, int]]:
        return NAMES, indexed(OTHER)


def of_torchvision(kind: type, **attributes: Any) -> Any:
    """A data set without its pictures; what it has after loading is given."""
    made = kind.__new__(kind)
    vars(made).update(attributes)
    return made


def test_the_data_sets_of_torchvision_are_known_by_what_they_return(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "1.png")
    folder = Unsorted(tmp_path)
    assert [(Path(path).parent.name, label) for path, label in folder.samples] == [
        (name, OTHER.index(name)) for name in NAMES
    ]
    assert dataset_classes(folder) == dataset_classes(Subset(folder, [0])) == OTHER
    synonyms = [("tench", "Tinca tinca"), ("crane",)]
    by_synonym = {name: label for label, names in enumerate(synonyms) for name in names}
    imagenet = of_torchvision(datasets.ImageNet, classes=synonyms, class_to_idx=by_synonym)
    assert dataset_classes(imagenet) == ["tench, Tinca tinca", "crane"]
    pets = {"classes": OTHER, "bin_classes": ["Cat", "Dog"], "class_to_idx": indexed(OTHER)}
    kinds = {"category": OTHER, "binary-category": ["Cat", "Dog"], "segmentation": None}
    for kind, names in kinds.items():
        pet = of_torchvision(datasets.OxfordIIITPet, _target_types=[kind], **pets)
        assert dataset_classes(pet) == names
    caltech = of_torchvision(datasets.Caltech101, target_type=["category"], categories=OTHER)
    assert dataset_classes(caltech) == OTHER
    animals = {"all_categories": OTHER, "categories_index": {"kingdom": {"Plantae": 1, "Fungi": 0}}}
    for kind, names in {"full": OTHER, "kingdom": ["Fungi", "Plantae"]}.items():
        assert (
            dataset_classes(of_torchvision(datasets.INaturalist, target_type=[kind], **animals))
            == names
        )
    places = of_torchvision(datasets.Places365, classes=NAMES, class_to_idx=indexed(OTHER))
    assert dataset_classes(places) == OTHER
    assert dataset_classes(of_torchvision(datasets.LFWPeople, class_to_idx=indexed(OTHER))) == OTHER
    assert dataset_classes(of_torchvision(datasets.FashionMNIST))[0] == "T-shirt/top"  # type: ignore[index]
    assert dataset_classes(of_torchvision(datasets.SVHN)) is None


@pytest.mark.parametrize(
    "value", [10, "ants", {"ants", "bees"}, {"ants": 1}, {0: "ants", 2: "bees"}, [object()], {}]
)
def test_what_gives_no_order_gives_no_names(value: object) -> None:
    assert dataset_classes(Named(classes=value)) is None


class Rows(Dataset[Any]):
    """As a Hugging Face data set: rows are mappings, and `features` has the names."""

    features = {"image": None, "kind": Namespace(names=["cat", "dog"])}  # noqa: RUF012

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": torch.zeros(3, 4, 4), "kind": index % 2}


class Targets(Dataset[Any]):
    """Ten classes of four images each."""

    classes = list("abcdefghij")  # noqa: RUF012
    targets = [index // 4 for index in range(40)]  # noqa: RUF012

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return torch.zeros(3, 4, 4), self.targets[index]


class Relabelled(Dataset[Any]):
    """A wrapper with a function of each item."""

    def __init__(self, inner: Dataset[Any], change: Callable[[Any], Any]) -> None:
        self.inner, self.change = inner, change

    def __len__(self) -> int:
        return len(self.inner)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        return self.change(self.inner[index])


@pytest.mark.parametrize(
    ("inner", "change", "is_known"),
    [
        (Rows(), lambda row: (row["image"], row["kind"]), True),
        (Rows(), lambda row: row, True),
        (Rows(), lambda row: (row["image"], 1 - row["kind"]), False),
        (Rows(), lambda row: {**row, "kind": 1 - row["kind"]}, False),
        (Rows(), lambda row: row["image"], False),
        (Targets(), lambda item: item, True),
        *(
            (Targets(), lambda item, a=a, b=b: (item[0], {a: b, b: a}.get(item[1], item[1])), False)
            for a, b in ((2, 4), (7, 9), (0, 1))
        ),
    ],
)
def test_names_are_known_only_behind_a_wrapper_that_keeps_the_labels_of_all_classes(
    inner: Dataset[Any], change: Callable[[Any], Any], is_known: bool
) -> None:
    found = dataset_classes(Relabelled(inner, change))

    assert found == (dataset_classes(inner) if is_known else None)
