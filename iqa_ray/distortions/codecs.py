"""Lossy compression by real encoders, in memory."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from iqa_ray.distortions.checks import Pixels, check_image, check_range

MAX_JPEG_SIDE = 65_500
BITS_PER_PIXEL_RANGE = (0.001, 24.0)

# OpenJPEG's rate control mostly lands within 2% of a request, but not on small images.
_RATE_TOLERANCE = 0.02
_NUM_RATE_ATTEMPTS = 5
# It cuts whole coding passes of code blocks, which is too coarse where there are few blocks.
_BLOCK_SIDE, _BLOCK_SIDE_OF_SMALL = 32, 16
_SMALL_PX = 2**17


def compress_jpeg(image: Pixels, quality: float) -> Pixels:
    """Encode as baseline JPEG and decode again.

    The encoder is Pillow's libjpeg-turbo with the standard quantisation tables scaled by the IJG
    quality, and 4:2:0 chroma subsampling.

    Args:
        image: (H, W, 3) uint8 RGB, at most 65,500 px a side.
        quality: IJG quality, a whole number from 1 to 100.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: another kind of image, or a quality that is out of range or not whole.
    """
    check_image(image)
    check_range("quality", quality, 1, 100)
    if quality != int(quality):
        raise ValueError(f"quality must be a whole number, not {quality}")
    if max(image.shape) > MAX_JPEG_SIDE:
        raise ValueError(f"JPEG holds at most {MAX_JPEG_SIDE:,} px a side, not {image.shape}")
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=int(quality), subsampling="4:2:0")
    return _decode(buffer.getvalue())


def compress_jpeg2000(image: Pixels, bits_per_pixel: float) -> Pixels:
    """Encode as JPEG 2000 at a target rate and decode again; see `encode_jpeg2000`.

    Args:
        image: (H, W, 3) uint8 RGB.
        bits_per_pixel: of the whole code stream, 0.001 to 24.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: another kind of image, or a rate out of range.
    """
    return decode_jpeg2000(encode_jpeg2000(image, bits_per_pixel))


def encode_jpeg2000(
    image: Pixels,
    bits_per_pixel: float,
    precinct_side: int | None = None,
    max_resolutions: int = 6,
) -> bytes:
    """Encode as a bare JPEG 2000 code stream (no JP2 boxes) of a target rate.

    OpenJPEG through Pillow: irreversible 9/7 wavelet and colour transform, one tile, one quality
    layer, code blocks of 32 × 32 (16 × 16 below 2^17 px). The request is corrected until the rate
    is within 2% of the target, or as near as a few attempts come. An image that needs fewer bits
    takes fewer; the main header alone has about 150 bytes, the least that a small image takes.

    Args:
        image: (H, W, 3) uint8 RGB.
        bits_per_pixel: bits of the code stream over H · W, 0.001 to 24.
        precinct_side: of the precincts at the highest resolution in pixels, halved at each lower
            one, with code blocks as large as they fit; default one precinct for each resolution.
        max_resolutions: small images have fewer.

    Returns:
        The code stream, from SOC to EOC.

    Raises:
        ValueError: another kind of image, or a rate out of range.
    """
    check_image(image)
    check_range("bits_per_pixel", bits_per_pixel, *BITS_PER_PIXEL_RANGE)
    height, width = image.shape[:2]
    target = bits_per_pixel * height * width / 8
    num_resolutions = min(max_resolutions, min(height, width).bit_length())
    request, best = bits_per_pixel, b""
    for _ in range(_NUM_RATE_ATTEMPTS):
        stream = _encode_once(image, request, precinct_side, num_resolutions)
        if not best or abs(len(stream) - target) < abs(len(best) - target):
            best = stream
        if abs(len(stream) - target) <= _RATE_TOLERANCE * target:
            break
        request = float(np.clip(request * target / len(stream), *BITS_PER_PIXEL_RANGE))
    return best


def decode_jpeg2000(stream: bytes) -> Pixels:
    """Decode a JPEG 2000 code stream of three 8-bit components to (H, W, 3) uint8 RGB."""
    return _decode(stream)


def _encode_once(
    image: Pixels, bits_per_pixel: float, precinct_side: int | None, num_resolutions: int
) -> bytes:
    is_small = image.shape[0] * image.shape[1] < _SMALL_PX
    block_side = _BLOCK_SIDE_OF_SMALL if is_small else _BLOCK_SIDE
    buffer = BytesIO()
    Image.fromarray(image).save(
        buffer,
        "JPEG2000",
        no_jp2=True,
        quality_mode="rates",
        quality_layers=[BITS_PER_PIXEL_RANGE[1] / bits_per_pixel],
        irreversible=True,
        mct=1,
        num_resolutions=num_resolutions,
        precinct_size=precinct_side and (precinct_side, precinct_side),
        codeblock_size=None if precinct_side else (block_side, block_side),
    )
    return buffer.getvalue()


def _decode(data: bytes) -> Pixels:
    with Image.open(BytesIO(data)) as decoded:
        return np.ascontiguousarray(np.asarray(decoded, dtype=np.uint8))
