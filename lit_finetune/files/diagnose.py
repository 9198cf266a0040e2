"""What people have in the place of a weights file, and what they can do about it."""

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
from lit_finetune.files.pickle_contents import quantising_library
from lit_finetune.files.placeholder_objects import InertArray, unknown_name
from lit_finetune.files.terminal_text import printable

_SAVE_AGAIN = (
    "On a machine where you trust it, save the tensors alone, "
    '`torch.save({}.state_dict(), "weights.pth")`, or as safetensors, and load that file.'
)
SAVE_STATE = 'Where the network is, save `torch.save(model.state_dict(), "weights.pth")`.'
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
"""What a file is whose content tells nothing, by its name."""
_BESIDE = {".xml": "the weights of an OpenVINO model", ".param": "the weights of an ncnn model"}
"""What a file of bare numbers is, by the suffix of its brother."""
_TORCH = bytes.fromhex("6cfc9c46f9206aa85019")
"""The number that torch's legacy format begins with, in pickled form."""
FIRST_BYTES = 1 << 14
"""How much of a file tells what it is, from its beginning and from its end."""
_LONGEST_HEADER = 100_000_000
"""The safetensors library reads no longer one."""
_LEAST_ROOM = 1 << 20
"""A tensor of so many bytes may be larger than its file: it can be an expanded one."""
_ROOM_FOR_TEXT = 1 << 24
"""TorchScript compresses its code; weights are never compressed."""
_ADVICE = {
    ".lora_A.": "The file holds LoRA adapters beside the weights. If a FinetuneClassifier wrote it,"
    " `load_from_checkpoint` reads it, and `merge_lora()` gives the plain network to save.",
    "_flat_param": "The file holds FSDP's flattened parameters: save a full state dict instead.",
}


class NoWeightsError(Exception):
    """What a file is instead of a weights file, as the end of a sentence that begins with it."""


def is_safetensors(start: bytes) -> bool:
    """Whether a file begins as safetensors do: the length of a text in JSON, and that.

    >>> is_safetensors(bytes([2, 0, 0, 0, 0, 0, 0, 0]) + b"{}"), is_safetensors(b'{"model":{}}')
    (True, False)
    """
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER


def is_of_torch(start: bytes) -> bool:
    """Whether a file begins as one of `torch.save` or safetensors, or as any other zip archive."""
    is_legacy = start.startswith(b"\x80") and _TORCH in start[:32]
    return is_legacy or start.startswith(b"PK\x03\x04") or is_safetensors(start)


def refuse_signature(start: bytes, end: bytes = b"") -> None:
    """Raise if a file is something else than weights, by its first bytes, and its last ones."""
    what = None if is_of_torch(start) else foreign_format(start, end)
    if what:
        raise NoWeightsError(f"is {what}.")


def refuse_foreign_name(path: Path) -> None:
    """Raise if a file whose content tells nothing is a network of another framework by its name."""
    found = (what for pattern, what in _BY_NAME.items() if re.search(pattern, path.name.lower()))
    what = next(found, None)
    is_bare = path.suffix in (".bin", ".weights")
    for suffix, beside in _BESIDE.items() if is_bare else ():
        if path.with_suffix(suffix).is_file():
            what = f"{beside} (`{path.with_suffix(suffix).name}` is beside it)"
    if what:
        raise NoWeightsError(f"is by its name {what}, not a file of PyTorch's: {CONVERT}.")


