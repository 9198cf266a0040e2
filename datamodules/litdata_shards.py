"""Pictures packed into a few large files, which can be streamed from where they are.

The files are those of `litdata`: in each part's folder chunks of pictures, as their files held
them, and `index.json`. Beside them stand `labels.npy` and `names.txt`, and above the parts
`classes.json`; all of it plain data.
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
from .sources.portable_names import json_text

CLASSES, LABELS, NAMES, INDEX = "classes.json", "labels.npy", "names.txt", "index.json"
_DAMAGED = "is damaged: pack the pictures again with `write_shards`."
FORMAT = ["bytes", "int", "int"]
"""How `litdata` stores what a sample is made of, by the names of its parts: image, index, label."""


def import_litdata() -> Any:
    """The library that packs and streams.

    Raises:
        ModuleNotFoundError: It is not installed; the message names the extra.
    """
    # Older releases ask PyPI for newer ones wherever a folder is opened, and wait for the answer.
    os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")
    try:
        import litdata
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Streaming needs litdata: pip install 'lit-finetune[streaming]'", name="litdata"
        ) from error
    return litdata


def write_shards(data: ImageFolderDataModule, folder: str | Path, *, chunk_mb: int = 64) -> None:
    """Pack pictures into a folder that `StreamingImageDataModule` reads.

    The files are taken as they are, byte for byte, divided as `data` divides them. The folder
    appears when all is written; what a killed attempt leaves beside it the next one removes.

    Args:
        data: The pictures; those that cannot be read it refuses or skips.
        folder: It must not be there yet.
        chunk_mb: Megabytes in each file.

    Raises:
        FileExistsError: The folder is there.
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
        for part, pictures in samples.items():
            if pictures.names:
                _write_part(pictures, new / part, f"{chunk_mb}MB", part)
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
    """The pictures of one part of a packed folder, one by one.

    Args:
        folder: Where `labels.npy` and `names.txt` are.
        source: Where the chunks are: the folder again, or an address that `litdata` reads.
        options: What `litdata` needs to read it.
    """

    def __init__(self, folder: Path, source: str, options: Mapping[str, Any]) -> None:
        self.folder = folder
        self.source = source
        self.options = options
        check_format(folder)

    @cached_property
    def labels(self) -> Sequence[int]:
        """The class index of each picture."""
        return read_labels(self.folder / LABELS)

    @cached_property
    def names(self) -> Sequence[str]:
        """What each picture was called."""
        path = self.folder / NAMES
        try:
            names = [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            raise ValueError(f"{path} {_DAMAGED}") from error
        if len(names) != len(self.labels) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path} {_DAMAGED}")
        return names

    def load(self, index: int) -> Image.Image:
        """One picture, in RGB."""
        return picture_of(self._chunks[index], self.names[index])

    @cached_property
    def _chunks(self) -> Any:
        return open_stream(self.source, **self.options)

    def __getstate__(self) -> dict[str, Any]:
        """Without the open files, which each loading process opens for itself."""
        return {key: value for key, value in vars(self).items() if key != "_chunks"}


def read_classes(path: Path) -> list[str]:
    """The classes of a packed folder.

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
    """The class index of each picture of one part.

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


def picture_of(sample: Mapping[str, Any], name: str) -> Image.Image:
    """The picture in a sample, in RGB.

    Raises:
        OSError: It cannot be read; the message names it.
    """
    return load_part(io.BytesIO(sample["image"]), name=name)[0]


def open_stream(source: str, **options: Any) -> Any:
    """The pictures in a folder or at an address, after a look at the index that litdata will use.

    Raises:
        ValueError: That is none of `write_shards`: a kept copy of it may be another one.
    """
    dataset = import_litdata().StreamingDataset(source, **options)
    check_format(Path(dataset.input_dir.path))
    return dataset


def check_format(folder: Path) -> None:
    """Refuse chunks that were not written by `write_shards`: reading others can run code.

    And an index that names a file outside of its folder, which would be read, or fetched to there.

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
    for name in (*chunks, index.get("updated_at", "0")):  # of the second litdata makes a folder
        if not is_plain_name(name):
            raise ValueError(
                f"'{path}' names {name!r}, which is not a file next to it: an index and its files"
                " stand in one folder. Pack the pictures again with `write_shards`."
            )
