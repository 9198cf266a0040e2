"""Compute the features that enter a network's head."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from lit_finetune.heads.find import layer_sizes
from lit_finetune.heads.replace import forward_features
from lit_finetune.heads.usage import HeadUse, find_head_use, linear_head, to_positions
from lit_finetune.training.metric_values import describe


@torch.no_grad()
def collect_features(
    forward: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """The features and the labels of all batches, concatenated on the CPU.

    Args:
        forward: From images to features, such as `FinetuneClassifier.forward_features`. The caller
            puts the network into eval mode.
        batches: Images and labels, on the network's device.

    Raises:
        ValueError: There is no batch, or the labels are no tensor.
    """
    features, labels = [], []
    for images, targets in batches:
        if not isinstance(targets, Tensor):
            raise ValueError(
                "A linear probe needs labels in a tensor, (N) or (N, C), but the batches hold"
                f" pictures and {describe(targets)}. Give the data module a"
                " `plain_train_dataloader` and a validation loader of such labels, or leave the"
                " probe out."
            )
        features.append(forward(images).cpu())
        labels.append(targets.cpu())
    if not features:
        raise ValueError("There are no pictures to take features of.")
    return torch.cat(features), torch.cat(labels)


class HeadFeatures:
    """From images to the features (N, D) from which a linear layer computes the network's logits.

    If the head is applied at several positions, the features are their mean. If a ReLU follows the
    head, each feature's minimum and maximum over the positions are appended (N, 3 D), for
    `fit_head`.

    Args:
        network: In eval mode when this is called.
        head_name: Its linear head.
    """

    def __init__(self, network: nn.Module, head_name: str) -> None:
        self._network, self._head_name = network, head_name
        self.use: HeadUse | None = None
        """How the network uses its head's output; known after the first images."""

    @property
    def width(self) -> int:
        """The number of features that enter the head."""
        return layer_sizes(linear_head(self._network, self._head_name))[0]

    def __call__(self, images: Tensor) -> Tensor:
        """The features of a batch of images."""
        if self.use is None:
            self.use = find_head_use(self._network, self._head_name, images[:2])
        head = linear_head(self._network, self._head_name)
        positions = to_positions(forward_features(self._network, self._head_name, images), head)
        if not self.use.pools:
            return positions[:, 0]
        mean = positions.float().mean(dim=1)
        if not self.use.applies_relu:
            return mean
        low, high = positions.amin(dim=1).float(), positions.amax(dim=1).float()
        return torch.cat([mean, low, high], dim=1)