def refuse_archive(path: Path) -> None:
    """Raise if a zip archive is none of torch's, is damaged, or claims more than it has."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if not any(member.filename.split("/")[-1] == "data.pkl" for member in members):
            raise NoWeightsError(f"is {foreign_archive([each.filename for each in members])}.")
        refuse_claims(members, path.stat().st_size)
        # torch does not look at the checksums, and may be told to write none: all are 0 then.
        if any(member.CRC for member in members) and archive.testzip():
            raise zipfile.BadZipFile("A checksum is wrong.")


def refuse_claims(members: Iterable[zipfile.ZipInfo], size: int) -> None:
    """Raise if what a zip archive claims to hold is larger than its file."""
    claimed = sum(member.file_size for member in members)
    if claimed > size + _ROOM_FOR_TEXT:
        raise NoWeightsError(
            f"claims to hold {claimed:,} bytes in a file of {size:,}: it is damaged or was "
            "compressed. Save it again with `torch.save`."
        )


def refuse_inflated(tensors: Mapping[str, Tensor], size: int) -> None:
    """Raise if a tensor claims to be larger than the file: copied, it would fill the memory."""
    room = max(size, _LEAST_ROOM)
    for name, tensor in tensors.items():
        if tensor.nbytes > room:
            raise NoWeightsError(
                f"claims {tensor.nbytes:,} bytes for {name[:80]!r} in a file of {size:,}: it is "
                "damaged, or holds an expanded tensor. Save it again, contiguous."
            )


def shard_names(index: Path) -> list[str]:
    """The files that a Hugging Face index names, all of them beside the index."""
    try:
        names = set(read_json(index)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NoWeightsError("is no index of weights files: no `weight_map`.") from error
    for name in names:
        if not is_plain_name(name):
            raise NoWeightsError(
                f"names {name!r}, which is not a file beside it: an index and its files stand in "
                "one folder."
            )
        if name.endswith(".index.json"):
            raise NoWeightsError(f"names {name!r}, an index again, in the place of weights.")
    return sorted(names)


def what_is_wrong(path: Path, error: Exception, start: bytes) -> str:
    """What a reader's error says of a file that begins so, and what to do."""
    if isinstance(error, NoWeightsError):
        return str(error)
    if isinstance(error, PickleError):
        return f"{error}, so it was not opened: it is damaged, or was made to do harm."
    unsafe = unknown_name(error)
    if unsafe and (library := quantising_library(unsafe)):
        return (
            f"holds weights quantised by {library}, which are objects of it (`{unsafe}`). Give the "
            f"file of before quantisation, or dequantise them where {library} is installed, and "
            "save them again."
        )
    if unsafe:
        what = f"holds more than tensors: `{unsafe}` would be unpickled, which can run any code."
        return f"{what} {_SAVE_AGAIN.format('model')}"
    if "TorchScript" in str(error):
        what = "is a TorchScript archive: a program, not only weights."
        return f"{what} {_SAVE_AGAIN.format(f'torch.jit.load({path.name!r})')}"
    size = f"{path.stat().st_size:,} bytes"
    if is_of_torch(start):
        return f"is no weights file, cut short or damaged ({size}). Download or save it again."
    return (
        f"is no weights file, or damaged ({size}): it begins neither as a file of `torch.save` nor "
        "of safetensors. Give such a file, or download or save it again."
    )


def what_it_has(content: Any) -> str:
    """What a file has where tensors by name were expected."""
    kind = type(content).__name__
    if not isinstance(content, dict):
        return f"{kind}"
    if not content:
        return f"{kind} with nothing in it"
    if {"state", "param_groups"} <= content.keys():
        return f"{kind} with the state of an optimizer, without weights"
    values = [*content.values()]
    values += [value for inner in values if isinstance(inner, dict) for value in inner.values()]
    if any(isinstance(value, InertArray) for value in values):
        return (
            f"{kind} of NumPy arrays: where you have made it, save tensors, "
            "`{name: torch.from_numpy(array) for name, array in weights.items()}`"
        )
    if any(isinstance(value, Tensor) and value.is_meta for value in values):
        return f"{kind} of tensors without their numbers (on `meta`)"
    keys = printable(", ".join(str(key)[:40] for key in list(content)[:10]))
    return f"{kind} with the keys: {keys}"


def advice_on(names: Iterable[str]) -> str:
    """What to do about a file that does not fit, where its names tell; with a space before it."""
    names = list(names)
    found = [text for part, text in _ADVICE.items() if any(part in name for name in names)]
    return "".join(f" {text}" for text in found)
