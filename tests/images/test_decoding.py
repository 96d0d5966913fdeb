from __future__ import annotations

import io
import struct
import warnings

import numpy as np
import pytest
from pictures import make_texture, png_header
from PIL import Image, ImageOps

from iqa_ray.images import decoding
from iqa_ray.images.decoding import ImageError, decode_image, hash_content
from iqa_ray.images.settings import LARGEST_MAX_PIXELS


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


RGB = make_texture(1, 20, 30)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("WEBP", {"lossless": True}),
        ("JPEG2000", {"irreversible": False}),
    ],
)
def test_lossless_formats_give_the_same_pixels(kind, options):
    decoded = decode_image(encode(Image.fromarray(RGB), kind, **options))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, RGB)


def test_jpeg_is_what_the_classifier_s_loader_gives(tmp_path):
    from torchvision.datasets.folder import default_loader

    data = encode(Image.fromarray(RGB), "JPEG", quality=80)
    (tmp_path / "x.jpg").write_bytes(data)
    expected = np.asarray(default_loader(str(tmp_path / "x.jpg")))
    np.testing.assert_array_equal(decode_image(data), expected)


def test_grey_palette_and_one_bit():
    grey = Image.fromarray(RGB[..., 0])
    np.testing.assert_array_equal(decode_image(encode(grey, "PNG")), np.dstack([RGB[..., 0]] * 3))
    palette = Image.fromarray(RGB).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(decode_image(encode(palette, "PNG")), expected)
    bits = Image.fromarray(RGB[..., 0]).convert("1")
    assert set(np.unique(decode_image(encode(bits, "PNG")))) == {0, 255}


def test_alpha_is_dropped():
    rgba = np.dstack([RGB, np.zeros(RGB.shape[:2], np.uint8)])
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(rgba), "PNG")), RGB)
    la = Image.fromarray(RGB).convert("LA")
    expected = np.dstack([np.asarray(la)[..., 0]] * 3)
    np.testing.assert_array_equal(decode_image(encode(la, "PNG")), expected)


def test_cmyk_jpeg():
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = decode_image(encode(cmyk, "JPEG", quality=100))[4, 4]
    assert red[0] > 240
    assert red[1] < 15
    assert red[2] < 15


def test_sixteen_bits_keep_the_high_byte():
    samples = np.array([[0x0000, 0x00FF, 0x0100], [0x7FFF, 0x8000, 0xFFFF]], np.uint16)
    expected = np.dstack([(samples >> 8).astype(np.uint8)] * 3)
    for kind in ("PNG", "TIFF"):
        decoded = decode_image(encode(Image.fromarray(samples), kind))
        np.testing.assert_array_equal(decoded, expected)


def grey_tiff(samples: np.ndarray, photometric: int | None = 1, num_bits: int | None = None):
    """An uncompressed TIFF of one row of grey samples; Pillow writes few of those that it reads."""
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    strip = samples.astype(samples.dtype.newbyteorder("<")).tobytes()
    num_bits = num_bits or samples.dtype.itemsize * 8
    width = len(strip) * 8 // num_bits
    tags = {256: width, 257: 1, 258: num_bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: 1}
    tags |= {279: len(strip), 339: kind}
    if photometric is None:
        del tags[262]
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + strip


@pytest.mark.parametrize("photometric", [1, None])
def test_sixteen_bits_whose_zero_is_white_are_no_negative(photometric):
    samples = np.array([0, 0x00FF, 0x0100, 0x8000, 0xFFFF], np.uint16)
    white = decode_image(grey_tiff(samples, photometric=0))
    np.testing.assert_array_equal(white[0], np.column_stack([[255, 255, 254, 127, 0]] * 3))
    black = decode_image(grey_tiff(samples, photometric))
    np.testing.assert_array_equal(black[0], np.column_stack([[0, 0, 1, 128, 255]] * 3))
    eight = decode_image(grey_tiff(np.array([0, 1, 128, 255], np.uint8), photometric=0))
    assert eight[0, :, 0].tolist() == [255, 254, 127, 0]


def test_twelve_bits_keep_the_highest_eight():
    packed = np.array([0xFF, 0xF0, 0x10], np.uint8)  # 0xFFF and 0x010
    assert decode_image(grey_tiff(packed, num_bits=12))[0].tolist() == [[255] * 3, [1] * 3]


