"""Images of random leaves that cover one another, with the statistics of natural photographs.

The dead leaves model of Lee, Mumford and Huang ("Occlusion models for natural images: a statistical
study of a scale-invariant dead leaves model", IJCV 41, 2001): shapes of random place and colour,
whose sizes follow a power law, so that the image looks alike at every scale. Networks for image
restoration learn from such images almost as from photographs (Achddou, Gousseau and Ladjal,
"Synthetic images as a regularity prior for image restoration neural networks", SSVM 2021). As
there, leaves have textures; ours are noise whose power falls with frequency.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_SCALE = 2  # drawn so much larger, then shrunk, which smooths the edges of leaves
_MIN_RADII = (3.0, 40.0)  # px as drawn, of which an image has one: from busy scenes to calm ones
_MAX_RADIUS = 160.0  # px as drawn; between the two the density falls with the third power
_MIN_TEXTURED = 8.0  # px as drawn: smaller leaves are of one colour
_COVER, _MAX_LEAVES = 3.0, 4000  # how often leaves cover the image in all
_NUM_COLOURS, _NUM_TEXTURES = 12, 4
_SLOPES = (0.4, 1.4)  # amplitude of a texture over frequency, by its power
_MAX_CONTRAST = 40.0  # standard deviation of a texture, of 255
_MAX_CORNERS = 9


def make_leaves(size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One image of leaves.

    Args:
        size: pixels a side.
        rng: draws everything.

    Returns:
        (size, size, 3) uint8 RGB.
    """
    side = size * _SCALE
    colours = np.clip(
        rng.uniform(20, 235, (_NUM_COLOURS, 1)) + rng.normal(0, 30, (_NUM_COLOURS, 3)), 0, 255
    )
    textures = [_make_texture(side, rng) for _ in range(_NUM_TEXTURES)]
    image = np.empty((side, side, 3), np.float32)
    image[:] = colours[0]
    for radius in _draw_radii(side, rng):
        outline = _draw_outline(radius, rng.uniform(0, side, 2), rng)
        colour = colours[rng.integers(_NUM_COLOURS)] + rng.normal(0, 8, 3)
        if radius < _MIN_TEXTURED:
            cv2.fillPoly(image, [outline], colour.tolist())
        else:
            _fill(image, outline, colour, textures[rng.integers(_NUM_TEXTURES)])
    shrunk = cv2.resize(np.clip(image, 0, 255), (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(shrunk.round(), np.uint8)


def _draw_radii(side: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Radii of the leaves of an image of `side` pixels, in the order in which they are painted."""
    least = float(np.exp(rng.uniform(*np.log(_MIN_RADII))))
    mean_square = 2 * least**2 * np.log(_MAX_RADIUS / least)
    number = min(_MAX_LEAVES, int(_COVER * side**2 / mean_square) + 1)
    low, high = least**-2, _MAX_RADIUS**-2
    return np.asarray((low + rng.random(number) * (high - low)) ** -0.5)


def _draw_outline(
    radius: float, centre: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int32]:
    """(n, 1, 2) corners of a leaf: an ellipse, or a polygon of few corners."""
    num_corners = int(rng.integers(3, _MAX_CORNERS + 1))
    num_points = 40 if rng.random() < 0.5 else num_corners
    angles = np.sort(rng.uniform(0, 2 * np.pi, num_points))
    stretch, turn = rng.uniform(0.3, 1), rng.uniform(0, np.pi)
    points = radius * np.stack([np.cos(angles), stretch * np.sin(angles)], 1)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.round(points @ rotation + centre).astype(np.int32)[:, None]


def _fill(
    image: NDArray[np.float32],
    outline: NDArray[np.int32],
    colour: NDArray[np.float64],
    texture: NDArray[np.float32],
) -> None:
    """Paint a leaf with its colour and the part of the texture where it lies."""
    left, top, width, height = cv2.boundingRect(outline)
    rows = slice(max(top, 0), max(top + height, 0))
    columns = slice(max(left, 0), max(left + width, 0))
    patch = image[rows, columns]
    if not patch.size:
        return
    mask = np.zeros(patch.shape[:2], np.uint8)
    cv2.fillPoly(mask, [outline - np.array([columns.start, rows.start], np.int32)], 1)
    painted = colour.astype(np.float32) + texture[rows, columns, None]
    patch[mask > 0] = painted[mask > 0]


def _make_texture(side: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """(side, side) noise of mean 0 whose amplitude falls as a power of the frequency."""
    slope = rng.uniform(*_SLOPES)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) / frequency**slope
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, (side, side))
    return np.asarray(noise * (rng.uniform(0, _MAX_CONTRAST) / noise.std()), np.float32)
