"""Errors of the machine, told apart from files that are damaged: what a person can do about each.

An OSError says that this machine, now, did not do what it was asked for: too many open files, no space, no permission,
a disk that fails. It says nothing about the bytes of a file. So it is never turned into a `StoreError`, and nothing is
repaired, removed or made again because of it; only a file that is not there (FileNotFoundError) is known to be missing.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from store.errors import MachineError

_ADVICE: Final = {
    errno.EMFILE: "Raise the limit of open files (`ulimit -n 1024`), then run this again",
    errno.ENFILE: "Close other programs: all files that the machine can have open are open",
    errno.ENOSPC: "Free some space or choose another folder",
    errno.EDQUOT: "Free some space or choose another folder",
    errno.EFBIG: "Raise the limit of file sizes (`ulimit -f`), or choose a file system that holds larger files",
    errno.EACCES: "Check who owns it and its permissions",
    errno.EPERM: "Check who owns it and its permissions",
    errno.EROFS: "Mount it so that it can be written, or choose another folder",
    errno.EIO: "Check the disk and the machine's log (dmesg)",
    errno.ENOMEM: "Close other programs, or use a machine with more memory",
    errno.ESTALE: "Mount the network file system again, then run this again",
    errno.EBUSY: "It is in use or a mount point: mount the folder around it instead",
    errno.EXDEV: "Put both on one file system",
}


def is_of_this_machine(error: BaseException) -> bool:
    """Whether an error is of the kinds above, and not a server's that a library made an OSError of."""
    return isinstance(error, OSError) and error.errno in _ADVICE


def explain(error: OSError, what: str) -> MachineError:
    """The error that a person sees: what could not be done, why, and what to do.

    Args:
        error: of the machine.
        what: was tried, such as "read /a/file".
    """
    if isinstance(error, MachineError):
        return error
    reason = error.strerror or str(error) or type(error).__name__
    where = "" if error.filename is None or str(error.filename) in what else f" ({error.filename})"
    advice = _ADVICE.get(error.errno or 0, "Check its permissions and its disk")
    return MachineError(error.errno or errno.EIO, f"could not {what}: {reason}{where}. {advice}")


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Explains the errors of the machine while the block tries `what`, such as "write /a/file"."""
    try:
        yield
    except OSError as error:
        raise explain(error, what) from error
