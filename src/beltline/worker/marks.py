"""What every slot of a runner runs, and since when, in memory shared by supervisor and runner: the truth that a killed runner leaves behind.

A slot has two words: the serial it started last, and the monotonic instant it started it, 0.0 once it has ended. Started: `serial`, then `started`;
ended: `started` = 0.0. Only the slot writes its words; the supervisor reads them for deadlines, and for the blame when the runner has died.
The monotonic clock is one clock for all processes of a host (Linux CLOCK_MONOTONIC, macOS mach_absolute_time).
"""

import mmap
import os
import tempfile

from beltline.worker.config import MAX_SLOTS

WORD = 8
SIZE = 2 * WORD * MAX_SLOTS  # untouched pages cost nothing


class Marks:
    """`serials[slot]` and `starts[slot]` are written directly: a call would double the price of a no-op task's start."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, SIZE)
        self._view = memoryview(self._map)
        self.serials = self._view[: WORD * MAX_SLOTS].cast("Q")
        self.starts = self._view[WORD * MAX_SLOTS :].cast("d")

    def running(self, slots: int) -> list[tuple[int, float]]:
        """(serial, started) of the first `slots` slots that run something."""
        return [(self.serials[slot], started) for slot, started in enumerate(self.starts[:slots].tolist()) if started]

    def last_started(self, first: int, count: int) -> int:
        """The highest serial that any of these slots has started. A lane starts its serials in order, so what is above has not started."""
        return max(self.serials[first : first + count].tolist(), default=0)

    def close(self) -> None:
        self.serials.release()
        self.starts.release()
        self._view.release()
        self._map.close()


def new_page() -> int:
    """A file descriptor of zeroed shared memory that no name leads to."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("beltline-marks", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, SIZE)
    return fd
