"""Pictures streamed from packed files, on this machine or in an object store."""

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
    INDEX,
    LABELS,
    NAMES,
    PackedSamples,
    check_format,
    import_litdata,
    open_stream,
    picture_of,
    read_classes,
)
from .samplers import SeededIndex, is_overfit


class StreamingImageDataModule(ImageDataModule):
    """Pictures that `write_shards` has packed, for data that is too large for one machine.

    `litdata` fetches the packed files, keeps what fits on the disk, shuffles and divides them
    among processes and workers; a resumed run goes on at the batch where it stopped. To train,
    each worker leaves out what does not fill a batch; validation and testing see each picture once.

    Args:
        data_dir: The folder that `write_shards` wrote, or its address: `s3://…`, `gs://…`,
            `azure://…`; `local:/…` copies from a shared disk as from a store.
        cache_dir: Where fetched files are kept; `litdata`'s own place if not given.
        storage_options: What the store asks for, such as credentials.
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
            return LocalSamples(())
        samples = PackedSamples(self._listing(part), self._address(part), self._options())
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
        litdata, pictures = import_litdata(), self._dataset("train")
        ranks = self.trainer.world_size if self.trainer else 1
        each = len(pictures) // ranks // self.batch_size
        if not each:
            raise ValueError(
                f"{len(pictures)} pictures do not fill a batch of {self.batch_size} in each of"
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
        dataset.transform = [Varied(dataset, pictures, seed)]
        loader = litdata.StreamingDataLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=min(self._num_workers(pictures), each),
            drop_last=True,
            generator=torch.Generator().manual_seed(self.seed),
            pin_memory=pictures.device.type == "cuda",
        )
        return ReadToTheEnd(loader)

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
        beside = [path.name for path in parent.glob("*") if (path / CLASSES).exists()]
        return nearest(Path(self.data_dir).name, beside)

    def _has(self, part: str) -> bool:
        return self._fetch(f"{part}/{INDEX}") is not None

    def _listing(self, part: str) -> Path:
        """The folder with the lists of a part, fetched if need be."""
        paths = [self._fetch(f"{part}/{name}") for name in (INDEX, LABELS, NAMES)]
        if None in paths:
            raise FileNotFoundError(f"'{self._address(part)}' lacks one of {LABELS}, {NAMES}.")
        assert paths[0] is not None
        check_format(paths[0].parent)
        return paths[0].parent

    def _address(self, part: str) -> str:
        return f"{self.data_dir.rstrip('/')}/{part}"

    def _options(self) -> dict[str, Any]:
        kept_in = {} if self.cache_dir is None else {"cache_dir": str(self.cache_dir)}
        return {**kept_in, "storage_options": self.storage_options or {}}

    def _fetch(self, name: str) -> Path | None:
        """A small file of the packed folder, brought here if it is elsewhere; None if not there."""
        if not is_elsewhere(self.data_dir):
            path = Path(self.data_dir).expanduser() / name
            return path if path.exists() else None
        path = self._here / name
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
    def _here(self) -> Path:
        """Where small files are fetched to, each run anew: those in the store may have changed."""
        self._folder = tempfile.TemporaryDirectory(prefix="lit-finetune-")
        return Path(self._folder.name)


class ReadToTheEnd:
    """A loader of `litdata` whose epochs end with their last batch.

    It leaves the state that it was given on resume only once it is asked for more than its last
    batch, which Lightning never does: the epoch after a resumed one would be empty. So the next
    batch is fetched before one is given, and the state is that from before.

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
        """Where the stream stands after the batch that was given last."""
        return self._state or self.loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: That was a stream of other files.
        """
        self.loader.load_state_dict(with_own_places(state_dict, self.loader.dataset))


def with_own_places(state: dict[str, Any], dataset: Any) -> dict[str, Any]:
    """A stream's state with the places of this one, not of those that a checkpoint names.

    `litdata` would follow these: make folders, and fetch an index.

    Raises:
        ValueError: The state is of a stream from elsewhere.
    """
    if "dataset" not in state:
        return state
    theirs, ours = state["dataset"], dataset.state_dict(0, 1, 1)
    then, now = (each.get("input_dir_url") or each.get("input_dir_path") for each in (theirs, ours))
    if then != now:
        raise ValueError(
            f"The checkpoint's run read '{printable(then)}', and this one reads '{now}': amid an"
            " epoch only the same files can be gone on with."
        )
    own = ("input_dir_path", "input_dir_url", "cache_dir_path", "item_loader", "subsampled_files")
    same = {key: ours[key] for key in (*own, "region_of_interest")}
    return {**state, "dataset": {**theirs, **same}}


class LocalSamples:
    """The pictures of a stream: only the one that has just come can be loaded."""

    def __init__(self, labels: Sequence[int]) -> None:
        self.names: Sequence[str] = ()
        self.labels = labels
        self.sample: dict[str, Any] = {}

    def load(self, index: int) -> Image.Image:
        """The picture that has come, in RGB."""
        return picture_of(self.sample, f"training picture {index}")


class Varied:
    """Make of a sample what the network sees: varied by run, epoch and picture alone.

    Args:
        dataset: It knows the epoch.
        pictures: How they are varied, and their labels.
        seed: Of the run.
    """

    def __init__(self, dataset: Any, pictures: ImageDataset, seed: int) -> None:
        self.dataset = dataset
        self.at_hand = LocalSamples(pictures.samples.labels)
        self.pictures = ImageDataset(self.at_hand, pictures.pipeline)
        self.seed = seed

    def __call__(self, sample: dict[str, Any]) -> tuple[Tensor, int]:
        """From a packed sample to picture and label."""
        self.at_hand.sample = sample
        seed = derive_seed(self.seed, self.dataset.current_epoch)
        return self.pictures[SeededIndex(int(sample["index"]), seed)]


def is_elsewhere(address: str) -> bool:
    """Whether an address is not that of a folder here.

    >>> is_elsewhere("s3://bucket/shards"), is_elsewhere("photos/shards")
    (True, False)
    """
    return "://" in address or address.startswith("local:")
