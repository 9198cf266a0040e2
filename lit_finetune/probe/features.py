"""Run the part of a network before its head once."""

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
    """What a network gives for batches of pictures, and their labels, together on the CPU.

    Args:
        forward: From pictures to features, such as `FinetuneClassifier.forward_features`. It runs
            in the mode that the network is in: put that into eval mode.
        batches: Pictures and labels, where the network is.

    Raises:
        ValueError: There is no batch.
    """
    features, labels = [], []
    for images, targets in batches:
        if not isinstance(targets, Tensor):
            raise ValueError(
                "A linear probe needs labels in a tensor, (N) or (N, C), but beside the pictures"
                f" there is {describe(targets)}. Give the data module a `plain_train_dataloader`"
                " and a validation loader of such labels, or leave the probe out."
            )
        features.append(forward(images).cpu())
        labels.append(targets.cpu())
    if not features:
        raise ValueError("There are no pictures to take features of.")
    return torch.cat(features), torch.cat(labels)


class HeadFeatures:
    """From pictures to features (N, D) on which a linear layer gives the network's own logits.

    Where a ReLU follows the head, each feature's lowest and highest value over the places come
    behind their mean (N, 3 D): `fit_head` needs them.

    Args:
        network: In eval mode when it is called.
        head_name: Its linear head.
    """

    def __init__(self, network: nn.Module, head_name: str) -> None:
        self._network, self._head_name = network, head_name
        self.use: HeadUse | None = None
        """What the network makes of its head's output; known after the first pictures."""

    @property
    def width(self) -> int:
        """How many features go into the head."""
        return layer_sizes(linear_head(self._network, self._head_name))[0]

    def __call__(self, images: Tensor) -> Tensor:
        """The features of a batch of pictures."""
        if self.use is None:
            self.use = find_head_use(self._network, self._head_name, images[:2])
        head = linear_head(self._network, self._head_name)
        places = to_positions(forward_features(self._network, self._head_name, images), head)
        if not self.use.pools:
            return places[:, 0]
        mean = places.float().mean(dim=1)
        if not self.use.applies_relu:
            return mean
        return torch.cat([mean, places.amin(dim=1).float(), places.amax(dim=1).float()], dim=1)
