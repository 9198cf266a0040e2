"""Recognise files of other formats than PyTorch's by their content, and say what to do.

Each description completes a sentence that begins with the file's name: "is a GGUF file: take …".
"""

import codecs
import re
from bz2 import BZ2Decompressor
from collections.abc import Callable, Mapping
from lzma import LZMADecompressor
from zlib import decompressobj

from lit_finetune.files.pickle_contents import global_names, is_pickle
from lit_finetune.files.terminal_text import printable

UNPACK = "unpack it first"
CONVERT = (
    "convert it where its framework is installed, or take the PyTorch network that it was exported "
    'from, and save `torch.save(model.state_dict(), "weights.pth")`, or safetensors'
)
_PREVIEW_BYTES = 2048
"""Bytes of compressed content that are examined."""
_DOWNLOAD_AGAIN = "download or copy it again"
_FOREIGN = "not a file of PyTorch's"
_TENSORFLOW_FOOTER = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"
"""The last bytes of the index of a TensorFlow checkpoint, and of a checkpoint of version 1."""


def from_arrays(load: str) -> str:
    """What to do with a file of arrays; `load` is the function that reads it."""
    return (
        f"convert it: load the arrays with `{load}`, on a machine where you trust it, give them "
        "the names and shapes of the PyTorch network, and save tensors, "
        '`torch.save({name: torch.from_numpy(array) for name, array in …}, "weights.pth")`'
    )


_JOBLIB = (
    f"a file of joblib (a pickle, which can run any code), {_FOREIGN}; {from_arrays('joblib.load')}"
)
_FRAMEWORKS: dict[bytes, str] = {
    rb"....TFL3": "a TensorFlow Lite model",
    rb"\x08\x01\x12.{1,4}\n": "a SavedModel of TensorFlow",
    rb"\n.{1,4}\n.{1,2}[\w/.:-]+\x12.[A-Z]\w+|\n.{1,4}\x12.{1,4}\n.\n.[A-Z]\w+": (
        "a graph of TensorFlow"
    ),
    rb".{6,24}brain\.Event:": "a log of TensorBoard's",
    rb"\x08.\x01?\x12..?\n.\n.": "a Core ML model",
    rb"\x01\x00\x00\x00[\x01\x02]\x00{31}": "the weights of a Core ML package",
    rb"\x08[\x01-\x20](\x12[\x00-\x40][ -~]|[\x1a\"(2:B])": "an ONNX model",
    rb"....ORTM": "a model of ONNX Runtime",
    rb"....ET1\d": "an ExecuTorch program",
    rb"p?[pf]trt": "a TensorRT engine",
    rb"\x89HDF\r\n": "an HDF5 file, as Keras writes them",
    rb"MATLAB [57]": "a MATLAB file",
    rb"(?:[\x81-\x8f]|\xde..|\xdf....)[\xa1-\xbf\xd9]": "a msgpack file, as Flax writes them",
    rb"\x12\x01\x00{14}": "a file of arrays of MXNet",
    rb"\x00{16}.\x00{3}\x08[\x00-\x20][\x10\x18]": "the parameters of a PaddlePaddle program",
    rb"[\x03\x04]\x00{3}\x01\x00{3}\x03\x00{3}V 1|\x03\x00{3}\x01\x00{3}.\x00{3}\x02\x00{3}": (
        "a file of the Torch before PyTorch (Lua)"
    ),
    rb"\n.{1,3}\n.{1,3}\n[^\n]+\x12.{1,3}\x08.*\x12\x07Float32": "a MindSpore checkpoint",
    rb"\n.[\w -]+(\xa2\x06|\x12)": "a Caffe model",
    rb"\x00{4}[\x01-\x09]\x00{3}[\x00-\x09]\x00{3}": "the weights of a Darknet network (YOLO)",
    rb"RKNN": "an RKNN model",
}
"""Models of other frameworks, by a pattern at the start of a file; the first match counts."""

