"""What users set of images, whichever job reads them."""

from __future__ import annotations

from typing import Literal

LabelMode = Literal["parent", "top", "none"]

DEFAULT_MAX_PIXELS = 50_000_000
# Pillow itself refuses to open more than twice its MAX_IMAGE_PIXELS
LARGEST_MAX_PIXELS = 178_956_970
