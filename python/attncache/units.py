"""Numbers as people read them."""

from __future__ import annotations


def readable_bytes(n: int) -> str:
    """A number of bytes in three digits and a unit, in powers of 1000.

    >>> readable_bytes(1_234_567)
    '1.23 MB'
    """
    if n < 1000:
        return f"{n} bytes"
    power = 1
    while n >= 999.5 * 1000**power and power < 5:
        power += 1
    return f"{n / 1000**power:.3g} {'kMGTP'[power - 1]}B"
