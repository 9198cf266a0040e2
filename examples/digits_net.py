"""A small network of one's own, for handwritten digits."""

from torch import Tensor, nn


class DigitsNet(nn.Module):
    """Three convolutional stages and a linear head; 24,000 parameters.

    Nothing in it knows about fine-tuning: the stages and the head are found from its structure.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.layer1 = stage(3, 16)
        self.layer2 = stage(16, 32)
        self.layer3 = stage(32, 64)
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """From images (N, 3, H, W) to logits (N, num_classes)."""
        features = self.layer3(self.layer2(self.layer1(images)))
        return self.head(features.mean(dim=(2, 3)))


def stage(in_channels: int, out_channels: int) -> nn.Sequential:
    """A convolution with its norm and activation, which halves the picture's sides."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )
