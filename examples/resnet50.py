"""ResNet-50 by hand, as a tutorial writes it (He et al., arXiv 1512.03385).

Nothing in it knows about fine-tuning. It has the parameter names of torchvision's network, so that
published weights files fit, but for a head of its own.
"""

from torch import Tensor, nn


class Bottleneck(nn.Module):
    """Three convolutions, the middle one with the stride, and a shortcut around them."""

    def __init__(self, in_channels: int, channels: int, *, stride0: int) -> None:
        super().__init__()
        out_channels = 4 * channels
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride0, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential()
        if stride0 != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride0, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """The block's features, with those that came in added."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + self.downsample(x))


class Head(nn.Module):
    """From pooled features to the scores of the classes."""

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(in_features, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """The scores (N, num_classes)."""
        return self.linear(self.dropout(features))


class ResNet50(nn.Module):
    """Four stages of 3, 4, 6 and 3 bottlenecks, and the head `fc`.

    Args:
        num_classes: How many classes the head tells apart.
        width: Channels of the stem; 64 is the real network, less a thin one to try things on.
    """

    def __init__(self, num_classes: int = 1, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = self._make_layer(width, width, num_blocks=3, stride0=1)
        self.layer2 = self._make_layer(4 * width, 2 * width, num_blocks=4, stride0=2)
        self.layer3 = self._make_layer(8 * width, 4 * width, num_blocks=6, stride0=2)
        self.layer4 = self._make_layer(16 * width, 8 * width, num_blocks=3, stride0=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = Head(32 * width, num_classes)

    def _make_layer(
        self, in_channels: int, channels: int, *, num_blocks: int, stride0: int
    ) -> nn.Sequential:
        first = Bottleneck(in_channels, channels, stride0=stride0)
        rest = [Bottleneck(4 * channels, channels, stride0=1) for _ in range(num_blocks - 1)]
        return nn.Sequential(first, *rest)

    def forward(self, images: Tensor) -> Tensor:
        """From images (N, 3, H, W) to the scores (N, num_classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))
