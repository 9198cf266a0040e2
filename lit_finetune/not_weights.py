"""What people have in the place of a weights file, and what they can do about it."""

import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_finetune.inert_objects import InertArray, unknown_name
from lit_finetune.plain_names import is_plain_name

_UNPACK = "unpack it first"
_SAVE_AGAIN = (
    "On a machine where you trust it, save the tensors alone, "
    '`torch.save({}.state_dict(), "weights.pth")`, or as safetensors, and load that file.'
)
_CONVERT = (
    "convert it where its framework is installed, or take the PyTorch network that it was exported "
    'from, and save `torch.save(model.state_dict(), "weights.pth")`, or safetensors'
)
# By the first bytes of the file.
_SIGNATURES = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run `git lfs pull`",
    b"\x1f\x8b": f"compressed with gzip: {_UNPACK}",
    b"BZh": f"compressed with bzip2: {_UNPACK}",
    b"\xfd7zXZ": f"compressed with xz: {_UNPACK}",
    b"\x28\xb5\x2f\xfd": f"compressed with zstd: {_UNPACK}",
    b"7z\xbc\xaf": f"a 7z archive: {_UNPACK}",
    b"Rar!": f"a RAR archive: {_UNPACK}",
    b"\x89HDF": f"an HDF5 file, as Keras writes them: {_CONVERT}",
    b"\x93NUMPY": "a NumPy array: convert it to safetensors",
    b"GGUF": "a GGUF file: convert it to safetensors",
}
_FOREIGN_SUFFIXES = {
    ".onnx": "by its name an ONNX model",
    ".mlmodel": "by its name a Core ML model",
    ".pb": "by its name a TensorFlow graph",
    ".tflite": "by its name a TensorFlow Lite model",
    ".msgpack": "by its name a msgpack file, as Flax writes them",
    ".caffemodel": "by its name a Caffe model",
    ".params": "by its name a file of MXNet's",
    ".engine": "by its name a TensorRT engine",
}
_MEMBERS = {
    r"\.npy$": "a NumPy archive (.npz)",
    r"\.weights\.h5$|(^|/)saved_model\.pb$|\.h5$": "a model of Keras or TensorFlow",
    r"\.mlmodel$": "a Core ML model",
    r"\.onnx$": "an archive with an ONNX model",
}
"""What a zip archive is, by the name of a file in it."""
_TORCH = bytes.fromhex("6cfc9c46f9206aa85019")
"""The number that torch's legacy format begins with, in pickled form."""
_TAR = slice(257, 262)
FIRST_BYTES = 512
"""How much of a file tells what it is."""
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


def _text_of(start: bytes) -> bytes:
    """The first bytes of a file without what may stand before a text: a byte order mark, spaces."""
    return start.removeprefix(b"\xef\xbb\xbf").lstrip()


def refuse_foreign(path: Path, start: bytes) -> None:
    """Raise if a file is a network of another framework, by its content, or else by its suffix."""
    what = None
    if start[4:8] == b"TFL3":
        what = "a TensorFlow Lite model"
    elif re.match(rb"\x08[\x01-\x20][\x12\x1a:]", start) and path.suffix != ".mlmodel":
        what = "a SavedModel of TensorFlow" if path.suffix == ".pb" else "an ONNX model"
    elif re.match(rb"(?:[\x81-\x8f]|\xde..|\xdf....)[\xa1-\xbf\xd9]", start, re.DOTALL):
        what = "a msgpack file, as Flax writes them"
    elif _text_of(start).startswith(b"<?xml"):
        what = "an XML file, such as OpenVINO's"
    elif start.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"%PDF")):
        raise NoWeightsError("is a picture or a document, not weights: give a weights file.")
    elif not start.startswith((b"PK\x03\x04", b"\x80")):
        what = _FOREIGN_SUFFIXES.get(path.suffix.lower())
    if what:
        raise NoWeightsError(f"is {what}, not a file of PyTorch's: {_CONVERT}.")


