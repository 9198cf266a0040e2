"""Recognise folders that were given as a weights file, by their content, and say what to do."""

from collections.abc import Callable, Iterable
from fnmatch import filter as matching
from itertools import chain, islice
from pathlib import Path

from lit_finetune.files.foreign_formats import CONVERT
from lit_finetune.files.terminal_text import printable

_WEIGHTS = (".safetensors", ".index.json", ".bin", ".pth", ".pt", ".th", ".ckpt", ".tar", ".t7")
_IMAGES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
_MAX_FILES = 1000
"""The largest number of files of a folder that are examined."""

_CONSOLIDATE = "python -m lightning.pytorch.utilities.consolidate_checkpoint"
_GATHER = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
_CONVERTED = f"not a file of PyTorch's: {CONVERT}"
_HUGGING_FACE = (
    "a folder of Hugging Face: give it as the backbone, `hf/{folder}`, or the weights file in it."
    "{files}"
)
_KINDS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("meta.pt", ".metadata"),
        "a checkpoint in parts, as Lightning's FSDP writes it: gather it, "
        f"`{_CONSOLIDATE} {{folder}}`",
    ),
    (
        (".metadata",),
        "a distributed checkpoint (DCP, FSDP): gather it in one file, "
        f"`{_GATHER} {{folder}} weights.pth`",
    ),
    (("zero_to_fp32.py",), "a checkpoint of DeepSpeed: run the `zero_to_fp32.py` in it"),
    (
        ("data.pkl", "data"),
        "a file of `torch.save` that was unpacked: give the file as it was, or pack it again "
        "without compression, `zip -0 -r weights.pth {name}` in the folder above",
    ),
    (("saved_model.pb",), f"a SavedModel of TensorFlow, {_CONVERTED}"),
    (("keras_metadata.pb",), f"a model of Keras, {_CONVERTED}"),
    (("*.weights.h5",), f"a model of Keras, {_CONVERTED}"),
    (("variables.index",), f"the variables of a SavedModel of TensorFlow, {_CONVERTED}"),
    (("checkpoint", "*.meta"), f"a checkpoint of TensorFlow, {_CONVERTED}"),
    (("checkpoint", "*.index"), f"a checkpoint of TensorFlow, {_CONVERTED}"),
    (("*.data-?????-of-?????",), f"a checkpoint of TensorFlow, {_CONVERTED}"),
    (("model.json", "*shard*"), f"a TensorFlow.js model, {_CONVERTED}"),
    (("Manifest.json", "Data"), f"a Core ML package (.mlpackage), {_CONVERTED}"),
    (("model.mil", "coremldata.bin"), f"a Core ML model (.mlmodelc), {_CONVERTED}"),
    (("manifest.ocdbt",), f"a checkpoint of JAX (Orbax), {_CONVERTED}"),
    (("_CHECKPOINT_METADATA",), f"a checkpoint of JAX (Orbax), {_CONVERTED}"),
    (("_METADATA",), f"a checkpoint of JAX (Orbax), {_CONVERTED}"),
    (("*.pdiparams",), f"a PaddlePaddle model, {_CONVERTED}"),
    (
        ("adapter_config.json",),
        "an adapter (peft), not a whole network: merge it into its network where that is, and save "
        '`torch.save(model.state_dict(), "weights.pth")`',
    ),
    (
        ("config.json", "*.safetensors"),
        _HUGGING_FACE,
    ),
    (
        ("config.json", "pytorch_model*"),
        _HUGGING_FACE,
    ),
)
"""Patterns of names that a folder must all have, and what it is then."""


def folder_advice(folder: Path) -> str:
    """What a folder is that was given as a weights file, and what to do; begins with a space."""
    try:
        names = [entry.name for entry in islice(folder.iterdir(), _MAX_FILES)]
    except OSError as error:
        return f" It cannot be read: {error.strerror}."
    shown = printable(folder)
    for patterns, description in _KINDS:
        if all(matching(names, pattern) for pattern in patterns):
            files = _list_weights(folder) if "{files}" in description else ""
            text = description.format(folder=shown, name=printable(folder.name), files=files)
            return f" It is {text.removesuffix('.')}."
    if found := _list_weights(folder):
        return f"{found} Give one of these."
    if _has_images(folder):
        return " It holds pictures: they are data (`data_dir`); weights are a file of their own."
    return list_files(folder)


def list_files(folder: Path) -> str:
    """The first few files in a folder, for the end of a message; those with weights first."""
    try:
        names = [file.name for file in folder.iterdir() if file.is_file()]
    except OSError as error:
        return f" The folder cannot be read: {error.strerror}."
    return _format_names(names, "no files")


def _list_weights(folder: Path) -> str:
    """The files in a folder and its subfolders that may be weights; "" if there are none."""
    found = [file.relative_to(folder).as_posix() for file in _files(folder, _is_weights)]
    return _format_names(found, "") if found else ""


def _has_images(folder: Path) -> bool:
    return any(_files(folder, lambda file: file.suffix.lower() in _IMAGES))


def _format_names(names: Iterable[str], if_empty: str) -> str:
    ranked = sorted(names, key=lambda name: (not name.endswith(_WEIGHTS), name))
    return f" The folder has: {', '.join(printable(name) for name in ranked[:5]) or if_empty}."


def _files(folder: Path, predicate: Callable[[Path], bool]) -> list[Path]:
    """The files of a folder and its subfolders, up to two levels deep, that fulfil a predicate."""
    levels = (folder.glob(pattern) for pattern in ("*", "*/*", "*/*/*"))
    seen = islice(chain.from_iterable(levels), _MAX_FILES)
    return [file for file in seen if predicate(file) and file.is_file()]


def _is_weights(file: Path) -> bool:
    return file.name.endswith(_WEIGHTS) and file.name != "optimizer.pt"