_FORMATS: dict[bytes, str] = {
    rb"GGUF|[tjf]gg[mljf]|lmgg": (
        "a GGUF file of llama.cpp: it holds language models, mostly quantised. Take the "
        "safetensors or `.bin` files that it was made from"
    ),
    rb"\x93NUMPY": f"a NumPy array (.npy), {_FOREIGN}; {from_arrays('numpy.load')}",
    rb"7z\xbc\xaf": f"a 7z archive: {UNPACK}",
    rb"Rar!": f"a RAR archive: {UNPACK}",
    rb".{257}ustar": f"a tar archive: {UNPACK}, and give the weights file in it",
    rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF|BM.{4}\x00{4}|II\*\x00|MM\x00\*|....ftyp|%PDF": (
        "a picture or a document, not weights: give a weights file"
    ),
    rb"SQLite format 3": "a database (SQLite), not weights: give a weights file",
    rb"PAR1|ARROW1|OBJ\x01": "a table (Parquet, Arrow), not weights: give a weights file",
    rb"\x7fELF|MZ.{58}|\xca\xfe\xba\xbe|\xcf\xfa\xed\xfe": (
        "a program, not weights: give a weights file"
    ),
    rb"\x00{64}": (
        f"no weights file, but zeros, as a download that was cut short: {_DOWNLOAD_AGAIN}"
    ),
}
"""Other formats, by a pattern at the start of a file."""

_Decompress = Callable[[bytes], bytes]
_ZLIB: tuple[str, _Decompress] = (
    "zlib",
    lambda start: decompressobj().decompress(start, _PREVIEW_BYTES),
)
_COMPRESSED: dict[bytes, tuple[str, _Decompress]] = {
    b"\x1f\x8b": ("gzip", lambda start: decompressobj(31).decompress(start, _PREVIEW_BYTES)),
    b"BZh": ("bzip2", lambda start: BZ2Decompressor().decompress(start, _PREVIEW_BYTES)),
    b"\xfd7zXZ": ("xz", lambda start: LZMADecompressor().decompress(start, _PREVIEW_BYTES)),
    b"]\x00\x00": ("lzma", lambda start: LZMADecompressor().decompress(start, _PREVIEW_BYTES)),
    **{b"x" + level: _ZLIB for level in (b"\x01", b"\x5e", b"\x9c", b"\xda")},
    b"\x28\xb5\x2f\xfd": ("zstd", lambda start: b""),
    b"\x04\x22\x4d\x18": ("lz4", lambda start: b""),
}
"""Compression formats by the first bytes, with a function that decompresses some bytes."""

_TEXTS: dict[str, str] = {
    "model_checkpoint_path: ": f"the list of a TensorFlow checkpoint, {_FOREIGN}: {CONVERT}",
    "7767517\n": f"the description of an ncnn network, {_FOREIGN}: {CONVERT}",
    r"version https://git-lfs|oid sha256:": (
        "a Git LFS pointer, not the file itself: run `git lfs pull`"
    ),
    r"(\.\./)*(\.git)?/annex/objects/|(\.\./)*\.git/annex/": (
        "a pointer of git-annex, not the file itself: run `git annex get` on it"
    ),
    r"outs:\s+- (md5|hash|etag|path):|md5: |deps:\s": (
        "a DVC pointer, not the file itself: run `dvc pull`"
    ),
    r"<\?xml[^>]*>\s*<(net|model)\b|<net ": (
        f"an XML file, such as OpenVINO's, {_FOREIGN}: {CONVERT}"
    ),
    r"(<\?xml[^>]*>\s*)?<Error>": (
        f"the error message of a server, not a weights file: {_DOWNLOAD_AGAIN}"
    ),
    r"<\?xml(?!.*<html)": "an XML file, not weights: give a weights file",
    r"<svg": "a picture or a document, not weights: give a weights file",
    r"<": f"a web page, not a weights file: {_DOWNLOAD_AGAIN}",
    r".*[\"']weight_map[\"']": (
        "an index of weights files: give it a name that ends in `.index.json`, next to the files"
    ),
    r"[\[{].*\"(modelTopology|weightsManifest)\"": f"a TensorFlow.js model, {_FOREIGN}: {CONVERT}",
    r"\{.*\"class_name\": ?\"(Functional|Sequential|Model)\"": (
        "the description of a Keras model, without weights: give a weights file of PyTorch's"
    ),
    r"\{.*\"(model_type|architectures)\"": (
        "the config of a Hugging Face network, without weights: give the `model.safetensors` "
        "next to it, or its folder as the backbone, `hf/<folder>`"
    ),
    r"\{.*\"peft_type\"": "the config of an adapter (peft), without weights: give a weights file",
    r"[\[{]\s*[\]}\"\[{\d]": "a JSON file, which holds no weights: give the weights file",
}
"""Text formats, by a pattern at their start, after spaces and a byte order mark."""


