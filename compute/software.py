"""What computes here: our code, and the packages that decide the last bits of a result.

Compared between the process that plans work and the one that does it, which may be a worker on another machine, or a
later process that continues what an earlier one left.
"""

import functools
import platform
import socket
from dataclasses import asdict, dataclass, field
from importlib.metadata import version

from compute.code_version import ROOT, code_digest


class OtherSoftware(ValueError):
    """Work that was planned with other code or packages than those that would do it."""


@dataclass(frozen=True)
class Software:
    """Equal where the same work gives the same bits."""

    code: str
    """`code_digest` of the files that decide the result."""
    python: str
    """Major and minor version."""
    torch: str
    """Without what names the build, such as +cpu."""
    numpy: str
    numba: str
    place: str = field(compare=False)
    """The folder of the code, and the host."""

    def deciding(self) -> dict[str, str]:
        """All but the place, as plain JSON."""
        return {name: value for name, value in asdict(self).items() if name != "place"}

    def refuse_other(self, found: "Software") -> None:
        """OtherSoftware unless `found`, which would do the work, is what planned it (self)."""
        if found == self:
            return
        there = found.deciding()
        differing = [name for name, value in self.deciding().items() if there[name] != value]
        expected, got = (
            ", ".join(f"{name} {values[name][:12]}" for name in differing) for values in (self.deciding(), there)
        )
        raise OtherSoftware(
            f"expected {expected}, as in {self.place}, got {got} in {found.place}: a worker there would compute "
            "something else under the same name. Nothing was computed by it. Start the workers again, from the same "
            "checkout and with the same packages (pip install -r requirements.txt)"
        )


@functools.cache
def software_here(code: tuple[str, ...]) -> Software:
    """That of this process. Looked at once: code that is edited later is not what this process has imported.

    `code`: files and folders that decide the result, relative to the repository.
    """
    torch, numpy, numba = (version(name).partition("+")[0] for name in ("torch", "numpy", "numba"))
    return Software(
        code=code_digest(code),
        python=".".join(platform.python_version_tuple()[:2]),
        torch=torch,
        numpy=numpy,
        numba=numba,
        place=f"{ROOT} on {socket.gethostname()}",
    )
