"""The stream of `litdata` over packed images, which names a damaged chunk.

Imported only where `litdata` is installed.
"""

import struct
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

from litdata import StreamingDataset
from typing_extensions import override

from lit_finetune.files.json import read_json

from .shard_index import INDEX

_ERRORS = (struct.error, ValueError, RuntimeError, LookupError, TypeError, AssertionError)
"""What `litdata` raises where bytes are no sample."""


class ShardStream(StreamingDataset):  # type: ignore[misc]
    """A stream of samples, with an error that names the file of the damaged ones.

    `transform` is that of `litdata`, whose errors would be taken for damage; `sample_transform` is
    applied after a sample has been read.
    """

    sample_transform: Callable[[Any], Any] | None = None

    @override
    def __getitem__(self, index: Any) -> Any:
        try:
            sample = super().__getitem__(index)
        except _ERRORS as error:
            raise ValueError(
                f"{self._chunk_path(index)} is damaged: pack the pictures again with"
                f" `write_shards` ({type(error).__name__}: {error})."
            ) from error
        return sample if self.sample_transform is None else self.sample_transform(sample)

    def _chunk_path(self, index: Any) -> Path:
        """The file of a sample."""
        folder = Path(self.input_dir.path)
        chunks = read_json(folder / INDEX)["chunks"]
        number = getattr(index, "chunk_index", None)
        if number is None:
            ends = accumulate(chunk["chunk_size"] for chunk in chunks)
            number = next(number for number, end in enumerate(ends) if index < end)
        return folder / chunks[number]["filename"]
