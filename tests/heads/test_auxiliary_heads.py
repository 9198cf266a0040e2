"""GoogLeNet and Inception learn with their auxiliary heads, and are measured without them."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models.googlenet import GoogLeNetOutputs
from torchvision.models.inception import InceptionOutputs

from lit_finetune import FinetuneClassifier
from lit_finetune.modules.outputs import weighted_auxiliary_logits

PLAIN = {"init_weights": False, "dropout": 0.0, "dropout_aux": 0.0}
IMAGES, LABELS = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)), [0, 1, 2, 0]


@pytest.fixture(scope="module")
def googlenet() -> FinetuneClassifier:
    torch.manual_seed(0)
    return FinetuneClassifier("googlenet", num_classes=3, backbone_kwargs=PLAIN)


def loader() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(IMAGES, torch.tensor(LABELS)), batch_size=4)


def trainer(**options: object) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **options)


@pytest.mark.slow
def test_the_loss_is_the_heads_and_three_tenths_of_each_auxiliary_one(
    googlenet: FinetuneClassifier,
) -> None:
    model, labels = deepcopy(googlenet), torch.tensor(LABELS)
    output = deepcopy(model.backbone).train()(IMAGES)
    losses = [cross_entropy(logits, labels) for logits in output]
    run = trainer(max_steps=1, limit_val_batches=0)
    run.fit(model, loader())
    expected = losses[0] + 0.3 * (losses[1] + losses[2])
    assert run.callback_metrics["train/loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    for head in ("fc", "aux1.fc2", "aux2.fc2"):
        assert not torch.equal(
            model.backbone.get_submodule(head).weight,
            googlenet.backbone.get_submodule(head).weight,
        )


def test_evaluation_is_the_heads_alone(googlenet: FinetuneClassifier) -> None:
    run = trainer()
    run.validate(googlenet, loader(), verbose=False)
    with torch.no_grad():
        expected = cross_entropy(googlenet.backbone.eval()(IMAGES), torch.tensor(LABELS))
    assert run.callback_metrics["val/loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_auxiliary_heads_train_with_the_head(googlenet: FinetuneClassifier) -> None:
    head = googlenet.blocks[-1]
    assert {name.split(".")[1] for name in head.parameters} == {"fc", "aux1", "aux2"}
    assert not [name for b in googlenet.blocks[:-1] for name in b.parameters if "aux" in name]


def test_the_published_weights_of_the_losses_are_used() -> None:
    logits, aux1, aux2 = torch.zeros(3, 2, 5)
    assert weighted_auxiliary_logits(GoogLeNetOutputs(logits, aux2, aux1))[0][0] == 0.3
    assert weighted_auxiliary_logits(InceptionOutputs(logits, aux1))[0][0] == 0.4
    assert weighted_auxiliary_logits(GoogLeNetOutputs(logits, None, None)) == ()
    assert weighted_auxiliary_logits(logits) == ()


@pytest.mark.slow
@pytest.mark.parametrize(("num_classes", "is_kept"), [(3, True), (1000, False)])
def test_a_file_brings_what_it_has_of_the_auxiliary_heads(
    tmp_path: Path, googlenet: FinetuneClassifier, num_classes: int, is_kept: bool
) -> None:
    saved = deepcopy(googlenet)
    if not is_kept:
        saved.reset_classifier(num_classes)
    state = saved.backbone.state_dict()
    torch.save(state, tmp_path / "whole.pth")
    model = FinetuneClassifier(
        "googlenet", num_classes=3, backbone_kwargs=PLAIN, weights=str(tmp_path / "whole.pth")
    )
    assert model.load_report is not None
    assert model.load_report.share == 1
    own = model.backbone.state_dict()
    assert torch.equal(own["aux1.conv.conv.weight"], state["aux1.conv.conv.weight"])
    for name in ("fc.weight", "aux1.fc2.weight", "aux2.fc2.weight"):
        assert (name in model.load_report.matched) is is_kept


@pytest.mark.slow
def test_a_file_without_auxiliary_heads_fills_the_backbone(
    tmp_path: Path, googlenet: FinetuneClassifier
) -> None:
    state = googlenet.backbone.state_dict()
    torch.save({n: t for n, t in state.items() if "aux" not in n}, tmp_path / "without.pth")
    model = FinetuneClassifier(
        "googlenet", num_classes=3, backbone_kwargs=PLAIN, weights=str(tmp_path / "without.pth")
    )
    assert model.load_report is not None
    assert model.load_report.share == 1
    assert "fc.weight" in model.load_report.matched
