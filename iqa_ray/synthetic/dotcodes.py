"""Synthetic photographs of dot-matrix codes on the underside of bottles.

Two manufacturers print the same kind of code and differ only in the fine geometry of the dots, so
a classifier needs the sharp detail that defocus takes away. This stands in for the commercial
product images of Smith et al. (section 2.1, Datasets 1 and 2), which are not public; here the blur
of every image is known.

Each image is made as a camera makes it: a lit scene in linear light, Gaussian defocus, the tone
curve, sensor noise, 8-bit rounding, JPEG. Lengths in a scene are in dot pitches or image sides, so
`image_size` changes the resolution and not the scene; `blur_sigma` is in pixels of the image.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from io import BytesIO
from math import gamma
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from iqa_ray.errors import UsageError
from iqa_ray.storage.files import locate, write_bytes

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class DotGeometry:
    """What one manufacturer's print head does to every dot, lengths in dot pitches."""

    column_pitch: float  # distance between columns over the distance between rows
    # How far rows slide sideways against the rows next to them: the nozzles fire in two
    # interleaved banks, so the slide alternates and whole letters stay upright.
    row_shear: float
    dot_aspect: float  # height of a dot over its width
    dot_exponent: float  # of the super-ellipse that outlines a dot: 2 is round, more is squarer


# Tall round dots and wide square ones: they differ in focus; blur of a dot pitch hides it.
MANUFACTURERS: dict[str, DotGeometry] = {
    "north": DotGeometry(column_pitch=1.00, row_shear=0.00, dot_aspect=1.40, dot_exponent=2.0),
    "south": DotGeometry(column_pitch=1.01, row_shear=0.15, dot_aspect=0.57, dot_exponent=3.0),
}

# fmt: off
# 5 x 7 glyphs: seven rows from the top, each a five-bit number, the leftmost dot highest.
GLYPHS: dict[str, tuple[int, ...]] = {
    "0": (14, 17, 19, 21, 25, 17, 14), "1": (4, 12, 4, 4, 4, 4, 14), "2": (14, 17, 1, 2, 4, 8, 31),
    "3": (31, 2, 4, 2, 1, 17, 14), "4": (2, 6, 10, 18, 31, 2, 2), "5": (31, 16, 30, 1, 1, 17, 14),
    "6": (6, 8, 16, 30, 17, 17, 14), "7": (31, 1, 2, 4, 8, 8, 8), "8": (14, 17, 17, 14, 17, 17, 14),
    "9": (14, 17, 17, 15, 1, 2, 12), "A": (14, 17, 17, 31, 17, 17, 17),
    "B": (30, 17, 17, 30, 17, 17, 30), "C": (14, 17, 16, 16, 16, 17, 14),
    "D": (28, 18, 17, 17, 17, 18, 28), "E": (31, 16, 16, 30, 16, 16, 31),
    "F": (31, 16, 16, 30, 16, 16, 16), "G": (14, 17, 16, 23, 17, 17, 15),
    "H": (17, 17, 17, 31, 17, 17, 17), "L": (16, 16, 16, 16, 16, 16, 31),
    "/": (0, 1, 2, 4, 8, 16, 0), ":": (0, 12, 12, 0, 12, 12, 0),
}
# White, grey, blue, green and amber plastic, last bare metal: linear RGB reflectance.
SUBSTRATES = (
    (0.72, 0.72, 0.69), (0.50, 0.51, 0.53), (0.42, 0.55, 0.68),
    (0.45, 0.62, 0.48), (0.66, 0.50, 0.32), (0.58, 0.57, 0.55),
)
# fmt: on
GLYPH_COLUMNS, GLYPH_ROWS, CHAR_STEP, LINE_STEP = 5, 7, 6, 10
SHIFT_LETTERS = "ABCDEFGH"

# A changed generator makes different bytes: raise this so that old folders are not taken for new.
GENERATOR_VERSION = 1
SETTINGS_NAME, LABELS_NAME = "settings.json", "labels.csv"


