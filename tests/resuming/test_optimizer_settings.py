"""A run that resumes with another optimizer, scheduler or option than its checkpoint's."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback
from lit_finetune.resuming.run_state import RUN
from tests.resuming.resumed_runs import Net

SCHEDULE: list[dict[str, Any]] = [{"modules": "head"}, {"step": 2, "modules": "layer2"}]


def sgd(groups: Any) -> torch.optim.Optimizer:
    """An optimizer of another class than the default."""
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


def by_steps(gamma: float) -> Any:
    """A scheduler of another class than the default."""
    return lambda optimizer: StepLR(optimizer, 1, gamma=gamma)


def fit(folder: Path, ckpt_path: Any = None, *, schedule: Any = None, **model: Any) -> Trainer:
    """Train for one more epoch of four batches."""
    seed_everything(0, verbose=False)
    images, labels = torch.rand(16, 3, 10, 10), torch.arange(16) % 3
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=2 if ckpt_path else 1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[FreezeUnfreezeCallback(schedule)] if schedule else [],
    )
    classifier = FinetuneClassifier(Net(), num_classes=3, **model)
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    trainer.fit(classifier, loader, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def saved(folder: Path, **options: Any) -> Path:
    """The checkpoint of a first epoch."""
    path = folder / "first.ckpt"
    fit(folder, **options).save_checkpoint(path)
    return path


def without_settings(path: Path) -> Path:
    """The checkpoint as an earlier release wrote it."""
    checkpoint = copy.deepcopy(torch.load(path, weights_only=True))
    del checkpoint[RUN]["settings"]
    torch.save(checkpoint, path)
    return path


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ({}, {"optimizer": sgd}, ("AdamW", "SGD")),
        ({"optimizer": sgd}, {}, ("SGD", "AdamW")),
        ({}, {"optimizer": torch.optim.Adam}, ("AdamW", "Adam ")),
        ({}, {"lr_scheduler": by_steps(0.1)}, ("LambdaLR", "StepLR")),
        ({}, {"lr_scheduler": "constant"}, ("LambdaLR", "no scheduler")),
    ],
    ids=["to sgd", "to adamw", "to adam", "to steps", "to none"],
)
def test_another_class_is_refused(
    tmp_path: Path, first: Any, second: Any, names: tuple[str, str]
) -> None:
    path = saved(tmp_path, schedule=SCHEDULE, **first)
    with pytest.raises(ValueError, match="passed as `weights`") as error:
        fit(tmp_path, path, schedule=SCHEDULE, **second)
    assert all(name.strip() in str(error.value) for name in names)


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [({}, {"optimizer": sgd}, "SGD.*'momentum'"), ({"optimizer": sgd}, {}, "AdamW.*'betas'")],
    ids=["to sgd", "to adamw"],
)
def test_another_optimizer_is_refused_by_its_options_in_an_older_checkpoint(
    tmp_path: Path, first: Any, second: Any, names: str
) -> None:
    path = without_settings(saved(tmp_path, **first))
    with pytest.raises(ValueError, match=names):
        fit(tmp_path, path, **second)


@pytest.mark.parametrize(
    "schedule", [None, pytest.param(SCHEDULE, marks=pytest.mark.long)], ids=["plain", "schedule"]
)
@pytest.mark.parametrize(
    ("first", "second", "change"),
    [
        ({}, {"lr": 0.1}, "lr=0.001, not 0.1"),
        ({"lr_scheduler": "constant"}, {"lr_scheduler": "constant", "lr": 0.1}, "lr=0.001, not"),
        ({"weight_decay": 0.01}, {"weight_decay": 0.5}, "weight_decay=0.01, not 0.5"),
        (
            {"lr_scheduler": by_steps(0.1)},
            {"lr_scheduler": by_steps(0.5)},
            "StepLR's gamma=0.1, not 0.5",
        ),
    ],
    ids=["lr", "constant lr", "weight decay", "scheduler"],
)
def test_another_option_is_reported_and_the_old_one_is_used(
    tmp_path: Path, schedule: Any, first: Any, second: Any, change: str
) -> None:
    path = saved(tmp_path, schedule=schedule, **first)
    with pytest.warns(UserWarning, match=change) as messages:
        changed = fit(tmp_path, path, schedule=schedule, **second)
    assert sum("checkpoint's values" in str(each.message) for each in messages) == 1
    unchanged = fit(tmp_path, path, schedule=schedule, **first)
    both = (each.optimizers[0].param_groups for each in (changed, unchanged))
    groups = zip(*both, strict=True)
    assert all(a["lr"] == b["lr"] and a["weight_decay"] == b["weight_decay"] for a, b in groups)


@pytest.mark.parametrize(
    ("options", "is_old"),
    [({}, False), ({"optimizer": sgd, "lr_scheduler": by_steps(0.1)}, False), ({}, True)],
    ids=["default", "sgd by steps", "older checkpoint"],
)
def test_the_same_options_give_no_message_even_at_the_second_resume(
    tmp_path: Path, options: Any, is_old: bool
) -> None:
    path = saved(tmp_path, schedule=SCHEDULE, **options)
    if is_old:
        without_settings(path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The checkpoint's run had")
        again = fit(tmp_path, path, schedule=SCHEDULE, **options)
        again.save_checkpoint(path)
        fit(tmp_path, path, schedule=SCHEDULE, **options)
