"""What the code of a classifier's subclass does with layers while it trains without a schedule."""

from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lit_finetune.distributed.wrapping import exchanges_parameters, shards_parameters
from lit_finetune.freezing.auxiliary_networks import find_auxiliary_networks
from lit_finetune.freezing.auxiliary_statistics import (
    FixedNetworks,
    restored_line,
    without_averaged_models,
)
from lit_finetune.freezing.layer_watch import LayerWatch, refuse_unoptimised
from lit_finetune.modules.fsdp1 import parameters_by_name


class LayerChecks:
    """Refuses layers that no optimizer holds, and keeps the statistics of auxiliary networks.

    Args:
        classifier: A `ClassifierSteps` whose training starts.
    """

    def __init__(self, classifier: Any) -> None:
        self._classifier, trainer = classifier, classifier.trainer
        self._modules_only = exchanges_parameters(trainer.strategy, trainer.precision_plugin)
        self._parameters = parameters_by_name(classifier)
        self._watch = LayerWatch(classifier, modules_only=self._modules_only)
        auxiliary = (
            ()
            if shards_parameters(trainer.strategy)
            else find_auxiliary_networks(classifier, network="backbone")
        )
        self._fixed = FixedNetworks(without_averaged_models(classifier, auxiliary))

    def check_before_batch(self) -> None:
        """Check for changes by hooks before a batch.

        Raises:
            ValueError: There are new layers that no optimizer holds.
        """
        self._fixed.begin_batch()
        self._refuse_unoptimised()

    def check_before_step(self) -> None:
        """Check for changes before an optimizer's step.

        Raises:
            ValueError: There are new layers that no optimizer holds.
        """
        report_restored(self._fixed.before_step())
        self._refuse_unoptimised()

    def restore_networks(self) -> None:
        """Restore the statistics of networks that are not trained."""
        report_restored(self._fixed.restore(compare_all=True))

    def restore_in_checkpoint(self, state_dict: dict[str, Any]) -> None:
        """Put the statistics of networks that are not trained into a checkpoint."""
        self._fixed.restore_in_checkpoint(state_dict)

    def _refuse_unoptimised(self) -> None:
        if self._watch.is_unchanged():
            return
        trainer = self._classifier.trainer
        if not self._modules_only:
            groups = [group for each in trainer.optimizers for group in each.param_groups]
            refuse_unoptimised(
                self._parameters,
                parameters_by_name(self._classifier),
                optimised={id(parameter) for group in groups for parameter in group["params"]},
                when=f"before step {trainer.global_step} in epoch {trainer.current_epoch}",
            )
        self._watch = LayerWatch(self._classifier, modules_only=self._modules_only)


def report_restored(names: list[str]) -> None:
    """Log the networks whose statistics were restored, if there are any."""
    if names:
        rank_zero_info(restored_line(names))
