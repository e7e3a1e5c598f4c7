"""How a command of the program ends: one message for errors of people, files and the machine, and its exit code.

0 done, 1 an error that is explained, 130 interrupted, 141 nobody reads the output any more (`| head`). An error of the
program itself is raised, with its traceback.
"""

import io
import os
import select
import sys
import zipfile
from collections.abc import Callable

INTERRUPTED = 130  # 128 and the number of the signal, as shells have it: SIGINT
UNREAD = 141  # SIGPIPE
_FILE_ERRORS = {
    "pyarrow": "ArrowException",
    "ruamel.yaml.error": "YAMLError",
    "safetensors": "SafetensorError",
    "zstandard": "ZstdError",
}
"""What libraries raise for files that they cannot read, by module. One that is not imported has raised none."""
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")


def run_command(command: Callable[[], object]) -> int:
    """Runs a command; returns its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a character gets its number
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        command()
        if sys.stdout is not None:
            sys.stdout.flush()  # here, and not when Python ends, so that an error of it is seen
    except _file_errors() as error:
        if isinstance(error, BrokenPipeError) and _is_unread():
            return UNREAD
        for line in _message(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        reason = str(error) or "no more could be had"
        if not isinstance(error, MemoryError) and not any(words in reason for words in _OUT_OF_MEMORY):
            raise
        print(f"error: out of memory: {reason.splitlines()[0]}", file=sys.stderr)
        print("error: lower train.d_sae, train.batch_rows, the number of variants or batch sizes", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return INTERRUPTED
    return 0


def _file_errors() -> tuple[type[BaseException], ...]:
    """Errors of people, files and the machine; asked for when an exception is on its way."""
    found: list[type[BaseException]] = [ValueError, OSError, EOFError, zipfile.BadZipFile]
    return (*found, *(getattr(sys.modules[name], kind) for name, kind in _FILE_ERRORS.items() if name in sys.modules))


def _message(error: BaseException) -> str:
    """What went wrong, and with which file; errors of the store explain themselves."""
    if isinstance(error, OSError) and error.strerror and type(error).__str__ is OSError.__str__:
        named = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
        return ": ".join([" and ".join(named), error.strerror]) if named else error.strerror
    return str(error) or type(error).__name__


def _is_unread() -> bool:
    """Whether the reader of our output has gone. What is left of it then goes nowhere, or Python would fail later."""
    gone = False
    for stream in (sys.stdout, sys.stderr):
        try:
            descriptor = stream.fileno()
        except (AttributeError, OSError, ValueError):  # closed, or no file
            continue
        poll = select.poll()
        poll.register(descriptor, 0)
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            gone = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
    return gone
