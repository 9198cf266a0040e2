"""What all data modules share: transforms, loaders, and the data config they follow."""

import math
import os
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from typing_extensions import Self, override

from lit_finetune._errors import one_of
from lit_finetune.checkpoints.read import read_checkpoint
from lit_finetune.checkpoints.source import resolve_checkpoint
from lit_finetune.checkpoints.structure import read_run_seed
from lit_finetune.images.data_config import DataConfig, Interpolation, eval_geometry
from lit_finetune.loading.few_pictures import refuse_few_images
from lit_finetune.loading.run_position import RunPosition, position_in_run

from .cached_images import CachedImages, CachedTensor
from .dataset import ArraySamples, ImageDataset, Samples, collate_batch
from .image_cache.build import (
    FOLDER,
    cache_folder,
    cache_in_files,
    cache_in_memory,
    cache_recipe,
    open_cache,
    to_device,
    uses_memory,
    with_stamps,
)
from .same_on_all_ranks import refuse_different_samples
from .samplers import (
    EpochSampler,
    ImageLoader,
    ResumableLoader,
    UnpaddedSampler,
    even_batch_size,
    sampler_class,
)
from .sources.class_counts import count_table
from .transforms.channels import per_channel, validate_options
from .transforms.pipeline import Pipeline, Step, make_pipeline
from .transforms.presets import Augmentation, photo_geometry, train_steps

Cache = Literal["auto", "ram", "disk", "none"]
Part = Literal["train", "val", "test", "predict"]
Loader = ImageLoader