@dataclass(frozen=True)
class Scene:
    """The nuisance parameters of one image, drawn alike for every manufacturer."""

    text: str  # the lines of the code, separated by vertical bars
    pitch: float  # distance between dot rows, in image sides
    stretch: float  # extra width over height, from an oblique view and the conveyor's speed
    rotation_deg: float
    perspective_x: float  # relative change of scale over half the image side
    perspective_y: float
    shift_x: float  # the code's centre from the image's, in image sides
    shift_y: float
    dot_radius: float  # of the disc that has the area of one dot, in pitches
    ink_opacity: float
    substrate: int  # row of SUBSTRATES
    exposure: float
    light_angle_deg: float
    light_gradient: float  # relative change of light from the centre to the edge
    shadow_depth: float  # share of the light that the shadow takes
    noise_std: float  # of the sensor noise, in 8-bit grey levels
    jpeg_quality: int


def _draw_text(rng: np.random.Generator) -> str:
    """Draw two or three code lines of six characters: lot, expiry date, time."""
    digits = rng.integers(0, 10, size=4)
    lot = "L" + "".join(map(str, digits)) + SHIFT_LETTERS[rng.integers(len(SHIFT_LETTERS))]
    expiry = f"E{rng.integers(1, 13):02d}/{rng.integers(24, 32):02d}"
    clock = f"{rng.integers(24):02d}:{rng.integers(60):02d}"
    clock += SHIFT_LETTERS[rng.integers(len(SHIFT_LETTERS))]
    return "|".join((lot, expiry, clock)[: rng.integers(2, 4)])


def _draw_scene(rng: np.random.Generator) -> Scene:
    """Draw everything about an image but its manufacturer and its defocus."""
    return Scene(
        text=_draw_text(rng),
        pitch=rng.uniform(0.0195, 0.0255),
        stretch=rng.uniform(0.92, 1.08),
        rotation_deg=rng.uniform(-15, 15),
        perspective_x=rng.uniform(-0.08, 0.08),
        perspective_y=rng.uniform(-0.08, 0.08),
        shift_x=rng.uniform(-0.03, 0.03),
        shift_y=rng.uniform(-0.05, 0.05),
        dot_radius=rng.uniform(0.33, 0.40),
        ink_opacity=rng.uniform(0.75, 0.95),
        substrate=int(rng.integers(len(SUBSTRATES))),
        exposure=rng.uniform(0.8, 1.1),
        light_angle_deg=rng.uniform(0, 360),
        light_gradient=rng.uniform(0.05, 0.35),
        shadow_depth=rng.uniform(0, 0.5),
        # A phone's photograph scaled down to its code keeps little noise.
        noise_std=rng.uniform(0.3, 0.8),
        jpeg_quality=int(rng.integers(90, 97)),
    )


def _draw_blur_sigma(rng: np.random.Generator, image_size: int) -> float:
    """Draw a sigma in pixels: half within 0.4-1, half within 1-7 evenly in the log, for 256 px."""
    in_focus = rng.random() < 0.5
    sigma = rng.uniform(0.4, 1.0) if in_focus else float(np.exp(rng.uniform(0, np.log(7))))
    return sigma * image_size / 256


def _place_dots(text: str, geometry: DotGeometry) -> NDArray[np.float64]:
    """Return the (N, 2) x and y of the dots of `text` in pitches, the code's centre at 0."""
    lines = text.split("|")
    dots = []
    for line_index, line in enumerate(lines):
        for char_index, char in enumerate(line):
            for row, bits in enumerate(GLYPHS[char]):
                for column, bit in enumerate(f"{bits:0{GLYPH_COLUMNS}b}"):
                    if bit == "1":
                        dots.append((char_index * CHAR_STEP + column, line_index * LINE_STEP + row))
    positions = np.array(dots, dtype=np.float64)
    positions -= (
        ((len(lines[0]) - 1) * CHAR_STEP + GLYPH_COLUMNS - 1) / 2,
        ((len(lines) - 1) * LINE_STEP + GLYPH_ROWS - 1) / 2,
    )
    bank = np.where(np.array(dots)[:, 1] % 2 == 0, -0.5, 0.5)
    positions[:, 0] = positions[:, 0] * geometry.column_pitch + bank * geometry.row_shear
    return positions


