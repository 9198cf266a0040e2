"""Refuse files that are no weights files: say what each one is, and what to do."""

import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_finetune.files.foreign_archives import foreign_archive
from lit_finetune.files.foreign_formats import CONVERT, foreign_format
from lit_finetune.files.index_paths import is_plain_name
from lit_finetune.files.json import read_json
from lit_finetune.files.pickle_check import PickleError
from lit_finetune.files.pickle_contents import quantization_library
from lit_finetune.files.placeholder_objects import PlaceholderArray, unsupported_global
from lit_finetune.files.terminal_text import printable

_SAVE_AGAIN = (
    "On a machine where you trust it, save the tensors alone, "
    '`torch.save({}.state_dict(), "weights.pth")`, or as safetensors, and load that file.'
)
SAVE_STATE_DICT = 'Where the network is, save `torch.save(model.state_dict(), "weights.pth")`.'
_BY_NAME = {
    r"\.data-\d{5}-of-\d{5}$": "a TensorFlow checkpoint",
    r"\.onnx(_data|\.data)?$": "an ONNX model",
    r"\.mlmodel$": "a Core ML model",
    r"\.pb$": "a TensorFlow graph",
    r"\.tflite$": "a TensorFlow Lite model",
    r"\.msgpack$": "a msgpack file, as Flax writes them",
    r"\.caffemodel$": "a Caffe model",
    r"\.params$": "a file of MXNet's",
    r"\.engine$|\.trt$": "a TensorRT engine",
    r"\.(pdparams|pdiparams|pdmodel|pdopt)$": "a PaddlePaddle model",
    r"\.mnn$": "an MNN model",
    r"\.weights$": "the weights of a Darknet network (YOLO)",
    r"\.h5$|\.hdf5$|\.keras$": "a model of Keras",
}
"""What a file is by its name, if its content is not telling."""
_BY_SIBLING = {".xml": "the weights of an OpenVINO model", ".param": "the weights of an ncnn model"}
"""What a file of bare numbers is, by the suffix of another file of the same name."""
_TORCH_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")
"""The pickled magic number at the start of torch's legacy format."""
FIRST_BYTES = 1 << 14
"""Bytes at the start, and at the end, of a file that its format is recognised by."""
_LONGEST_HEADER = 100_000_000
"""The safetensors library reads no longer header."""
_MAX_EXPANDED_BYTES = 1 << 20
"""A tensor of up to this size may be larger than its file: it can be an expanded one."""
_MAX_COMPRESSED_BYTES = 1 << 24
"""Bytes that an archive may hold beyond its size: TorchScript compresses its code."""
_ADVICE = {
    ".lora_A.": "The file holds LoRA adapters and the weights. If a FinetuneClassifier wrote it,"
    " `load_from_checkpoint` reads it, and `merge_lora()` gives the plain network to save.",
    "_flat_param": "The file holds FSDP's flattened parameters: save a full state dict instead.",
}


class NoWeightsError(Exception):
    """A file is no weights file. The message completes "the file …"."""


def is_safetensors(start: bytes) -> bool:
    """Whether a file begins as safetensors do: with the length of a JSON header, and the header.

    >>> is_safetensors(bytes([2, 0, 0, 0, 0, 0, 0, 0]) + b"{}"), is_safetensors(b'{"model":{}}')
    (True, False)
    """
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER


def has_weights_signature(start: bytes) -> bool:
    """Whether a file begins as `torch.save`, safetensors or any zip archive does."""
    is_legacy = start.startswith(b"\x80") and _TORCH_MAGIC in start[:32]
    return is_legacy or start.startswith(b"PK\x03\x04") or is_safetensors(start)


def refuse_foreign_content(start: bytes, end: bytes = b"") -> None:
    """Raise if the first or last bytes of a file show another format than weights."""
    description = None if has_weights_signature(start) else foreign_format(start, end)
    if description:
        raise NoWeightsError(f"is {description}.")


def refuse_foreign_name(path: Path) -> None:
    """Raise if a file is a network of another framework by its name."""
    found = (
        description
        for pattern, description in _BY_NAME.items()
        if re.search(pattern, path.name.lower())
    )
    description = next(found, None)
    is_bare = path.suffix in (".bin", ".weights")
    for suffix, kind in _BY_SIBLING.items() if is_bare else ():
        if path.with_suffix(suffix).is_file():
            description = f"{kind} (`{path.with_suffix(suffix).name}` is in the same folder)"
    if description:
        raise NoWeightsError(f"is by its name {description}, not a file of PyTorch's: {CONVERT}.")


def refuse_archive(path: Path) -> None:
    """Raise if a zip archive is not torch's, is damaged, or claims more bytes than it has."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if not any(member.filename.split("/")[-1] == "data.pkl" for member in members):
            raise NoWeightsError(f"is {foreign_archive([each.filename for each in members])}.")
        refuse_oversized_members(members, path.stat().st_size)
        # torch does not check the checksums, and can be set to write none: then all are 0.
        if any(member.CRC for member in members) and archive.testzip():
            raise zipfile.BadZipFile("A checksum is wrong.")


def refuse_oversized_members(members: Iterable[zipfile.ZipInfo], size: int) -> None:
    """Raise if the members of a zip archive claim to be larger than its file."""
    claimed = sum(member.file_size for member in members)
    if claimed > size + _MAX_COMPRESSED_BYTES:
        raise NoWeightsError(
            f"claims to hold {claimed:,} bytes in a file of {size:,}: it is damaged or was "
            "compressed. Save it again with `torch.save`."
        )


def refuse_oversized_tensors(tensors: Mapping[str, Tensor], size: int) -> None:
    """Raise if a tensor claims to be larger than its file: a copy of it would fill the memory."""
    limit = max(size, _MAX_EXPANDED_BYTES)
    for name, tensor in tensors.items():
        if tensor.nbytes > limit:
            raise NoWeightsError(
                f"claims {tensor.nbytes:,} bytes for {name[:80]!r} in a file of {size:,}: it is "
                "damaged, or holds an expanded tensor. Save it again, contiguous."
            )


def shard_names(index: Path) -> list[str]:
    """The files that a Hugging Face index names, all of them in the folder of the index."""
    try:
        names = set(read_json(index)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NoWeightsError("is no index of weights files: no `weight_map`.") from error
    for name in names:
        if not is_plain_name(name):
            raise NoWeightsError(
                f"names {name!r}, which is not a file next to it: an index and its files must be "
                "in one folder."
            )
        if name.endswith(".index.json"):
            raise NoWeightsError(f"names {name!r}, which is another index instead of weights.")
    return sorted(names)


def explain_error(path: Path, error: Exception, start: bytes) -> str:
    """What an error while reading a file means, and what to do.

    Args:
        path: The file.
        error: The error.
        start: The first bytes of the file.
    """
    if isinstance(error, NoWeightsError):
        return str(error)
    if isinstance(error, PickleError):
        return f"{error}, so it was not opened: it is damaged, or was made to do harm."
    unsafe = unsupported_global(error)
    if unsafe and (library := quantization_library(unsafe)):
        return (
            f"holds weights quantised by {library}, which are objects of it (`{unsafe}`). Give the "
            f"file of before quantisation, or dequantise them where {library} is installed, and "
            "save them again."
        )
    if unsafe:
        description = (
            f"holds more than tensors: `{unsafe}` would be unpickled, which can run any code."
        )
        return f"{description} {_SAVE_AGAIN.format('model')}"
    if "TorchScript" in str(error):
        description = "is a TorchScript archive: a program, not only weights."
        return f"{description} {_SAVE_AGAIN.format(f'torch.jit.load({path.name!r})')}"
    size = f"{path.stat().st_size:,} bytes"
    if has_weights_signature(start):
        return f"is no weights file, cut short or damaged ({size}). Download or save it again."
    return (
        f"is no weights file, or damaged ({size}): it begins neither as a file of `torch.save` nor "
        "of safetensors. Give such a file, or download or save it again."
    )


def describe_content(content: Any) -> str:
    """What a file contains instead of tensors by name."""
    kind = type(content).__name__
    if not isinstance(content, dict):
        return kind
    if not content:
        return f"{kind} with nothing in it"
    if {"state", "param_groups"} <= content.keys():
        return f"{kind} with the state of an optimizer, without weights"
    values = [*content.values()]
    values += [value for inner in values if isinstance(inner, dict) for value in inner.values()]
    if any(isinstance(value, PlaceholderArray) for value in values):
        return (
            f"{kind} of NumPy arrays: where you have made it, save tensors, "
            "`{name: torch.from_numpy(array) for name, array in weights.items()}`"
        )
    if any(isinstance(value, Tensor) and value.is_meta for value in values):
        return f"{kind} of tensors without their numbers (on `meta`)"
    keys = printable(", ".join(str(key)[:40] for key in list(content)[:10]))
    return f"{kind} with the keys: {keys}"


def advice_for(names: Iterable[str]) -> str:
    """Advice on a file that does not fit, by the names of its tensors; with a space before it."""
    names = list(names)
    found = [text for part, text in _ADVICE.items() if any(part in name for name in names)]
    return "".join(f" {text}" for text in found)
