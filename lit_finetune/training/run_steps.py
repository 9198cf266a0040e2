"""The work of a classifier in the hooks of a run, which `RunHooks` calls for it."""

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from lit_finetune.loading.seeding import derive_seed, seed_device
from lit_finetune.optim.optimizer import refuse_rare_validation
from lit_finetune.resuming.run_state import end_epoch, start_run
from lit_finetune.training.precision_hint import precision_hint
from lit_finetune.training.train_metrics import TrainingMetrics


def begin_fit(classifier: Any) -> None:
    """Set the run's seed, unless a checkpoint has set it."""
    if hint := precision_hint(classifier.device, str(classifier.trainer.precision)):
        rank_zero_info(hint)
    if classifier._run_seed is None:
        classifier._run_seed = torch.initial_seed()


def begin_training(classifier: Any) -> None:
    """Resume the run, or start a new one that can be resumed."""
    trainer = classifier.trainer
    start_run(trainer, classifier._resumed)
    if trainer.check_val_every_n_epoch is None:
        refuse_rare_validation(
            trainer.lr_scheduler_configs,
            val_batches=trainer.val_check_batch,
            epoch_batches=trainer.num_training_batches,
        )


def begin_epoch(classifier: Any) -> None:
    """Reset the metrics; not called when a run resumes within an epoch."""
    classifier._scores = TrainingMetrics()


def begin_batch(classifier: Any, batch_idx: int) -> None:
    """Seed a step, whose random numbers (dropout, mixing) depend only on its position."""
    if classifier._run_seed is not None:
        position = (classifier.current_epoch, batch_idx, classifier.global_rank)
        seed_device(derive_seed(classifier._run_seed, *position), classifier.device)


def finish_epoch(classifier: Any) -> None:
    """Log the epoch's metrics."""
    classifier._scores.finish(classifier)
    end_epoch(classifier.trainer, classifier._resumed)
