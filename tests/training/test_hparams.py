from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lit_finetune import FinetuneClassifier
from lit_finetune.optim.phase_groups import refuse_optimizers
from lit_finetune.training.hparams import check_hparams, plain_hparams

GOOD: dict[str, Any] = {
    "backbone": "resnet18",
    "num_classes": 3,
    "weights": "DEFAULT",
    "head": "linear",
    "head_name": None,
    "backbone_kwargs": {"width": 4, "layers": [1, 2], "name": "x"},
    "drop_rate": 0.0,
    "lr": 1e-3,
    "backbone_lr_ratio": 0.1,
    "layer_decay": None,
    "weight_decay": None,
    "optimizer": torch.optim.SGD,
    "lr_scheduler": "constant",
    "label_smoothing": 0.0,
    "class_weights": None,
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
    "min_match": 0.9,
}


def test_plain_arguments_are_kept_as_they_are_but_for_the_optimizers() -> None:
    assert plain_hparams(GOOD) == {
        key: value for key, value in GOOD.items() if key not in ("optimizer", "lr_scheduler")
    }


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"backbone": nn.Linear(2, 2)},
        {"head": nn.Linear},
        {"backbone_kwargs": {"norm_layer": nn.LayerNorm}},
        {"backbone_kwargs": {"stages": [{"act": nn.ReLU()}]}},
        {"weights": Path("weights.pth")},
    ],
)
def test_a_checkpoint_with_them_is_read_without_unpickling_code(
    changed: dict[str, Any], tmp_path: Path
) -> None:
    torch.save(plain_hparams({**GOOD, **changed}), tmp_path / "hparams.pt")
    torch.load(tmp_path / "hparams.pt", weights_only=True)


@pytest.mark.parametrize(
    ("changed", "lost"),
    [
        ({"backbone": nn.Linear(2, 2)}, {"backbone"}),
        ({"head": nn.Linear}, {"head"}),
        ({"backbone_kwargs": {"norm_layer": nn.LayerNorm}}, {"backbone", "backbone_kwargs"}),
    ],
)
def test_what_was_an_object_has_to_be_given_again(changed: dict[str, Any], lost: set[str]) -> None:
    plain = plain_hparams({**GOOD, **changed})
    assert {key for key in ("backbone", "head", "backbone_kwargs") if plain[key] is None} == lost
    with pytest.raises(ValueError, match="must be given again"):
        check_hparams(plain)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"num_classes": 2, "class_weights": [1.0, 2.0]},
        {"class_weights": "balanced"},
        {"class_weights": (1.0, 2.0, 3.0)},
        {"layer_decay": 1.0, "weight_decay": 0.0, "drop_rate": 0.9, "label_smoothing": 1.0},
        {"backbone_lr_ratio": 10.0, "mixup_alpha": 0.2, "cutmix_alpha": 1.0, "min_match": 0.0},
    ],
)
def test_good_arguments_pass(changed: dict[str, Any]) -> None:
    check_hparams({**GOOD, **changed})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_classes", 1),
        ("drop_rate", 1.0),
        ("drop_rate", -0.1),
        ("label_smoothing", 1.1),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("backbone_lr_ratio", 0.0),
        ("layer_decay", 0.0),
        ("layer_decay", 1.5),
        ("weight_decay", -0.1),
        ("mixup_alpha", -1.0),
        ("cutmix_alpha", -1.0),
        ("min_match", 1.1),
        ("class_weights", "balance"),
        ("class_weights", [1.0, 0.0, 1.0]),
        ("class_weights", [1.0, 2.0]),
        ("backbone", None),
        ("head", None),
    ],
)
def test_an_argument_that_cannot_be_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{key}`"):
        check_hparams({**GOOD, key: value})


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"(?s)`drop_rate`.*`lr`.*`class_weights`"):
        check_hparams({**GOOD, "drop_rate": 2.0, "lr": -1.0, "class_weights": "no"})


def test_some_arguments_alone_can_be_checked() -> None:
    check_hparams({"num_classes": 5})
    with pytest.raises(ValueError, match="`num_classes`"):
        check_hparams({"num_classes": 0})


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0, True])
@pytest.mark.parametrize(
    "name",
    [
        "lr",
        "backbone_lr_ratio",
        "layer_decay",
        "weight_decay",
        "mixup_alpha",
        "cutmix_alpha",
        "label_smoothing",
        "drop_rate",
        "min_match",
        "image_size",
        "in_chans",
    ],
)
def test_no_number_may_be_infinite_nan_negative_or_a_truth_value(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}`"):
        check_hparams({name: value})


@pytest.mark.parametrize("option", ["lr", "weight_decay", "momentum"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_options_of_an_optimizer_that_are_not_finite_are_refused_by_name(
    option: str, value: float
) -> None:
    options = {"lr": 0.1, option: value}
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4), torch.nn.Linear(4, 2))
    model = FinetuneClassifier(
        network, num_classes=2, image_size=4, optimizer=partial(torch.optim.SGD, **options)
    )
    with pytest.raises(ValueError, match=f"not finite: {option}={value}"):
        model.configure_optimizers()
    optimizer = torch.optim.SGD(network.parameters(), **options)
    with pytest.raises(ValueError, match=f"not finite: {option}={value}"):
        refuse_optimizers([optimizer], num_phases=2)
