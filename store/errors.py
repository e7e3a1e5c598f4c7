"""What can be wrong with our files, or with the machine. An error says what was expected, found, where, what to do."""


class StoreError(ValueError):
    """A file or folder of ours that cannot be used."""


class IncompleteCache(StoreError):
    """A cache without a complete manifest, or with files missing: still being written, or pulled in part."""


class DamagedFile(StoreError):
    """A file whose bytes are not those that were written."""


class MismatchedCache(StoreError):
    """A cache that was made from something else than what is asked for."""


class Busy(StoreError):
    """Another process is writing here."""


class Unreachable(StoreError):
    """A bucket or server that does not answer, does not let us in, or that no installed package can talk to."""


class LostLease(StoreError):
    """Another process took over the folder that this one was writing to."""


class MachineError(OSError):
    """What this machine could not do, and what to do about it. It says nothing about the bytes of any file."""

    def __str__(self) -> str:
        return str(self.strerror)
