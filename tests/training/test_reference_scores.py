"""Each number that is logged is the one that scikit-learn and torch give for all pictures at once.

The references here use nothing of this package and nothing of torchmetrics.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, top_k_accuracy_score
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import LastCheckpoint
from lit_finetune.datamodules import DigitsDataModule
from tests.distributed.ranks import run_ranks

STILL: dict[str, Any] = {"lr": 1e-30, "lr_scheduler": "constant", "weight_decay": 0.0}
"""At such a rate the network stays what it is, so that an epoch's mean can be told."""


def network(num_classes: int) -> nn.Module:
    """What it says of a picture depends on no other picture."""
    torch.manual_seed(5)
    convolution = nn.Conv2d(3, 16, 3, stride=2)
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(convolution, nn.Tanh(), *pool, nn.Linear(16, num_classes))


def pictures(num: int, num_classes: int, present: int | None = None) -> TensorDataset:
    """Pictures of the first `present` classes; the network predicts the others now and then."""
    generator = torch.Generator().manual_seed(num)
    images = 3 * torch.randn(num, 3, 8, 8, generator=generator)
    images += 2 * torch.randn(num, 3, 1, 1, generator=generator)
    labels = torch.randint(present or num_classes, (num,), generator=generator)
    return TensorDataset(images, labels)


def expected_of(logits: Tensor, labels: Tensor, prefix: str, **options: Any) -> dict[str, float]:
    """All that is logged of an evaluation, by scikit-learn and torch."""
    predicted, num_classes = logits.argmax(dim=1).numpy(), logits.shape[1]
    expected = {
        "loss": F.cross_entropy(logits.float(), labels, **options).item(),
        "acc": accuracy_score(labels, predicted),
        "acc_macro": balanced_accuracy_score(labels, predicted),
        "f1": f1_score(labels, predicted, average="macro"),
    }
    if num_classes > 5:
        scores = logits.float().numpy()
        expected["acc_top5"] = top_k_accuracy_score(labels, scores, k=5, labels=range(num_classes))
    return {f"{prefix}/{name}": float(value) for name, value in expected.items()}


def logits_of(net: nn.Module, data: TensorDataset) -> Tensor:
    with torch.no_grad():
        return net(data.tensors[0])


def make_trainer(*callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        **{
            "max_epochs": 1,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        },
        callbacks=list(callbacks),
    )


def logged(trainer: Trainer, *prefixes: str) -> dict[str, float]:
    metrics = trainer.callback_metrics
    return {name: float(metrics[name]) for name in metrics if name.split("/")[0] in prefixes}


def same(found: Mapping[str, float], expected: Mapping[str, float], within: float = 2e-6) -> None:
    assert found == pytest.approx(expected, abs=within, rel=within)


WEIGHTS: dict[str, Callable[[int], list[float] | None]] = {
    "equal": lambda _: None,
    "weighted": lambda num_classes: [0.2 + 1.7 * index for index in range(num_classes)],
}


@pytest.mark.parametrize("num_classes", [2, 3, 8])
@pytest.mark.parametrize("absent", [0, 1])
@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize(("batch_size", "smoothing"), [(1, 0.0), (7, 0.1), (64, 0.3)])
def test_a_fit_logs_what_all_pictures_give_at_once(
    num_classes: int, absent: int, weighting: str, batch_size: int, smoothing: float
) -> None:
    train = pictures(23, num_classes)
    val = pictures(31, num_classes, present=num_classes - absent)
    weights = WEIGHTS[weighting](num_classes)
    model = FinetuneClassifier(
        network(num_classes),
        num_classes=num_classes,
        class_weights=weights,
        label_smoothing=smoothing,
        **STILL,
    )
    trainer = make_trainer(num_sanity_val_steps=2)

    trainer.fit(model, DataLoader(train, batch_size, shuffle=True), DataLoader(val, batch_size))

    net, options = network(num_classes), {"label_smoothing": smoothing}
    if weights:
        options["weight"] = torch.tensor(weights)
    expected = expected_of(logits_of(net, val), val.tensors[1], "val", **options)
    of_training = expected_of(logits_of(net, train), train.tensors[1], "train", **options)
    expected |= {name: of_training[name] for name in ("train/loss", "train/acc")}
    same(logged(trainer, "train", "val"), expected)


@pytest.mark.parametrize("batch_size", [1, 6, 40])
@pytest.mark.parametrize("stage", ["val", "test"])
def test_validate_and_test_alone_log_the_same(stage: str, batch_size: int) -> None:
    data, weights = pictures(33, 7, present=4), [0.5, 1, 1, 2, 1, 3, 1]
    model = FinetuneClassifier(network(7), num_classes=7, class_weights=weights)
    trainer = make_trainer()
    run = trainer.validate if stage == "val" else trainer.test

    found = run(model, DataLoader(data, batch_size), verbose=False)

    options = {"weight": torch.tensor(weights)}
    assert len(found) == 1
    same(found[0], expected_of(logits_of(network(7), data), data.tensors[1], stage, **options))


