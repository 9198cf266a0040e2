"""Lightning's command line with our models, data and defaults."""

import io
import logging
import os
import sys
from argparse import SUPPRESS
from contextlib import nullcontext
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

import lit_finetune.datamodules  # noqa: F401  # so that `--data DigitsDataModule` finds it
from lit_finetune.blocks.table import block_table, describe_blocks
from lit_finetune.callbacks import BestCheckpoint, LastCheckpoint, PredictionWriter
from lit_finetune.checkpoints.command_defaults import (
    LIGHTNING_CHECKPOINTS,
    CheckpointModel,
    read_model,
)
from lit_finetune.checkpoints.removal import is_local
from lit_finetune.classifier import FinetuneClassifier
from lit_finetune.cli.arguments import Command, read_command
from lit_finetune.cli.config_keys import refuse_repeated_keys
from lit_finetune.cli.errors import (
    check_configs,
    check_writable,
    find_user_error,
    format_error,
    with_advice,
)
from lit_finetune.cli.parser import NUM_CLASSES_GIVEN, BriefHelp, FinetuneParser
from lit_finetune.cli.trainer_defaults import (
    default_callbacks,
    default_loggers,
    output_folders,
    with_defaults,
)
from lit_finetune.files.terminal_text import printable

_BEST = {
    "monitor": "val/acc",
    "mode": "max",
    "filename": "epoch={epoch}-acc={val/acc:.4f}",
    "auto_insert_metric_name": False,
}
_IGNORED_BY_BLOCKS = (
    "data",
    "trainer",
    "checkpoint",
    "last_checkpoint",
    "predictions",
    "ckpt_path",
)
"""Keys of a run's configuration that the command `blocks` ignores."""
_DEFAULT_DATA = "lit_finetune.datamodules.ImageFolderDataModule"


class FinetuneTrainer(Trainer):
    """A Trainer with our commands in addition to Lightning's."""

    def blocks(self, model: FinetuneClassifier) -> None:
        """Print the network's blocks, which schedules name, and the cost of each."""
        config = model.data_config
        image = torch.zeros(1, len(config.mean), *config.image_size)
        print(block_table(describe_blocks(model.backbone, image, head_name=model.head_name)))


class FinetuneCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict`, with the number of classes taken from the data.

    And `blocks`, which takes the same configurations and ignores the data in them.
    """

    def __init__(self, *args: Any, command: str | None = None, **kwargs: Any) -> None:
        """Define the options of every command, or only those of `command`, which is faster."""
        self._command = command
        super().__init__(*args, **kwargs)

    @override
    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {**LightningCLI.subcommands(), "blocks": {"model"}}

    @override
    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        self._subcommand_method_arguments[subcommand] = []
        parser: LightningArgumentParser
        if self._command not in (None, subcommand):
            return self.init_parser(**kwargs)
        if subcommand != "blocks":
            parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
            parser.set_defaults(weights_only=True)  # else Lightning would unpickle downloads
            if subcommand == "predict":
                parser.set_defaults(return_predictions=False)  # they are in the table
            return parser
        parser = self.init_parser(**kwargs)
        self.add_default_arguments_to_parser(parser)
        parser.add_lightning_class_args(self._model_class, "model")
        parser.set_defaults({"model.num_classes": 1000})
        for key in _IGNORED_BY_BLOCKS:
            parser.add_argument(f"--{key}", type=Any, help=SUPPRESS)
        return parser

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        values: Any = vars(args) if isinstance(args, Namespace) else args
        command = read_command(sys.argv[1:] if values is None else values, [*self.subcommands()])
        self._checkpoint_model: CheckpointModel | None = None
        if command.name in ("validate", "test", "predict") and command.ckpt_path:
            self._set_defaults_from_checkpoint(command)
        super().parse_arguments(parser, args)

    def _set_defaults_from_checkpoint(self, command: Command) -> None:
        """Use a checkpoint's arguments of the model as the defaults of a command."""
        path, parser = str(command.ckpt_path), self._parser(command.name)
        if path in LIGHTNING_CHECKPOINTS or path.startswith("registry:"):
            return
        accepted = [*vars(parser.get_defaults()["model"])]
        try:
            model = read_model(path, overrides=command.model_keys, accepted=accepted)
        except (ValueError, OSError) as error:
            parser.error(str(error))
        self._checkpoint_model = model
        parser.set_defaults({f"model.{key}": value for key, value in model.arguments.items()})
        parser.set_defaults({"data": {"class_path": _DEFAULT_DATA}})

    @override
    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--seed_everything",
            type=bool | int,
            default=self.seed_everything_default,
            help="The seed of all random numbers, so that a run can be repeated; true for another"
            " one each time.",
        )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        count = self.count_classes
        parser.link_arguments("data", "model.num_classes", compute_fn=count, apply_on="instantiate")
        parser.add_class_arguments(BestCheckpoint, "checkpoint")
        parser.set_defaults({f"checkpoint.{key}": value for key, value in _BEST.items()})
        parser.add_class_arguments(LastCheckpoint, "last_checkpoint")
        parser.link_arguments("checkpoint.dirpath", "last_checkpoint.dirpath")
        parser.add_class_arguments(PredictionWriter, "predictions")

    def count_classes(self, data: Any) -> int:
        """The number of classes of the model's checkpoint, or else of the data."""
        model = self._checkpoint_model
        return (model and model.num_classes) or int(data.num_classes)

    @override
    def before_instantiate_classes(self) -> None:
        if self.subcommand == "blocks":
            for key in _IGNORED_BY_BLOCKS:
                self.config["blocks"][key] = None
            self.config["blocks"]["model"]["weights"] = None  # not to download them
            return
        model = self._get(self.config, "model")
        checkpoint = self._checkpoint_model
        if checkpoint and (differences := checkpoint.contradictions(vars(model))):
            rank_zero_warn(f"Not as in the checkpoint's run: {'; '.join(differences)}.")
        if "num_classes" in model:  # from a file, which the parser does not refuse
            self._parser(self.subcommand).error(NUM_CLASSES_GIVEN)
        if self.subcommand != "fit" and not self._get(self.config, "ckpt_path"):
            rank_zero_info(
                "No `ckpt_path` is given: the network is as the configuration builds it."
            )

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer of the configuration, with default loggers, checkpoints and report."""
        if self.subcommand == "blocks":
            return FinetuneTrainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        config = self._get(self.config_init, "trainer")
        root, logger = config["default_root_dir"] or os.getcwd(), config["logger"]
        if logger is None or logger is True:
            logger = default_loggers(root)
        if not logger:
            self.save_config_callback = None  # it writes to the folder of the logs
        has_checkpoints = config["enable_checkpointing"] is not False
        if not config["fast_dev_run"]:
            folders = output_folders(
                root,
                self._get(self.config, "checkpoint.dirpath"),
                logs=bool(logger),
                has_checkpoints=has_checkpoints,
                is_fit=self.subcommand == "fit",
            )
            for option, folder in folders.items():
                check_writable(folder, option)
        keys = ("checkpoint", "last_checkpoint") if has_checkpoints else ()
        defaults = default_callbacks(
            checkpoints=[self._get(self.config_init, key) for key in keys],
            predictions=self._get(self.config_init, "predictions"),
            has_progress_bar=config["enable_progress_bar"] is not False,
            has_logger=bool(logger),
        )
        callbacks = with_defaults(config["callbacks"], defaults)
        return super().instantiate_trainer(logger=logger, callbacks=callbacks, **kwargs)

    @override
    def instantiate_classes(self) -> None:
        model = self._checkpoint_model
        build_context = model.build_context if model else nullcontext
        with with_advice(self.config.get(self.subcommand, self.config)), build_context():
            super().instantiate_classes()

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        with with_advice(self.config[subcommand]):
            super()._run_subcommand(subcommand)

    @override
    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        if kwargs.get("ckpt_path") == "best":  # Lightning finds only those of this process
            kwargs["ckpt_path"] = BestCheckpoint.find_best(self.trainer)
        return kwargs

    def after_fit(self) -> None:
        """Predict with the best checkpoint, so that a run ends with a table of predictions."""
        paths = [getattr(each, "best_model_path", "") for each in self.trainer.checkpoint_callbacks]
        # The best, or else the last. A resumed checkpoint may name a URL, which is not fetched.
        checkpoint = next((path for path in paths if path and is_local(path)), None)
        if checkpoint is None or not self.trainer.loggers:
            return
        try:
            self.trainer.predict(
                self.model,
                datamodule=self.datamodule,
                ckpt_path=checkpoint,
                return_predictions=False,
                weights_only=True,
            )
        except (ValueError, OSError, MisconfigurationException) as error:
            # The training is complete and saved, so this must not end the run with an error.
            rank_zero_info(
                f"Prediction failed: {str(error).removesuffix('.')}. The training itself is"
                f" complete; its checkpoint is '{checkpoint}'."
            )

    @override
    def _parse_ckpt_path(self) -> None:
        """Do nothing, so that the configuration defines the model.

        Lightning's method lets the arguments in a checkpoint override those of the user, including
        the number of classes, which is linked to the data.
        """


class _Stderr(io.TextIOBase):
    """Writes to the current `sys.stderr`, and escapes control characters in messages."""

    @override
    def write(self, text: str) -> int:
        return sys.stderr.write(printable(text))

    @override
    def flush(self) -> None:
        sys.stderr.flush()


def log_above_progress_bar() -> None:
    """Let Lightning write messages through the progress bar, which would overwrite them."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            if type(handler) is logging.StreamHandler:
                handler.setStream(_Stderr())


def main(
    model_class: type[FinetuneClassifier] = FinetuneClassifier, args: list[str] | None = None
) -> None:
    """Run the command line.

    Args:
        model_class: The classifier to train; pass your own subclass to train that.
        args: The command's arguments; by default those of the program.

    Raises:
        SystemExit: The command failed by a mistake of the user; the message has been printed. With
            `JSONARGPARSE_DEBUG=true` in the environment the error itself is raised.
    """
    log_above_progress_bar()
    refuse_repeated_keys()
    usages = {name: {"usage": "%(prog)s [options]"} for name in FinetuneCLI.subcommands()}
    arguments = sys.argv[1:] if args is None else args
    try:
        check_configs(arguments)
        FinetuneCLI(
            model_class,
            LightningDataModule,
            subclass_mode_data=True,
            trainer_class=FinetuneTrainer,
            trainer_defaults={"log_every_n_steps": 5},  # small datasets have few steps per epoch
            seed_everything_default=0,
            parser_class=FinetuneParser,
            parser_kwargs={"formatter_class": BriefHelp, **usages},
            auto_configure_optimizers=False,
            # Our checkpoints contain the model's arguments as plain data without this.
            load_from_checkpoint_support=False,
            save_config_kwargs={"overwrite": True},
            command=next((word for word in arguments[:1] if word in usages), None),
            args=args,
        )
    except Exception as error:
        user_error = find_user_error(error)
        if user_error is None or os.environ.get("JSONARGPARSE_DEBUG") == "true":
            raise
        print(f"error: {format_error(user_error)}", file=sys.stderr)
        sys.exit(2)
