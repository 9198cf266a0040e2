"""Mix images and labels within a batch."""

from collections.abc import Callable

from torch import Tensor
from torchvision.transforms import v2

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def make_mixing(num_classes: int, *, mixup_alpha: float, cutmix_alpha: float) -> Mixing | None:
    """MixUp (arXiv 1710.09412), CutMix (arXiv 1905.04899), or one of them at random per batch.

    Args:
        num_classes: The width of the mixed labels.
        mixup_alpha: The parameter of MixUp's Beta distribution; 0 for no MixUp.
        cutmix_alpha: The parameter of CutMix's Beta distribution; 0 for no CutMix.

    Returns:
        A function of images (N, C, H, W) and labels (N) that returns mixed images and probabilities
        (N, num_classes); None if both alphas are 0.
    """
    options = [
        transform(alpha=alpha, num_classes=num_classes)
        for transform, alpha in ((v2.MixUp, mixup_alpha), (v2.CutMix, cutmix_alpha))
        if alpha > 0
    ]
    return v2.RandomChoice(options) if options else None
