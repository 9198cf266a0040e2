"""The command line: Lightning's, with our models, data and defaults."""

from typing import Any

from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import (
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
    RichProgressBar,
)
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from typing_extensions import override

from lit_finetune.callbacks import PredictionWriter, RunReport
from lit_finetune.classifier import FinetuneClassifier

_BEST = {
    "monitor": "val/acc",
    "mode": "max",
    "save_last": True,
    "filename": "epoch={epoch}-acc={val/acc:.4f}",
    "auto_insert_metric_name": False,
}


class FinetuneCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict`, with the number of classes taken from the data."""

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({f"checkpoint.{key}": value for key, value in _BEST.items()})
        parser.add_lightning_class_args(PredictionWriter, "predictions")

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer of the configuration, with loggers, progress bar and report by default."""
        given = self._get(self.config_init, "trainer")
        if given.get("logger") in (None, True):
            kwargs["logger"] = default_loggers(given.get("default_root_dir") or ".")
        kwargs["callbacks"] = with_default_callbacks(
            given.get("callbacks"),
            logs=kwargs.get("logger", given.get("logger")) is not False,
            progress_bar=given.get("enable_progress_bar") is not False,
        )
        return super().instantiate_trainer(**kwargs)

    def after_fit(self) -> None:
        """Predict with the best checkpoint, so that a run ends with something to look at."""
        checkpoint = self.trainer.checkpoint_callback
        if isinstance(checkpoint, ModelCheckpoint) and checkpoint.best_model_path:
            self.trainer.predict(
                self.model,
                datamodule=self.datamodule,
                ckpt_path=checkpoint.best_model_path,
                return_predictions=False,
                weights_only=True,
            )

    @override
    def _parse_ckpt_path(self) -> None:
        """Leave the model to the configuration.

        Lightning would let the arguments in a checkpoint override those that the user gives now,
        among them the number of classes, which is linked to the data.
        """


def default_loggers(root: str) -> list[Logger]:
    """TensorBoard and CSV, in one folder a run."""
    board = TensorBoardLogger(root, name="lightning_logs")
    # A folder below, since CSVLogger takes an existing one for that of another run.
    return [board, CSVLogger(root, name=board.name, version=f"version_{board.version}/csv")]


def with_default_callbacks(
    given: Callback | list[Callback] | None, *, logs: bool, progress_bar: bool
) -> list[Callback]:
    """The user's callbacks, and those that every run has unless the user brings their like."""
    callbacks = given if isinstance(given, list) else [given] if given else []
    defaults: list[tuple[type[Callback], bool, type[Callback]]] = [
        (ProgressBar, progress_bar, RichProgressBar),
        (LearningRateMonitor, logs, LearningRateMonitor),
        (RunReport, True, RunReport),
    ]
    missing = [
        make()
        for kind, wanted, make in defaults
        if wanted and not any(isinstance(callback, kind) for callback in callbacks)
    ]
    return [*callbacks, *missing]


def main(
    model_class: type[FinetuneClassifier] = FinetuneClassifier, args: list[str] | None = None
) -> None:
    """Run the command line.

    Args:
        model_class: The classifier to train; pass your own subclass to train that.
        args: The command's words; by default those that the program was called with.
    """
    FinetuneCLI(
        model_class,
        LightningDataModule,
        subclass_mode_data=True,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        # Our checkpoints hold the model's arguments as plain data by themselves.
        load_from_checkpoint_support=False,
        save_config_kwargs={"overwrite": True},
        args=args,
    )