def _project(points: NDArray[np.float64], scene: Scene, image_size: int) -> NDArray[np.float64]:
    """Map (N, 2) points of the code plane, in pitches, to pixels of the image."""
    cos, sin = np.cos(np.deg2rad(scene.rotation_deg)), np.sin(np.deg2rad(scene.rotation_deg))
    plane = points * (np.sqrt(scene.stretch), 1 / np.sqrt(scene.stretch)) * scene.pitch
    plane = plane @ np.array([[cos, sin], [-sin, cos]])
    depth = 1 + 2 * plane @ (scene.perspective_x, scene.perspective_y)
    centre = (0.5 + scene.shift_x, 0.5 + scene.shift_y)
    return (plane / depth[:, None] + centre) * image_size - 0.5


def _compute_half_axes(geometry: DotGeometry, radius: float) -> tuple[float, float]:
    """Return the half width and half height of a dot that has the area of a disc of `radius`.

    Equal areas keep the amount of ink, which survives any blur, from telling the manufacturer.
    """
    power = geometry.dot_exponent
    area_of_unit = 4 * gamma(1 + 1 / power) ** 2 / gamma(1 + 2 / power)
    side = radius * np.sqrt(np.pi / area_of_unit)
    return side / np.sqrt(geometry.dot_aspect), side * np.sqrt(geometry.dot_aspect)


def _paint_dots(
    geometry: DotGeometry, scene: Scene, rng: np.random.Generator, image_size: int
) -> FloatArray:
    """Return the (S, S) ink coverage in [0, 1], dot edges anti-aliased over about one pixel."""
    dots = _place_dots(scene.text, geometry)
    count = len(dots)
    dots += rng.normal(0, 0.03, (count, 2))
    growth = rng.normal(1, 0.05, count)
    strength = np.where(rng.random(count) < 0.02, 0.0, rng.uniform(0.85, 1.0, count))

    step_x, step_y = np.eye(2) / 4
    centres = _project(dots, scene, image_size)
    along_x = (_project(dots + step_x, scene, image_size) - centres) * 4
    along_y = (_project(dots + step_y, scene, image_size) - centres) * 4
    determinant = along_x[:, 0] * along_y[:, 1] - along_x[:, 1] * along_y[:, 0]
    pixels_per_pitch = np.sqrt(determinant)

    reach = int(np.ceil(0.8 * pixels_per_pitch.max())) + 1
    corner = np.round(centres).astype(int)
    offset_y, offset_x = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, 1, -1)
    x, y = corner[:, :1] + offset_x, corner[:, 1:] + offset_y
    dx, dy = x - centres[:, :1], y - centres[:, 1:]
    u = (along_y[:, 1:] * dx - along_y[:, :1] * dy) / determinant[:, None]
    v = (along_x[:, :1] * dy - along_x[:, 1:] * dx) / determinant[:, None]

    half_width, half_height = _compute_half_axes(geometry, scene.dot_radius)
    power = geometry.dot_exponent
    distance = (np.abs(u / half_width) ** power + np.abs(v / half_height) ** power) ** (1 / power)
    to_edge = (growth[:, None] - distance) * (scene.dot_radius * pixels_per_pitch)[:, None]
    coverage = np.clip(to_edge + 0.5, 0, 1) * strength[:, None]

    ink = np.zeros((image_size, image_size), dtype=np.float32)
    inside = (x >= 0) & (x < image_size) & (y >= 0) & (y < image_size)
    np.add.at(ink, (y[inside], x[inside]), coverage[inside].astype(np.float32))
    return np.minimum(ink, 1)


