"""The seed of a DistributedSampler, which follows `seed_everything`, at a resume."""

import pytest
from torch.utils.data import BatchSampler, DistributedSampler

from lit_finetune.loading.loader_order import RepeatableSampler


def repeatable(seed: int, epoch: int, *, in_batches: bool) -> RepeatableSampler:
    """The sampler of the first of two processes, in a run with this seed."""
    pictures = list(range(24))
    sampler = DistributedSampler(pictures, num_replicas=2, rank=0, seed=seed)  # type: ignore[var-annotated,arg-type]
    inner = BatchSampler(sampler, 3, drop_last=False) if in_batches else sampler
    options = {"seed": 0, "epoch": lambda: epoch, "rank": 0, "dataset": pictures}
    return RepeatableSampler(inner, {}, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("in_batches", [True, False])
@pytest.mark.parametrize(("epoch", "batches"), [(0, 2), (1, 0), (1, 3)])
def test_a_run_resumed_under_another_seed_continues_in_the_order_of_its_checkpoint(
    in_batches: bool, epoch: int, batches: int
) -> None:
    first = repeatable(7, epoch, in_batches=in_batches)
    order = list(map(str, first))
    resumed = repeatable(8, epoch, in_batches=in_batches)
    assert list(map(str, resumed)) != order
    resumed.load_state_dict(first.state_dict(batches), batches=batches)
    assert list(map(str, resumed)) == order[batches:]
