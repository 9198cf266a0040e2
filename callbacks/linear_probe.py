"""Fit the head before training begins, from one pass over the pictures."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from rich.progress import track
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from lit_finetune.classifier import FinetuneClassifier
from lit_finetune.heads.usage import linear_head
from lit_finetune.modules.eval_mode import eval_mode
from lit_finetune.probe.features import HeadFeatures, collect_features
from lit_finetune.probe.fit import L2_PATH, ProbeFit
from lit_finetune.probe.head import (
    Features,
    fit_head,
    largest_score,
    scored,
    set_and_compare,
)
from lit_finetune.probe.validate import check_options, has_two_classes

from .sequential_loader import each_once


class LinearProbe(Callback):
    """Begin with the best linear head for the features that the network has.

    Before the first epoch every training picture passes the network once, without augmentation, and
    the head is fitted to what it is given by logistic regression, in the place of epochs that train
    it alone. Training goes on from there. With `FreezeUnfreezeCallback("lp_ft")` all of the network
    trains from the first epoch on (LP-FT, arXiv 2202.10054); with `max_epochs=0` nothing else is
    done.

    The strength of L2 is chosen by the loss of the validation pictures, or by cross-validation
    where there are none. Class weights and label smoothing are the classifier's. Labels (N, C) of 0
    and 1 are fitted class by class. Loggers are given `probe/acc` and `probe/loss`, of the pictures
    that it was chosen by, and `probe/train_acc`, `probe/train_loss`, `probe/l2`, `probe/time_s`.

    A run that is resumed goes on with the head of its checkpoint. Pictures come from the data
    module's `plain_train_dataloader`; where it has none, as the training loader's dataset gives
    them.

    Args:
        l2: The strength of L2 on standardised features, or several to choose from.
        folds: Of the cross-validation.

    Raises:
        ValueError: The logits are not linear in what the head is given, the network is sharded, or
            the labels leave nothing to tell apart.
    """

    def __init__(self, l2: float | list[float] | None = None, folds: int = 5) -> None:
        self.l2 = list(L2_PATH) if l2 is None else l2
        strengths = [self.l2] if isinstance(self.l2, int | float) else list(self.l2)
        check_options(
            strengths, num_classes=2, class_weights=None, label_smoothing=0.0, folds=folds
        )
        self.folds = folds
        self.result: ProbeFit | None = None
        """What was found in this run, on every process."""
        self._is_done = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not isinstance(pl_module, FinetuneClassifier):
            raise ValueError(
                f"LinearProbe needs a FinetuneClassifier, but got {type(pl_module).__name__}. For"
                " other networks there is `fit_linear_probe`."
            )
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise ValueError(
                f"LinearProbe is not supported under {type(trainer.strategy).__name__}: use"
                " Trainer(strategy='ddp'), or one device."
            )
        linear_head(pl_module, _head_name(pl_module))
        self.result, self._is_done = None, _has_begun(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Whether the head was fitted, so that it is not fitted again."""
        return {"is_done": self._is_done}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._is_done |= state_dict["is_done"]

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # The Tuner loads one as well, of before the first step.
        self._is_done |= checkpoint["global_step"] > 0

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, FinetuneClassifier), "`setup` has made sure"
        if self._is_done:
            rank_zero_info("No linear probe: the run goes on with the head that it has.")
            return
        if trainer.limit_train_batches == 0:
            return
        pl_module.warn_of_random_backbone(is_probed=True)
        begin = time.monotonic()
        forward = HeadFeatures(pl_module, _head_name(pl_module))
        first = _FirstBatches(forward)
        train, val = _train_batches(trainer), _val_batches(trainer)
        pl_module.match_data_classes(trainer.train_dataloader)  # no head of another order after it
        with _looking_on(trainer, pl_module):
            passed = [
                collect_features(first.of_part(), _on_device(trainer, batches, name))
                if batches
                else None
                for name, batches in (("training", train), ("validation", val))
            ]
        train_features, val_features = (_gather(each, trainer.world_size) for each in passed)
        found: tuple[ProbeFit, float] | str | None = None
        if train_features:  # on one process; the others take over its very bits
            found = self._solve(trainer, pl_module, forward, train_features, val_features)
        found = trainer.strategy.broadcast(found)
        if isinstance(found, str):
            raise ValueError(found)
        if found is None:
            rank_zero_info("No linear probe: the few pictures of this trial run are of one class.")
            return
        fit, scale = found
        name = _head_name(pl_module)
        with _looking_on(trainer, pl_module):
            head = linear_head(pl_module, name)
            problem = set_and_compare(
                pl_module, head, fit, first.batches, head_name=name, scale=scale
            )
        _refuse_together(trainer, problem, name)
        self.result, self._is_done = fit, True
        _tell(trainer, fit, seconds=time.monotonic() - begin)

    def _solve(
        self,
        trainer: Trainer,
        pl_module: FinetuneClassifier,
        forward: HeadFeatures,
        train: Features,
        val: Features | None,
    ) -> tuple[ProbeFit, float] | str | None:
        """The head and its largest score; or what is wrong, so that all processes can say so."""
        if getattr(trainer, "fast_dev_run", False) and not has_two_classes(train[1]):
            return None
        judged = {
            "class_weights": pl_module.class_weights,
            "label_smoothing": pl_module.hparams["label_smoothing"],
        }
        try:
            fit = fit_head(
                train,
                val,
                applies_relu=bool(forward.use and forward.use.applies_relu),
                device=trainer.strategy.root_device,
                l2=self.l2,
                folds=self.folds,
                num_classes=pl_module.num_classes,
                **judged,
            )
        except ValueError as error:
            return str(error)
        head = linear_head(pl_module, _head_name(pl_module))
        weight, bias = (each.to(head.weight) for each in (fit.weight, fit.bias))

        def logits(features: Tensor) -> Tensor:
            with trainer.precision_plugin.forward_context():
                return functional.linear(features.to(weight), weight, bias)

        return scored(fit, logits, train, val, **judged), largest_score(fit, [train, val])


