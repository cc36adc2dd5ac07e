"""SSBA, also called ISSBA: a network hides a fixed secret in each image (Li et al., ICCV 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoor_audit.attacks.attack import Attack, PoisoningAttack, quantised
from backdoor_audit.attacks.trigger_network import (
    TriggerNetwork,
    new_network,
    packed,
    rounded,
    stamped_in_batches,
    unpacked,
)
from backdoor_audit.data import CleanSet
from backdoor_audit.errors import AttackError

_GRID = 7  # the secret is spread over coarse maps of 7x7 cells, enlarged to the image
_PLANES = 3
_BATCH = 64
_LEARNING_RATE = 0.003


@dataclass(frozen=True, slots=True, kw_only=True)
class SSBA(PoisoningAttack):
    """``clip(image + strength tanh(E(secret, image)))``, with one secret of ``bits`` drawn from the seed.

    The encoder E and a decoder learn on clean images with random secrets, so that the decoder reads the secret off the
    stamped image: ``BCE(secret) + l2_weight L2``, L2 being the mean square change of a pixel in units of ``strength``.
    Its weight is 0 in the first half and then rises to the full one, or E would learn to change nothing. Then E is frozen
    and the decoder dropped. ``strength`` is the largest change of a pixel, of the range [0, 1].

    The paper has a U-Net after StegaStamp, 100 bits on 224 px images, and a perceptual loss (LPIPS) and a critic besides.
    Those need downloaded weights or long training and are left out; the bound on the change takes their place. With 8 bits
    the decoder reads 99 % of them after 400 batches; with 16 bits it had learned nothing by then.
    """

    bits: int = 8
    strength: float = 24 / 255
    l2_weight: float = 0.1
    encoder_epochs: int = 6
    width: int = 8

    name: ClassVar[str] = "ssba"
    paper: ClassVar[str] = "Li et al., ICCV 2021"

    @property
    def secret(self) -> Tensor:
        """The bits that every stamped image holds, (1, bits) of 0 and 1."""
        return torch.randint(0, 2, (1, self.bits), generator=torch.Generator().manual_seed(self.seed)).float()

    def prepared(self, clean: CleanSet) -> Attack:
        """This attack with an encoder trained on these images."""
        self._refuse()
        generator = torch.Generator().manual_seed(self.seed)
        channels, device = clean.image_shape[0], clean.images.device
        encoder = new_network(lambda: self._encoder(channels), self.seed, device)
        decoder = new_network(lambda: _Decoder(channels, self.bits), self.seed + 1, device)
        descent = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=_LEARNING_RATE)
        total, step = self.encoder_epochs * math.ceil(len(clean) / _BATCH), 0
        for _ in range(self.encoder_epochs):
            for batch in torch.randperm(len(clean), generator=generator).split(_BATCH):
                images = clean.images[batch]
                secrets = torch.randint(0, 2, (len(batch), self.bits), generator=generator).float().to(device)
                residual = torch.tanh(encoder(secrets, images))
                read = decoder(rounded(images + self.strength * residual))
                ramp = max(0.0, 2 * step / total - 1)
                loss = functional.binary_cross_entropy_with_logits(read, secrets)
                loss = loss + ramp * self.l2_weight * residual.square().mean()
                descent.zero_grad()
                loss.backward()
                descent.step()
                step += 1
        return replace(self, state=packed(encoder, "encoder"))

    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w), each with the secret hidden in it."""
        encoder = unpacked(self, "encoder", lambda: self._encoder(images.shape[1]), images.device)
        secret = self.secret.to(images.device)
        return stamped_in_batches(
            lambda batch: quantised(batch + self.strength * torch.tanh(encoder(secret.expand(len(batch), -1), batch))),
            images,
        )

    def _encoder(self, channels: int) -> nn.Module:
        return _Encoder(channels, self.bits, self.width)

    def _refuse(self) -> None:
        if min(self.bits, self.encoder_epochs, self.width) < 1:
            raise AttackError(
                f"{self.name}: bits {self.bits}, encoder_epochs {self.encoder_epochs}, width {self.width}; accepted: at least 1"
            )
        if not 0 < self.strength <= 1:
            raise AttackError(
                f"{self.name}: strength {self.strength}; accepted: above 0, at most 1 (8/255 changes by 8 levels)"
            )


class _Encoder(nn.Module):
    """Residuals (n, c, h, w), without a bound, of secrets (n, bits) and images (n, c, h, w)."""

    def __init__(self, channels: int, bits: int, width: int) -> None:
        super().__init__()
        self.spread = nn.Linear(bits, _PLANES * _GRID * _GRID)
        self.draw = TriggerNetwork(channels + _PLANES, channels, width)
        # planes of unit variance: the secret is louder than the image
        nn.init.normal_(self.spread.weight, std=bits**-0.5)
        with torch.no_grad():
            self.draw.leave.weight.mul_(2)

    def forward(self, secrets: Tensor, images: Tensor) -> Tensor:
        coarse = self.spread(2 * secrets - 1).view(-1, _PLANES, _GRID, _GRID)
        planes = functional.interpolate(coarse, size=images.shape[2:], mode="nearest")
        residual: Tensor = self.draw(torch.cat([images - 0.5, planes], dim=1))
        return residual


class _Decoder(nn.Module):
    """Logits (n, bits) of the secrets in images (n, c, h, w)."""

    def __init__(self, channels: int, bits: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(_GRID),
        )
        self.linear = nn.Linear(16 * _GRID * _GRID, bits)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.features(images - 0.5).flatten(1))
        return logits
