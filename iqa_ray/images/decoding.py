"""Decoding one image file, whatever is in it.

The rule for pixels: what `torchvision.datasets.folder.default_loader` would give the classifier,
that is Pillow's `convert("RGB")` (alpha dropped, palettes looked up, CMYK converted), with the EXIF
orientation applied and with samples of more than eight bits cut to their highest eight. Of an
animated or multi-page file the first frame counts.
"""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin

from iqa_ray.errors import StatusError
from iqa_ray.images.settings import DEFAULT_MAX_PIXELS
from iqa_ray.storage.files import one_line

_PILLOW_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "JPEG2000")
_MIN_IS_WHITE = 0  # of TIFF's photometric interpretations
# what shows an image of each EXIF orientation upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(StatusError):
    """An image that cannot be used: `unreadable` or `too_large`."""


class UnreadError(ImageError):
    """A file that is absent or refused: its content is not known, and may be fine."""


class AbsentError(UnreadError):
    """A file that is not there."""


def hash_content(data: bytes) -> str:
    """The content hash of a file's bytes: BLAKE2b, 128 bits, hexadecimal."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def decode_image(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode an image file into (H, W, 3) uint8 RGB by the rule at the head of this module.

    Args:
        data: the bytes of a JPEG, PNG, BMP, TIFF, WebP or JPEG 2000 file.
        max_pixels: larger images are refused by their header, before any decoding.

    Raises:
        ImageError: `too_large`, or `unreadable` with the decoder's reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS) as image:
                if math.prod(image.size) > max_pixels:
                    width, height = image.size
                    raise ImageError(
                        "too_large",
                        f"{width}x{height} px is over the limit of {max_pixels:,} pixels",
                    )
                image.load()
                turn, rgb = _find_turn(image), _to_rgb(image)
                return np.asarray(rgb if turn is None else rgb.transpose(turn))
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", one_line(error)) from None
    except MemoryError:
        raise ImageError("too_large", "not enough memory to decode it") from None
    except Exception as error:  # decoders of untrusted bytes raise almost anything
        raise ImageError("unreadable", _decoding_reason(error)) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray(_cut_samples(image)).convert("RGB")
    if image.mode == "I":
        samples = np.asarray(image)
        if samples.min() < 0 or samples.max() > 65535:
            raise ValueError("32-bit samples beyond 0..65535 have no 8-bit equivalent")
        return Image.fromarray((samples >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point samples have no 8-bit equivalent")
    return image.convert("RGB")


def _cut_samples(image: Image.Image) -> NDArray[np.uint8]:
    """The highest eight bits of samples that have 16 bits or, in some TIFFs, 12.

    Pillow leaves such samples as they are stored; those of eight bits it inverts where 0 is white.
    """
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    num_bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
    samples = np.asarray(image).astype(np.uint16)
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _MIN_IS_WHITE:
        samples = 2**num_bits - 1 - samples
    return (samples >> (num_bits - 8)).astype(np.uint8)


def _find_turn(image: Image.Image) -> Image.Transpose | None:
    """What shows a loaded image upright; None where it is so, or where its EXIF is damaged."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as decoders do; the pixels are there without EXIF
        return None


def _decoding_reason(error: Exception) -> str:
    text = one_line(error)
    if "cannot identify image file" in text:
        return "not an image in a format that is read here"
    return text
