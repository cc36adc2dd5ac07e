"""Small networks for small images, under the names that `--arch` and model headers use.

Every factory takes ``num_classes``, ``in_channels`` and ``width``. Width and classes of a saved model are read off its
tensors, so a name alone is enough to load a file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def _conv_block(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class SmallCNN(nn.Module):
    """Five 3x3 convolutions with batch norm, global average pooling, one linear layer."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _conv_block(in_channels, width),
            _conv_block(width, 2 * width, stride=2),
            _conv_block(2 * width, 2 * width),
            _conv_block(2 * width, 4 * width, stride=2),
            _conv_block(4 * width, 4 * width),
        )
        self.linear = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of normalised images (n, c, h, w)."""
        logits: Tensor = self.linear(self.features(images).mean(dim=(2, 3)))
        return logits


class SmallVGG(nn.Module):
    """Three stages of two 3x3 convolutions and a max pool, then two linear layers with dropout (Simonyan and Zisserman, 2015)."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _conv_block(in_channels, width),
            _conv_block(width, width),
            nn.MaxPool2d(2),
            _conv_block(width, 2 * width),
            _conv_block(2 * width, 2 * width),
            nn.MaxPool2d(2),
            _conv_block(2 * width, 4 * width),
            _conv_block(4 * width, 4 * width),
        )
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.hidden = nn.Linear(4 * width, 4 * width)
        self.dropout = nn.Dropout(0.2)
        self.linear = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of normalised images (n, c, h, w)."""
        pooled = self.pool(self.features(images)).flatten(1)
        logits: Tensor = self.linear(self.dropout(functional.relu(self.hidden(pooled))))
        return logits


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., CVPR 2016)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(out + self.shortcut(x))


class _PreActBlock(nn.Module):
    """The block with batch norm and ReLU before each convolution (He et al., ECCV 2016)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv1(out)
        summed: Tensor = self.conv2(functional.relu(self.bn2(out))) + shortcut
        return summed


def _add_stages(
    network: nn.Module, block: Callable[[int, int, int], nn.Module], width: int, blocks: Sequence[int]
) -> int:
    """Give a network its stages, ``layer1`` and so on, each twice as wide as the one before; how wide the last one is."""
    in_channels = width
    for stage, count in enumerate(blocks):
        layers = []
        for index in range(count):
            layers.append(block(in_channels, width * 2**stage, 2 if stage > 0 and index == 0 else 1))
            in_channels = width * 2**stage
        network.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
    return in_channels


def _logits(network: ResNet | PreActResNet, out: Tensor) -> Tensor:
    """What the stages and the last layer make of the first convolution."""
    for number in range(1, network.depth + 1):
        out = network.get_submodule(f"layer{number}")(out)
    logits: Tensor = network.linear(out.mean(dim=(2, 3)))
    return logits


class ResNet(nn.Module):
    """ResNet-18 with a 3x3 first convolution and no first pooling, as is usual for 32x32 images."""

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, width: int = 64, blocks: Sequence[int] = (2, 2, 2, 2)
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.depth = len(blocks)
        self.linear = nn.Linear(_add_stages(self, _Block, width, blocks), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of normalised images (n, c, h, w)."""
        return _logits(self, functional.relu(self.bn1(self.conv1(images))))


class PreActResNet(nn.Module):
    """PreActResNet-18 with the key layout of the public backdoor benchmarks: no batch norm before the pooling."""

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, width: int = 64, blocks: Sequence[int] = (2, 2, 2, 2)
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.depth = len(blocks)
        self.linear = nn.Linear(_add_stages(self, _PreActBlock, width, blocks), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of normalised images (n, c, h, w)."""
        return _logits(self, self.conv1(images))


class SmallViT(nn.Module):
    """A vision transformer on 4x4 patches with fixed sine-cosine positions and mean pooling (Beyer et al., 2022, SimpleViT).

    ``width`` is the embedding dimension; four heads if it is a multiple of 4, else one. Any image of at least 4 px fits.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Conv2d(in_channels, width, 4, stride=4)
        self.blocks = nn.Sequential(*(_TransformerBlock(width) for _ in range(4)))
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of normalised images (n, c, h, w)."""
        patches = self.embedding(images)
        tokens = patches.flatten(2).transpose(1, 2) + _positions(patches)
        logits: Tensor = self.linear(self.norm(self.blocks(tokens)).mean(dim=1))
        return logits


class _TransformerBlock(nn.Module):
    """Self-attention and a two-layer perceptron, each after a layer norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = 1 if width % 4 else 4
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, 4 * width)
        self.output = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        images, count, width = tokens.shape
        qkv = (
            self.qkv(self.norm1(tokens)).view(images, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        )
        attended = functional.scaled_dot_product_attention(*qkv.unbind(0))
        tokens = tokens + self.projection(attended.transpose(1, 2).reshape(images, count, width))
        mixed: Tensor = tokens + self.output(functional.gelu(self.hidden(self.norm2(tokens))))
        return mixed


def _positions(patches: Tensor) -> Tensor:
    """Fixed codes (h w, width) of the places of patches (n, width, h, w): sines and cosines of row and column."""
    width, rows, columns = patches.shape[1:]
    frequencies = 1 / 10_000 ** (torch.arange(width // 4, device=patches.device) / max(width // 4 - 1, 1))
    y, x = torch.meshgrid(
        torch.arange(rows, device=patches.device), torch.arange(columns, device=patches.device), indexing="ij"
    )
    angles = [place.flatten()[:, None] * frequencies for place in (y, x)]
    codes = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return functional.pad(codes, (0, width - codes.shape[1]))


def small_resnet(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> ResNet:
    """A residual network of three stages with one block each."""
    return ResNet(num_classes, in_channels, width, blocks=(1, 1, 1))


def resnet18(num_classes: int = 10, in_channels: int = 3, width: int = 64) -> ResNet:
    """ResNet-18 for 32x32 images."""
    return ResNet(num_classes, in_channels, width)


def preact_resnet18(num_classes: int = 10, in_channels: int = 3, width: int = 64) -> PreActResNet:
    """PreActResNet-18 for 32x32 images."""
    return PreActResNet(num_classes, in_channels, width)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "small_cnn": SmallCNN,
    "small_vgg": SmallVGG,
    "small_resnet": small_resnet,
    "small_vit": SmallViT,
    "preact_resnet18": preact_resnet18,
    "resnet18": resnet18,
}


def build_network(name: str, *, num_classes: int, in_channels: int, width: int) -> nn.Module:
    """The network of that name, in evaluation mode; every name of `NETWORKS` is accepted."""
    module = NETWORKS[name](num_classes=num_classes, in_channels=in_channels, width=width)
    return module.to(memory_format=torch.channels_last).eval()
