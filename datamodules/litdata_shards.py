"""Pack images into a few large files, which can be streamed.

The format is that of `litdata`: the folder of each part contains chunks with the bytes of the
image files, and `index.json`; we add `labels.npy` and `names.txt`, and `classes.json` in the folder
above. All of it is plain data.
"""

import io
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from lit_finetune.files.atomic_write import atomic_folder
from lit_finetune.files.index_paths import is_plain_name
from lit_finetune.files.json import parse_json, read_json
from lit_finetune.images.read import load_part

from .base import Part
from .dataset import FileSamples
from .image_folder import ImageFolderDataModule
from .shard_index import INDEX, chunk_problem, index_problem
from .sources.portable_names import json_text

CLASSES, LABELS, NAMES = "classes.json", "labels.npy", "names.txt"
_DAMAGED = "is damaged: pack the pictures again with `write_shards`."
FORMAT = ["bytes", "int", "int"]
"""The `litdata` types of the fields of a sample, in alphabetical order: image, index, label."""


def import_litdata() -> Any:
    """Import the library that packs and streams.

    Raises:
        ModuleNotFoundError: It is not installed; the message names the extra.
    """
    # Older releases ask PyPI for newer ones when a folder is opened, and wait for the answer.
    os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")
    try:
        import litdata
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Streaming needs litdata: pip install 'lit-finetune[streaming]'", name="litdata"
        ) from error
    return litdata


def write_shards(data: ImageFolderDataModule, folder: str | Path, *, chunk_mb: int = 64) -> None:
    """Pack images into a folder that `StreamingImageDataModule` reads.

    The files are packed byte for byte, in the parts of `data`. The folder appears when it is
    complete; the next call removes the rest of a killed one.

    Args:
        data: The images; its `on_corrupt` applies to unreadable ones.
        folder: A folder that does not exist yet.
        chunk_mb: Size of each packed file, in megabytes.

    Raises:
        FileExistsError: The folder exists.
    """
    import_litdata()
    folder = Path(folder).expanduser()
    if folder.exists():
        raise FileExistsError(f"'{folder}' is there already: remove it, or give another name.")
    parts: tuple[Part, ...] = ("train", "val", "test")
    data.check_files()
    samples = {part: data.read_samples(part) for part in parts}
    text = json_text({"classes": data.classes})
    with atomic_folder(folder) as new:
        for part, images in samples.items():
            if images.names:
                _write_part(images, new / part, f"{chunk_mb}MB", part)
        (new / CLASSES).write_text(text, encoding="utf-8")


def _write_part(samples: FileSamples, folder: Path, chunk_bytes: str, part: str) -> None:
    from litdata.streaming import Cache

    folder.mkdir(parents=True)
    cache = Cache(str(folder), chunk_bytes=chunk_bytes)
    pairs = list(zip(samples.names, samples.labels, strict=True))
    for index, (name, label) in enumerate(track(pairs, description=f"Packing {part}")):
        content = (samples.root / name).read_bytes()
        cache[index] = {"image": content, "index": index, "label": label}
    cache.done()
    cache.merge()
    np.save(folder / LABELS, np.asarray(samples.labels, dtype=np.int64))
    names = "".join(f"{json.dumps(name)}\n" for name in samples.names)
    (folder / NAMES).write_text(names, encoding="utf-8")


class PackedSamples:
    """The images of one part of a packed folder, one by one.

    Args:
        folder: Contains `labels.npy` and `names.txt`.
        source: Contains the chunks: the same folder, or a URL for `litdata`.
        options: Options of `litdata` for the source.
    """

    def __init__(self, folder: Path, source: str, options: Mapping[str, Any]) -> None:
        self.folder = folder
        self.source = source
        self.options = options
        check_format(folder)

    @cached_property
    def labels(self) -> Sequence[int]:
        """The class index of each image."""
        return read_labels(self.folder / LABELS)

    @cached_property
    def names(self) -> Sequence[str]:
        """The name of each image's file."""
        path = self.folder / NAMES
        try:
            names = [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            raise ValueError(f"{path} {_DAMAGED}") from error
        if len(names) != len(self.labels) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path} {_DAMAGED}")
        return names

    def load(self, index: int) -> Image.Image:
        """One image, in RGB."""
        return decode_image(self._chunks[index], self.names[index])

    @cached_property
    def _chunks(self) -> Any:
        return open_stream(self.source, **self.options)

    def __getstate__(self) -> dict[str, Any]:
        """The state without the open files, which each worker opens itself."""
        return {key: value for key, value in vars(self).items() if key != "_chunks"}


def read_classes(path: Path) -> list[str]:
    """Read the classes of a packed folder.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        names: list[str] = read_json(path)["classes"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} {_DAMAGED}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} {_DAMAGED}")
    return names


def read_labels(path: Path) -> list[int]:
    """Read the class index of each image of one part.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        labels: NDArray[np.int64] = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, MemoryError) as error:
        raise ValueError(f"{path} {_DAMAGED}") from error
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or (labels < 0).any():
        raise ValueError(f"{path} {_DAMAGED}")
    found: list[int] = labels.tolist()
    return found


def decode_image(sample: Mapping[str, Any], name: str) -> Image.Image:
    """Decode the image of a sample, in RGB.

    Raises:
        OSError: The image is unreadable; the message names it.
    """
    return load_part(io.BytesIO(sample["image"]), name=name)[0]


def open_stream(source: str, **options: Any) -> Any:
    """Open a stream of the images in a folder or at a URL, and check the index that `litdata` uses.

    Raises:
        ValueError: `write_shards` did not write the index; a cached copy may be of another source.
    """
    import_litdata()
    from .shard_stream import ShardStream

    dataset = ShardStream(source, **options)
    check_format(Path(dataset.input_dir.path))
    return dataset


def check_format(folder: Path) -> None:
    """Refuse chunks that `write_shards` did not write, because reading others can run code.

    Refuse an index as well that names a file outside of its folder.

    Raises:
        ValueError: Says what is wrong with the index.
    """
    path = folder / INDEX
    try:
        index = read_json(path)
        config, chunks = index["config"], [chunk["filename"] for chunk in index["chunks"]]
        found = config.get("data_format")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"'{path}' is no index of packed pictures: it is damaged.") from error
    if found != FORMAT or config.get("encryption") or config.get("item_loader") != "PyTreeLoader":
        raise ValueError(
            f"'{path}' describes samples of {found}, but pictures packed by"
            f" `write_shards` are {FORMAT}. Others are not read: they could hold pickled code."
        )
    # litdata makes a folder with the name in `updated_at`.
    for name in (*chunks, index.get("updated_at", "0")):
        if not is_plain_name(name):
            raise ValueError(
                f"'{path}' names {name!r}, which is not a file next to it: an index and its files"
                " must be in one folder. Pack the pictures again with `write_shards`."
            )
    if problem := index_problem(index):
        raise ValueError(f"'{path}' {_DAMAGED[:-1]} ({problem}).")


def check_chunks(folder: Path, num_images: int, *, is_local: bool) -> None:
    """Refuse chunks that do not fit to the labels, or are shorter than the index says.

    Args:
        folder: Contains an index of the right format.
        num_images: The number of labels.
        is_local: Whether the chunks are in this folder.

    Raises:
        ValueError: Says what does not fit.
    """
    path = folder / INDEX
    chunks = read_json(path)["chunks"]
    if problem := chunk_problem(chunks, folder if is_local else None, num_images):
        raise ValueError(f"'{path}' {_DAMAGED[:-1]} ({problem}).")
