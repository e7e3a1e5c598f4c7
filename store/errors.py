"""What can be wrong with our files. Each error says what was expected, what was found, where, and what to do."""


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
