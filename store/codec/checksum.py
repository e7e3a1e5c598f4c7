"""The crc32c that follows every chunk, index and kept range: four bytes, little-endian, as zarr's codec writes it."""

from collections.abc import Iterable

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from store.errors import DamagedFile

CRC32C_NBYTES = 4


def crc32c(parts: Iterable[bytes | memoryview | NDArray[np.uint8]]) -> bytes:
    """The crc32c of the concatenated parts."""
    value = 0
    for part in parts:
        value = google_crc32c.extend(value, np.frombuffer(part, dtype=np.uint8))
    return int(value).to_bytes(CRC32C_NBYTES, "little")


def without_crc32c(stored: NDArray[np.uint8], where: str) -> NDArray[np.uint8]:
    """The bytes before the crc32c at the end of `stored`, once they match it; else DamagedFile names `where`."""
    content, expected = stored[:-CRC32C_NBYTES], stored[-CRC32C_NBYTES:].tobytes()
    got = crc32c((content,))
    if got != expected:
        raise DamagedFile(
            f"expected checksum {expected[::-1].hex()} for {where}, got {got[::-1].hex()}: the bytes changed since "
            "they were written. Run `pipeline.py store repair`, or remove the file and run `dvc checkout`"
        )
    return content
