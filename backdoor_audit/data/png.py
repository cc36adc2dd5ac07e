"""Images as PNG: for eyes, and to travel in text. Nothing reads them back."""

from __future__ import annotations

import base64
import io

import torch
from PIL import Image
from torch import Tensor

_COLOURS = 3


def picture(image: Tensor) -> Image.Image:
    """An image (c, h, w) in [0, 1] with 8 bits per pixel: grey for one channel, colours for three, else the channels' mean."""
    values = image.detach().cpu().float().clamp(0, 1)
    if values.shape[0] not in (1, _COLOURS):
        values = values.mean(dim=0, keepdim=True)
    pixels = (values * 255).round().to(torch.uint8)
    drawn = pixels.permute(1, 2, 0) if pixels.shape[0] == _COLOURS else pixels[0]
    return Image.fromarray(drawn.contiguous().numpy())


def png(drawn: Image.Image | Tensor) -> str:
    """A picture, or an image (c, h, w) in [0, 1], as PNG of its own size in base64 text."""
    buffer = io.BytesIO()
    (picture(drawn) if isinstance(drawn, Tensor) else drawn).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