@pytest.mark.parametrize(
    ("options", "num_train", "num_val"),
    [
        ({"limit_val_batches": 3, "limit_train_batches": 2}, 10, 15),
        ({"limit_val_batches": 0.5}, 23, 15),  # of seven batches three
        ({"accumulate_grad_batches": 3}, 23, 31),
        ({"num_sanity_val_steps": -1}, 23, 31),
        ({"val_check_interval": 0.4}, 23, 31),
        ({"max_epochs": 3, "check_val_every_n_epoch": 3}, 23, 31),
    ],
)
def test_the_pictures_of_the_run_are_those_that_count(
    options: dict[str, Any], num_train: int, num_val: int
) -> None:
    train, val, weights = pictures(23, 3), pictures(31, 3), [1.0, 5.0, 0.1]
    model = FinetuneClassifier(network(3), num_classes=3, class_weights=weights, **STILL)
    trainer = make_trainer(**options)

    trainer.fit(model, DataLoader(train, 5), DataLoader(val, 5))

    train, val = (
        TensorDataset(*(tensor[:num] for tensor in data.tensors))
        for data, num in ((train, num_train), (val, num_val))
    )
    weight = {"weight": torch.tensor(weights)}
    expected = expected_of(logits_of(network(3), val), val.tensors[1], "val", **weight)
    of_training = expected_of(logits_of(network(3), train), train.tensors[1], "train", **weight)
    expected |= {name: of_training[name] for name in ("train/loss", "train/acc")}
    same(logged(trainer, "train", "val"), expected)


def test_what_a_training_loader_drops_does_not_count() -> None:
    train, weights = pictures(23, 3), [1.0, 5.0, 0.1]
    model = FinetuneClassifier(network(3), num_classes=3, class_weights=weights, **STILL)
    trainer = make_trainer()

    trainer.fit(model, DataLoader(train, 5, drop_last=True))

    labels = train.tensors[1][:20]
    weight = {"weight": torch.tensor(weights)}
    expected = expected_of(logits_of(network(3), train)[:20], labels, "train", **weight)
    same(logged(trainer, "train"), {k: expected[k] for k in ("train/loss", "train/acc")})


def test_of_several_loaders_each_has_its_numbers() -> None:
    sets, weights = [pictures(9, 3), pictures(14, 3, present=2), pictures(1, 3)], [1.0, 4.0, 0.3]
    model = FinetuneClassifier(network(3), num_classes=3, class_weights=weights, **STILL)
    trainer = make_trainer(num_sanity_val_steps=1)

    trainer.fit(model, DataLoader(pictures(6, 3), 3), [DataLoader(data, 4) for data in sets])
    found = make_trainer().validate(model, [DataLoader(data, 5) for data in sets], verbose=False)

    net, options = network(3), {"weight": torch.tensor(weights)}
    for index, data in enumerate(sets):
        one = expected_of(logits_of(net, data), data.tensors[1], "val", **options)
        expected = {f"{name}/dataloader_idx_{index}": value for name, value in one.items()}
        of_fit = logged(trainer, "val")
        same({name: of_fit[name] for name in expected}, expected)
        same(found[index], expected)


class Stopped(Exception):
    """A run was broken off."""


class Recorder(FinetuneClassifier):
    """Keeps what went into the loss."""

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        vars(self).setdefault("seen", []).append((logits.detach().clone(), target.clone()))
        return super().loss(logits, target)

    def recorded(self) -> tuple[Tensor, Tensor]:
        logits, targets = map(torch.cat, zip(*vars(self)["seen"], strict=True))
        return logits, targets


