"""Runs on data whose classes are those of a head by name, in another order, or others.

What is judged is which picture is called what: scikit-learn's accuracy of names.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from sklearn.metrics import accuracy_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.wrappers import ClasswiseWrapper

from lit_finetune import FinetuneClassifier

NAMES = ["ants", "bees", "cats"]
ORDERS = [["ants", "bees", "cats"], ["cats", "ants", "bees"], ["bees", "ants", "cats"]]
OTHERS = ["bees", "cats", "zants"]  # every label is another class
EPOCHS = 8
COLOURS = {"ants": 0, "bees": 1, "cats": 2, "zants": 0}


class Net(nn.Module):
    """One convolution and a head."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(8, num_classes)
        self.data_config = {"image_size": [8, 8], "resize_size": 8}

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stem(x).mean((2, 3)))


class Pictures(Dataset[tuple[Tensor, int]]):
    """Pictures of one colour a class, which a data set of torchvision would name as these do."""

    def __init__(self, classes: Sequence[str], each: int = 8, *, seed: int = 0) -> None:
        self.classes = list(classes)
        self.labels = [label for label in range(len(classes)) for _ in range(each)]
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.rand(len(self.labels), 3, 8, 8, generator=generator)
        for image, label in zip(self.images, self.labels, strict=True):
            image[COLOURS[classes[label]]] += 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.labels[index]

    @property
    def names(self) -> list[str]:
        """What each picture shows."""
        return [self.classes[label] for label in self.labels]


class Data(LightningDataModule):
    """Such pictures, under names that are known at once, or only after `setup`."""

    def __init__(self, classes: Sequence[str], *, late: bool = False) -> None:
        super().__init__()
        self.pictures = Pictures(classes)
        if not late:
            self.classes = list(classes)

    def setup(self, stage: str) -> None:
        self.classes = self.pictures.classes

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.pictures, batch_size=6, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.pictures, batch_size=5)

    test_dataloader = predict_dataloader = val_dataloader


