"""SyncBatchNorm on the CPU, where torch has it on GPUs only."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def synchronised_on_cpu() -> Iterator[None]:
    """Let the layer compute on the CPU what its kernels compute on GPUs; all else stays as it is.

    Which layers are converted, what of them is frozen or in eval mode, and what DDP does with their
    parameters and statistics is decided outside of it.
    """
    forward = nn.SyncBatchNorm.forward
    check = DistributedDataParallel._passing_sync_batchnorm_handle  # type: ignore[attr-defined]
    nn.SyncBatchNorm.forward = _forward  # type: ignore[method-assign]
    DistributedDataParallel._passing_sync_batchnorm_handle = lambda *_: None  # type: ignore[attr-defined]
    try:
        yield
    finally:
        nn.SyncBatchNorm.forward = forward  # type: ignore[method-assign]
        DistributedDataParallel._passing_sync_batchnorm_handle = check  # type: ignore[attr-defined]


def _forward(self: nn.SyncBatchNorm, x: Tensor) -> Tensor:
    """Normalise images (N, C, H, W) by what all processes have of them."""
    mean, var = self.running_mean, self.running_var
    assert mean is not None
    assert var is not None
    if not self.training:
        return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)
    own = x.new_full((1,), x.numel() / x.shape[1])
    sums = all_reduce(torch.cat([x.sum((0, 2, 3)), (x * x).sum((0, 2, 3)), own]))  # type: ignore[no-untyped-call]  # by torch
    (total, squares), count = sums[:-1].chunk(2), sums[-1]
    of_all = total / count
    spread = squares / count - of_all**2
    with torch.no_grad():
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        mean.lerp_(of_all, self.momentum)
        var.lerp_(spread * count / (count - 1), self.momentum)
    shape = (1, -1, 1, 1)
    normal = (x - of_all.view(shape)) * torch.rsqrt(spread + self.eps).view(shape)
    return normal * self.weight.view(shape) + self.bias.view(shape)
