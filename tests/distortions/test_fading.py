from __future__ import annotations

import numpy as np
import pytest

from iqa_ray.distortions.codecs import decode_jpeg2000, encode_jpeg2000
from iqa_ray.distortions.fading import (
    COHERENCE_BITS,
    SOURCE_BITS_PER_PIXEL,
    find_exposed_bytes,
    simulate_bit_errors,
    transmit_fast_fading,
)


def make_noise_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encode(image: np.ndarray) -> bytes:
    return encode_jpeg2000(image, SOURCE_BITS_PER_PIXEL, 64, 4)


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 15.5, 20.0, 26.1])
def test_error_rate_follows_the_rayleigh_formula(snr_db: float) -> None:
    num_blocks = 200_000
    errors = simulate_bit_errors(num_blocks * COHERENCE_BITS, snr_db, np.random.default_rng(1))
    snr = 10 ** (snr_db / 10)
    expected = (1 - np.sqrt(snr / (1 + snr))) / 2
    # bits of one block share a gain; blocks are independent
    rates = errors.reshape(num_blocks, COHERENCE_BITS).mean(axis=1)
    standard_error = rates.std(ddof=1) / np.sqrt(num_blocks)
    assert abs(rates.mean() - expected) < 5 * standard_error
    assert standard_error < 0.05 * expected


def test_errors_within_a_block_come_together() -> None:
    errors = simulate_bit_errors(32 * 100_000, 20, np.random.default_rng(2)).reshape(-1, 32)
    rate = errors.mean()
    assert errors[errors[:, 0], 1].mean() > 20 * rate
    beyond = errors[1:, 0][errors[:-1, -1]].mean()
    assert beyond < 3 * rate


def test_errors_at_a_higher_snr_are_a_subset() -> None:
    weak, strong = (
        simulate_bit_errors(1_000_003, snr_db, np.random.default_rng(3)) for snr_db in (12, 20)
    )
    assert len(weak) == 1_000_003
    assert not (strong & ~weak).any()
    assert 0 < strong.sum() < weak.sum()


@pytest.mark.parametrize(
    "size", [(1, 1), (2, 3), (5, 9), (16, 16), (33, 300), (64, 65), (129, 127), (200, 1), (257, 64)]
)
def test_packets_are_walked_to_the_end(size: tuple[int, int]) -> None:
    # `find_exposed_bytes` itself asserts that the last packet ends at the EOC marker
    stream = encode(make_noise_image(*size))
    exposed = find_exposed_bytes(stream)
    assert len(exposed) == len(stream)
    assert not exposed[:100].any()
    assert not exposed[-2:].any()
    if min(size) > 30:
        assert 0.3 < exposed.mean() < 0.99


def test_exposed_bytes_carry_no_structure() -> None:
    # whatever they are, the decoder stays in step
    image = np.full((128, 192, 3), 128, np.uint8)
    image[:, 96:] = 40
    image[32:96, 48:144] += make_noise_image(64, 96) // 8
    stream = np.frombuffer(encode(image), np.uint8)
    exposed = find_exposed_bytes(stream.tobytes())
    for seed in range(20):
        damaged = stream.copy()
        damaged[exposed] = np.random.default_rng(seed).integers(0, 256, exposed.sum(), np.uint8)
        result = decode_jpeg2000(damaged.tobytes())
        assert result.shape == image.shape
    for filler in (0x00, 0xFF):
        damaged = stream.copy()
        damaged[exposed] = filler
        assert decode_jpeg2000(damaged.tobytes()).shape == image.shape


def test_damage_is_local() -> None:
    image = make_noise_image(256, 256)
    stream = np.frombuffer(encode(image), np.uint8)
    exposed = np.flatnonzero(find_exposed_bytes(stream.tobytes()))
    damaged = stream.copy()
    damaged[exposed[-40]] ^= 0x80
    changed = (decode_jpeg2000(damaged.tobytes()) != decode_jpeg2000(stream.tobytes())).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert len(rows) > 0
    assert np.ptp(rows) < 64 + 16
    assert np.ptp(columns) < 64 + 16


def test_a_clean_channel_changes_nothing_but_the_coding() -> None:
    image = make_noise_image(100, 120)
    clean = transmit_fast_fading(image, 100, np.random.default_rng(0))
    np.testing.assert_array_equal(clean, decode_jpeg2000(encode(image)))


@pytest.mark.parametrize("snr_db", [-20.0, 0.0, 15.5])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 70), (65, 63), (130, 90)])
def test_any_channel_yields_an_image(size: tuple[int, int], snr_db: float) -> None:
    for seed in range(5):
        image = make_noise_image(*size, seed)
        result = transmit_fast_fading(image, snr_db, np.random.default_rng(seed))
        assert result.shape == image.shape
        assert result.dtype == np.uint8
