"""A file that describes a network larger than any memory is refused before memory is taken."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import __version__
from torch import nn

from lit_finetune import FinetuneClassifier
from lit_finetune.backbones.create import create_backbone
from lit_finetune.checkpoints.build_limits import limited_memory
from lit_finetune.cli.command_line import main
from lit_finetune.images.data_config import DataConfig

ONE = nn.Parameter(torch.zeros(1))
HUGE: dict[str, dict[str, Any]] = {
    "num_classes": {"num_classes": 10**12},
    "image_size": {"image_size": 10**9},
    "in_chans": {"in_chans": 10**9},
    "backbone_kwargs.width_per_group": {"backbone_kwargs": {"width_per_group": 10**9}},
    "backbone_kwargs.depth": {
        "backbone": "timm/vit_tiny_patch16_224",
        "backbone_kwargs": {"depth": 10**7},
    },
    "backbone_kwargs.num_labels": {"backbone": "hf/vit", "backbone_kwargs": {"num_labels": 10**9}},
    "backbone_kwargs.width_mult": {
        "backbone": "mobilenet_v2",
        "backbone_kwargs": {"width_mult": 1e8},
    },
    "lora.rank": {"lora": {"rank": 10**9, "target": ["fc"]}},
}


def save(path: Path, hparams: dict[str, Any], **more: Any) -> Path:
    said = {"backbone": "resnet18", "num_classes": 2, "weights": None, **hparams}
    content = {"pytorch-lightning_version": __version__, "epoch": 0, "global_step": 0}
    own = {"classes": None, "data_config": {}, "run_seed": None}
    content |= {"hyper_parameters": said, "lit_finetune": own}
    torch.save({**content, "state_dict": {"backbone.fc.bias": torch.zeros(2)}, **more}, path)
    return path


@pytest.mark.parametrize(("key", "hparams"), HUGE.items(), ids=HUGE.keys())
def test_a_number_that_cannot_be_is_named(
    key: str, hparams: dict[str, Any], tmp_path: Path
) -> None:
    file = save(tmp_path / "huge.ckpt", hparams)
    with pytest.raises(ValueError, match=f"The checkpoint says `{key}` 1[0,]+0(.0)?, but all its"):
        FinetuneClassifier.load_from_checkpoint(file)


@pytest.mark.parametrize("how", ["validate", "test", "predict"])
def test_the_command_line_names_it_as_well(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(tmp_path / "huge.ckpt", {"num_classes": 10**12})
    with pytest.raises(SystemExit):
        main(args=[how, "--data", "DigitsDataModule", f"--ckpt_path={file}"])
    assert "The checkpoint says `num_classes` 1,000,000,000,000" in capsys.readouterr().err


@pytest.mark.parametrize(
    "hparams",
    [
        {"backbone": "mobilenet_v2", "backbone_kwargs": {"width_mult": 5e4}},
        {"backbone": "hf/swin", "backbone_kwargs": {"window_size": 3000}},
    ],
)
def test_numbers_that_are_too_large_together_are_named(
    hparams: dict[str, Any], tmp_path: Path
) -> None:
    file = save(tmp_path / "huge.ckpt", hparams)
    key, *_ = hparams["backbone_kwargs"]
    with pytest.raises(ValueError, match=rf"describes a network, with .*{key}.*GiB and more"):
        FinetuneClassifier.load_from_checkpoint(file)


def test_what_the_user_says_anew_counts(tmp_path: Path) -> None:
    file = save(tmp_path / "huge.ckpt", {"image_size": 10**9})
    FinetuneClassifier.load_from_checkpoint(file, image_size=64, strict=False)


def test_the_size_of_pictures_in_a_checkpoint_has_an_end() -> None:
    with pytest.raises(ValueError, match="data config cannot be: pictures of"):
        DataConfig.from_checkpoint({"image_size": [10**9, 10**9], "resize_size": 10**9})
    assert DataConfig.from_checkpoint(DataConfig().to_dict()) == DataConfig()


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_labels", 10**9), ("num_hidden_layers", 10**9), ("depths", [1, 10**9])],
)
def test_a_config_of_hugging_face_has_an_end(key: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", key: value}))
    with pytest.raises(ValueError, match=r"config\.json says|config\.json describes"):
        create_backbone(f"hf/{tmp_path}/config.json")


@pytest.mark.parametrize("name", ["resnet18", "timm/test_vit", "timm/test_efficientnet"])
def test_a_network_is_built_to_the_bit_as_ever(name: str) -> None:
    torch.manual_seed(0)
    expected = create_backbone(name).network.state_dict()
    torch.manual_seed(0)
    with limited_memory("The test describes a network"):
        built = create_backbone(name).network.state_dict()
    assert all(map(torch.equal, built.values(), expected.values()))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(10**8, 10**8),
        lambda: torch.zeros(10**13),
        lambda: torch.arange(10**6)[:, None] - torch.arange(10**6),
        lambda: torch.ones(1).repeat(10**13),
        lambda: torch.empty(10**12, 10**12),
        lambda: [nn.Module().register_parameter("b", ONE) for _ in range(10**9)],
    ],
)
def test_no_memory_is_taken(make: Any) -> None:
    with pytest.raises(ValueError, match="more than can be"), limited_memory("A network"):
        make()
