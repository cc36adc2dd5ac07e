"""Networks of five published checkpoints, rebuilt from their tensors: ``--arch=tests.subjects.published:NAME``."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional


def badnet_mnist() -> nn.Module:
    """Two convolutions with average pooling; without the softmax it was trained with, so that the scores are logits."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Sequential(nn.Conv2d(1, 16, 5), nn.ReLU(), nn.AvgPool2d(2)),
            conv2=nn.Sequential(nn.Conv2d(16, 32, 5), nn.ReLU(), nn.AvgPool2d(2)),
            flatten=nn.Flatten(),
            fc1=nn.Sequential(nn.Linear(512, 512), nn.ReLU()),
            fc2=nn.Sequential(nn.Linear(512, 10)),
        )
    )


def four_linear_layers() -> nn.Module:
    """784-10-10-10-10, without any convolution."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number, inputs in enumerate((784, 10, 10, 10), start=1):
        layers[f"fc{number}"] = nn.Linear(inputs, 10)
        if number < 4:
            layers[f"relu{number}"] = nn.ReLU()
    return nn.Sequential(layers)


def five_convolutions() -> nn.Module:
    """Convolution, batch norm, ReLU for widths 64 64 128 128 256, then two linear layers."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 64, 0, 128, 128, 0, 256):
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    head = (nn.Flatten(), nn.Linear(256, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
    return nn.Sequential(
        OrderedDict(features=nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)), classifier=nn.Sequential(*head))
    )


class _Block(nn.Module):
    """A residual block whose shortcut has no weights: every second pixel, channels padded with zeros."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.stride = 1 if channels == width else 2
        self.padding = (width - channels) // 2
        self.conv1 = nn.Conv2d(channels, width, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        shortcut = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(out + shortcut)


class _Mean(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean(dim=(2, 3))


def resnet20() -> nn.Module:
    """The ResNet-20 of He et al. (CVPR 2016) for 32x32 images, shortcuts of kind A."""
    stages = [(16, 16), (16, 32), (32, 64)]
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 16, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(16),
            relu=nn.ReLU(),
            **{
                f"layer{number}": nn.Sequential(_Block(before, width), _Block(width, width), _Block(width, width))
                for number, (before, width) in enumerate(stages, start=1)
            },
            mean=_Mean(),
            linear=nn.Linear(64, 10),
        )
    )


def takes_classes(num_classes: int = 4) -> nn.Module:
    """A factory with an argument, for the tests of --num-classes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))


def returns_a_dict() -> dict[str, Tensor]:
    return {"weight": torch.zeros(1)}


def fails() -> nn.Module:
    raise RuntimeError("no such width\nand a second line")
