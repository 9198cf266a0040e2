"""A folder of Hugging Face is read as it lies here: nothing in it leads to the network."""

import json
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from benchmarks.hf_families import TINY_CONFIGS
from lit_finetune import FinetuneClassifier, load_weights

transformers = pytest.importorskip("transformers")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All addresses that were asked for. None of them is there."""
    addresses: list[Any] = []

    def refuse(*words: Any, **_: Any) -> NoReturn:
        addresses.append(words)
        raise OSError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return addresses


def folder_of(kind: str, folder: Path, **fields: Any) -> Path:
    """A saved network, whose config holds more than transformers wrote into it."""
    config = transformers.AutoConfig.for_model(kind, **TINY_CONFIGS[kind], num_labels=3)
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


LEADING_AWAY: dict[str, dict[str, Any]] = {
    "nothing": {},
    "code beside a model": {
        "auto_map": {
            "AutoConfig": "someone/net--configuration.Config",
            "AutoModelForImageClassification": "someone/net--modeling.Net",
        },
        "trust_remote_code": True,
    },
    "another name": {"_name_or_path": "someone/net", "_commit_hash": "0" * 40},
    "an adapter": {"peft_config": {"base_model_name_or_path": "someone/net"}},
    "a quantisation": {"custom_pipelines": {"x": {"impl": "someone/net--x.X"}}},
}


@pytest.mark.parametrize("fields", LEADING_AWAY.values(), ids=LEADING_AWAY)
def test_a_folder_is_read_without_a_connection(
    tmp_path: Path, asked: list[Any], fields: dict[str, Any]
) -> None:
    folder = folder_of("vit", tmp_path, **fields)
    (folder / "modeling.py").write_text("raise SystemExit('run')")

    model = FinetuneClassifier(f"hf/{folder}", num_classes=3)

    kept = transformers.AutoModelForImageClassification.from_pretrained(folder).state_dict()
    assert all(torch.equal(model.backbone.state_dict()[name], kept[name]) for name in kept)
    assert not asked


def test_weights_by_names_of_transformers_are_translated_without_a_connection(
    tmp_path: Path, asked: list[Any]
) -> None:
    folder = folder_of("vit", tmp_path, _name_or_path="someone/net")
    model = FinetuneClassifier(f"hf/{folder}/config.json", num_classes=3)

    load_weights(model.backbone, folder / "model.safetensors")

    assert not asked


REFUSED: dict[str, dict[str, Any]] = {
    "a program for attention": {"model_type": "vit", "_attn_implementation": "someone/kernel"},
    "one in a part": {
        "model_type": "clip",
        "vision_config": {"attn_implementation": "someone/kernel@main"},
    },
    "a backbone of the hub": {
        "model_type": "dpt",
        "backbone": "someone/net",
        "use_pretrained_backbone": True,
    },
    "one of timm by the hub": {
        "model_type": "timm_backbone",
        "backbone": "hf-hub:someone/net",
        "use_pretrained_backbone": True,
    },
    "one of timm in a detector": {
        "model_type": "detr",
        "use_timm_backbone": True,
        "use_pretrained_backbone": True,
        "backbone": "hf_hub:someone/net",
    },
    "a network for segmentation": {"model_type": "upernet", "backbone": "someone/net"},
    "a detector without its backbone": {"model_type": "maskformer", "backbone": "someone/net"},
}


@pytest.mark.parametrize("fields", REFUSED.values(), ids=REFUSED)
def test_a_config_that_needs_the_hub_is_refused_without_a_connection(
    tmp_path: Path, asked: list[Any], fields: dict[str, Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields))

    with pytest.raises(ValueError, match="config") as refused:
        FinetuneClassifier(f"hf/{tmp_path}/config.json", num_classes=3)

    assert not asked
    assert "HF_HUB_OFFLINE" not in str(refused.value)
