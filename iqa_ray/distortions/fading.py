"""Fast fading: a JPEG 2000 code stream received over a Rayleigh channel with bit errors.

An APPROXIMATION of the fast-fading set of the LIVE database (Sheikh, Sabir, Bovik, "A statistical
evaluation of recent full reference image quality assessment algorithms", IEEE Transactions on
Image Processing 15(11), 2006). LIVE sent 2.5 bit/px streams of Kakadu, with its error-resilience
features and 64 × 64 precincts, at receiver SNRs of 15.5 to 26.1 dB. What is ours:

- The encoder is OpenJPEG with four resolutions and precincts of 64 × 64 at the highest. They
  halve with each lower resolution, so a code block only touches one 64 × 64 region of the image,
  and damage stays local.
- Error resilience is unequal error protection: the main header, the packet headers and the
  packets of the lowest resolution (the thumbnail at an eighth of the size) arrive intact, as if
  under a strong code. All other bytes are sent without any code, and the decoder uses them as it
  gets them. As headers are intact, every code block keeps its length and the decoder stays in
  step: a damaged block decodes to wrong coefficients, which show as local ringing.
- The channel is flat Rayleigh block fading: BPSK, coherent detection, a gain that holds for
  `COHERENCE_BITS` bits and is then drawn anew. Errors come in short bursts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iqa_ray.distortions.checks import Pixels, check_range
from iqa_ray.distortions.codecs import decode_jpeg2000, encode_jpeg2000

SOURCE_BITS_PER_PIXEL = 2.5
COHERENCE_BITS = 32

_PRECINCT_SIDE = 64
_MAX_RESOLUTIONS = 4
_NUM_COMPONENTS = 3

_SOD, _COD = 0xFF93, 0xFF52  # markers: start of data, coding style


def transmit_fast_fading(image: Pixels, snr_db: float, rng: np.random.Generator) -> Pixels:
    """Send an image as JPEG 2000 over a Rayleigh fading channel and decode what arrives.

    For one seed the bit errors at a higher SNR are a subset of those at a lower one. An image
    below 2 px a side has nothing but the protected lowest resolution and arrives intact.

    Args:
        image: (H, W, 3) uint8 RGB.
        snr_db: mean SNR per bit at the receiver in decibels, -20 to 100.
        rng: draws the channel's gains and noise.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: another kind of image, or snr_db out of range.
    """
    check_range("snr_db", snr_db, -20, 100)
    stream = encode_jpeg2000(image, SOURCE_BITS_PER_PIXEL, _PRECINCT_SIDE, _MAX_RESOLUTIONS)
    exposed = find_exposed_bytes(stream)
    received = np.frombuffer(stream, np.uint8).copy()
    errors = simulate_bit_errors(8 * int(exposed.sum()), snr_db, rng)
    received[exposed] ^= np.packbits(errors)
    return decode_jpeg2000(received.tobytes())


def simulate_bit_errors(
    num_bits: int, snr_db: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Draw which of `num_bits` bits are received wrongly: (num_bits,) bool.

    BPSK with coherent detection over flat Rayleigh block fading. With the mean SNR per bit g, the
    power |h|² of a gain is exponential of mean 1, and a bit is wrong where standard normal noise
    exceeds √(2 g |h|²). The mean error rate is ½ (1 − √(g / (1 + g))) (Proakis, "Digital
    Communications", on flat Rayleigh channels). The draws do not depend on the SNR.
    """
    num_blocks = -(-num_bits // COHERENCE_BITS)
    power = rng.standard_exponential((num_blocks, 1), dtype=np.float32)
    noise = rng.standard_normal((num_blocks, COHERENCE_BITS), dtype=np.float32)
    errors: NDArray[np.bool_] = noise > np.sqrt(np.float32(2 * 10 ** (snr_db / 10)) * power)
    return errors.ravel()[:num_bits]


def find_exposed_bytes(stream: bytes) -> NDArray[np.bool_]:
    """Mark the bytes of a code stream that are sent without protection: (len(stream),) bool.

    These are the packet bodies above the lowest resolution, of a stream that `encode_jpeg2000`
    made with the precincts of this module.
    """
    exposed = np.zeros(len(stream), np.bool_)
    height, width, num_levels, position = _read_main_header(stream)
    for packet in _list_packets(height, width, num_levels):
        body, length = _read_packet_header(stream, position, packet.num_blocks)
        position = body + length
        exposed[body:position] = packet.resolution > 0
    assert position == len(stream) - 2, "packets must end where the EOC marker starts"
    return exposed


@dataclass(frozen=True)
class _Packet:
    resolution: int
    num_blocks: int


def _list_packets(height: int, width: int, num_levels: int) -> Iterator[_Packet]:
    """List packets in the order LRCP: by resolution, component, precinct (ISO 15444-1, B.12).

    With these precincts each sub-band has at most one code block in a packet (B.6, B.7), and none
    where the precinct reaches past the edge of the sub-band.
    """
    for resolution in range(num_levels + 1):
        level = num_levels - resolution
        side = _PRECINCT_SIDE >> level
        rows, columns = _divide_up(height, 1 << level), _divide_up(width, 1 << level)
        if resolution == 0:
            bands, block = [(rows, columns)], side
        else:
            low_rows, low_columns = _divide_up(rows, 2), _divide_up(columns, 2)
            high_rows, high_columns = rows - low_rows, columns - low_columns
            bands = [
                (low_rows, high_columns),
                (high_rows, low_columns),
                (high_rows, high_columns),
            ]
            block = side // 2
        packets = [
            _Packet(resolution, sum(top < band[0] and left < band[1] for band in bands))
            for top in range(0, _divide_up(rows, side) * block, block)
            for left in range(0, _divide_up(columns, side) * block, block)
        ]
        for _ in range(_NUM_COMPONENTS):
            yield from packets


def _divide_up(value: int, divisor: int) -> int:
    return -(-value // divisor)


def _read_main_header(stream: bytes) -> tuple[int, int, int, int]:
    """Return height, width, number of wavelet levels, and where the first packet starts."""
    width = int.from_bytes(stream[8:12], "big")
    height = int.from_bytes(stream[12:16], "big")
    num_levels, position = 0, 2
    while (marker := int.from_bytes(stream[position : position + 2], "big")) != _SOD:
        if marker == _COD:
            num_levels = stream[position + 9]
        position += 2 + int.from_bytes(stream[position + 2 : position + 4], "big")
    return height, width, num_levels, position + 2


class _BitReader:
    """Bits of a packet header: after a byte 0xFF the next one has only seven (B.10.1)."""

    def __init__(self, stream: bytes, position: int) -> None:
        self._stream = stream
        self._position = position
        self._byte = 0
        self._num_left = 0

    def read(self, num_bits: int) -> int:
        value = 0
        for _ in range(num_bits):
            if self._num_left == 0:
                self._num_left = 7 if self._byte == 0xFF else 8
                self._byte = self._stream[self._position]
                self._position += 1
            self._num_left -= 1
            value = value << 1 | self._byte >> self._num_left & 1
        return value

    def count_until(self, stop: int) -> int:
        count = 0
        while self.read(1) != stop:
            count += 1
        return count

    def finish(self) -> int:
        """Return the position after the header, which may not end in 0xFF."""
        return self._position + (self._byte == 0xFF)


def _read_packet_header(stream: bytes, position: int, num_blocks: int) -> tuple[int, int]:
    """Return where the body of a packet starts and how many bytes it has (B.10).

    One layer and one code block a sub-band make every tag tree a single node.
    """
    bits = _BitReader(stream, position)
    length = 0
    if bits.read(1):
        for _ in range(num_blocks):
            if bits.read(1):
                bits.count_until(1)  # bit planes that are all zero
                num_passes = _read_num_passes(bits)
                num_length_bits = 3 + bits.count_until(0) + num_passes.bit_length() - 1
                length += bits.read(num_length_bits)
    return bits.finish(), length


def _read_num_passes(bits: _BitReader) -> int:
    """Read the number of coding passes (table B.4)."""
    for first, num_bits in ((1, 1), (2, 1), (3, 2), (6, 5)):
        value = bits.read(num_bits)
        if value < (1 << num_bits) - 1:
            return first + value
    return 37 + bits.read(7)
