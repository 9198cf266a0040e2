"""Fit the head before training begins, from one pass over the images."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from lit_finetune.classifier import FinetuneClassifier
from lit_finetune.heads.usage import linear_head
from lit_finetune.probe.features import HeadFeatures
from lit_finetune.probe.fit import L2_PATH, ProbeFit, selection_scores
from lit_finetune.probe.head import (
    Features,
    fit_head,
    max_abs_logit,
    set_and_compare,
    with_scores,
)
from lit_finetune.probe.validate import check_options, has_two_classes

from .probe_features import (
    ProbeFeatures,
    as_in_validation,
    compute_features,
    train_loaders,
    val_loaders,
)


class LinearProbe(Callback):
    """Start training with the best linear head for the features of the network.

    Before the first epoch, the network computes the features of all training images once, without
    augmentation, and the head is fitted to them by logistic regression. This replaces epochs that
    train only the head. With `FreezeUnfreezeCallback("lp_ft")` the whole network trains from the
    first epoch on (LP-FT, arXiv 2202.10054); with `max_epochs=0` only the head is fitted.

    The strength of L2 is chosen by the loss of the validation images, or by cross-validation
    without them. Class weights and label smoothing are those of the classifier. Labels (N, C) of 0
    and 1 are fitted class by class. Loggers receive `probe/acc` and `probe/loss`, of the images
    that the strength was chosen by, and `probe/train_acc`, `probe/train_loss`, `probe/l2`,
    `probe/time_s`.

    A resumed run keeps the head of its checkpoint. The images come from the data module's
    `plain_train_dataloader`; without one, from the dataset of the training loader.

    Args:
        l2: The strength of L2 on standardized features, or several to choose from.
        folds: Folds of the cross-validation.

    Raises:
        ValueError: The logits are not linear in the input of the head, the network is sharded, or
            all labels are the same.
    """

    def __init__(self, l2: float | list[float] | None = None, folds: int = 5) -> None:
        self.l2 = list(L2_PATH) if l2 is None else l2
        strengths = [self.l2] if isinstance(self.l2, int | float) else list(self.l2)
        check_options(
            strengths, num_classes=2, class_weights=None, label_smoothing=0.0, folds=folds
        )
        self.folds = folds
        self.result: ProbeFit | None = None
        """The fit of this run, in every process."""
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
        # The Tuner loads a checkpoint, too: one of step 0, after which the head is fitted.
        self._is_done |= checkpoint["global_step"] > 0

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, FinetuneClassifier), "`setup` refuses other modules"
        if self._is_done:
            rank_zero_info("No linear probe: the run continues with the head that it has.")
            return
        if trainer.limit_train_batches == 0:
            return
        pl_module.warn_random_backbone(is_probed=True)
        start = time.monotonic()
        forward = HeadFeatures(pl_module, _head_name(pl_module))
        train, val = train_loaders(trainer), val_loaders(trainer)
        # First, because this may refuse the data or reorder the classes of the head.
        pl_module.match_data_classes(trainer.train_dataloader)
        features = compute_features(trainer, pl_module, forward, train, val)
        fit, max_logit = self._fit(trainer, pl_module, forward, features)
        if fit is None:
            rank_zero_info("No linear probe: the few pictures of this trial run are of one class.")
            return
        _set_head(trainer, pl_module, fit, features.first_batches, max_logit)
        self.result, self._is_done = fit, True
        log_fit(trainer, fit, seconds=time.monotonic() - start)

    def _fit(
        self,
        trainer: Trainer,
        pl_module: FinetuneClassifier,
        forward: HeadFeatures,
        features: ProbeFeatures,
    ) -> tuple[ProbeFit | None, float]:
        """Fit the head in process 0, and send it to the others, so that all have the same bits.

        Returns:
            The fit and its largest absolute logit; None if a trial run has images of one class.

        Raises:
            ValueError: In all processes: no head can be fitted.
        """
        result: tuple[ProbeFit | None, float] | str = (None, 0.0)
        train, val = features.train, features.val
        if train is not None and _is_enough(trainer, train):
            try:
                fit = self._fit_head(trainer, pl_module, forward, train, val)
                result = fit, max_abs_logit(fit, [train, val])
            except ValueError as error:
                result = str(error)
        result = trainer.strategy.broadcast(result)
        if isinstance(result, str):
            raise ValueError(result)
        return result

    def _fit_head(
        self,
        trainer: Trainer,
        pl_module: FinetuneClassifier,
        forward: HeadFeatures,
        train: Features,
        val: Features | None,
    ) -> ProbeFit:
        """The fitted head, with scores in the precision of the run."""
        loss_options = {
            "class_weights": pl_module.class_weights,
            "label_smoothing": pl_module.hparams["label_smoothing"],
        }
        fit = fit_head(
            train,
            val,
            applies_relu=bool(forward.use and forward.use.applies_relu),
            device=trainer.strategy.root_device,
            l2=self.l2,
            folds=self.folds,
            num_classes=pl_module.num_classes,
            **loss_options,
        )
        head = linear_head(pl_module, _head_name(pl_module))
        weight, bias = (each.to(head.weight) for each in (fit.weight, fit.bias))

        def logits(features: Tensor) -> Tensor:
            with trainer.precision_plugin.forward_context():
                return functional.linear(features.to(weight), weight, bias)

        return with_scores(fit, logits, train, val, **loss_options)


def log_fit(trainer: Trainer, fit: ProbeFit, *, seconds: float) -> None:
    """Log the scores of a fit, and print them in one line."""
    acc, loss, samples = selection_scores(fit)
    values = {
        "acc": acc,
        "loss": loss,
        "train_acc": fit.accuracy,
        "train_loss": fit.loss,
        "l2": fit.l2,
        "time_s": seconds,
    }
    for logger in trainer.loggers:
        logger.log_metrics({f"probe/{key}": value for key, value in values.items()}, step=0)
    end = "" if fit.converged else " It did not converge."
    rank_zero_info(
        f"Linear probe: accuracy {acc:.4f}, loss {loss:.4f} on {samples}; L2 {fit.l2:g};"
        f" {seconds:.1f} s.{end}"
    )


def _set_head(
    trainer: Trainer,
    pl_module: FinetuneClassifier,
    fit: ProbeFit,
    batches: list[Features],
    max_logit: float,
) -> None:
    """Set the head of a fit.

    Raises:
        ValueError: In all processes: with it the network does not give the logits of the fit.
    """
    name = _head_name(pl_module)
    with as_in_validation(trainer, pl_module):
        head = linear_head(pl_module, name)
        problem = set_and_compare(
            pl_module, head, fit, batches, head_name=name, max_logit=max_logit
        )
    if trainer.strategy.reduce_boolean_decision(problem is not None, all=False):
        raise ValueError(
            f"LinearProbe left the head `{name}` as it was. With the fitted head,"
            f" {problem or 'another process found other logits'}. Let the head train in epochs of"
            " its own, or use head='linear' if the network changes the output of its head."
        )


def _head_name(pl_module: FinetuneClassifier) -> str:
    return f"backbone.{pl_module.head_name}"


def _has_begun(trainer: Trainer) -> bool:
    return trainer.global_step > 0 or trainer.current_epoch > 0


def _is_enough(trainer: Trainer, train: Features) -> bool:
    """Whether a head can be fitted: the few images of a trial run may be of one class."""
    return not getattr(trainer, "fast_dev_run", False) or has_two_classes(train[1])
