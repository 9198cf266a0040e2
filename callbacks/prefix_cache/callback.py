"""Compute the output of the frozen blocks once for each image, and train from the stored output."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from typing_extensions import override

from lit_finetune.freezing.prefix_watch import PrefixWatch
from lit_finetune.schedules.plan import Plan
from lit_finetune.splitting.split import PrefixOutput

from ..freeze_unfreeze import FreezeUnfreezeCallback
from .config import cache_config
from .dataloader import with_prefixes
from .requirements import check_run
from .run import Run, frozen_blocks, split_problem
from .samples import Loader, LoaderSamples, sample_index, with_batches
from .tables import PrefixTables


class FrozenPrefixCache(Callback):
    """Compute the frozen blocks once for each image, and train the others from the stored output.

    While the first blocks of a `FinetuneClassifier` are frozen, their output is computed once for
    every image, for training and for validation, and stored. The following epochs decode no image
    and run only the remaining blocks. The cache follows a schedule: when a block is unfrozen, the
    input of that block is used, which the first pass has stored as well where the schedule is
    known and the memory limit allows it. When the whole network trains, the images are used again.

    Without random augmentation, training ends with the same bits as without the cache, as long as
    all batches have one size: the last bits of a network's output can depend on the batch size.
    Only the last batch of an epoch is smaller.

    Args:
        views: Variants of each training image to store, for a dataset with random augmentation;
            the epochs use them in turn. By default such a dataset is refused.
        dtype: The stored data type: `fp32`, as the values are computed, or half of its size, `fp16`
            or `bf16`.
        cache_dir: A folder that later and resumed runs share; a table is used again as long as
            weights, images, transforms and settings are the same. By default tables live in
            memory, or in temporary files, until the run ends.
        memory_limit: GiB of memory for the tables of training images, and as much for those of
            validation images; larger tables are stored in files.

    Raises:
        ValueError: An argument is out of range; or, when training starts, the module, its images
            or the strategy are not supported.
    """

    def __init__(
        self,
        views: int = 0,
        dtype: Literal["fp32", "fp16", "bf16"] = "fp32",
        cache_dir: str | Path | None = None,
        memory_limit: float = 4.0,
    ) -> None:
        self.config = cache_config(views, dtype, cache_dir, memory_limit)
        self._run: Run | None = None
        self._reset()

    def _reset(self) -> None:
        self._run = None
        self._tables: dict[int, PrefixTables] = {}
        self._split_problems: dict[str, str | None] = {}
        self._messages_shown: set[str] = set()
        self._watches: dict[bool, PrefixWatch] = {}
        self._batch: tuple[Loader, list[Any]] | None = None
        self._is_in_epoch = False
        self._is_disabled = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        module = check_run(trainer, pl_module)
        if getattr(trainer, "fast_dev_run", False):
            rank_zero_info("FrozenPrefixCache: a trial run keeps nothing.")
            return
        self._run = Run(trainer, module)
        # Behind the callbacks that freeze. A new list: Lightning iterates over the old one now.
        others = [each for each in trainer.callbacks if each is not self]  # type: ignore[attr-defined]
        trainer.callbacks = [*others, self]  # type: ignore[attr-defined]
        process = trainer.strategy.process_dataloader

        def processed(dataloader: object) -> object:
            return with_prefixes(process(dataloader), self)

        trainer.strategy.process_dataloader = processed  # type: ignore[method-assign]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run that resumes within an epoch calls no on_train_epoch_start.
        self._is_in_epoch = self._run is not None

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_in_epoch = self._run is not None

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_in_epoch = False

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        progress = trainer.fit_loop.epoch_loop.batch_progress
        self._check_batch(batch, is_last=progress.is_last_batch)

    @override
    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
        self._check_batch(batch, is_last=progress.is_last_batch)

    def _check_batch(self, batch: Any, *, is_last: bool) -> None:
        """Replace a cached batch by its images if the frozen blocks have changed since.

        Raises:
            ValueError: They changed earlier in the epoch, in a way that torch does not record.
        """
        if not (isinstance(batch, list) and isinstance(batch[0], PrefixOutput)):
            return
        assert self._run is not None
        assert self._batch is not None
        if not self.is_current():
            loader, indices = self._batch
            images = next(iter(with_batches(loader, [indices])))
            batch[:] = self._run.on_device(images)
        elif is_last and self._watches[self._run.trainer.training].has_other_values():
            raise ValueError(_CHANGED_UNSEEN.format(block=batch[0].block))

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close(trainer)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if self._batch is not None and isinstance(exception, TypeError | AttributeError):
            self._log_once(
                "steps and hooks receive cached block inputs instead of pictures, which only the"
                " module's `forward` accepts. A step of your own that works on pictures cannot be"
                " used with it."
            )
        self._close(trainer)

    def begin(self, loader: Loader) -> Callable[[list[Any]], Any] | None:
        """A function from indices to batches for this epoch; None for the loader's own images."""
        if not self._is_in_epoch or self._run is None or self._is_disabled:
            return None
        run = self._run
        is_training = run.trainer.training
        frozen, excluded = frozen_blocks(run, check_modes=is_training)
        if excluded:
            self._log_once(
                f"`{excluded}` is frozen but in training mode, so that its statistics or its"
                " dropout change: no input of a later block is kept."
            )
        tables = self._tables_of(loader, "training" if is_training else "validation")
        name = self._entry(run, tables.first_images, len(frozen)) if frozen else None
        self._watches.pop(is_training, None)
        if name is None or not tables.prepare(run, name, self._later(run, tables, name)):
            return None
        modules = run.modules_of(run.blocks_before(name))
        self._watches[is_training] = PrefixWatch(run.module, run.tensors(name), modules)

        def make_batch(indices: list[Any]) -> list[Any]:
            self._batch = loader, indices
            return tables.batch(run, name, list(map(sample_index, indices)))

        return make_batch

    def is_current(self) -> bool:
        """Whether the frozen blocks are still the same as when the epoch began."""
        is_training = self._run is not None and self._run.trainer.training
        watch = self._watches.get(is_training)
        if watch is None or self._is_disabled:
            return not self._is_disabled
        if is_training and watch.is_training():
            return False
        if watch.has_changed():
            self._is_disabled = True
            self._log_once(
                "frozen blocks were changed amid an epoch, by a hook or another callback: from now"
                " on the pictures are used."
            )
        return not self._is_disabled

    def _tables_of(self, loader: Loader, part: str) -> PrefixTables:
        if id(loader) not in self._tables:
            views = self.config.views if part == "training" else 0
            samples = LoaderSamples(loader, part, views)
            self._tables[id(loader)] = PrefixTables(samples, self.config)
        return self._tables[id(loader)]

    def _entry(
        self, run: Run, first_images: Callable[[Run], Tensor], num_frozen: int
    ) -> str | None:
        """The last block with only frozen blocks before it at which the network can be split.

        Raises:
            ValueError: It can be split at none of them.
        """
        names = run.names()
        last = min(num_frozen, len(names) - 1)
        for name in reversed(names[1 : last + 1]):
            problem = self._split_problem(run, first_images, name)
            if problem is None:
                return name
            self._log_once(f"{problem} An earlier block is tried.")
        if last == 0:
            return None
        raise ValueError(
            f"FrozenPrefixCache has nothing to keep before `{names[last]}`:"
            f" {self._split_problems[names[last]]}"
        )

    def _later(self, run: Run, tables: PrefixTables, name: str) -> list[str]:
        """The blocks before this one whose inputs later phases need, in the network's order."""
        callbacks: list[Callback] = run.trainer.callbacks  # type: ignore[attr-defined]
        schedules = [each for each in callbacks if isinstance(each, FreezeUnfreezeCallback)]
        plans = [each.plan for each in schedules if each.plan is not None]
        first_trained = {first for plan in plans for first in _first_trained(run, plan)}
        wanted = [each.name for each in run.blocks_before(name)[1:] if each.name in first_trained]
        problem = self._split_problem
        return [other for other in wanted if problem(run, tables.first_images, other) is None]

    def _split_problem(
        self, run: Run, first_images: Callable[[Run], Tensor], name: str
    ) -> str | None:
        if name not in self._split_problems:
            self._split_problems[name] = split_problem(run, first_images(run), name)
        return self._split_problems[name]

    def _log_once(self, message: str) -> None:
        if message not in self._messages_shown:
            self._messages_shown.add(message)
            rank_zero_info(f"FrozenPrefixCache: {message}")

    def _close(self, trainer: Trainer) -> None:
        for tables in self._tables.values():
            tables.close()
        vars(trainer.strategy).pop("process_dataloader", None)
        self._reset()


def _first_trained(run: Run, plan: Plan) -> set[str]:
    """For each phase of a plan, the first block of the network that trains."""
    blocks: set[str] = set()
    for index in range(len(plan.phases)):
        trained = plan.trainable(index)
        names = [b.name for b in run.blocks if not trained.isdisjoint(b.parameters)]
        blocks.update(names[:1])
    return blocks


_CHANGED_UNSEEN = (
    "The frozen blocks before `{block}` have other weights or buffers than when the epoch began,"
    " written in a way that torch does not record (`.data`, NumPy): batches of this epoch were"
    " made from their earlier output. Write to the tensors themselves under torch.no_grad(), or"
    " between epochs; or leave FrozenPrefixCache out."
)
