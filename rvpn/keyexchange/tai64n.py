"""
TAI64N labels: points in time as 12 bytes that sort as the times do (Bernstein's libtai).

The first message of mechanism `noise` carries one (DESIGN 4), and an ownership generation is at least the one
of its time (DESIGN 6).
"""

#: Bytes of a label: seconds and nanoseconds.
LABEL_SIZE = 12

#: TAI64 labels count from here; TAI was ten seconds ahead when Unix time began.
_EPOCH = (1 << 62) + 10
_NANOSECONDS = 1_000_000_000


def tai64n(unix_seconds: float) -> bytes:
    """Return the label of a time in seconds since 1970. Leap seconds are not counted."""
    seconds, fraction = divmod(unix_seconds, 1)
    nanoseconds = min(int(fraction * _NANOSECONDS), _NANOSECONDS - 1)
    return (_EPOCH + int(seconds)).to_bytes(8) + nanoseconds.to_bytes(4)
