"""Images made on the spot."""

from __future__ import annotations

import struct
import zlib

import numpy as np


def make_texture(seed: int, height: int = 48, width: int = 64, blur: float = 0.0) -> np.ndarray:
    """(H, W, 3) uint8: smooth noise with some structure, blurred on request."""
    import cv2

    rng = np.random.default_rng(seed)
    image = cv2.GaussianBlur(rng.normal(128, 90, (height, width, 3)), (0, 0), 1.0)
    cv2.circle(image, (width // 2, height // 2), min(height, width) // 4, (240, 200, 30), -1)
    if blur:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    return np.clip(image, 0, 255).astype(np.uint8)


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises much and holds nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    empty = zlib.compress(b"")
    body = struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data = struct.pack(">I", len(empty)) + b"IDAT" + empty
    return b"\x89PNG\r\n\x1a\n" + body + data + struct.pack(">I", zlib.crc32(b"IDAT" + empty))
