"""Stream images from packed files, on this machine or in an object store."""

import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from typing_extensions import override

from lit_finetune._errors import nearest
from lit_finetune.files.terminal_text import printable
from lit_finetune.loading.seeding import derive_seed

from .base import ImageDataModule, Part
from .dataset import ImageDataset, Samples
from .litdata_shards import (
    CLASSES,
    LABELS,
    NAMES,
    PackedSamples,
    check_chunks,
    check_format,
    decode_image,
    import_litdata,
    open_stream,
    read_classes,
)
from .samplers import EpochIndex, is_overfit
from .shard_index import INDEX


class StreamingImageDataModule(ImageDataModule):
    """Images packed by `write_shards`, for datasets that are too large for one machine.

    `litdata` downloads the packed files, caches them on the disk, shuffles them and distributes
    them to processes and workers; a resumed run continues at the batch where it stopped. In
    training, each worker drops an incomplete last batch; validation and testing see each image
    once.

    Args:
        data_dir: The folder that `write_shards` wrote, or its URL: `s3://…`, `gs://…`,
            `azure://…`; `local:/…` copies from a shared disk as from a store.
        cache_dir: The folder for downloaded files; by default that of `litdata`.
        storage_options: Options of the store, such as credentials.
        **kwargs: See `ImageDataModule`.

    Raises:
        FileNotFoundError: There is no such packed folder.
    """

    def __init__(
        self,
        data_dir: str | Path,
        *,
        cache_dir: str | Path | None = None,
        storage_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(cache="none", **kwargs)
        import_litdata()
        self.data_dir = str(data_dir)
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self.storage_options = storage_options

    @property
    @override
    def classes(self) -> list[str]:
        return list(self._classes)

    @override
    def read_samples(self, part: Part) -> Samples:
        if part == "predict":
            return self.read_samples("test" if self._has("test") else "val")
        if not self._has(part):
            return CurrentSample(())
        folder, is_local = self._index_folder(part), not is_remote(self.data_dir)
        samples = PackedSamples(folder, self._address(part), self._options())
        check_chunks(folder, len(samples.labels), is_local=is_local)
        if max(samples.labels, default=0) >= self.num_classes:
            raise ValueError(
                f"'{self._address(part)}' has labels of more than the {self.num_classes} classes"
                f" that '{CLASSES}' names: it is damaged. Pack the pictures again."
            )
        return samples

    @override
    def where_from(self, part: Part) -> str:
        return f"'{self.data_dir}' has no folder `{'test' if part == 'predict' else part}`"

    @override
    def train_dataloader(self) -> Any:
        litdata, train = import_litdata(), self._dataset("train")
        ranks = self.trainer.world_size if self.trainer else 1
        num_batches = len(train) // ranks // self.batch_size
        if not num_batches:
            raise ValueError(
                f"{len(train)} pictures do not fill a batch of {self.batch_size} in each of"
                f" {ranks} processes: use a smaller `batch_size`."
            )
        seed = torch.initial_seed() if self._run_seed is None else self._run_seed
        dataset = open_stream(
            self._address("train"),
            shuffle=not is_overfit(self.trainer),
            drop_last=True,
            seed=derive_seed(seed) % 2**31,
            **self._options(),
        )
        dataset.sample_transform = StreamTransform(dataset, train, seed)
        loader = litdata.StreamingDataLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=min(self._num_workers(train), num_batches),
            drop_last=True,
            generator=torch.Generator().manual_seed(self.seed),
            pin_memory=train.device.type == "cuda",
        )
        return PrefetchingLoader(loader)

    @cached_property
    def _classes(self) -> list[str]:
        path = self._fetch(CLASSES)
        if path is None:
            raise FileNotFoundError(
                f"'{self.data_dir}' has no '{CLASSES}': it is no folder that `write_shards` wrote."
                f"{self._hint()}"
            )
        return read_classes(path)

    def _hint(self) -> str:
        parent = Path(self.data_dir).parent
        names = [path.name for path in parent.glob("*") if (path / CLASSES).exists()]
        return nearest(Path(self.data_dir).name, names)

    def _has(self, part: str) -> bool:
        return self._fetch(f"{part}/{INDEX}") is not None

    def _index_folder(self, part: str) -> Path:
        """The local folder with the index files of a part, downloaded if necessary."""
        paths = [self._fetch(f"{part}/{name}") for name in (INDEX, LABELS, NAMES)]
        if None in paths:
            raise FileNotFoundError(f"'{self._address(part)}' lacks one of {LABELS}, {NAMES}.")
        assert paths[0] is not None
        check_format(paths[0].parent)
        return paths[0].parent

    def _address(self, part: str) -> str:
        return f"{self.data_dir.rstrip('/')}/{part}"

    def _options(self) -> dict[str, Any]:
        cache_option = {} if self.cache_dir is None else {"cache_dir": str(self.cache_dir)}
        return {**cache_option, "storage_options": self.storage_options or {}}

    def _fetch(self, name: str) -> Path | None:
        """The local path of a small file, downloaded if necessary; None if it does not exist."""
        if not is_remote(self.data_dir):
            path = Path(self.data_dir).expanduser() / name
            return path if path.exists() else None
        path = self._local_folder / name
        if not path.exists():
            from litdata.streaming.downloader import get_downloader

            path.parent.mkdir(parents=True, exist_ok=True)
            base = self.data_dir.rstrip("/")
            downloader = get_downloader(base, str(path.parent), [], self.storage_options)
            try:
                downloader.download_file(f"{base}/{name}", str(path))
            except FileNotFoundError:
                return None
        return path if path.exists() else None

    @cached_property
    def _local_folder(self) -> Path:
        """The folder for downloaded small files; new in each run, because the store may change."""
        self._folder = tempfile.TemporaryDirectory(prefix="lit-finetune-")
        return Path(self._folder.name)