@pytest.mark.parametrize("mixing", ["mixup_alpha", "cutmix_alpha"])
@pytest.mark.parametrize("weights", [None, [0.2, 3.0, 1.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_mixed_pictures_count_by_their_mixed_labels(
    mixing: str, weights: list[float] | None, smoothing: float
) -> None:
    options = {"class_weights": weights, "label_smoothing": smoothing, mixing: 1.0}
    model = Recorder(network(3), num_classes=3, **options, **STILL)
    trainer = make_trainer(max_epochs=1)

    trainer.fit(model, DataLoader(pictures(23, 3), 5))

    logits, targets = model.recorded()
    weight = None if weights is None else torch.tensor(weights)
    loss = F.cross_entropy(logits, targets, weight=weight, label_smoothing=smoothing)
    assert targets.shape == logits.shape == (23, 3)
    acc = accuracy_score(targets.argmax(dim=1), logits.argmax(dim=1))
    same(logged(trainer, "train"), {"train/loss": loss.item(), "train/acc": acc})


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-true", "64-true"])
def test_in_another_precision_the_sums_are_as_exact(precision: Any) -> None:
    weights = [0.25, 3.0, 1.0, 1.0, 1.0, 0.5, 2.0]
    model = Recorder(network(7), num_classes=7, class_weights=weights)
    data = pictures(200, 7)
    trainer = make_trainer(precision=precision)

    found = trainer.validate(model, DataLoader(data, 3), verbose=False)[0]

    logits, labels = model.recorded()
    expected = expected_of(logits, labels, "val", weight=torch.tensor(weights))
    assert logits.dtype == (torch.float64 if precision == "64-true" else torch.float32)
    del expected["val/acc_top5"], found["val/acc_top5"]  # of equal scores either may be the fifth
    same(found, expected)


def test_a_run_that_goes_on_amid_an_epoch_logs_all_pictures_of_it(tmp_path: Path) -> None:
    train, weights = pictures(24, 3), [0.25, 3.0, 1.0]

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                raise Stopped

    def run(*callbacks: Callback, path: Path | None = None) -> Trainer:
        model = FinetuneClassifier(network(3), num_classes=3, class_weights=weights, **STILL)
        trainer = make_trainer(*callbacks, enable_checkpointing=bool(callbacks))
        trainer.fit(model, Resumable(train, 4), DataLoader(train, 7), ckpt_path=path)
        return trainer

    with pytest.raises(Stopped):
        run(LastCheckpoint(tmp_path, every_n_train_steps=1), Stop())
    trainer = run(path=tmp_path / "last.ckpt")

    weight = {"weight": torch.tensor(weights)}
    expected = expected_of(logits_of(network(3), train), train.tensors[1], "val", **weight)
    expected |= {f"train/{name}": expected[f"val/{name}"] for name in ("loss", "acc")}
    assert trainer.global_step == 6
    same(logged(trainer, "train", "val"), expected)


class Resumable(DataLoader[Any]):
    """In a fixed order, from the batch on at which it was stopped."""

    skip, given = 0, 0

    def __iter__(self) -> Any:
        self.given, skip, self.skip = self.skip, self.skip, 0
        for index, batch in enumerate(super().__iter__()):
            if index >= skip:
                self.given = index + 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skip = state["given"]


@pytest.mark.parametrize("num_classes", [2, 4])
def test_balanced_weights_are_scikit_learns(num_classes: int) -> None:
    data = DigitsDataModule(digits=list(range(num_classes)), image_size=16, num_workers=0)
    model = FinetuneClassifier(
        network(num_classes), num_classes=num_classes, class_weights="balanced", **STILL
    )
    make_trainer(limit_train_batches=1, limit_val_batches=0).fit(model, data)

    labels = np.array(data._dataset("train").samples.labels)
    expected = compute_class_weight("balanced", classes=np.arange(num_classes), y=labels)
    assert model.class_weights is not None
    assert model.class_weights.tolist() == pytest.approx(expected.tolist())


class Outputs(NamedTuple):
    """Logits with those of an auxiliary head, as torchvision's networks give when they train."""

    logits: Tensor
    aux_logits: Tensor


def test_the_training_loss_of_auxiliary_heads_counts_all_pictures() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.aux = network(3), nn.Linear(3, 3)
            self.fc = nn.Linear(3, 3)

        def forward(self, images: Tensor) -> Any:
            features = self.body(images)
            logits = self.fc(features)
            return Outputs(logits, self.aux(features)) if self.training else logits

    torch.manual_seed(1)
    net, train, weights = TwoHeads(), pictures(23, 3), [0.25, 3.0, 1.0]
    model = FinetuneClassifier(net, num_classes=3, head_name="fc", class_weights=weights, **STILL)
    with torch.no_grad():
        given = net.train()(train.tensors[0])
    trainer = make_trainer()
    trainer.fit(model, DataLoader(train, 4), DataLoader(train, 4))

    weight = {"weight": torch.tensor(weights)}
    head, auxiliary = (F.cross_entropy(x, train.tensors[1], **weight).item() for x in given)
    found = logged(trainer, "train", "val")
    same({k: found[k] for k in ("train/loss",)}, {"train/loss": head + 0.4 * auxiliary})
    assert found["val/loss"] == pytest.approx(head, abs=2e-6)


@pytest.mark.slow
def test_two_processes_that_share_unevenly_log_what_all_pictures_give_at_once(
    tmp_path: Path,
) -> None:
    from tests.distributed.scores_run import main

    run_ranks(main, tmp_path, folder=tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())

    weight = {"weight": torch.tensor([0.25, 3.0, 1.0])}
    for name, num in {"fit": 13, "validate": 1, "test": 5}.items():
        data = pictures(num, 3)
        stage = "test" if name == "test" else "val"
        expected = expected_of(logits_of(network(3), data), data.tensors[1], stage, **weight)
        same({key: found[name][key] for key in expected}, expected)
    train = pictures(10, 3)
    one = expected_of(logits_of(network(3), train), train.tensors[1], "train", **weight)
    same(
        {key: found["fit"][key] for key in ("train/loss", "train/acc")},
        {key: one[key] for key in ("train/loss", "train/acc")},
    )
