"""Which machine this is and when a process of it started: with both, a dead process is told from a living one."""

import os
from pathlib import Path


def machine_name() -> str:
    """This boot of this machine, seen from this process namespace; "" where there is no such thing."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def start_time(process: int) -> str:
    """When a process of this machine started, in ticks since boot; "" when there is none or it is a zombie."""
    try:
        # After the name, which may hold anything: state is field 3, start time field 22 (proc(5)).
        fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def is_running(process: int, *, started: str) -> bool:
    """Whether a process of this machine that started then is still there, whoever owns it."""
    if not Path(f"/proc/{process}").exists():  # there is none, or /proc does not show those of other users (hidepid)
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
    try:
        return start_time(process) == started
    except PermissionError:  # as above
        return True
