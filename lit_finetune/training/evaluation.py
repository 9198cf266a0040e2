"""Count what a classifier says of validation and test pictures, and log it when all are seen."""

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torchmetrics import MetricCollection
from torchmetrics.wrappers import ClasswiseWrapper
from typing_extensions import override

from lit_finetune.training.batches import refuse_other_loss
from lit_finetune.training.eval_metrics import MeanLoss
from lit_finetune.training.metric_values import describe, scalars_by_name
from lit_finetune.training.padding import num_repeated

Stage = Literal["val", "test"]
Loaders = dict[tuple[Stage, int], tuple[MeanLoss, MetricCollection]]
"""What measures the pictures of each loader but the first, for which the module's own does."""


@torch.compiler.disable  # type: ignore[untyped-decorator]  # by torch
def count_evaluation(
    module: Any, stage: Stage, logits: Tensor, target: Any, *, batch_idx: int, loader: int
) -> None:
    """Count a batch of validation or testing; each picture counts the same in the end.

    Args:
        module: The classifier; its `loss` is measured, and its `val_metrics` or `test_metrics`.
        stage: `val` or `test`, what the names begin with.
        logits: (N, classes).
        target: Whatever `loss` and the metrics take.
        batch_idx: The number of the batch.
        loader: The number of its loader.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    trainer = module.trainer
    if trainer.world_size > 1 and num_repeated(_loaders(trainer, stage)[loader], batch_idx):
        rows = len(logits) - num_repeated(_loaders(trainer, stage)[loader], batch_idx)
        logits = logits[:rows]
        target = tree_map_only(Tensor, lambda tensor: tensor[:rows], target)
    if not len(logits):
        return
    loss, metrics = measures_of(module, stage, loader)
    # A copy: a loss of a subclass may work in place.
    found = refuse_other_loss(module.loss(logits.clone(), target))
    loss.update(found, module.loss_weight(logits, target))
    metrics.update(logits, target)


def measures_of(module: Any, stage: Stage, loader: int) -> tuple[MeanLoss, MetricCollection]:
    """What measures the pictures of a loader: the module's own, or copies of them."""
    own = getattr(module, f"{stage}_loss"), getattr(module, f"{stage}_metrics")
    if loader == 0:
        return own
    copies: Loaders = module.loader_measures
    if (stage, loader) not in copies:
        copies[stage, loader] = own[0].clone(), own[1].clone()
        for copy in copies[stage, loader]:
            copy.reset()
    return copies[stage, loader]


class LogEvaluation(Callback):
    """Log what was counted: of one loader when the epoch ends, of several when each has ended.

    A callback, since a subclass of the classifier may have hooks of its own without calling those
    of the classifier. What is computed is the same in all processes.

    Args:
        classifier: Whatever else its Trainer runs is left alone.
    """

    def __init__(self, classifier: LightningModule) -> None:
        self.classifier = classifier
        self._open: set[int] = set()

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, pl_module, "val")

    @override
    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, pl_module, "test")

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._end_batch(trainer, pl_module, "val", batch_idx, dataloader_idx)

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._end_batch(trainer, pl_module, "test", batch_idx, dataloader_idx)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end(trainer, pl_module, "val")

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end(trainer, pl_module, "test")

    def _begin(self, trainer: Trainer, module: Any, stage: Stage) -> None:
        is_ours = module is self.classifier
        self._open = set(range(len(_num_batches(trainer, stage)))) if is_ours else set()
        for loader in self._open:
            for measure in measures_of(module, stage, loader):
                measure.reset()

    def _end_batch(
        self, trainer: Trainer, module: Any, stage: Stage, batch_idx: int, loader: int
    ) -> None:
        num_batches = _num_batches(trainer, stage)
        if loader in self._open and len(num_batches) > 1 and batch_idx + 1 == num_batches[loader]:
            self._open.discard(loader)
            _log(module, stage, loader, suffix=f"/dataloader_idx_{loader}", is_added=True)

    def _end(self, trainer: Trainer, module: Any, stage: Stage) -> None:
        is_one = len(_num_batches(trainer, stage)) == 1
        for loader in sorted(self._open):
            suffix = "" if is_one else f"/dataloader_idx_{loader}"
            _log(module, stage, loader, suffix=suffix, is_added=False)
        self._open = set()


def log_evaluations(classifier: LightningModule, trainer: Any) -> None:
    """Let a Trainer log what a classifier counts, in the place of the one that it ran before."""
    present = [each for each in trainer.callbacks if isinstance(each, LogEvaluation)]
    for each in present:
        each.classifier = classifier
    if not present:
        trainer.callbacks.append(LogEvaluation(classifier))


def _log(module: Any, stage: Stage, loader: int, *, suffix: str, is_added: bool) -> None:
    """Log the values of a loader.

    Args:
        module: The classifier.
        stage: What the names begin with.
        loader: The number of the loader.
        suffix: What the names end with.
        is_added: Whether Lightning puts the suffix behind the names that it is given.
    """
    loss, metrics = measures_of(module, stage, loader)
    for wrapper in metrics.modules():
        if isinstance(wrapper, ClasswiseWrapper) and wrapper.labels is None:
            wrapper.labels = list(module.classes)
    values = {f"{stage}/loss": loss.compute(), **metrics.compute()}
    scalars, rest = scalars_by_name(values, module.classes)
    for name, value in scalars.items():
        module.log(
            name if is_added else name + suffix,
            value,
            prog_bar=name in (f"{stage}/loss", f"{stage}/acc"),
            batch_size=1,
            add_dataloader_idx=is_added,
            # All processes have the same number: so it stays, to the bit.
            sync_dist=True,
            reduce_fx="max",
        )
    module.metric_values.update({name + suffix: value for name, value in values.items()})
    _tell(module, stage, suffix, scalars, rest)


def _tell(
    module: Any, stage: Stage, suffix: str, scalars: dict[str, Tensor], rest: dict[str, Any]
) -> None:
    """Say what is not logged, once, and when the loss is no number."""
    for name in rest.keys() - module.told_values:
        rank_zero_info(
            f"{name} is {describe(rest[name])}, which no logger takes for a number: it is in"
            f" `metric_values[{name + suffix!r}]` of the model."
        )
    module.told_values.update(rest)
    loss = scalars[f"{stage}/loss"]
    if not loss.isfinite():
        kind = {"val": "validation", "test": "test"}[stage]
        rank_zero_warn(
            f"{stage}/loss{suffix} is {loss.item()} in epoch {module.current_epoch}: the loss of a"
            f" {kind} picture at least is not finite. Its pixels, or the network's weights or"
            " statistics, hold such numbers, or the network's precision is too low for its logits."
        )


def _loaders(trainer: Any, stage: Stage) -> list[Any]:
    return tree_leaves(trainer.val_dataloaders if stage == "val" else trainer.test_dataloaders)


def _num_batches(trainer: Any, stage: Stage) -> list[int | float]:
    if trainer.sanity_checking:
        return trainer.num_sanity_val_batches
    return trainer.num_val_batches if stage == "val" else trainer.num_test_batches