def trainer(**options: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(
        **{"accelerator": "cpu", "enable_model_summary": False, "max_epochs": 1, **quiet, **options}
    )


def classifier(**arguments: Any) -> FinetuneClassifier:
    options = {"num_classes": 3, "lr": 0.05, "lr_scheduler": "constant", **arguments}
    return FinetuneClassifier(options.pop("backbone", None) or Net(), **options)


def accuracy(model: FinetuneClassifier, pictures: Pictures) -> float:
    """How many pictures a model calls by their names, judged by scikit-learn."""
    with torch.no_grad():
        best = model.eval()(pictures.images).softmax(1).argmax(1).tolist()
    return float(accuracy_score(pictures.names, [model.classes[index] for index in best]))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that tells ants, bees and cats apart."""
    torch.manual_seed(0)
    model, run = classifier(lr=0.1), trainer(max_epochs=EPOCHS, limit_val_batches=0)
    run.fit(model, Data(NAMES))
    assert accuracy(model, Pictures(NAMES, seed=1)) == 1
    path = tmp_path_factory.mktemp("run") / "own.ckpt"
    run.save_checkpoint(path)
    return path


Route = Callable[[Path], tuple[FinetuneClassifier, dict[str, Any]]]
ROUTES: Mapping[str, Route] = {
    "ckpt_path": lambda path: (classifier(), {"ckpt_path": path, "weights_only": True}),
    "load_from_checkpoint": lambda path: (
        FinetuneClassifier.load_from_checkpoint(path, backbone=Net()),
        {},
    ),
    "weights": lambda path: (classifier(weights=str(path)), {}),
}
by_any_route = pytest.mark.parametrize("route", ROUTES.values(), ids=list(ROUTES))


@by_any_route
@pytest.mark.parametrize(
    ("order", "how", "late"),
    [
        pytest.param(ORDERS[0], "validate", False, marks=pytest.mark.long),
        (ORDERS[1], "validate", True),
        (ORDERS[2], "test", False),
        pytest.param(ORDERS[2], "validate", False, marks=pytest.mark.long),
    ],
)
def test_what_is_measured_goes_by_name_in_whatever_order_the_data_has(
    checkpoint: Path, route: Route, order: list[str], how: str, late: bool
) -> None:
    model, options = route(checkpoint)

    found = getattr(trainer(), how)(model, Data(order, late=late), verbose=False, **options)[0]

    key = "val" if how == "validate" else how
    assert found[f"{key}/acc"] == accuracy(model, Pictures(order)) == 1
    assert accuracy(model, Pictures(NAMES, seed=2)) == 1
    assert model.classes == order
    with torch.no_grad():
        pictures = Pictures(order)
        loss = F.cross_entropy(model(pictures.images), torch.tensor(pictures.labels))
    assert found[f"{key}/loss"] == pytest.approx(loss.item(), abs=1e-6)


@by_any_route
@pytest.mark.parametrize(
    ("how", "late"),
    [("validate", False), pytest.param("test", True, marks=pytest.mark.long)],
)
def test_data_of_other_names_is_not_measured_and_both_lists_are_named(
    checkpoint: Path, route: Route, how: str, late: bool
) -> None:
    model, options = route(checkpoint)

    with pytest.raises(ValueError, match=r"'bees', 'cats', 'zants'.*'ants', 'bees', 'cats'"):
        getattr(trainer(), how)(model, Data(OTHERS, late=late), verbose=False, **options)


@by_any_route
@pytest.mark.parametrize(
    "classes",
    [OTHERS, pytest.param(ORDERS[1], marks=pytest.mark.long)],
    ids=["zants", "another order"],
)
def test_predictions_stand_under_the_names_that_the_head_has_learnt(
    checkpoint: Path, route: Route, classes: list[str]
) -> None:
    model, options = route(checkpoint)
    run = trainer()

    rows = torch.cat(run.predict(model, Data(classes), **options))

    assert model.classes == NAMES
    seen = [{"zants": "ants"}.get(name, name) for name in Pictures(classes).names]
    assert accuracy_score(seen, [model.classes[i] for i in rows.argmax(1).tolist()]) == 1


@pytest.mark.parametrize(
    ("order", "late", "route"),
    [
        (ORDERS[0], False, ROUTES["weights"]),
        (ORDERS[1], False, ROUTES["weights"]),
        (ORDERS[2], True, ROUTES["weights"]),
        (ORDERS[1], True, ROUTES["load_from_checkpoint"]),
    ],
)
def test_a_training_begins_with_the_head_in_the_order_of_the_data(
    checkpoint: Path, route: Route, order: list[str], late: bool, caplog: Any
) -> None:
    model, _ = route(checkpoint)
    before = dict(zip(NAMES, model.backbone.fc.weight.detach().clone(), strict=True))
    run = trainer(limit_train_batches=1)
    model.lr = 1e-12

    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        run.fit(model, Data(order, late=late))

    after = dict(zip(model.classes, model.backbone.fc.weight.detach(), strict=True))
    assert model.classes == order
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in NAMES)
    assert run.callback_metrics["val/acc"] == 1
    told = [line for line in caplog.messages if "in another order" in line]
    assert len(told) == (order != NAMES)


def test_a_training_on_other_classes_begins_with_a_new_head_and_it_is_told(
    checkpoint: Path, caplog: Any
) -> None:
    model = classifier(weights=str(checkpoint), lr=1e-12)
    old = model.backbone.fc.weight.detach().clone()
    stem = model.backbone.stem[0].weight.detach().clone()

    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        trainer(limit_train_batches=1).fit(model, Data(OTHERS))

    new = model.backbone.fc.weight.detach()
    assert not any(torch.allclose(a, b, atol=1e-3) for a in old for b in new)
    assert new.std() < 0.05, "it starts small"
    assert torch.allclose(model.backbone.stem[0].weight, stem, atol=1e-6)
    assert model.classes == OTHERS
    (line,) = [line for line in caplog.messages if "new head takes the place" in line]
    assert all(name in line for name in (*NAMES, "zants"))


@pytest.mark.parametrize("head", ["mlp", lambda features, classes: Cosine(features, classes)])
def test_a_new_head_is_of_the_kind_that_was_asked_for(tmp_path: Path, head: Any) -> None:
    model, run = classifier(head=head), trainer(max_epochs=1)
    run.fit(model, Data(NAMES))
    run.save_checkpoint(tmp_path / "own.ckpt")
    started = classifier(head=head, weights=str(tmp_path / "own.ckpt"), lr=1e-12)
    learnt = [p.detach().clone() for p in started.backbone.fc.parameters()]

    trainer(limit_train_batches=1).fit(started, Data(OTHERS))

    pairs = zip(learnt, started.backbone.fc.parameters(), strict=True)
    assert not any(torch.allclose(a, b, atol=1e-4) for a, b in pairs if a.dim() == 2)


def test_a_trained_model_is_not_trained_on_other_classes_until_its_head_is_reset(
    checkpoint: Path,
) -> None:
    model = FinetuneClassifier.load_from_checkpoint(checkpoint, backbone=Net())

    with pytest.raises(ValueError, match=r"'zants'.*'ants'.*reset_classifier\(3\)"):
        trainer().fit(model, Data(OTHERS))
    model.reset_classifier(3)
    trainer().fit(model, Data(OTHERS))

    assert model.classes == OTHERS


@pytest.mark.parametrize(
    ("classes", "late"), [(OTHERS, False), (ORDERS[1], False), (ORDERS[2], True)]
)
def test_a_run_goes_on_with_the_same_classes_in_the_same_order_alone(
    checkpoint: Path, classes: list[str], late: bool
) -> None:
    options = {"ckpt_path": checkpoint, "weights_only": True}
    with pytest.raises(ValueError, match=r"'bees'.*'ants', 'bees', 'cats'.*`weights`") as error:
        trainer(max_epochs=EPOCHS + 1).fit(classifier(), Data(classes, late=late), **options)
    assert "num_classes" not in str(error.value)

    run, model = trainer(max_epochs=EPOCHS + 1), classifier(lr=0.1)
    run.fit(model, Data(NAMES, late=late), **options)
    assert run.current_epoch == EPOCHS + 1
    assert model.classes == NAMES


@pytest.mark.parametrize("how", ["fit", "validate", "test"])
def test_a_checkpoint_of_another_number_of_classes_is_refused_with_both_lists(
    checkpoint: Path, how: str
) -> None:
    with pytest.raises(ValueError, match=r"'ants', 'bees'\).*'ants', 'bees', 'cats'\)") as error:
        getattr(trainer(), how)(classifier(num_classes=2), Data(NAMES[:2]), ckpt_path=checkpoint)
    assert "it lacks 'cats'" in str(error.value)
    assert "num_classes" not in str(error.value)


def test_a_model_measured_on_one_order_is_trained_on_another(checkpoint: Path) -> None:
    model = FinetuneClassifier.load_from_checkpoint(checkpoint, backbone=Net())
    for order in (*ORDERS, NAMES):
        assert trainer().validate(model, Data(order), verbose=False)[0]["val/acc"] == 1
    run = trainer()
    run.fit(model, Data(ORDERS[2]))
    assert run.callback_metrics["val/acc"] == accuracy(model, Pictures(NAMES)) == 1


def test_a_users_names_count_where_weights_came_without(checkpoint: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    model = classifier()
    model.load_state_dict(state)
    model.classes = NAMES

    assert trainer().validate(model, Data(ORDERS[1]), verbose=False)[0]["val/acc"] == 1
    for wrong in (NAMES[:2], ["ants", "ants", "bees"], "abc"):
        with pytest.raises(ValueError, match="`classes` are different names for the 3 outputs"):
            model.classes = wrong  # type: ignore[assignment]  # what a user may try


@pytest.mark.parametrize(
    ("order", "route"), [(ORDERS[1], ROUTES["ckpt_path"]), (ORDERS[2], ROUTES["weights"])]
)
def test_plain_loaders_go_by_the_names_of_their_data_sets(
    checkpoint: Path, route: Route, order: list[str]
) -> None:
    model, options = route(checkpoint)
    pictures = Pictures(order)
    loader = DataLoader(Subset(pictures, range(len(pictures))), batch_size=5)

    found = trainer().validate(model, loader, verbose=False, **options)[0]

    assert found["val/acc"] == accuracy(model, pictures) == 1
    others = DataLoader(Pictures(OTHERS), batch_size=5)
    with pytest.raises(ValueError, match=r"'zants'.*'ants'"):
        trainer().test(model, others, verbose=False)


@pytest.mark.parametrize("order", ORDERS[:2], ids="-".join)
def test_plain_loaders_train_what_their_data_sets_name(checkpoint: Path, order: list[str]) -> None:
    model = classifier(weights=str(checkpoint), lr=1e-12)
    run = trainer()

    run.fit(model, DataLoader(Pictures(order), batch_size=6), DataLoader(Pictures(order)))

    assert run.callback_metrics["val/acc"] == accuracy(model, Pictures(NAMES)) == 1
    assert model.classes == order


def test_loaders_without_names_are_taken_by_their_labels(checkpoint: Path) -> None:
    model = classifier(weights=str(checkpoint))
    pictures = Pictures(NAMES)
    plain = TensorDataset(pictures.images, torch.tensor(pictures.labels))

    run = trainer()
    run.fit(model, DataLoader(plain, batch_size=6), DataLoader(plain))

    assert run.callback_metrics["val/acc"] == 1
    assert model.classes == NAMES


def test_validation_folders_that_lack_a_class_are_refused() -> None:
    train, val = DataLoader(Pictures(NAMES)), DataLoader(Pictures(["ants", "cats"]))

    with pytest.raises(ValueError, match=r"2 classes \('ants', 'cats'\).*it lacks 'bees'"):
        trainer(num_sanity_val_steps=0).fit(classifier(), train, val)


def test_labels_that_a_data_set_turns_into_no_labels_have_no_names(checkpoint: Path) -> None:
    pictures = Pictures(OTHERS)
    pictures.target_transform = lambda label: [label]  # type: ignore[attr-defined]

    trainer().validate(classifier(weights=str(checkpoint)), DataLoader(pictures), verbose=False)


def test_class_weights_stay_with_their_classes(checkpoint: Path) -> None:
    weights = {"ants": 1.0, "bees": 5.0, "cats": 25.0}
    model = FinetuneClassifier.load_from_checkpoint(
        checkpoint, backbone=Net(), class_weights=list(weights.values())
    )
    order, run = ORDERS[1], trainer()

    run.validate(model, Data(order), verbose=False)

    assert model.class_weights is not None
    assert model.class_weights.tolist() == [weights[name] for name in order]
    run.save_checkpoint(checkpoint.with_name("weighted.ckpt"))
    again = FinetuneClassifier.load_from_checkpoint(
        checkpoint.with_name("weighted.ckpt"), backbone=Net()
    )
    assert again.class_weights is not None
    assert again.classes == order
    assert again.class_weights.tolist() == [weights[name] for name in order]


@pytest.mark.parametrize("order", ORDERS[:2], ids="-".join)
def test_class_weights_of_a_training_are_in_the_order_of_its_data(
    checkpoint: Path, order: list[str]
) -> None:
    model = classifier(weights=str(checkpoint), class_weights=[1.0, 5.0, 25.0], lr=1e-12)

    trainer(limit_train_batches=1).fit(model, Data(order))

    assert model.class_weights is not None
    assert model.class_weights.tolist() == [1.0, 5.0, 25.0]


class Classwise(FinetuneClassifier):
    """Measures each class under its name."""

    def metrics(self, num_classes: int, prefix: str) -> MetricCollection:
        each = MulticlassAccuracy(num_classes, average=None)
        return MetricCollection({"of": ClasswiseWrapper(each, labels=self.classes)}, prefix=prefix)


@pytest.mark.parametrize("order", ORDERS[:2], ids="-".join)
def test_metrics_of_single_classes_bear_their_names(checkpoint: Path, order: list[str]) -> None:
    model = Classwise.load_from_checkpoint(checkpoint, backbone=Net())
    pictures = Data(order)
    ants = [i for i, name in enumerate(pictures.pictures.names) if name == "ants"]
    pictures.pictures.images[ants] = pictures.pictures.images[ants][:, [2, 1, 0]]  # as cats

    run = trainer()
    run.validate(model, pictures, verbose=False)

    found = {key: float(value) for key, value in run.callback_metrics.items()}
    by_class = {name: next(v for k, v in found.items() if k.endswith(name)) for name in NAMES}
    assert by_class == {"ants": 0, "bees": 1, "cats": 1}


def test_averages_of_weights_begin_with_the_head_in_the_order_of_the_data(
    checkpoint: Path,
) -> None:
    model = classifier(weights=str(checkpoint), lr=1e-12)
    # Until there is an average, the copy of the beginning is what is validated.
    averaging = EMAWeightAveraging(decay=0.9, update_starting_at_epoch=1)
    run = trainer(max_epochs=1, callbacks=[averaging])

    run.fit(model, Data(ORDERS[1]))

    assert run.callback_metrics["val/acc"] == 1


class Cosine(nn.Module):
    """Scores by the angle to one direction a class, without a layer of torch's."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.randn(classes, features))
        self.scale = nn.Parameter(torch.tensor(5.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.normalize(x, dim=1) @ F.normalize(self.directions, dim=1).T
