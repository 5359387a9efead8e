"""What the host lets a worker have: processors and free memory, the smaller of the machine's and of the control groups (version 2) we live in.

Free       the machine: what can be given out without swapping. A group: its bound less what it uses, where pages of files that nobody has used lately count as
           free, because the kernel drops them before anything is killed. Groups nest, so every one up to the root is asked.
Unknown    a system that does not tell (no Linux, no group with a bound) has no bound here.
"""

import math
import os
from pathlib import Path

from msgspec import Struct

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")


class Memory(Struct, frozen=True):
    """Bytes. `source`: whose bound it is, in words."""

    available_bytes: int
    total_bytes: int
    source: str = "the host"


def memory(*, own_group: Path = OWN_GROUP, groups: Path = GROUPS) -> Memory:
    """What is free now: of the tightest of all bounds."""
    import psutil

    of_host = psutil.virtual_memory()
    found = [Memory(of_host.available, of_host.total)]
    for group in _groups(own_group, groups):
        most = _number(group / "memory.max")
        used = _number(group / "memory.current")
        if math.isfinite(most) and math.isfinite(used) and most < of_host.total:
            found.append(Memory(max(0, int(most - used + _inactive_file(group))), int(most), "its control group"))
    return min(found, key=lambda each: each.available_bytes)


def processors(*, own_group: Path = OWN_GROUP, groups: Path = GROUPS) -> int:
    """How many processes can compute side by side, at least 1."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # no Linux
        count = os.cpu_count() or 1
    for group in _groups(own_group, groups):
        try:
            quota, period = (group / "cpu.max").read_text().split()
            count = min(count, math.ceil(int(quota) / int(period)))
        except (OSError, ValueError, ZeroDivisionError):  # not there, or "max"
            continue
    return max(1, count)


def _groups(own_group: Path, groups: Path) -> list[Path]:
    """Our control group and all above it."""
    try:
        own = next((line[3:] for line in own_group.read_text().splitlines() if line.startswith("0::")), None)
    except OSError:
        own = None
    if own is None:
        return []
    path = groups / own.lstrip("/")
    return [each for each in (path, *path.parents) if each == groups or groups in each.parents]


def _number(file: Path) -> float:
    """inf = no bound, or unknown."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return math.inf


def _inactive_file(group: Path) -> int:
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