@pytest.mark.parametrize("dtype", [np.uint32, np.int32])
def test_thirty_two_bits_within_sixteen_keep_the_high_byte_of_those(dtype):
    samples = np.array([0, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF], dtype)
    decoded = decode_image(grey_tiff(samples))
    np.testing.assert_array_equal(decoded[0], np.column_stack([[0, 0, 1, 127, 128, 255]] * 3))
    signed = decode_image(grey_tiff(np.array([0, 0xFF, 0x100, 0x7FFF], np.int16)))
    assert signed[0, :, 0].tolist() == [0, 0, 1, 127]


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.array([-1, 5], np.int32), "32-bit samples beyond 0..65535"),
        (np.array([5, 65536], np.int32), "32-bit samples beyond 0..65535"),
        (np.array([-1, 5], np.int16), "32-bit samples beyond 0..65535"),
        (np.array([0, 1], np.float32), "floating-point samples"),
    ],
)
def test_samples_without_an_equivalent_of_eight_bits(samples, reason):
    with pytest.raises(ImageError, match=f"^{reason}") as caught:
        decode_image(grey_tiff(samples))
    assert caught.value.status == "unreadable"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(RGB), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(decode_image(data), ImageOps.exif_transpose(image))
    if (kind, orientation) == ("PNG", 6):  # stored lying on its side: turn 90 degrees clockwise
        np.testing.assert_array_equal(decode_image(data), np.rot90(RGB, -1))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0no TIFF header", b"Exif\0\0MM\0*\0\0", b"II"])
def test_pixels_are_read_where_exif_is_damaged(kind, exif):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(Image.fromarray(RGB), kind, exif=exif, **options)
    np.testing.assert_array_equal(decode_image(data), RGB)


def test_first_frame_of_animations():
    frames = [Image.fromarray(make_texture(seed, 16, 16)) for seed in range(3)]
    first = np.asarray(frames[0])
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(decode_image(data), first)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (png_header(20_000, 20_000), "too_large"),
        (png_header(8_000, 8_000), "too_large"),
        (png_header(100, 100), "unreadable"),
        (b"hello, I am text", "unreadable"),
        (b"\x00" * 1000, "unreadable"),
        (encode(Image.fromarray(RGB), "JPEG")[:300], "unreadable"),
        (encode(Image.fromarray(RGB), "PNG")[:-60], "unreadable"),
        (encode(Image.fromarray(RGB), "GIF"), "unreadable"),
        (encode(Image.fromarray(RGB.astype(np.float32)[..., 0]), "TIFF"), "unreadable"),
    ],
)
def test_what_cannot_be_used_has_a_status_and_a_reason(data, status):
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert caught.value.status == status
    assert str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_in_no_known_format_is_called_so():
    with pytest.raises(ImageError, match="^not an image in a format that is read here$"):
        decode_image(b"hello, I am text")
    with pytest.raises(ImageError, match="truncated"):
        decode_image(encode(Image.fromarray(RGB), "PNG")[:-60])


def test_limit_is_inclusive():
    data = encode(Image.fromarray(RGB), "PNG")
    assert decode_image(data, max_pixels=600).shape == (20, 30, 3)
    with pytest.raises(ImageError, match="30x20 px is over the limit of 599 pixels"):
        decode_image(data, max_pixels=599)


def test_random_damage_never_raises_anything_else():
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "JPEG2000", "BMP"):
        intact = np.frombuffer(encode(Image.fromarray(RGB), kind), np.uint8)
        for _ in range(60):
            damaged = intact.copy()
            places = rng.integers(0, len(damaged), 5)
            damaged[places] = rng.integers(0, 256, 5)
            try:
                assert decode_image(damaged.tobytes()).shape[2] == 3
            except ImageError as error:
                assert error.status in ("unreadable", "too_large")


def test_damage_is_told_by_the_row_alone():
    """A warning of Pillow's would come once an image, and name none."""
    exif = Image.Exif()
    exif[0x010F] = "a maker whose name is cut off"
    data = encode(Image.fromarray(RGB), "PNG", exif=exif.tobytes()[:-20])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(decode_image(data), RGB)
    assert not told


def test_the_largest_limit_is_pillow_s_own():
    assert LARGEST_MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match="decompression bomb") as caught:
        decode_image(png_header(LARGEST_MAX_PIXELS // 2 + 1, 2), 2 * LARGEST_MAX_PIXELS)
    assert caught.value.status == "too_large"


def test_memory_that_decoding_lacks_makes_an_image_too_large(monkeypatch):
    def fail(_):
        raise MemoryError

    monkeypatch.setattr(decoding, "_to_rgb", fail)
    with pytest.raises(ImageError, match="^not enough memory to decode it$") as caught:
        decode_image(encode(Image.fromarray(RGB), "PNG"))
    assert caught.value.status == "too_large"


def test_hash_is_of_the_bytes():
    assert hash_content(b"abc") == hash_content(b"abc") != hash_content(b"abd")
    assert len(hash_content(b"")) == 32
