"""The strategy's wrapper follows the parameters."""

from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy


def refuse_unsupported(strategy: Strategy) -> None:
    """Refuse a strategy under which unfreezing would go wrong without a word.

    Raises:
        ValueError: Names the strategies that work.
    """
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        raise ValueError(
            f"Unfreezing is not supported under {type(strategy).__name__}: its wrapper would not"
            " learn of parameters that start to train. Use Trainer(strategy='ddp'), or one device."
        )


def wrap_again(strategy: Strategy, module: LightningModule) -> None:
    """Build DistributedDataParallel anew, so that it reduces what trains now, and only that.

    It takes note of the parameters that require a gradient once, when it is built; those that
    start later would drift apart between the processes (lightning issue #20340). Nothing happens
    under a strategy that does not wrap.
    """
    if isinstance(strategy, DDPStrategy):
        strategy.model = module
        # Lightning notes that a static graph was seen by the wrapper; the new one has not yet.
        strategy._pl_static_graph_delay_done = False
        strategy.configure_ddp()