def _draw_field(rng: np.random.Generator, cells: int, image_size: int) -> FloatArray:
    """Return a smooth (S, S) random field of unit scale with about `cells` bumps a side."""
    grid = rng.standard_normal((cells + 3, cells + 3)).astype(np.float32)
    size = (image_size, image_size)
    return np.asarray(cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def _make_grid(image_size: int) -> tuple[FloatArray, FloatArray]:
    """Return the x (1, S) and y (S, 1) of pixel centres, from -0.5 to 0.5 over the image."""
    axis = ((np.arange(image_size, dtype=np.float32) + 0.5) / image_size - 0.5).astype(np.float32)
    return axis[None, :], axis[:, None]


def _paint_surface(scene: Scene, rng: np.random.Generator, image_size: int) -> FloatArray:
    """Return the (S, S, 3) linear reflectance of the bare bottle: grain, stains, mould rings."""
    x, y = _make_grid(image_size)
    grain = 0.02 * _draw_field(rng, 120, image_size) + 0.02 * _draw_field(rng, 30, image_size)
    relief = 1 + grain + 0.03 * _draw_field(rng, 5, image_size)

    # The rings lie around the middle of the base, which is off to some side of the code.
    direction, away = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.7)
    radius = np.hypot(x - away * np.cos(direction), y - away * np.sin(direction))
    for _ in range(4):
        at, width, depth = rng.uniform((0.25, 0.004, 0.05), (1.1, 0.012, 0.18))
        across = (radius - at) / width
        # A ridge is bright on the side towards the light and dark on the other.
        relief = relief - depth * across * np.exp(-(across**2) / 2)
    turning_marks = 0.012 * np.sin(radius * rng.uniform(150, 300))
    if scene.substrate == len(SUBSTRATES) - 1:
        relief = relief + turning_marks
    return (relief[:, :, None] * np.array(SUBSTRATES[scene.substrate])).astype(np.float32)


def _light_scene(scene: Scene, rng: np.random.Generator, image_size: int) -> FloatArray:
    """Return the (S, S, 3) light that falls on the scene: gradient, soft shadow, white balance."""
    x, y = _make_grid(image_size)
    angle = np.deg2rad(scene.light_angle_deg)
    light = 1 + 2 * scene.light_gradient * (x * np.cos(angle) + y * np.sin(angle))
    light = light * (1 - rng.uniform(0, 0.5) * (x**2 + y**2))

    tilt, offset, softness = rng.uniform(0, 2 * np.pi), rng.uniform(-0.4, 0.4), rng.uniform(15, 60)
    edge = x * np.cos(tilt) + y * np.sin(tilt) - offset
    light = light * (1 - scene.shadow_depth / (1 + np.exp(-softness * edge)))

    gains = rng.uniform(0.9, 1.1, 3)
    return (scene.exposure * light[:, :, None] * gains).astype(np.float32)


def render_code(
    manufacturer: str, blur_sigma: float, rng: np.random.Generator, image_size: int = 256
) -> tuple[NDArray[np.uint8], Scene]:
    """Photograph one random code, up to but not including JPEG.

    The draws from `rng` depend neither on `manufacturer` nor on `blur_sigma`: equal
    generators give the same code, surface, light and noise.

    Args:
        manufacturer: a key of `MANUFACTURERS`.
        blur_sigma: standard deviation of the Gaussian defocus in pixels, 0 for none.
        rng: source of the scene and of the noise.
        image_size: side of the image in pixels, at least 64.

    Returns:
        The (S, S, 3) uint8 RGB image and the scene that it shows.

    Raises:
        UsageError (a ValueError): unknown manufacturer, negative blur or too small an image.
    """
    if manufacturer not in MANUFACTURERS:
        raise UsageError(f"manufacturer must be one of {list(MANUFACTURERS)}, not {manufacturer!r}")
    if not 0 <= blur_sigma < float("inf"):
        raise UsageError(f"blur_sigma must be 0 or more, not {blur_sigma}")
    _check_image_size(image_size)
    scene = _draw_scene(rng)
    surface = _paint_surface(scene, rng, image_size)
    light = _light_scene(scene, rng, image_size)
    ink = scene.ink_opacity * _paint_dots(MANUFACTURERS[manufacturer], scene, rng, image_size)
    ink_reflectance = np.float32(0.03)
    radiance = light * (surface + (ink_reflectance - surface) * ink[:, :, None])
    if blur_sigma > 0:
        # Stands in for the disc of a lens out of focus, without the ripples of its spectrum.
        blurred = cv2.GaussianBlur(radiance, (0, 0), blur_sigma, borderType=cv2.BORDER_REFLECT_101)
        radiance = np.asarray(blurred, dtype=np.float32)

    levels = 255 * np.clip(radiance, 0, 1) ** np.float32(1 / 2.2)
    levels += scene.noise_std * rng.standard_normal(levels.shape, dtype=np.float32)
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8), scene