def refuse_signature(start: bytes) -> None:
    """Raise if the first bytes of a file are those of something else than weights."""
    if start[8:9] == b"{":  # safetensors: a length, then JSON
        return
    text = _text_of(start).lower()
    if text.startswith(b"<") and (b"<html" in text or not text.startswith(b"<?xml")):
        raise NoWeightsError("is a web page, not a weights file: download it again.")
    for signature, what in _SIGNATURES.items():
        if start.startswith(signature):
            raise NoWeightsError(f"is {what}.")
    if start.startswith(b"\x80") and _TORCH not in start[:32]:
        raise NoWeightsError(
            "is a pickle that `torch.save` did not write, or damaged; to unpickle it could run any "
            f"code. {_SAVE_AGAIN.format('model')}"
        )
    if start[_TAR] == b"ustar":
        raise NoWeightsError(f"is a tar archive: {_UNPACK}, and give the weights file in it.")


def refuse_archive(path: Path) -> None:
    """Raise if a zip archive is none of torch's, is damaged, or claims more than it has."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if not any(member.filename.split("/")[-1] == "data.pkl" for member in members):
            for pattern, what in _MEMBERS.items():
                if any(re.search(pattern, member.filename) for member in members):
                    raise NoWeightsError(f"is {what}, not a file of PyTorch's: {_CONVERT}.")
            raise NoWeightsError(
                f"is a zip archive, but not one of torch's: {_UNPACK}, and give a weights file."
            )
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
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
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


def folder_advice(folder: Path) -> str:
    """What to do about a folder that was given as a weights file."""
    names = {file.name for file in folder.iterdir()}
    if "meta.pt" in names and ".metadata" in names:
        command = f"python -m lightning.pytorch.utilities.consolidate_checkpoint {folder}"
        return (
            f" It is a checkpoint in parts, as Lightning's FSDP writes it: gather it, `{command}`."
        )
    if ".metadata" in names:
        tool = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
        return (
            " It is a distributed checkpoint (DCP, FSDP): gather it in one file, "
            f"`{tool} {folder} weights.pth`."
        )
    if "zero_to_fp32.py" in names:
        return " It is a checkpoint of DeepSpeed: run the `zero_to_fp32.py` in it."
    return files_in(folder)


def files_in(folder: Path) -> str:
    """The first few files in a folder, as the end of a message; those with weights first."""
    suffixes = (".safetensors", ".index.json", ".bin", ".pth", ".pt", ".ckpt")
    names = [file.name for file in folder.iterdir() if file.is_file()]
    names.sort(key=lambda name: (not name.endswith(suffixes), name))
    return f" The folder has: {', '.join(names[:5]) or 'no files'}."


def what_is_wrong(path: Path, error: Exception) -> str:
    """What a reader's error says of a file, and what to do."""
    if isinstance(error, NoWeightsError):
        return str(error)
    if unsafe := unknown_name(error):
        what = f"holds more than tensors: `{unsafe}` would be unpickled, which can run any code."
        return f"{what} {_SAVE_AGAIN.format('model')}"
    if "TorchScript" in str(error):
        what = "is a TorchScript archive: a program, not only weights."
        return f"{what} {_SAVE_AGAIN.format(f'torch.jit.load({path.name!r})')}"
    size = f"{path.stat().st_size:,} bytes"
    return f"is no weights file, cut short or damaged ({size}). Download or save it again."


def what_it_has(content: Any) -> str:
    """What a file has where tensors by name were expected."""
    if not isinstance(content, dict) or not content:
        return type(content).__name__
    values = [*content.values()]
    values += [value for inner in values if isinstance(inner, dict) for value in inner.values()]
    if any(isinstance(value, InertArray) for value in values):
        return (
            "dict of NumPy arrays: where you have made it, save tensors, "
            "`{name: torch.from_numpy(array) for name, array in weights.items()}`"
        )
    keys = ", ".join(str(key)[:40] for key in list(content)[:10])
    return f"{type(content).__name__} with the keys: {keys}"


def advice_on(names: Iterable[str]) -> str:
    """What to do about a file that does not fit, where its names tell; with a space before it."""
    names = list(names)
    found = [text for part, text in _ADVICE.items() if any(part in name for name in names)]
    return "".join(f" {text}" for text in found)