PARTS: Mapping[str, tuple[Part, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}
MOST_WORKERS = 4


class ImageDataModule(LightningDataModule):
    """Pictures with one label each, as the model at hand expects them.

    A subclass gives `classes` and `read_samples`. What is not given here comes from the model's own
    data config. The last batch of a training epoch is left out when it would hold one picture
    alone, which BatchNorm cannot train on; the next epoch shuffles anew.

    Args:
        batch_size: Pictures in a batch, on each device.
        num_workers: Processes that load pictures, for each device; if not given, as many as the
            CPU has to spare, up to 4, but none for kept pictures where the network runs on the CPU.
        image_size: Side of the square that the network sees, or its height and width.
        resize_size: Length of the picture's short side before `image_size` is cut from its centre,
            for all but training.
        mean: Mean of each channel, or one for all, of pixels from 0 to 1.
        std: Standard deviation of each channel, or one for all, of pixels from 0 to 1.
        interpolation: How pictures are resized.
        train_augmentation: How training pictures are varied: `auto` (crop and mirror image, as
            suits the data), `trivial` (TrivialAugment on top), `rand` (RandAugment on top), `none`
            (as in validation), or a callable from picture to picture.
        seed: Seed of the split, where this data is split.
        cache: Where the pictures of `fit` are kept once they are decoded and resized: `ram` (of
            each process, for one run), `disk` (files that all processes and later runs share), or
            `none`. `auto` keeps in memory what is in memory already, if it takes at most 1 GiB.
        cache_dir: Folder for what is kept on disk; a hidden one beside the pictures, if not given.
        cache_size: Length to which the short side of a photograph for training is brought for
            keeping it, if it is longer; random parts are then cut from that. One and a half times
            `resize_size`, if not given.
    """

    fills_frame: ClassVar[bool] = False
    """Whether the object fills its picture, so that nothing is to be cut off around it."""

    def __init__(  # noqa: PLR0913  (the signature is the configuration)
        self,
        *,
        batch_size: int = 32,
        num_workers: int | None = None,
        image_size: int | tuple[int, int] | None = None,
        resize_size: int | None = None,
        mean: float | tuple[float, ...] | None = None,
        std: float | tuple[float, ...] | None = None,
        interpolation: Interpolation | None = None,
        train_augmentation: Augmentation = "auto",
        seed: int = 0,
        cache: Cache = "auto",
        cache_dir: str | Path | None = None,
        cache_size: int | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, but got {batch_size}.")
        if isinstance(train_augmentation, str):
            one_of(train_augmentation, ("auto", "trivial", "rand", "none"), "train_augmentation")
        if cache_size is not None and cache_size < 1:
            raise ValueError(f"`cache_size` must be at least 1, but got {cache_size}.")
        self.cache: Cache = one_of(cache, get_args(Cache), "cache")  # type: ignore[assignment]
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self.cache_size = cache_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.image_size = image_size
        self.train_augmentation: Augmentation = train_augmentation
        self.seed = seed
        self._given = validate_options(
            mean=mean,
            std=std,
            resize_size=resize_size,
            interpolation=interpolation,
        )
        self._datasets: dict[Part, ImageDataset] = {}
        self._made_of: dict[Part, tuple[Samples, DataConfig, str]] = {}
        self._is_prepared = False
        self._told_counts = False
        self._run_seed: int | None = None

    @property
    def classes(self) -> list[str]:
        """The class names; the place of each is its label."""
        raise NotImplementedError(f"{type(self).__name__} must have `classes`.")

    def read_samples(self, part: Part) -> Samples:
        """The pictures of one part; none at all if there is no such part."""
        raise NotImplementedError(f"{type(self).__name__} must have `read_samples`.")

    @property
    def pictures_dir(self) -> Path | None:
        """The folder of the pictures, where they are in one: a cache on disk lies in it."""
        return None

    def train_geometry(self, config: DataConfig) -> list[nn.Module]:
        """How `auto` augmentation crops and moves a picture."""
        return photo_geometry(config)

    @property
    def data_config(self) -> DataConfig:
        """What was asked for here, and for the rest what the model at hand expects."""
        config = DataConfig()
        if self.trainer is not None:
            of_model = getattr(self.trainer.lightning_module, "data_config", None)
            config = of_model if isinstance(of_model, DataConfig) else config
        if self.image_size is not None:
            config = config.resized(self.image_size)
        if self.fills_frame:
            config = replace(config, resize_size=min(config.image_size))
        channels = len(config.mean)
        statistics: dict[str, Any] = {
            key: per_channel(self._given[key], channels, key)
            for key in ("mean", "std")
            if key in self._given
        }
        return replace(config, **(self._given | statistics))

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def class_to_idx(self) -> dict[str, int]:
        """The label of each class."""
        return {name: index for index, name in enumerate(self.classes)}

    @property
    def class_counts(self) -> dict[str, int]:
        """How many pictures of each class there are to train on; known after `setup("fit")`."""
        return self.counts("train")

    @property
    def predict_names(self) -> list[str]:
        """The name of each picture to predict, in order; known after `setup("predict")`."""
        return list(self._dataset("predict").samples.names)

    def counts(self, part: Part) -> dict[str, int]:
        """How many pictures of each class a part has."""
        found = Counter(self._dataset(part).samples.labels)
        return {name: found[index] for index, name in enumerate(self.classes)}

    @override
    def prepare_data(self) -> None:
        # One process makes ready what all will read. Lightning lets the others wait here.
        self._is_prepared = True
        if self.cache == "disk" and (self.trainer is None or self.trainer.state.fn == "fit"):
            for part in PARTS["fit"]:
                self._cache_on_disk(part)

    @override
    def setup(self, stage: str) -> None:
        if stage == "fit" and self._ranks()["num_replicas"] == 1 and not self._is_prepared:
            ImageDataModule.prepare_data(self)  # a subclass may have its own, or nobody called it
        self._is_prepared = False
        for part in PARTS[stage]:
            samples = self.read_samples(part)
            if self._ranks()["num_replicas"] > 1:
                refuse_different_samples(samples, part)
            if not samples.names and (part, stage) != ("val", "fit"):
                raise ValueError(f"There are no pictures for {part}: {self.where_from(part)}.")
            self._datasets[part] = self._make_dataset(part, samples, stage)
        if stage == "fit" and self._run_seed is None and self.trainer is not None:
            # What seed_everything set, or else any; the same in all processes.
            self._run_seed = self.trainer.strategy.broadcast(torch.initial_seed())
        if stage == "fit" and not self._told_counts:
            rank_zero_info(count_table({part: self.counts(part) for part in PARTS["fit"]}))
            self._told_counts = True

    @override
    def state_dict(self) -> dict[str, Any]:
        """The seed of the run's order, so that a resumed run goes on with it."""
        return {"run_seed": self._run_seed}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._run_seed = read_run_seed(state_dict)

    @classmethod
    @override
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """The data module of these keywords, with the order of a run; the file names nothing."""
        content = read_checkpoint(resolve_checkpoint(checkpoint_path))
        module = cls(**kwargs)
        if state := content.get(cls.__qualname__):
            module.load_state_dict(state)
        return module

    def where_from(self, part: Part) -> str:
        """Where the pictures of a part would come from; the end of an error message."""
        return "no share of the data is split off for it"

    @override
    def train_dataloader(self) -> Loader:
        ranks = self.trainer.world_size if self.trainer else 1
        of_rank = math.ceil(len(self._dataset("train")) / ranks)
        leaves_one = of_rank > self.batch_size > 1 and of_rank % self.batch_size == 1
        return self._loader(
            ResumableLoader,
            "train",
            batch_size=self.batch_size,
            sampler=self._train_sampler(),
            drop_last=leaves_one,
        )

    def plain_train_dataloader(self) -> Loader:
        """The training pictures in order, as they are in validation: for a linear probe."""
        train = self._dataset("train")
        pipeline = make_pipeline(eval_geometry(self.data_config), self.data_config)
        is_kept = cache_recipe(pipeline) == cache_recipe(train.pipeline)
        dataset = ImageDataset(
            train.samples, pipeline, cache=train.cache if is_kept else None, device=train.device
        )
        return self._loader(ImageLoader, "train", dataset, batch_size=self.batch_size)

    @override
    def val_dataloader(self) -> Loader | list[Loader]:
        return self._eval_loader("val") if len(self._dataset("val")) else []

    @override
    def test_dataloader(self) -> Loader:
        return self._eval_loader("test")

    @override
    def predict_dataloader(self) -> Loader:
        num_pictures, ranks = len(self._dataset("predict")), self._ranks()
        refuse_few_images(num_pictures, ranks["num_replicas"], "pictures for predict")
        return self._loader(ImageLoader, "predict", batch_size=self.batch_size)

    def _dataset(self, part: Part) -> ImageDataset:
        if part not in self._datasets:
            stage = next(stage for stage, parts in PARTS.items() if part in parts)
            raise RuntimeError(f"The {part} pictures are known after `setup({stage!r})`.")
        samples, config, stage = self._made_of[part]
        if self.trainer is not None and config != self.data_config:  # a checkpoint has brought one
            self._datasets[part] = self._make_dataset(part, samples, stage)
        return self._datasets[part]

    def _make_dataset(self, part: Part, samples: Samples, stage: str) -> ImageDataset:
        self._made_of[part] = samples, self.data_config, stage
        pipeline = self._pipeline(part, samples)
        cached: CachedImages | CachedTensor | None = None
        if self.cache == "disk" and part in PARTS["fit"]:
            cached = open_cache(self._cache_folder(pipeline), with_stamps(samples))
        elif uses_memory(self.cache, samples, pipeline, is_read_often=stage == "fit"):
            cached = cache_in_memory(samples, pipeline, part)
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if not self.num_workers and device.type == "cuda" and pipeline.is_batched:
            cached = to_device(cached, device)
        return ImageDataset(samples, pipeline, cache=cached, device=device)

    def _cache_on_disk(self, part: Part) -> None:
        samples = self.read_samples(part)
        pipeline = self._pipeline(part, samples)
        folder = self._cache_folder(pipeline)
        if samples.names:
            cache_in_files(folder, with_stamps(samples), pipeline, part)

    def _cache_folder(self, pipeline: Pipeline) -> Path:
        root = self.pictures_dir
        if self.cache_dir is None and root is None:
            raise ValueError(
                "`cache` is 'disk', but these pictures are in no folder: name one, `cache_dir`."
            )
        recipe = cache_recipe(pipeline, root=root if self.cache_dir else None)
        return cache_folder(self.cache_dir or Path(str(root), FOLDER), recipe)

    def _pipeline(self, part: Part, samples: Samples) -> Pipeline:
        config = self.data_config
        steps: list[Step] = [*eval_geometry(config)]
        if part == "train":
            steps = train_steps(config, self.train_augmentation, self.train_geometry(config))
        pipeline = make_pipeline(steps, config)
        if self.cache in ("ram", "disk") and not isinstance(samples, ArraySamples):
            pipeline = pipeline.with_shrink(self.cache_size or config.resize_size * 3 // 2, config)
        return pipeline

    def _ranks(self) -> dict[str, int]:
        trainer = self.trainer
        if trainer is None:
            return {"num_replicas": 1, "rank": 0}
        return {"num_replicas": trainer.world_size, "rank": trainer.global_rank}

    def _train_sampler(self) -> EpochSampler:
        trainer = self.trainer
        return sampler_class(trainer)(
            self._dataset("train"),
            **self._ranks(),
            seed=torch.initial_seed() if self._run_seed is None else self._run_seed,
            batch_size=self.batch_size,
            position=partial(position_in_run, trainer.fit_loop)
            if trainer
            else partial(RunPosition, 0, 0),
        )

    def _eval_loader(self, part: Part) -> Loader:
        """A loader of each picture once, in order, whichever process asks."""
        ranks = self._ranks()
        if ranks["num_replicas"] == 1:
            return self._loader(ImageLoader, part, batch_size=self.batch_size)
        dataset = self._dataset(part)
        refuse_few_images(len(dataset), ranks["num_replicas"], f"pictures for {part}")
        size = even_batch_size(len(dataset), self.batch_size, ranks["num_replicas"])
        sampler = UnpaddedSampler(dataset, **ranks)
        return self._loader(ImageLoader, part, batch_size=size, sampler=sampler)

    def _loader(
        self, make: type[Loader], part: Part, dataset: ImageDataset | None = None, **options: Any
    ) -> Loader:
        dataset = dataset or self._dataset(part)
        num_workers = self._num_workers(dataset)
        if dataset.needs_no_workers:  # Lightning would advise workers, which only slow it down
            warnings.filterwarnings("ignore", f"The '{part}_dataloader' does not have many workers")
        return make(
            dataset,
            num_workers=num_workers,
            persistent_workers=num_workers > 0 and part in PARTS["fit"],
            # Its own, so that loading leaves alone what the model draws (dropout, mixing).
            generator=torch.Generator().manual_seed(self.seed),
            collate_fn=collate_batch,  # type: ignore[arg-type]  # a batch, not a list of samples
            pin_memory=dataset.device.type == "cuda" and not dataset.is_on_device,
            **options,
        )

    def _num_workers(self, dataset: ImageDataset) -> int:
        if self.num_workers is not None:
            return self.num_workers
        if len(dataset) <= self.batch_size or dataset.needs_no_workers:
            return 0
        return spare_cpus(self.trainer.num_devices if self.trainer else 1)


def spare_cpus(num_devices: int) -> int:
    """How many loading processes each device's process can have beside it, up to 4."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS, not on Windows
    cpus = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(0, min(MOST_WORKERS, cpus // num_devices - 1))
