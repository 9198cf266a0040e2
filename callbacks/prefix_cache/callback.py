"""Run the frozen part of a network once over each picture, and keep what it gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelPruning
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from typing_extensions import override

from lit_finetune._errors import one_of, some_of
from lit_finetune.blocks.block import Block
from lit_finetune.classifier import FinetuneClassifier
from lit_finetune.distributed.wrapping import refuse_unsupported, shards
from lit_finetune.freezing.prefix_watch import PrefixWatch, may_move
from lit_finetune.splitting.check import why_not
from lit_finetune.splitting.split import PrefixOutput

from ..freeze_unfreeze import FreezeUnfreezeCallback
from .dataloader import with_prefixes
from .frozen_network import Run
from .samples import Loader, Pictures, in_batches, number_of
from .tables import Keeping, PrefixTables

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_TRANSFER_HOOKS = (
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)


class FrozenPrefixCache(Callback):
    """Run the frozen blocks once over each picture, and train the rest on what they gave.

    While the first blocks of a `FinetuneClassifier` stand still, their output is computed once
    for every picture, for training and for validation, and kept. The epochs after that decode no
    picture and run only the blocks behind. It follows a schedule: when a block is unfrozen, what
    enters that block is taken, which the first pass has kept as well where the schedule is known
    and there is room; when the whole network trains, the pictures are used again.

    With pictures that are not varied, training ends with the bits that it would have ended with,
    as long as all batches are of one size: the last bits of what a network makes of a picture may
    hang on how many there are in its batch. Smaller than that only the last batch of an epoch is.

    Args:
        views: How many variants of each training picture are kept, for a dataset that varies them
            at random; the epochs show them in turn. By default such a dataset is refused.
        dtype: What is kept: `fp32`, or half of it, `fp16` or `bf16`.
        cache_dir: A folder for what is kept, which later runs find there, and a run that is
            resumed. It is theirs as long as weights, pictures and transforms are the same. If not
            given, it is kept in memory as long as the run lasts.
        memory_limit: How many GiB may be kept in memory for training pictures, and for validation
            pictures; what is larger is kept in files.

    Raises:
        ValueError: An argument cannot be; or, when training is about to start, the module, its
            pictures or the strategy do not allow it.
    """

    def __init__(
        self,
        views: int = 0,
        dtype: Literal["fp32", "fp16", "bf16"] = "fp32",
        cache_dir: str | Path | None = None,
        memory_limit: float = 4.0,
    ) -> None:
        if views < 0:
            raise ValueError(f"`views` must be 0 or more, but got {views}.")
        if memory_limit < 0:
            raise ValueError(f"`memory_limit` must be 0 or more, but got {memory_limit}.")
        self.views = views
        folder = None if cache_dir is None else Path(cache_dir).expanduser()
        self.keeping = Keeping(
            DTYPES[one_of(str(dtype), DTYPES, "dtype")], folder, int(memory_limit * 2**30)
        )
        self._tables: dict[int, PrefixTables] = {}
        self._problems: dict[str, str | None] = {}
        self._told: set[str] = set()
        self._run: Run | None = None
        self._is_in_epoch = False
        self._watches: dict[bool, PrefixWatch] = {}
        self._moves = False
        self._batch: tuple[Loader, list[Any]] | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        module = _checked(trainer, pl_module)
        refuse_unsupported(trainer.strategy)
        if isinstance(trainer.strategy, FSDPStrategy):
            raise ValueError("FrozenPrefixCache is not supported under FSDPStrategy: use 'ddp'.")
        if getattr(trainer, "fast_dev_run", False):
            rank_zero_info("FrozenPrefixCache: a trial run keeps nothing.")
            return
        self._run = Run(trainer, module)
        # Behind those who freeze and unfreeze. A new list: Lightning is going through the old one.
        others = [each for each in trainer.callbacks if each is not self]  # type: ignore[attr-defined]
        trainer.callbacks = [*others, self]  # type: ignore[attr-defined]
        process = trainer.strategy.process_dataloader

        def processed(dataloader: object) -> object:
            return with_prefixes(process(dataloader), self)

        trainer.strategy.process_dataloader = processed  # type: ignore[method-assign]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_in_epoch = self._run is not None  # a run that goes on amid an epoch begins none

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
        self._see_to(batch, is_last=trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)

    @override
    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        loop = trainer.fit_loop.epoch_loop.val_loop
        self._see_to(batch, is_last=loop.batch_progress.is_last_batch)

    def _see_to(self, batch: Any, *, is_last: bool) -> None:
        """Take the pictures of a batch where the blocks before have changed since it was made.

        Raises:
            ValueError: They have changed before, and that could not be seen.
        """
        if not (isinstance(batch, list) and isinstance(batch[0], PrefixOutput)):
            return
        assert self._run is not None
        assert self._batch is not None
        if not self.is_current():
            loader, indices = self._batch
            pictures = next(iter(in_batches(loader, [indices])))
            batch[:] = self._run.on_device(pictures)
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
            self._tell(
                "steps and hooks are given what a block gave in the place of pictures, which the"
                " module's `forward` alone can take. One of your own that works on pictures cannot"
                " be used with it."
            )
        self._close(trainer)

    def begin(self, loader: Loader) -> Callable[[list[Any]], Any] | None:
        """What makes the batches of a loader in this epoch; None for its own pictures."""
        if not self._is_in_epoch or self._run is None:
            return None
        run = self._run
        if self._moves:
            return None
        is_training = run.trainer.training
        still, moving = _blocks_at_rest(run, check_modes=is_training)
        if moving:
            self._tell(
                f"`{moving}` is frozen but in training mode, where its statistics or its dropout"
                " move: nothing behind it is kept."
            )
        tables = self._tables_of(loader, "training" if is_training else "validation")
        name = self._entry(run, tables, still) if still else None
        self._watches.pop(is_training, None)
        if name is None or not tables.prepare(run, name, self._ahead(run, tables, name)):
            return None
        before = [each for block in _before(run.blocks, name) for each in _modules(run, block)]
        self._watches[is_training] = PrefixWatch(run.module, run.tensors(name), before)

        def make(indices: list[Any]) -> list[Any]:
            self._batch = loader, indices
            return tables.batch(run, name, list(map(number_of, indices)))

        return make

    def is_current(self) -> bool:
        """Whether the blocks before the one that batches enter still stand still."""
        is_training = self._run is not None and self._run.trainer.training
        watch = self._watches.get(is_training)
        if watch is None or self._moves:
            return not self._moves
        if is_training and watch.trains():
            return False
        if watch.has_moved():
            self._moves = True
            self._tell(
                "frozen blocks were changed amid an epoch, by a hook or another callback: from now"
                " on the pictures are used."
            )
        return not self._moves

    def _tables_of(self, loader: Loader, part: str) -> PrefixTables:
        if id(loader) not in self._tables:
            views = self.views if part == "training" else 0
            self._tables[id(loader)] = PrefixTables(Pictures(loader), part, views, self.keeping)
        return self._tables[id(loader)]

    def _entry(self, run: Run, tables: PrefixTables, still: list[Block]) -> str | None:
        """The latest block up to which nothing moves, and at which the network can be split."""
        names = run.names()
        latest = min(len(still), len(names) - 1)
        for name in reversed(names[1 : latest + 1]):
            if name not in self._problems:
                self._problems[name] = _why_not(run, tables.probe(run), name)
            if self._problems[name] is None:
                return name
            self._tell(f"{self._problems[name]} An earlier block is tried.")
        if latest == 0:
            return None
        raise ValueError(
            f"FrozenPrefixCache has nothing to keep before `{names[latest]}`:"
            f" {self._problems[names[latest]]}"
        )

    def _ahead(self, run: Run, tables: PrefixTables, name: str) -> list[str]:
        """The earlier blocks that the schedule will come to, in the order of the network."""
        names = run.names()
        callbacks: list[Callback] = run.trainer.callbacks  # type: ignore[attr-defined]
        plans = [each.plan for each in callbacks if isinstance(each, FreezeUnfreezeCallback)]
        entries: set[str] = set()
        for plan in filter(None, plans):
            for index in range(len(plan.phases)):
                trained = plan.trainable(index)
                moving = [b.name for b in run.blocks if not trained.isdisjoint(b.parameters)]
                entries.update(moving[:1])
        wanted = [n for n in names[1 : names.index(name)] if n in entries]
        for other in wanted:
            if other not in self._problems:
                self._problems[other] = _why_not(run, tables.probe(run), other)
        return [other for other in wanted if self._problems[other] is None]

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            rank_zero_info(f"FrozenPrefixCache: {message}")

    def _close(self, trainer: Trainer) -> None:
        for tables in self._tables.values():
            tables.close()
        vars(trainer.strategy).pop("process_dataloader", None)
        self._tables, self._problems, self._told = {}, {}, set()
        self._run, self._batch, self._is_in_epoch = None, None, False
        self._watches, self._moves = {}, False


_CHANGED_UNSEEN = (
    "The frozen blocks before `{block}` have other weights or buffers than when the epoch began,"
    " written in a way that torch takes no note of (`.data`, NumPy): batches of this epoch were"
    " made of what they gave before. Write to the tensors themselves under torch.no_grad(), or"
    " between epochs; or leave FrozenPrefixCache out."
)


def _checked(trainer: Trainer, pl_module: LightningModule) -> FinetuneClassifier:
    """The module, if its steps can be given what a block is given.

    Raises:
        ValueError: They cannot; it says why.
    """
    if shards(trainer.strategy):
        raise ValueError("FrozenPrefixCache needs whole parameters: use one device, or 'ddp'.")
    if not isinstance(pl_module, FinetuneClassifier):
        name = type(pl_module).__name__
        raise ValueError(f"FrozenPrefixCache trains a FinetuneClassifier, but this is a {name}.")
    if any(isinstance(each, ModelPruning) for each in trainer.callbacks):  # type: ignore[attr-defined]
        raise ValueError(
            "FrozenPrefixCache cannot be used beside ModelPruning: it puts masks on frozen weights"
            " too, and changes them again and again. Leave one of them out."
        )
    for name in ("mixup_alpha", "cutmix_alpha"):
        if pl_module.hparams.get(name):
            raise ValueError(
                f"FrozenPrefixCache cannot be used with `{name}`: it mixes pictures before the"
                " network sees them, each time others."
            )
    if type(pl_module).forward is not FinetuneClassifier.forward:
        raise ValueError(
            f"FrozenPrefixCache does not know what {type(pl_module).__name__}.forward does: it can"
            " be used with that of FinetuneClassifier alone."
        )
    datamodule = getattr(trainer, "datamodule", None)
    for owner in filter(None, (pl_module, datamodule)):
        for hook in _TRANSFER_HOOKS:
            if is_overridden(hook, owner):
                raise ValueError(
                    f"FrozenPrefixCache cannot be used with {type(owner).__name__}.{hook}: it would"
                    " be given what a block gave instead of pictures."
                )
    return pl_module


def _before(blocks: list[Block], name: str | None) -> list[Block]:
    names = [block.name for block in blocks]
    return blocks[: names.index(name)] if name is not None else []


def _blocks_at_rest(run: Run, *, check_modes: bool) -> tuple[list[Block], str | None]:
    """The first blocks of which nothing trains, and whose statistics and dropout stand still.

    And the name of the next one, if nothing but these moves in it.
    """
    named = dict(run.module.named_parameters())
    still: list[Block] = []
    if missing := [n for block in run.blocks for n in block.parameters if n not in named]:
        raise ValueError(
            "FrozenPrefixCache: the network has other parameters than when the run began:"
            f" {some_of(missing, 3)} is missing. Prune, exchange and reparametrise layers in"
            " `__init__` or `setup`."
        )
    for block in run.blocks:
        if any(named[name].requires_grad for name in block.parameters):
            break
        if check_modes and any(m.training and may_move(m) for m in _modules(run, block)):
            return still, block.name
        still.append(block)
    return still, None


def _modules(run: Run, block: Block) -> list[nn.Module]:
    return [m for path in block.modules for m in run.module.get_submodule(path).modules()]


def _why_not(run: Run, images: Tensor, name: str) -> str | None:
    """Why nothing can be kept of what enters a block; None if it can."""
    network, head_name = run.module.backbone, run.module.head_name
    with run.running():
        reason = why_not(network, images, name, head_name=head_name, in_training=False)
        if reason is None and len(run.module.forward_prefix(images, name)) != len(images):
            reason = f"What enters `{name}` has no row for each picture."
    return reason