class _FirstBatches:
    """Keeps the first batch of each part, with what goes into the head."""

    def __init__(self, forward: HeadFeatures) -> None:
        self._forward = forward
        self.batches: list[Features] = []

    def of_part(self) -> Callable[[Tensor], Tensor]:
        """What takes the features of a part."""
        is_first = True

        def forward(images: Tensor) -> Tensor:
            nonlocal is_first
            kept = images.clone() if is_first else None  # a network may change its input
            features = self._forward(images)
            if kept is not None:
                self.batches.append((kept, features[:, : self._forward.width].cpu()))
            is_first = False
            return features

        return forward


def _refuse_together(trainer: Trainer, problem: str | None, head_name: str) -> None:
    """Refuse, in all processes, a head that does not give the network the logits of the fit."""
    if trainer.strategy.reduce_boolean_decision(problem is not None, all=False):
        raise ValueError(
            f"LinearProbe left the head `{head_name}` as it was, for with the one that was fitted"
            f" {problem or 'another process found other logits'}. Let the head train in epochs of"
            " its own, or use head='linear' where the network adds something behind its head."
        )


def _head_name(pl_module: FinetuneClassifier) -> str:
    return f"backbone.{pl_module.head_name}"


def _has_begun(trainer: Trainer) -> bool:
    return trainer.global_step > 0 or trainer.current_epoch > 0


def _train_batches(trainer: Trainer) -> list[Any]:
    """The batches of training pictures that this process runs."""
    make = getattr(getattr(trainer, "datamodule", None), "plain_train_dataloader", None)
    if make is not None:
        return [_share(trainer, make(), trainer.limit_train_batches, "training pictures")]
    rank_zero_info(
        "The linear probe sees the training pictures as their dataset gives them. If that varies"
        " them at random, give the data module a `plain_train_dataloader`."
    )
    trainer.fit_loop.setup_data()
    return [
        _share(trainer, trainer.train_dataloader, trainer.limit_train_batches, "training pictures")
    ]


