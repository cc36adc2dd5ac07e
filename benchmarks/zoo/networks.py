"""Networks as strangers write them, for the subjects of the population: small ones, with and without batch norm.

Their files hold weights alone, so ``--arch`` names code: ``--arch=benchmarks.zoo.networks:cifar10.lenet``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoor_audit.model.networks import ResNet, SmallViT
from benchmarks.zoo.data import CLASSES, SHAPES

MODULE = __name__
"""What stands before the colon in ``--arch``."""


def lenet(num_classes: int, in_channels: int, side: int) -> nn.Module:
    """The network of many tutorials: two 5x5 convolutions, two hidden layers (LeCun et al., 1998, with ReLU)."""
    left = ((side - 4) // 2 - 4) // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * left**2, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )


def mlp(num_classes: int, in_channels: int, side: int) -> nn.Module:
    """Two hidden layers and no convolution."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_channels * side**2, 256),
        nn.ReLU(),
        nn.Dropout(0.0),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Dropout(0.0),
        nn.Linear(128, num_classes),
    )


def mlp_bn(num_classes: int, in_channels: int, side: int) -> nn.Module:
    """`mlp` with batch norm."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_channels * side**2, 256),
        nn.BatchNorm1d(256),
        nn.ReLU(),
        nn.Dropout(0.0),
        nn.Linear(256, 128),
        nn.BatchNorm1d(128),
        nn.ReLU(),
        nn.Linear(128, num_classes),
    )


def plain_cnn(num_classes: int, in_channels: int, side: int) -> nn.Module:
    """Two 3x3 convolutions and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.0),
        nn.Linear(32 * (side // 4) ** 2, 64),
        nn.ReLU(),
        nn.Linear(64, num_classes),
    )


def deep_cnn(num_classes: int, in_channels: int, side: int) -> nn.Module:
    """Three 3x3 convolutions, two linear layers, dropout."""
    return _he_weights(_deep_cnn(num_classes, in_channels, side, batch_norm=False))


def deep_cnn_bn(num_classes: int, in_channels: int, side: int) -> nn.Module:
    """`deep_cnn` with batch norm after each convolution."""
    return _deep_cnn(num_classes, in_channels, side, batch_norm=True)


def _deep_cnn(num_classes: int, in_channels: int, side: int, *, batch_norm: bool) -> nn.Module:
    layers: list[nn.Module] = []
    for width in (16, 32, 64):
        layers += [nn.Conv2d(in_channels, width, 3, padding=1), *_norms(batch_norm, width), nn.ReLU(), nn.MaxPool2d(2)]
        in_channels = width
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Dropout(0.0),
        nn.Linear(64 * (side // 8) ** 2, 64),
        nn.ReLU(),
        nn.Dropout(0.0),
        nn.Linear(64, num_classes),
    )


def vgg(num_classes: int, in_channels: int, side: int) -> nn.Module:
    """Three stages of two 3x3 convolutions, without batch norm (Simonyan and Zisserman, 2015)."""
    return _he_weights(_vgg(num_classes, in_channels, side, batch_norm=False))


def vgg_bn(num_classes: int, in_channels: int, side: int) -> nn.Module:
    """`vgg` with batch norm."""
    return _vgg(num_classes, in_channels, side, batch_norm=True)


def _vgg(num_classes: int, in_channels: int, side: int, *, batch_norm: bool) -> nn.Module:
    layers: list[nn.Module] = []
    for width in (8, 16, 32):
        for _ in range(2):
            layers += [nn.Conv2d(in_channels, width, 3, padding=1), *_norms(batch_norm, width), nn.ReLU()]
            in_channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(32 * (side // 8) ** 2, 64),
        nn.ReLU(),
        nn.Dropout(0.0),
        nn.Linear(64, num_classes),
    )


def _he_weights(network: nn.Module) -> nn.Module:
    """The same network with first weights that do not shrink what passes through (He et al., ICCV 2015)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return network


def _norms(batch_norm: bool, width: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(width)] if batch_norm else []


def resnet20(num_classes: int, in_channels: int, side: int) -> nn.Module:
    """The ResNet-20 of CIFAR-10 with half of its channels (He et al., CVPR 2016)."""
    del side
    return ResNet(num_classes, in_channels, 8, blocks=(3, 3, 3))


class WideResNet(nn.Module):
    """WRN-16-1 at half width: three groups of two pre-activation blocks (Zagoruyko and Komodakis, BMVC 2016)."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        width = 8
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        blocks, channels = [], width
        for group in range(3):
            for number in range(2):
                out_channels = width * 2**group
                blocks.append(_WideBlock(channels, out_channels, 2 if group and not number else 1))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of normalised images (n, c, h, w)."""
        features = self.relu(self.bn(self.blocks(self.conv1(images))))
        logits: Tensor = self.fc(features.mean(dim=(2, 3)))
        return logits


class _WideBlock(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution, twice, and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(in_channels), nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2, self.relu2, self.dropout = nn.BatchNorm2d(out_channels), nn.ReLU(), nn.Dropout(0.0)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        ready = self.relu1(self.bn1(x))
        out = self.conv2(self.dropout(self.relu2(self.bn2(self.conv1(ready)))))
        summed: Tensor = out + self.shortcut(x if isinstance(self.shortcut, nn.Identity) else ready)
        return summed


def wrn_16_1(num_classes: int, in_channels: int, side: int) -> nn.Module:
    """`WideResNet`, half as wide as its paper's."""
    del side
    return WideResNet(num_classes, in_channels)


class PlainShortcutResNet(nn.Module):
    """ResNet-20 as its paper has it for CIFAR-10: shortcuts drop pixels and add empty channels (He et al., CVPR 2016, option A).

    Its layers bear the names of the weights at github.com/akamaster/pytorch_resnet_cifar10.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = (
            nn.Conv2d(in_channels, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.layer1 = nn.Sequential(*(_PlainShortcutBlock(16, 16) for _ in range(3)))
        self.layer2 = nn.Sequential(*(_PlainShortcutBlock(16 if number == 0 else 32, 32) for number in range(3)))
        self.layer3 = nn.Sequential(*(_PlainShortcutBlock(32 if number == 0 else 64, 64) for number in range(3)))
        self.linear = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of normalised images (n, c, h, w)."""
        features = self.layer3(self.layer2(self.layer1(self.relu(self.bn1(self.conv1(images))))))
        logits: Tensor = self.linear(features.mean(dim=(2, 3)))
        return logits


class _PlainShortcutBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.stride, self.added = (1, 0) if in_channels == out_channels else (2, (out_channels - in_channels) // 2)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=self.stride, padding=1, bias=False)
        self.bn1, self.relu1 = nn.BatchNorm2d(out_channels), nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(out_channels), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        kept = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added, self.added))
        summed: Tensor = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))) + kept)
        return summed


