"""A classifier of one's own: each method that was replaced is the one that counts."""

import csv
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from examples import subclass
from examples.digits_net import DigitsNet
from examples.subclass import FocalClassifier


def classifier(**options):
    return FocalClassifier(DigitsNet(), num_classes=3, **options)


def test_focal_loss_weighs_each_picture_by_how_wrong_it_is():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])

    right = F.softmax(logits, dim=1)[range(6), labels]
    expected = (-((1 - right) ** 2) * right.log()).mean()

    torch.testing.assert_close(classifier().loss(logits, labels), expected)


def test_without_gamma_focal_loss_is_cross_entropy():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])

    loss = classifier(gamma=0.0).loss(logits, labels)

    torch.testing.assert_close(loss, F.cross_entropy(logits, labels))


def test_its_head_and_its_metrics_are_its_own():
    model = classifier()

    assert [type(layer) for layer in model.get_classifier()] == [nn.LayerNorm, nn.Linear]
    assert {"val/acc", "val/auroc"} <= set(model.val_metrics)


def test_its_optimizer_is_its_own_over_named_groups():
    optimizer = classifier(lr_scheduler="constant").configure_optimizers()

    assert type(optimizer) is torch.optim.SGD
    assert all(group["nesterov"] for group in optimizer.param_groups)
    assert [group["name"] for group in optimizer.param_groups[:2]] == [
        "head/decay",
        "head/no_decay",
    ]


def test_the_command_line_logs_its_metrics_and_keeps_it_whole_in_a_checkpoint():
    subclass.main([*subclass.small_run(), "--model.gamma=1.5"])

    run = Path("lightning_logs/version_0")
    model = FocalClassifier.load_from_checkpoint(run / "checkpoints/last.ckpt")
    with open(run / "metrics.csv") as file:
        values = [row["val/auroc"] for row in csv.DictReader(file) if row["val/auroc"]]
    assert model.hparams["gamma"] == 1.5
    assert type(model.get_classifier()[0]) is nn.LayerNorm
    assert len(values) == 3
    assert all(0 <= float(value) <= 1 for value in values)
