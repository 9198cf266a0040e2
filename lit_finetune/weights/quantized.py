"""Find the layers of a file with quantised weights, and the library that quantised them.

Quantised weights are integers (or float8) that mean nothing without scales, zero points or code
books, which are stored in the file under the names of each library.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lit_finetune.weights.key_matching import is_float

_BY_NAME = {
    r"_packed_params\._packed_params$": "torch",
    r"SCB$|weight\.(nested_)?(absmax|quant_map)$|weight\.quant_state\.": "bitsandbytes",
    r"q(weight|zeros)$": "GPTQ or AWQ",
    r"weight_(packed|zero_point|shape)$": "compressed-tensors",
    r"W_q$": "HQQ",
    r"weight\._(data|scale|shift)$": "quanto",
    r"_weight_(qdata|scale|zero_point)$": "torchao",
}
"""The libraries, by the ends of the tensors' names behind the quantised layer's name."""


def quantised_layers(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The layers with quantised weights, each with its quantised tensor and the library.

    >>> half = torch.ones(2, 2, dtype=torch.float16)
    >>> quantised_layers({"fc.weight": half.to(torch.int8), "fc.SCB": half[0], "conv.weight": half})
    {'fc': 'fc.weight (int8) of bitsandbytes'}
    """
    layers: dict[str, str] = {}
    libraries: dict[str, str] = {}
    for name, tensor in tensors.items():
        is_weight = name.endswith("weight") and tensor.ndim > 1
        is_integer = not is_float(tensor) and not tensor.is_complex()
        description = f"{name} ({str(tensor.dtype).removeprefix('torch.')})"
        if tensor.is_quantized or (is_weight and is_integer and tensor.dtype != torch.bool):
            layer = re.sub(r"(^|\.)(_packed_params\._packed_params|\w*weight)$", "", name)
            layers.setdefault(layer, description)
        for pattern, library in _BY_NAME.items():
            if match := re.search(rf"(^|\.)({pattern})", name):
                layers.setdefault(name[: match.start()], description)
                libraries.setdefault(name[: match.start()], f" of {library}")
    return {layer: description + libraries.get(layer, "") for layer, description in layers.items()}


def format_quantised(layers: Mapping[str, str]) -> str:
    """The first few quantised layers, in words.

    >>> format_quantised({str(number): f"{number}.weight (int8)" for number in range(4)})
    '4: 0.weight (int8), 1.weight (int8), 2.weight (int8), …'
    """
    some = list(layers.values())
    return f"{len(some)}: {', '.join(some[:3])}{', …' if len(some) > 3 else ''}" if some else ""


def without_prefixes(layers: Mapping[str, str], prefixes: Iterable[str]) -> dict[str, str]:
    """The layers whose names have none of the prefixes."""
    prefixes = tuple(prefixes)
    return {name: how for name, how in layers.items() if not f"{name}.".startswith(prefixes)}
