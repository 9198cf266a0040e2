"""Classes go by name also where a subclass has hooks of its own, or the loaders disagree."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch.utils.data import ConcatDataset, DataLoader

from lit_finetune import FinetuneClassifier
from tests.classes.test_by_name import (
    NAMES,
    ORDERS,
    OTHERS,
    Data,
    Net,
    Pictures,
    accuracy,
    classifier,
    trainer,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that tells ants, bees and cats apart."""
    torch.manual_seed(0)
    model, run = classifier(), trainer(max_epochs=15)
    run.fit(model, Data(NAMES))
    path = tmp_path_factory.mktemp("run") / "own.ckpt"
    run.save_checkpoint(path)
    return path


class OwnHooks(FinetuneClassifier):
    """Has hooks of its own, as for a LightningModule, whose hooks are empty."""

    def setup(self, stage: str) -> None:
        self.seen = [stage]

    def on_fit_start(self) -> None:
        self.seen.append("fit")

    def on_train_start(self) -> None:
        self.seen.append("train")

    def on_validation_start(self) -> None:
        self.seen.append("validation")

    def on_test_start(self) -> None:
        self.seen.append("test")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-12)


@pytest.mark.parametrize("is_loader", [False, True])
@pytest.mark.parametrize("how", ["validate", "test"])
@pytest.mark.parametrize("by_ckpt_path", [False, True])
def test_what_is_measured_goes_by_name_whatever_hooks_a_subclass_has(
    checkpoint: Path, how: str, by_ckpt_path: bool, is_loader: bool
) -> None:
    weights = None if by_ckpt_path else str(checkpoint)
    options = {"ckpt_path": checkpoint, "weights_only": True} if by_ckpt_path else {}
    data = DataLoader(Pictures(ORDERS[1]), batch_size=5) if is_loader else Data(ORDERS[1])
    model = OwnHooks(Net(), num_classes=3, weights=weights)

    found = getattr(trainer(), how)(model, data, verbose=False, **options)[0]

    key = "val" if how == "validate" else how
    assert found[f"{key}/acc"] == accuracy(model, Pictures(NAMES)) == 1
    with pytest.raises(ValueError, match=r"'zants'.*'ants'"):
        getattr(trainer(), how)(model, Data(OTHERS), verbose=False)


def test_a_training_goes_by_name_whatever_hooks_a_subclass_has(checkpoint: Path) -> None:
    model, run = OwnHooks(Net(), num_classes=3, weights=str(checkpoint)), trainer()

    run.fit(model, Data(ORDERS[1]))

    assert model.seen[0] == "fit"
    assert model.classes == ORDERS[1]
    assert run.callback_metrics["val/acc"] == accuracy(model, Pictures(NAMES)) == 1


class Unread(FinetuneClassifier):
    """Takes the reading of checkpoints, and does not let the classifier read them."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seen = checkpoint["epoch"]


@pytest.mark.parametrize("how", ["fit", "validate", "test", "predict", "load_from_checkpoint"])
def test_a_checkpoint_that_a_subclass_does_not_let_be_read_is_refused(
    checkpoint: Path, how: str
) -> None:
    model, run = Unread(Net(), num_classes=3), trainer(max_epochs=16)
    options: dict[str, Any] = {"ckpt_path": checkpoint, "weights_only": True}
    begin = {
        "load_from_checkpoint": lambda: Unread.load_from_checkpoint(checkpoint, backbone=Net())
    }.get(how, lambda: getattr(run, how)(model, Data(NAMES), **options))

    with pytest.raises(ValueError, match=r"`Unread` has as `on_load_checkpoint`.*Call it there"):
        begin()


def test_predictions_of_a_new_head_are_refused_whatever_hooks_a_subclass_has() -> None:
    class Predicts(FinetuneClassifier):
        def on_predict_start(self) -> None:
            pass

    network = Net()
    network.fc = torch.nn.Linear(8, 5)
    with pytest.raises(ValueError, match="random"):
        trainer().predict(Predicts(network, num_classes=3), Data(NAMES))


class Distils(LightningModule):
    """A classifier is a part of it, not what the Trainer runs."""

    def __init__(self, teacher: FinetuneClassifier) -> None:
        super().__init__()
        self.teacher, self.student = teacher, Net()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        with torch.no_grad():
            wanted = self.teacher(batch[0]).softmax(1)
        return torch.nn.functional.cross_entropy(self.student(batch[0]), wanted)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.student.parameters(), lr=0.1)


def test_a_classifier_within_another_module_is_left_to_it(checkpoint: Path) -> None:
    teacher = FinetuneClassifier.load_from_checkpoint(checkpoint, backbone=Net())

    trainer().fit(Distils(teacher), DataLoader(Pictures(OTHERS), batch_size=6))

    assert teacher.classes == NAMES


@pytest.mark.parametrize("num_sanity_val_steps", [0, 2])
@pytest.mark.parametrize("other", [ORDERS[1], OTHERS], ids="-".join)
def test_validation_loaders_of_other_labels_are_refused_before_the_first_step(
    num_sanity_val_steps: int, other: list[str]
) -> None:
    model, run = classifier(), trainer(num_sanity_val_steps=num_sanity_val_steps)
    train, val = (DataLoader(Pictures(names), batch_size=6) for names in (NAMES, other))

    with pytest.raises(ValueError, match=r"The validation data has.*the training data"):
        run.fit(model, train, val)
    assert run.global_step == 0
    with pytest.raises(ValueError, match=r"One data set has.*another beside it"):
        run.fit(model, train, [DataLoader(Pictures(NAMES)), val])


def test_a_data_module_may_call_classes_otherwise_than_the_data_sets_of_all_its_loaders() -> None:
    data, model = Data(NAMES), classifier()
    data.setup = lambda stage: None  # type: ignore[method-assign]
    data.classes = ["Formicidae", "Apidae", "Felidae"]

    trainer(max_epochs=1).fit(model, data)

    assert model.classes == data.classes


def test_several_loaders_or_parts_that_say_otherwise_of_a_label_are_refused(
    checkpoint: Path,
) -> None:
    one, other = Pictures(NAMES), Pictures(ORDERS[1])
    joined: ConcatDataset[Any] = ConcatDataset([one, other])
    for loaders in ([DataLoader(one), DataLoader(other)], DataLoader(joined)):
        with pytest.raises(ValueError, match=r"'ants', 'bees', 'cats'.*'cats', 'ants', 'bees'"):
            trainer().validate(classifier(weights=str(checkpoint)), loaders)
