"""One shard file, read: a zarr v3 shard of inner chunks, then the index of (offset, nbytes) pairs, then its crc32c."""

from store.cache.manifest import FileRecord
from store.codec.bf16_planes import Bytes, Numbers, Rows
from store.codec.checksum import without_crc32c
from store.codec.names import CodecName
from store.codec.registry import decode_chunk
from store.errors import DamagedFile
from store.files.protocol import Files, address

_ABSENT = 2**64 - 1  # both index numbers of an inner chunk that was left out because it is all zeros


class ShardFile:
    """Decodes the chunks of one shard file; safe to use from several threads.

    Args:
        files: of the cache.
        name: of the shard file.
        record: what the manifest says of it.
        codec: of the chunks.
        chunk_shape: (rows, channels) of every chunk.
        num_chunks: places in the index.
    """

    def __init__(
        self,
        files: Files,
        name: str,
        record: FileRecord,
        *,
        codec: CodecName,
        chunk_shape: tuple[int, int],
        num_chunks: int,
    ) -> None:
        self._files, self._name = files, name
        self._where = address(files, name)
        self._codec = codec
        self._chunk_shape = chunk_shape
        self._nbytes = record.nbytes
        index_nbytes = 16 * num_chunks + 4
        if record.nbytes < index_nbytes:
            raise DamagedFile(
                f"expected a shard index of {index_nbytes} bytes at the end of {self._where}: the file is shorter"
            )
        self._ranges = files.open_range(name, record.nbytes, sha256=record.sha256)
        stored = self._checked(record.nbytes - index_nbytes, index_nbytes, f"the index of {self._where}")
        self._index = stored.view("<u8").reshape(num_chunks, 2).copy()

    def decode(self, chunk: int, out: Rows, slots: Numbers) -> None:
        """Checks and decodes one inner chunk; its row i goes to out[slots[i]]."""
        offset, nbytes = (int(number) for number in self._index[chunk])
        where = f"chunk {chunk} of {self._where}"
        if offset == nbytes == _ABSENT:
            out[slots] = 0
            return
        if nbytes < 4 or offset + nbytes > self._nbytes:
            raise DamagedFile(f"expected {where} inside a file of {self._nbytes} bytes, its index says otherwise")
        stored = self._checked(offset, nbytes, where)
        try:
            decode_chunk(self._codec, stored, self._chunk_shape, out, slots)
        except DamagedFile as error:
            raise DamagedFile(f"{where}: {error}") from error

    def _checked(self, offset: int, nbytes: int, where: str) -> Bytes:
        """A range without the crc32c at its end, which it was checked against."""
        stored = self._ranges.read(offset, nbytes)
        try:
            return without_crc32c(stored, where)
        except DamagedFile:
            if not self._files.forget(self._name, offset):
                raise
            return without_crc32c(self._ranges.read(offset, nbytes), where)  # a local copy was bad: once more