class PrefetchingLoader:
    """A loader of `litdata` that fetches the next batch before it yields the current one.

    The loader of `litdata` leaves its resumed state only when it is asked for more than the last
    batch, which Lightning never does: the epoch after a resumed one would be empty. The saved state
    is that of the yielded batch.

    Args:
        loader: A `litdata.StreamingDataLoader`.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self._state: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        batch = next(batches, None)
        while batch is not None:
            self._state = self.loader.state_dict()
            following = next(batches, None)
            yield batch
            batch = following

    def state_dict(self) -> dict[str, Any]:
        """The state of the stream after the last yielded batch."""
        return self._state or self.loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a state.

        Raises:
            ValueError: The state is of a stream of other files.
        """
        self.loader.load_state_dict(with_own_paths(state_dict, self.loader.dataset))


def with_own_paths(state: dict[str, Any], dataset: Any) -> dict[str, Any]:
    """A stream's state with the paths of this run instead of those in a checkpoint.

    `litdata` would use the latter: create folders, and download an index.

    Raises:
        ValueError: The state is of a stream of other files.
    """
    if "dataset" not in state:
        return state
    theirs, ours = state["dataset"], dataset.state_dict(0, 1, 1)
    then, now = (each.get("input_dir_url") or each.get("input_dir_path") for each in (theirs, ours))
    if then != now:
        raise ValueError(
            f"The checkpoint's run read '{printable(then)}', and this one reads '{now}': within"
            " an epoch a run can only resume with the same files."
        )
    own = ("input_dir_path", "input_dir_url", "cache_dir_path", "item_loader", "subsampled_files")
    same = {key: ours[key] for key in (*own, "region_of_interest")}
    return {**state, "dataset": {**theirs, **same}}


class CurrentSample:
    """The labels of a stream, and its current image, which alone can be loaded."""

    def __init__(self, labels: Sequence[int]) -> None:
        self.names: Sequence[str] = ()
        self.labels = labels
        self.sample: dict[str, Any] = {}

    def load(self, index: int) -> Image.Image:
        """The current image, in RGB."""
        return decode_image(self.sample, f"training picture {index}")


class StreamTransform:
    """Transforms a packed sample; the random transform depends on run, epoch and index only.

    Args:
        dataset: The stream, for the epoch.
        images: Has the transform and the labels.
        seed: The seed of the run.
    """

    def __init__(self, dataset: Any, images: ImageDataset, seed: int) -> None:
        self.dataset = dataset
        self.current = CurrentSample(images.samples.labels)
        self.images = ImageDataset(self.current, images.pipeline)
        self.seed = seed

    def __call__(self, sample: dict[str, Any]) -> tuple[Tensor, int]:
        """From a packed sample to image and label."""
        self.current.sample = sample
        seed = derive_seed(self.seed, self.dataset.current_epoch)
        return self.images[EpochIndex(int(sample["index"]), seed)]


def is_remote(address: str) -> bool:
    """Whether an address is a URL for `litdata`, and no local folder.

    >>> is_remote("s3://bucket/shards"), is_remote("photos/shards")
    (True, False)
    """
    return "://" in address or address.startswith("local:")
