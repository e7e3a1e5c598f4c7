"""How a command ends: its message and its exit code, whatever went wrong."""

import errno
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable

import pytest
import safetensors
from ruamel.yaml import YAML

from compute.program import INTERRUPTED, UNREAD, run_command
from store.errors import MachineError, StoreError
from tests.imports import ROOT

Capture = pytest.CaptureFixture[str]


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (StoreError("expected a, got b"), "error: expected a, got b"),
        (ValueError("one\ntwo"), "error: one\nerror: two"),
        (ValueError(), "error: ValueError"),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "error: /a/b: Permission denied"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "/a", None, "/b"), "error: /a and /b: Invalid cross-device"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device"),
        (OSError("of a library"), "error: of a library"),
        (MachineError(errno.EIO, "could not read /a"), "error: could not read /a"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "error: 'utf-8' codec can't decode byte"),
        (zipfile.BadZipFile("File is not a zip file"), "error: File is not a zip file"),
        (safetensors.SafetensorError("header too large"), "error: header too large"),
        (EOFError("ended early"), "error: ended early"),
        (MemoryError(), "error: out of memory: no more could be had\nerror: lower train.d_sae"),
        (RuntimeError("CUDA out of memory. Tried"), "error: out of memory: CUDA out of memory. Tried"),
    ],
)
def test_errors_of_people_files_and_the_machine_are_one_message(
    error: BaseException, message: str, capsys: Capture
) -> None:
    assert run_command(raising(error)) == 1
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert "[Errno" not in err


def test_a_file_that_is_no_yaml_is_one_message(capsys: Capture) -> None:
    assert run_command(lambda: YAML().load("a: [")) == 1
    assert capsys.readouterr().err.startswith("error: while parsing")


@pytest.mark.parametrize("error", [KeyError("a"), TypeError("b"), AssertionError(), RuntimeError("c"), IndexError("d")])
def test_errors_of_the_program_keep_their_traceback(error: BaseException) -> None:
    with pytest.raises(type(error)):
        run_command(raising(error))


def test_an_interruption_has_the_exit_code_of_its_signal(capsys: Capture) -> None:
    assert run_command(raising(KeyboardInterrupt())) == INTERRUPTED == 130
    assert "run the same command again to continue" in capsys.readouterr().err


def test_a_connection_that_breaks_is_no_closed_output(capsys: Capture) -> None:
    assert run_command(raising(BrokenPipeError(errno.EPIPE, "Broken pipe"))) == 1
    assert capsys.readouterr().err == "error: Broken pipe\n"


def ended(body: str, *, shell: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of the program in a process of its own, as part of a line of shell."""
    program = f"import sys\nfrom compute.program import run_command\nsys.exit(run_command(lambda: {body}))"
    return subprocess.run(
        ["bash", "-c", shell, "bash", sys.executable, program],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("number", [1, 100_000])
def test_an_output_that_nobody_reads_ends_quietly(number: int) -> None:
    shell = '"$1" -c "$2" | true; echo "${PIPESTATUS[0]}"'
    body = f"[__import__('time').sleep(0.5), *(print('line', n) for n in range({number}))]"
    done = ended(body, shell=shell)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [str(UNREAD)] == ["141"]


def test_a_terminal_without_a_character_gets_its_number() -> None:
    done = ended("print('caf\\xe9 \\u2581')", shell='"$1" -c "$2"', PYTHONIOENCODING="ascii", LC_ALL="C")
    assert (done.returncode, done.stdout, done.stderr) == (0, "caf\\xe9 \\u2581\n", "")


def test_a_closed_output_is_no_error() -> None:
    done = ended("print('a')", shell='"$1" -c "$2" >&-')
    assert (done.returncode, done.stderr) == (0, "")
