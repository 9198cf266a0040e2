"""ResNet-20 for pictures of 32 x 32 pixels (arXiv 1512.03385, section 4.2), as a user's own file.

Its parameters bear the names of the weights that are published at
https://github.com/akamaster/pytorch_resnet_cifar10 (`resnet20-12fca82f.th`).
"""

import torch.nn.functional as F
from torch import Tensor, nn


class ResNet20(nn.Module):
    """Three stages of three residual blocks, with 16, 32 and 64 channels."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = stage(16, 16)
        self.layer2 = stage(16, 32)
        self.layer3 = stage(32, 64)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """From images (N, 3, H, W) to logits (N, num_classes)."""
        features = F.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.linear(features.mean(dim=(2, 3)))


class ResidualBlock(nn.Module):
    """Two convolutions, and a shortcut around them that has no weights ("option A")."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.stride = out_channels // in_channels  # twice the channels, half the height and width
        self.conv1 = conv3x3(in_channels, out_channels, stride=self.stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """From features (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """Every `stride`-th pixel, between as many channels of zeros as are missing."""
        missing = self.bn2.num_features - x.shape[1]
        pixels = x[:, :, :: self.stride, :: self.stride]
        return F.pad(pixels, (0, 0, 0, 0, missing // 2, missing - missing // 2))


def stage(in_channels: int, out_channels: int) -> nn.Sequential:
    """Three blocks; the first one changes the number of channels."""
    return nn.Sequential(
        ResidualBlock(in_channels, out_channels),
        ResidualBlock(out_channels, out_channels),
        ResidualBlock(out_channels, out_channels),
    )


def conv3x3(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Conv2d:
    """A 3 x 3 convolution; the bias is left to the norm that follows."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
