"""CRC-32, the checksum of every file of ours: over blocks of data, and of a JSON text inside itself.

A CRC-32 finds any burst of up to 32 flipped bits, and of all other damage all but one case in 2^32. It is not a
protection against somebody who wants to deceive. zlib computes it at several GB/s, and every language has it.
"""

from __future__ import annotations

from zlib import crc32

import numpy as np
import numpy.typing as npt

BLOCK = 16 << 20  # bytes of a tensor under one checksum
DIGITS = 8
_UNKNOWN = b"0" * DIGITS


def hexadecimal(checksum: int) -> str:
    """Eight lower-case digits."""
    return f"{checksum:08x}"


def blocks(n_bytes: int) -> list[tuple[int, int]]:
    """Where each block of a tensor begins and ends."""
    return [(begin, min(begin + BLOCK, n_bytes)) for begin in range(0, n_bytes, BLOCK)]


def block_checksum(block: npt.NDArray[np.uint8]) -> str:
    """The checksum of one block."""
    return hexadecimal(crc32(block.data))


def sealed(text: bytes, at: int) -> bytes:
    """A text with eight zeros at ``at`` replaced by its own checksum."""
    return text[:at] + hexadecimal(crc32(text)).encode() + text[at + DIGITS :]


def seal(text: bytes, at: int) -> tuple[str, str]:
    """The checksum that a sealed text carries, and the one that it should carry."""
    carried = text[at : at + DIGITS]
    return carried.decode("latin-1"), hexadecimal(crc32(text[:at] + _UNKNOWN + text[at + DIGITS :]))
