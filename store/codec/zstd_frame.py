"""zstd frames whose content size is known beforehand: checked before a byte is decoded or set aside."""

from typing import Any

import numpy as np
import zstandard
from numcodecs import zstd
from numpy.typing import NDArray

from store.errors import DamagedFile

_HEADER_NBYTES = 18  # the longest frame header (RFC 8878, 3.1.1.1)


def content_nbytes(frame: NDArray[np.uint8]) -> int:
    """The content size that a frame's header states, or -1 where it states none or there is no frame."""
    try:
        return zstandard.frame_content_size(frame[:_HEADER_NBYTES].tobytes())
    except zstandard.ZstdError:
        return -1


def decompress_into(frame: NDArray[np.uint8], out: NDArray[Any], *, what: str) -> None:
    """Decodes a frame that must hold exactly the bytes of `out`, which is contiguous; else DamagedFile names `what`."""
    if content_nbytes(frame) != out.nbytes:
        raise DamagedFile(f"expected a zstd frame of {out.nbytes} bytes of {what}, got another size or no frame")
    if not out.nbytes:
        return
    try:
        zstd.decompress(frame, out)
    except RuntimeError as error:
        raise DamagedFile(f"expected a zstd frame of {what}, zstd says: {error}") from error
