"""The base class of the data modules: transforms, loaders and the data config."""

import math
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
from lit_finetune.loading.few_images import refuse_few_images
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
from .workers import spare_cpus

Cache = Literal["auto", "ram", "disk", "none"]
Part = Literal["train", "val", "test", "predict"]
Loader = ImageLoader

PARTS: Mapping[str, tuple[Part, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}


class ImageDataModule(LightningDataModule):
    """Images with one label each, in the form that the model expects.

    A subclass defines `classes` and `read_samples`. Options that are None are taken from the
    model's data config. A training epoch drops its last batch if it has a single image, on which
    BatchNorm cannot train; the next epoch is shuffled again.

    Args:
        batch_size: Images per batch, on each device.
        num_workers: Worker processes for each device. By default as many as there are spare CPUs,
            up to 4, and none for cached images if the network runs on a CPU, because workers would
            compete with training.
        image_size: Side of the square input of the network, or its height and width, in pixels.
        resize_size: Length of an image's short side before the center crop of `image_size`, in
            pixels; not for training.
        mean: Mean of each channel, or one for all, of pixels from 0 to 1.
        std: Standard deviation of each channel, or one for all, of pixels from 0 to 1.
        interpolation: Interpolation of the resize.
        train_augmentation: Augmentation of training images: `auto` (crop and flip, as suits the
            data), `trivial` (with TrivialAugment), `rand` (with RandAugment), `none` (as in
            validation), or a callable from image to image.
        seed: Seed of the split, if this data is split.
        cache: Where the decoded and resized images of `fit` are cached: `ram` (of each process, for
            one run), `disk` (files that all processes and later runs share), or `none`. `auto`
            caches images that are in memory already, if they take at most 1 GiB.
        cache_dir: Folder of the cache on disk; by default a hidden folder next to the images.
        cache_size: The largest length of the short side of cached training photographs, in pixels;
            random crops are taken from these. By default one and a half times `resize_size`.
    """

    fills_frame: ClassVar[bool] = False
    """Whether the object fills its image, so that no border may be cropped."""

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
        self._dataset_sources: dict[Part, tuple[Samples, DataConfig, str]] = {}
        self._is_prepared = False
        self._has_logged_counts = False
        self._run_seed: int | None = None

    @property
    def classes(self) -> list[str]:
        """The class names, in the order of their labels."""
        raise NotImplementedError(f"{type(self).__name__} must have `classes`.")

    def read_samples(self, part: Part) -> Samples:
        """The images of one part; empty if the part does not exist."""
        raise NotImplementedError(f"{type(self).__name__} must have `read_samples`.")

    @property
    def pictures_dir(self) -> Path | None:
        """The folder of the images, which by default contains the cache on disk; else None."""
        return None

    def train_geometry(self, config: DataConfig) -> list[nn.Module]:
        """The steps of the `auto` augmentation."""
        return photo_geometry(config)

    @property
    def data_config(self) -> DataConfig:
        """The options of this data module, and those of the model for the others."""
        config = DataConfig()
        if self.trainer is not None:
            model_config = getattr(self.trainer.lightning_module, "data_config", None)
            config = model_config if isinstance(model_config, DataConfig) else config
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
        """The number of classes."""
        return len(self.classes)

    @property
    def class_to_idx(self) -> dict[str, int]:
        """The label of each class."""
        return {name: index for index, name in enumerate(self.classes)}

    @property
    def class_counts(self) -> dict[str, int]:
        """The number of training images of each class; known after `setup("fit")`."""
        return self.counts("train")

    @property
    def predict_names(self) -> list[str]:
        """The names of the images to predict, in order; known after `setup("predict")`."""
        return list(self._dataset("predict").samples.names)

    def counts(self, part: Part) -> dict[str, int]:
        """The number of images of each class in a part."""
        found = Counter(self._dataset(part).samples.labels)
        return {name: found[index] for index, name in enumerate(self.classes)}

    @override
    def prepare_data(self) -> None:
        # One process prepares the cache for all. Lightning lets the others wait here.
        self._is_prepared = True
        if self.cache == "disk" and (self.trainer is None or self.trainer.state.fn == "fit"):
            for part in PARTS["fit"]:
                self._cache_on_disk(part)

    @override
    def setup(self, stage: str) -> None:
        if stage == "fit" and self._ranks()["num_replicas"] == 1 and not self._is_prepared:
            ImageDataModule.prepare_data(self)  # a subclass may override it, or nobody called it
        self._is_prepared = False
        for part in PARTS[stage]:
            samples = self.read_samples(part)
            if self._ranks()["num_replicas"] > 1:
                refuse_different_samples(samples, part)
            if not samples.names and (part, stage) != ("val", "fit"):
                raise ValueError(f"There are no pictures for {part}: {self.where_from(part)}.")
            self._datasets[part] = self._make_dataset(part, samples, stage)
        if stage == "fit" and self._run_seed is None and self.trainer is not None:
            # From seed_everything, or else random; the same in all processes.
            self._run_seed = self.trainer.strategy.broadcast(torch.initial_seed())
        if stage == "fit" and not self._has_logged_counts:
            rank_zero_info(count_table({part: self.counts(part) for part in PARTS["fit"]}))
            self._has_logged_counts = True

    @override
    def state_dict(self) -> dict[str, Any]:
        """The seed of the run's order, for a resumed run."""
        return {"run_seed": self._run_seed}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._run_seed = read_run_seed(state_dict)

    @classmethod
    @override
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """A data module with these keyword arguments and the run order of a checkpoint.

        The checkpoint defines no other arguments, because it may not be trusted.
        """
        content = read_checkpoint(resolve_checkpoint(checkpoint_path))
        module = cls(**kwargs)
        if state := content.get(cls.__qualname__):
            module.load_state_dict(state)
        return module

    def where_from(self, part: Part) -> str:
        """The reason why a part has no images, for the end of an error message."""
        return "no share of the data is split off for it"

    @override
    def train_dataloader(self) -> Loader:
        ranks = self.trainer.world_size if self.trainer else 1
        share = math.ceil(len(self._dataset("train")) / ranks)
        leaves_one = share > self.batch_size > 1 and share % self.batch_size == 1
        return self._loader(
            ResumableLoader,
            "train",
            batch_size=self.batch_size,
            sampler=self._train_sampler(),
            drop_last=leaves_one,
        )

    def plain_train_dataloader(self) -> Loader:
        """The training images in order with the transform of validation, for a linear probe."""
        train = self._dataset("train")
        pipeline = make_pipeline(eval_geometry(self.data_config), self.data_config)
        is_cached = cache_recipe(pipeline) == cache_recipe(train.pipeline)
        dataset = ImageDataset(
            train.samples, pipeline, cache=train.cache if is_cached else None, device=train.device
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
        samples, config, stage = self._dataset_sources[part]
        is_changed = config != self.data_config  # by a checkpoint that was loaded
        if self.trainer is not None and is_changed:
            self._datasets[part] = self._make_dataset(part, samples, stage)
        return self._datasets[part]

    def _make_dataset(self, part: Part, samples: Samples, stage: str) -> ImageDataset:
        self._dataset_sources[part] = samples, self.data_config, stage
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
        """A loader of each image once, in order, with all processes together."""
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
            # A separate one, so that loading does not change the random numbers of the model.
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
