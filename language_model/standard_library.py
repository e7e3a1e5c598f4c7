"""The text every Python installation carries: the sources of its own standard library.

One source file is one document. The list of modules is fixed, so that two machines with the same Python have the
same text; `corpus_digest` says whether they really do.
"""

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# Pure-Python modules present in every CPython from 3.11 to 3.13, on distributions that split the library too (so no
# tkinter, idlelib, venv, ensurepip), without tests, tables (encodings) and generated files.
_MODULE_NAMES = (
    "__future__ _collections_abc _compat_pickle _compression _markupbase _py_abc _pydecimal _pyio _strptime "
    "_threading_local _weakrefset abc argparse ast asyncio base64 bdb bisect bz2 cProfile calendar cmd code codecs "
    "codeop collections colorsys compileall concurrent configparser contextlib contextvars copy copyreg csv ctypes "
    "curses dataclasses datetime dbm decimal difflib dis doctest email enum filecmp fileinput fnmatch fractions "
    "ftplib functools genericpath getopt getpass gettext glob graphlib gzip hashlib heapq hmac html http imaplib "
    "importlib inspect io ipaddress json keyword linecache locale logging lzma mailbox mimetypes modulefinder "
    "multiprocessing netrc ntpath nturl2path numbers opcode operator optparse os pathlib pdb pickle pickletools "
    "pkgutil platform plistlib poplib posixpath pprint profile pstats pty py_compile pyclbr pydoc pydoc_data queue "
    "quopri random re reprlib rlcompleter runpy sched secrets selectors shelve shlex shutil signal site smtplib "
    "socket socketserver sqlite3 ssl stat statistics string stringprep struct subprocess symtable sysconfig tabnanny "
    "tarfile tempfile textwrap threading timeit token tokenize tomllib trace traceback tracemalloc tty turtle types "
    "typing unittest urllib uuid warnings wave weakref webbrowser wsgiref xml xmlrpc zipapp zipfile zipimport zoneinfo"
)
MODULES = tuple(_MODULE_NAMES.split())


class StandardLibraryMissing(ValueError):
    """This Python carries no readable sources of its standard library."""


def documents() -> Iterator[tuple[str, str]]:
    """Yields (name, text) for every source file of `MODULES` in a fixed order, such as ("json/decoder.py", "...")."""
    root = Path(sysconfig.get_path("stdlib"))
    found = False
    for module in sorted(MODULES):
        files = sorted((root / module).rglob("*.py")) or [root / f"{module}.py"]
        for file in files:
            if {"test", "tests"} & set(file.relative_to(root).parts) or not file.is_file():
                continue
            found = True
            yield file.relative_to(root).as_posix(), file.read_text(encoding="utf-8")
    if not found:
        raise StandardLibraryMissing(
            f"expected the sources of Python's standard library (argparse.py, ast.py, ...), found none in {root}. "
            "Install the full standard library of this Python, or set harvest.text to files of your own"
        )


def corpus_digest() -> str:
    """SHA-256 (hex) over the names and texts of all documents: another Python, another digest."""
    digest = hashlib.sha256()
    for name, text in documents():
        digest.update(f"{name}\0{len(text)}\0".encode())
        digest.update(text.encode())
    return digest.hexdigest()