def _check_image_size(image_size: int) -> None:
    if image_size < 64:
        raise UsageError(f"image_size must be at least 64 pixels, not {image_size}")


def _encode_image(index: int, seed: int, image_size: int) -> tuple[bytes, dict[str, Any]]:
    """Make image `index` of the set: its JPEG bytes and its row of the labels table.

    Everything follows from `(seed, index)`, so a longer set begins with the shorter one.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
    label = list(MANUFACTURERS)[index % len(MANUFACTURERS)]
    blur_sigma = _draw_blur_sigma(rng, image_size)
    image, scene = render_code(label, blur_sigma, rng, image_size)
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=scene.jpeg_quality, subsampling=0)
    row = {"path": f"{label}/{index:05d}.jpg", "label": label, "blur_sigma": blur_sigma}
    return buffer.getvalue(), row | asdict(scene)


def make_dataset(
    out_dir: str | Path,
    num_images: int = 700,
    image_size: int = 256,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Write a set of labelled images, half of each manufacturer, in turns.

    Writes `<manufacturer>/<n>.jpg` and, last and whole, `labels.csv`. The same settings give
    the same bytes (with the same library versions); over a complete set of these settings nothing
    is written, over an interrupted one it is made again.

    Args:
        out_dir: new, empty, or made by an earlier call with the same settings.
        num_images: at least 2; Dataset 2 of Smith et al. has 700.
        image_size: side in pixels, at least 64.
        seed: 0 or more.
        progress: called with 1 after every image that was written.

    Returns:
        The labels: `path` relative to `out_dir`, `label`, `blur_sigma` in pixels, and the
        fields of `Scene`.

    Raises:
        UsageError (a ValueError): settings out of range, or a folder that holds other data.
    """
    _check_image_size(image_size)
    if num_images < len(MANUFACTURERS):
        raise UsageError(f"num_images must be {len(MANUFACTURERS)} or more, not {num_images}")
    if seed < 0:
        raise UsageError(f"seed must be 0 or more, not {seed}")
    out_dir = Path(out_dir)
    settings = {"num_images": num_images, "image_size": image_size, "seed": seed}
    _claim_folder(out_dir, {"generator": f"dotcodes {GENERATOR_VERSION}"} | settings)
    if not _is_complete(out_dir):
        rows = []
        for index in range(num_images):
            encoded, row = _encode_image(index, seed, image_size)
            write_bytes(locate(out_dir / row["path"]), encoded)
            rows.append(row)
            if progress is not None:
                progress(1)
        labels = pd.DataFrame(rows).round(6).to_csv(index=False, lineterminator="\n")
        write_bytes(locate(out_dir / LABELS_NAME), labels.encode())
    return _read_labels(out_dir)


def _claim_folder(out_dir: Path, settings: dict[str, Any]) -> None:
    """Record the settings in an empty folder, or find the same ones there."""
    path = out_dir / SETTINGS_NAME
    record = json.dumps(settings, indent=2) + "\n"
    if out_dir.exists() and not out_dir.is_dir():
        raise UsageError(f"{out_dir} is a file: name a folder")
    if path.is_file() and path.read_bytes() == record.encode():
        return
    if out_dir.exists() and any(not entry.name.startswith(".") for entry in out_dir.iterdir()):
        raise UsageError(f"{out_dir} holds other data or other settings: name an empty folder")
    write_bytes(locate(path), record.encode())


def _is_complete(out_dir: Path) -> bool:
    return (out_dir / LABELS_NAME).is_file() and all(
        (out_dir / path).is_file() for path in _read_labels(out_dir)["path"]
    )


def _read_labels(out_dir: Path) -> pd.DataFrame:
    return pd.read_csv(out_dir / LABELS_NAME, float_precision="round_trip")
