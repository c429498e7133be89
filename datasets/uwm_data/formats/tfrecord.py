"""TFRecord files: checksummed records one after another, and nothing else.

    | length, uint64 | masked CRC of it, uint32 | payload, `length` bytes | masked CRC of it, uint32 |      all little-endian

A record lies between two borders (bytes from the start of the file); n records have n + 1 borders. A length counts only as
far as the file reaches, and only if its checksum is right.
Source: TensorFlow's description of the format; CRC32-C (Castagnoli), rotated and shifted so that a CRC of data that holds
CRCs stays random.
"""

from __future__ import annotations

import struct
from pathlib import Path

import google_crc32c
import numpy as np

from uwm_data.errors import FormatError

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_MASK_SHIFT = 0xA282EAD8
FRAMING_BYTES = _HEADER.size + _FOOTER.size
LARGEST_PAYLOAD = 2**31 - 1  # protobuf has the same limit


def masked_crc(data: bytes) -> int:
    """The checksum as TFRecords keep it."""
    value = google_crc32c.value(data)
    return (((value >> 15) | (value << 17)) + _MASK_SHIFT) & 0xFFFFFFFF


def framed(payload: bytes) -> bytes:
    """One record, ready to be added to a file."""
    length = struct.pack("<Q", len(payload))
    return b"".join([length, _FOOTER.pack(masked_crc(length)), payload, _FOOTER.pack(masked_crc(payload))])


def whole_records(path: Path) -> tuple[np.ndarray, str]:
    """(borders (n + 1,) int64 of the whole records, what stands behind them in words or ""), from the headers alone."""
    borders, size = [0], path.stat().st_size
    with path.open("rb") as file:
        while (start := borders[-1]) < size:
            file.seek(start)
            trouble, length = _read_header(file.read(_HEADER.size), size - start)
            if trouble:
                return np.array(borders, np.int64), f"record {len(borders) - 1} at byte {start} {trouble}"
            borders.append(start + length + FRAMING_BYTES)
    return np.array(borders, np.int64), ""


def _read_header(header: bytes, left: int) -> tuple[str, int]:
    """(what is wrong or "", length of the payload) of a record in a file of which `left` bytes are left."""
    if len(header) < _HEADER.size:
        return f"is cut off: {len(header)} of {_HEADER.size} header bytes are there", 0
    length, crc = _HEADER.unpack(header)
    if crc != masked_crc(header[:8]):
        return "has a length whose checksum is wrong: the file is damaged, or is no TFRecord file (compressed ones are not read)", 0
    if length > LARGEST_PAYLOAD:
        return f"claims {length} bytes; a record has {LARGEST_PAYLOAD} at most", 0
    if length + FRAMING_BYTES > left:
        return f"is cut off: it says {length} bytes, and {max(left - FRAMING_BYTES, 0)} are there", 0
    return "", length


def record_borders(path: Path) -> np.ndarray:
    """Borders (n + 1,) of all records; FormatError when the file does not end with a whole one."""
    borders, trouble = whole_records(path)
    if trouble:
        raise FormatError(f"{path}: {trouble}; copy the file again")
    return borders


def read_record(path: Path, start: int, stop: int) -> bytes:
    """The payload between two borders; FormatError when its checksum is wrong or the file has become shorter."""
    with path.open("rb") as file:
        file.seek(start + _HEADER.size)
        payload = file.read(stop - start - FRAMING_BYTES)
        footer = file.read(_FOOTER.size)
    if len(payload) + len(footer) + _HEADER.size != stop - start:
        raise FormatError(f"{path} has become shorter while it was read: the record at byte {start} is cut off")
    if _FOOTER.unpack(footer)[0] != masked_crc(payload):
        raise FormatError(f"{path}: the checksum of the record at byte {start} is wrong: the file is damaged; copy it again")
    return payload