def foreign_format(start: bytes, end: bytes = b"") -> str | None:
    r"""What a file is, by its first and last bytes; None if it could hold weights.

    >>> foreign_format(b"version https://git-lfs.github.com/spec/v1\n")
    'a Git LFS pointer, not the file itself: run `git lfs pull`'

    Args:
        start: The first bytes: some hundred at least, or the whole file.
        end: The last bytes.
    """
    if not start:
        return f"empty (0 bytes), cut short or damaged: {_DOWNLOAD_AGAIN}"
    if is_pickle(start):
        return _pickle_format(start, end)
    if end.endswith(_TENSORFLOW_FOOTER):
        return f"a TensorFlow checkpoint, {_FOREIGN}: {CONVERT}"
    return (
        _compressed_format(start)
        or _match_start(_FORMATS, start)
        or _text_format(start)
        or _framework_format(start)
    )


def _match_start(formats: Mapping[bytes, str], start: bytes) -> str | None:
    matching = (
        description
        for pattern, description in formats.items()
        if re.match(pattern, start, re.DOTALL)
    )
    return next(matching, None)


def _framework_format(start: bytes) -> str | None:
    description = _match_start(_FRAMEWORKS, start)
    return f"{description}, {_FOREIGN}: {CONVERT}" if description else None


def _pickle_format(start: bytes, end: bytes) -> str:
    names = global_names(start)
    packages = {name.partition(".")[0] for name in names}
    if b"StructuredToParameterName@@" in start + end or "paddle" in packages:
        description = f"a PaddlePaddle file (a pickle, which can run any code), {_FOREIGN}"
        return f"{description}; {from_arrays('paddle.load')}"
    if "joblib" in packages:
        return _JOBLIB
    if "numpy" in packages and packages <= {"numpy", "collections", "_codecs", "builtins"}:
        description = f"a pickle of NumPy arrays, which can run any code, {_FOREIGN}"
        return f"{description}; {from_arrays('pickle.load')}"
    imports = f" (it imports `{printable(names[0][:80])}`)" if names else ""
    return (
        f"a pickle that `torch.save` did not write{imports}, or damaged; unpickling it could run "
        "any code. On a machine where you trust it, save the tensors alone, "
        '`torch.save(model.state_dict(), "weights.pth")`, or as safetensors, and load that file'
    )


def _compressed_format(start: bytes) -> str | None:
    """What a compressed file is, and what is in it if that is no weights file either."""
    found = (format_ for signature, format_ in _COMPRESSED.items() if start.startswith(signature))
    name, decompress = next(found, ("", bytes))
    if not name:
        return None
    try:
        inner = decompress(start)
    except Exception:  # damaged: each library raises other errors
        inner = b""
    if b"joblib" in (inner or start):
        return f"compressed with {name}, and in it is {_JOBLIB}"
    is_known = inner and not any(map(inner.startswith, _COMPRESSED))
    description = foreign_format(inner) if is_known else None
    return f"compressed with {name}" + (
        f", and in it is {description}" if description else f": {UNPACK}"
    )


def _text_format(start: bytes) -> str | None:
    text = _decode_text(start)
    for pattern, description in _TEXTS.items() if text else ():
        if re.match(pattern, text, re.DOTALL | re.IGNORECASE):
            return description
    start_of_text = printable(" ".join(text[:120].split())[:60])
    return text and (
        f"a text, no weights file; it begins with {start_of_text!r}. If it was downloaded, the "
        f"server may have sent it instead: {_DOWNLOAD_AGAIN}"
    )


def _decode_text(start: bytes) -> str:
    """The start of a text without spaces and byte order mark; "" if it is no text."""
    encoding = "utf-16" if start.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(start)
    except UnicodeError:
        return ""
    is_text = all(letter.isprintable() or letter.isspace() for letter in text)
    return text.lstrip() if is_text else ""
