"""TensorBoard's event files, written without TensorBoard: scalars are a few bytes of protobuf in a framed file.

A record is: length (8 bytes, little endian), masked CRC-32C of those, the event, masked CRC-32C of the event. An event
(tensorflow/core/util/event.proto) has wall_time = 1 (double), step = 2, file_version = 3, summary = 5 (value = 1: tag =
1, simple_value = 2 as float), session_log = 7 (status = 1, START is 1: what an earlier file holds from this step on is
void).
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from store.codec.checksum import crc32c


class EventFile:
    """Scalars of one run over its steps, in a file of their own below `folder`."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        """`first_step`: what earlier files of this folder hold from it on is marked void."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("ab")
        now = time.time()
        self._file.write(framed(event(now, 0, _bytes_field(3, b"brain.Event:2"))))
        self._file.write(framed(event(now, first_step, _bytes_field(7, _tag(1, 0) + _varint(1)))))
        self._file.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the scalars of one step."""
        self._file.write(framed(event(time.time(), step, scalars(values))))
        self._file.flush()

    def close(self) -> None:
        """Ends the file."""
        self._file.close()


def scalars(values: Mapping[str, float]) -> bytes:
    """The summary field of an event with one simple value per name."""
    each = (_bytes_field(1, name.encode()) + _tag(2, 5) + struct.pack("<f", value) for name, value in values.items())
    return _bytes_field(5, b"".join(_bytes_field(1, value) for value in each))


def event(wall_time: float, step: int, what: bytes) -> bytes:
    """One event: when, at which step, and an encoded field that says what."""
    return _tag(1, 1) + struct.pack("<d", wall_time) + _tag(2, 0) + _varint(step) + what


def framed(data: bytes) -> bytes:
    """The record of one event in the file."""
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def _masked_crc(data: bytes) -> bytes:
    crc = int.from_bytes(crc32c((data,)), "little")
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _tag(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _bytes_field(field: int, data: bytes) -> bytes:
    return _tag(field, 2) + _varint(len(data)) + data