def _val_batches(trainer: Trainer) -> list[Any]:
    """The batches of validation pictures that this process runs, of each loader."""
    if not trainer.enable_validation:
        return []
    trainer.fit_loop.epoch_loop.val_loop.setup_data()
    loaders = trainer.val_dataloaders
    loaders = loaders if isinstance(loaders, list) else [loaders]
    return [
        _share(trainer, loader, trainer.limit_val_batches, "val pictures") for loader in loaders
    ]


def _share(trainer: Trainer, loader: Any, limit: float, part: str) -> Any:
    ranks = {"rank": trainer.global_rank, "num_replicas": trainer.world_size}
    return each_once(loader, **ranks, limit=limit, part=part)


@contextmanager
def _looking_on(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Run the network as validation does, and leave no trace on what training will draw."""
    stage = trainer.state.stage
    precision = trainer.precision_plugin.forward_context()
    with isolate_rng(), eval_mode(pl_module), precision:
        trainer.state.stage = RunningStage.VALIDATING  # for hooks that vary pictures in training
        try:
            yield
        finally:
            trainer.state.stage = stage


def _on_device(trainer: Trainer, loaders: list[Any], name: str) -> Iterator[Features]:
    """Pictures and labels where the network is, with a progress bar."""
    shows = trainer.is_global_zero and trainer.progress_bar_callback is not None
    is_sized = all(hasattr(loader, "__len__") for loader in loaders)
    total = sum(map(len, loaders)) if is_sized else None
    module = trainer.lightning_module
    batches = track(
        chain(*loaders),
        f"Linear probe: {name} pictures",
        total=total,
        transient=True,
        disable=not shows,
    )
    for batch in batches:
        converted = trainer.precision_plugin.convert_input(batch)
        converted = module._on_before_batch_transfer(converted)
        images, labels = trainer.strategy.batch_to_device(converted, module.device)[:2]
        yield images, labels


def _gather(features: Features | None, world_size: int) -> Features | None:
    """The features of all processes, on the one of rank 0, in the order of the data."""
    if features is None or world_size == 1:
        return features
    is_first = torch.distributed.get_rank() == 0
    parts: list[Any] | None = [None] * world_size if is_first else None
    torch.distributed.gather_object(features, parts)
    return None if parts is None else _interleaved(parts)


def _interleaved(parts: list[Features]) -> Features:
    """One of each process in turn, as they were shared out."""
    counts = [len(labels) for _, labels in parts]
    places = [torch.arange(count) * len(parts) + rank for rank, count in enumerate(counts)]
    order = torch.cat(places).argsort()
    features, labels = (torch.cat(list(column))[order] for column in zip(*parts, strict=True))
    return features, labels


def _tell(trainer: Trainer, found: ProbeFit, *, seconds: float) -> None:
    """Log what was found, and say it in a line."""
    acc, loss, by = chosen_by(found)
    values = {
        "acc": acc,
        "loss": loss,
        "train_acc": found.accuracy,
        "train_loss": found.loss,
        "l2": found.l2,
        "time_s": seconds,
    }
    for logger in trainer.loggers:
        logger.log_metrics({f"probe/{key}": value for key, value in values.items()}, step=0)
    end = "" if found.converged else " It did not converge."
    rank_zero_info(
        f"Linear probe: accuracy {acc:.4f}, loss {loss:.4f} on {by}; L2 {found.l2:g};"
        f" {seconds:.1f} s.{end}"
    )


def chosen_by(found: ProbeFit) -> tuple[float, float, str]:
    """The accuracy and the loss that speak for a head, and on which pictures they are."""
    if found.val_accuracy is not None and found.val_loss is not None:
        return found.val_accuracy, found.val_loss, "the validation pictures"
    if found.trials:
        best = min(found.trials, key=lambda trial: trial.loss)
        return best.accuracy, best.loss, "pictures held out in turn"
    return found.accuracy, found.loss, "the training pictures"
