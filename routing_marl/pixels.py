"""Images brought to other sizes and numbers of channels, as uint8."""

import numpy as np
import torch
from jaxtyping import UInt8
from torch.nn.functional import interpolate

Grey = UInt8[np.ndarray, "image height width"]


def resized(images: Grey, size: int) -> UInt8[np.ndarray, "image {size} {size}"]:
    """Grey images brought to ``size`` x ``size``, every new pixel an average of the old ones below it."""
    out = np.empty((len(images), size, size), np.uint8)
    for start in range(0, len(images), 1024):  # in floats all of them would take four times the memory
        some = torch.from_numpy(images[start : start + 1024]).float()[:, None]
        small = interpolate(some, (size, size), mode="bilinear", antialias=True)
        out[start : start + 1024] = small[:, 0].round().clamp(0, 255).byte().numpy()
    return out


def framed(images: Grey, size: int) -> UInt8[np.ndarray, "image {size} {size}"]:
    """Grey images in the middle of ``size`` x ``size`` black pixels."""
    before = [(size - length) // 2 for length in images.shape[1:]]
    around = [(b, size - length - b) for b, length in zip(before, images.shape[1:], strict=True)]
    return np.pad(images, [(0, 0), *around])


def in_colour(images: Grey) -> UInt8[np.ndarray, "image height width 3"]:
    """Grey images with three equal channels."""
    return np.repeat(images[..., None], 3, axis=3)