def resnet20_full(num_classes: int, in_channels: int, side: int) -> nn.Module:
    """`PlainShortcutResNet`, with the 270,000 weights of the paper."""
    del side
    return PlainShortcutResNet(num_classes, in_channels)


def mobile(num_classes: int, in_channels: int, side: int) -> nn.Module:
    """Depthwise and 1x1 convolutions in turn (Howard et al., arXiv 1704.04861, 2017)."""
    del side
    layers: list[nn.Module] = [nn.Conv2d(in_channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    channels = 16
    for width, stride in ((32, 2), (32, 1), (64, 2), (64, 1)):
        layers += [
            nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.0), nn.Linear(channels, num_classes)]
    return nn.Sequential(*layers, *head)


def vit(num_classes: int, in_channels: int, side: int) -> nn.Module:
    """The package's small transformer, 48 wide, on patches of 4x4 px."""
    del side
    return SmallViT(num_classes, in_channels, 48)


FACTORIES: dict[str, Callable[[int, int, int], nn.Module]] = {
    "lenet": lenet,
    "mlp": mlp,
    "mlp_bn": mlp_bn,
    "plain_cnn": plain_cnn,
    "deep_cnn": deep_cnn,
    "deep_cnn_bn": deep_cnn_bn,
    "vgg": vgg,
    "vgg_bn": vgg_bn,
    "resnet20": resnet20,
    "wrn_16_1": wrn_16_1,
    "resnet20_full": resnet20_full,
    "mobile": mobile,
    "vit": vit,
}
"""From the name to what builds it for ``num_classes``, ``in_channels`` and the side of the images in px."""


@dataclass(frozen=True, slots=True)
class For:
    """The networks for one data set, by name: what ``--arch`` can call without arguments."""

    data: str

    def __getattr__(self, name: str) -> Callable[[], nn.Module]:
        if name not in FACTORIES:
            raise AttributeError(f"no network {name!r}; known: {', '.join(FACTORIES)}")
        return lambda: build(name, self.data)


fmnist, cifar10, gtsrb, joined = For("fmnist"), For("cifar10"), For("gtsrb"), For("joined")


def build(name: str, data: str) -> nn.Module:
    """The untrained network of that name for the images and classes of that data set."""
    channels, side, _ = SHAPES[data]
    return FACTORIES[name](CLASSES[data], channels, side).to(memory_format=torch.channels_last).eval()
