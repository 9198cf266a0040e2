"""The networks of Hugging Face transformers that are tried, each at a size for tests.

`FinetuneClassifier(f"hf/{name}", backbone_kwargs=TINY_CONFIGS[name], num_classes=…)` builds one in
milliseconds, without weights.
"""

from collections.abc import Mapping
from typing import Any

_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
_DINO = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "mlp_ratio": 2,
    "image_size": 28,
    "patch_size": 14,
}
_SWIN = {
    "embed_dim": 8,
    "depths": [1, 2],
    "num_heads": [2, 2],
    "window_size": 4,
    "image_size": 32,
    "patch_size": 2,
}
_STAGES = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 2, 1]}
_CONVNEXT = {**_STAGES, "image_size": 64}
_PYRAMID = {**_STAGES, "num_attention_heads": [1, 1, 2, 2]}

NAMED: Mapping[str, Mapping[str, Any]] = {
    "vit": _VIT,
    "deit": _VIT,
    "swin": _SWIN,
    "convnext": _CONVNEXT,
    "convnextv2": _CONVNEXT,
    "resnet": {**_STAGES, "embedding_size": 8, "layer_type": "basic"},
    "dinov2": _DINO,
    "beit": _VIT,
    "siglip": {"vision_config": _VIT},
    "siglip_vision_model": _VIT,
    "efficientnet": {
        "image_size": 32,
        "width_coefficient": 0.25,
        "depth_coefficient": 0.2,
        "hidden_dim": 320,
    },
}
"""Those that people ask for most, in every test."""

OTHERS: Mapping[str, Mapping[str, Any]] = {
    "bit": {**_STAGES, "embedding_size": 8, "hidden_sizes": [32, 32, 32, 32], "num_groups": 4},
    "clip": {"vision_config": _VIT},
    "clip_vision_model": _VIT,
    "cvt": {"embed_dim": [8, 16, 16], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
    "data2vec-vision": _VIT,
    "dinov2_with_registers": _DINO,
    "dinov3_convnext": _CONVNEXT,
    "dinov3_vit": {**_VIT, "num_register_tokens": 2},
    "donut-swin": _SWIN,
    "focalnet": {
        "image_size": 32,
        "embed_dim": 8,
        "depths": [1, 1],
        "hidden_sizes": [8, 16],
        "focal_levels": [1, 1],
        "focal_windows": [3, 3],
    },
    "hiera": {
        "image_size": [32, 32],
        "embed_dim": 8,
        "depths": [1, 1, 1],
        "num_heads": [1, 2, 4],
        "patch_stride": [4, 4],
        "query_stride": [2, 2],
        "masked_unit_size": [4, 4],
        "num_query_pool": 2,
    },
    "ijepa": _VIT,
    "levit": {
        "image_size": 32,
        "hidden_sizes": [16, 32, 32],
        "num_attention_heads": [2, 2, 2],
        "depths": [1, 1, 1],
        "key_dim": [4, 4, 4],
    },
    "mobilenet_v1": {"depth_multiplier": 0.25, "image_size": 32},
    "mobilenet_v2": {"depth_multiplier": 0.25, "image_size": 32},
    "mobilevit": {
        "image_size": 64,
        "hidden_sizes": [8, 12, 16],
        "neck_hidden_sizes": [4, 8, 8, 12, 12, 16, 32],
    },
    "mobilevitv2": {"image_size": 64, "width_multiplier": 0.25},
    "poolformer": _STAGES,
    "pvt": {**_PYRAMID, "image_size": 64},
    "pvt_v2": {**_PYRAMID, "image_size": 64},
    "regnet": {**_STAGES, "embedding_size": 8, "groups_width": 4},
    "segformer": {**_PYRAMID, "decoder_hidden_size": 16},
    "swinv2": _SWIN,
    "vit_msn": _VIT,
}
"""More that transformers has for pictures."""

TINY_CONFIGS: Mapping[str, Mapping[str, Any]] = {**NAMED, **OTHERS}
"""By model type, what to build it with."""

NOT_SUPPORTED: Mapping[str, str] = {
    "dinat": "needs the package natten",
    "imagegpt": "takes colour clusters, not pictures",
    "perceiver": "takes its input under another name than `pixel_values`",
    "pp_lcnet": "gives its logits as `last_hidden_state`",
    "siglip2": "the naflex variants take patches and masks; others are of the type `siglip`",
    "swiftformer": "has two heads that work together",
    "timm_wrapper": "is a network of timm: use `timm/<name>`",
}
"""Image classifiers of transformers that cannot be used, and why."""
