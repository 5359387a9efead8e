"""A runner as its supervisor sees it: a process (or, in-process, a thread) at the other end of a socketpair, with what has been dealt to it.

    starting -> loaded (Hello) -> ready -> retiring (nothing more is dealt) -> stopping (told to close) -> gone

The process is executed afresh, never forked from a running interpreter, leads a session of its own, and is killed with its whole process group.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from enum import IntEnum
from time import monotonic

from beltline.app import App
from beltline.core.message import Delivery
from beltline.worker.config import MAX_SLOTS
from beltline.worker.frames import Begin, Deal, Halt, Hello, Setup, Share, Stop, TakeBack, ToSupervisor, decode_in_supervisor
from beltline.worker.intake import Intake
from beltline.worker.marks import Marks, new_page
from beltline.worker.wire import Wire

WAIT_S = 5.0  # for a killed process to be gone


class Stage(IntEnum):
    STARTING = 0
    LOADED = 1
    READY = 2
    RETIRING = 3
    STOPPING = 4
    GONE = 5


class ChildLane:
    """A runner's share of a queue's slots. `intake` None: a lone lane that takes deliveries of any queue. `held`: serial -> delivery, dealt and not answered.

    `slots` may change; more than that run while a lane that was made smaller finishes what runs. `marks`: (first, number) of the places where its slots are marked.
    """

    __slots__ = ("child", "held", "index", "intake", "marks", "slots")

    def __init__(self, child: "Child", index: int, intake: Intake | None) -> None:
        self.child = child
        self.index = index
        self.intake = intake
        self.slots = 0
        self.marks: list[tuple[int, int]] = []
        self.held: dict[int, Delivery] = {}

    def widen(self, slots: int) -> int:
        """Give it so many slots. The first of the places for those it has not had before."""
        first = self.child.marked
        new = slots - sum(number for _, number in self.marks)
        if new > 0:
            self.marks.append((first, new))
            self.child.marked += new
        self.slots = slots
        return first

    @property
    def busy(self) -> int:
        """How many of its slots run something."""
        starts = self.child.marks.starts
        return sum(1 for first, number in self.marks for started in starts[first : first + number].tolist() if started)

    def last_started(self) -> int:
        """The highest serial that it has started; it starts them in order."""
        return max((self.child.marks.last_started(first, number) for first, number in self.marks), default=0)

    def room(self) -> int:
        """How many more this lane takes now."""
        child = self.child
        if child.stage is not Stage.READY or not self.slots:
            return 0
        window = self.slots
        intake = self.intake
        if intake is not None and child.before is not None:
            window -= child.before.holds(intake)  # what the runner it replaces still runs counts against the same slots
        elif intake is not None and intake.window > 1 and not intake.exact:
            window = max(self.slots * intake.window, 4 * intake.window)
        room = window - len(self.held)
        return room if child.tasks_left is None else min(room, child.tasks_left)


class Child:
    """`before`: the runner it replaces, while that one still runs something. `doomed`: why we killed it, "" = we did not.

    `overdue`: serial -> when to lose patience with a delivery that was asked to stop. `tasks_left`: None = any number.
    `marked`: how many places of its page of marks are in use; they stay with the slots that have had them.
    """

    def __init__(self, number: int, *, alone: bool, max_tasks: int | None) -> None:
        self.number = number
        self.alone = alone
        self.stage = Stage.STARTING
        self.pid = 0
        self.hello: Hello | None = None
        self.begun = False
        self.lanes: list[ChildLane] = []
        self.before: Child | None = None
        self.doomed = ""
        self.culprits: set[int] = set()
        self.overdue: dict[int, float] = {}
        self.halted: dict[int, str] = {}
        self.dealt_all = 0
        self.done = 0
        self.tasks_left = max_tasks
        self.started_at = monotonic()
        self.idle_at = monotonic()
        self.asked_back_at = 0.0
        self.stopped_at = monotonic()
        self.rss_bytes = 0
        self.marked = 0
        self._next_serial = 1
        self._marks_fd = new_page()
        self.marks = Marks(self._marks_fd)
        self._wire: Wire[ToSupervisor] | None = None

    def __repr__(self) -> str:
        return f"runner {self.number} (pid {self.pid})"

    @property
    def held(self) -> int:
        return sum(len(lane.held) for lane in self.lanes)

    def holds(self, intake: Intake) -> int:
        return sum(len(lane.held) for lane in self.lanes if lane.intake is intake)

    @property
    def busy(self) -> int:
        """Slots that run something."""
        return len(self.marks.running(self.marked)) if self.marked else 0

    @property
    def slots(self) -> int:
        return sum(lane.slots for lane in self.lanes)

    def started(self) -> dict[int, float]:
        """Serial -> monotonic start, of what runs."""
        return dict(self.marks.running(self.marked)) if self.marked else {}

    # ---- frames

    def _connect(self, sock: socket.socket, on_frame: Callable[["Child", ToSupervisor], None], on_end: Callable[["Child"], None]) -> None:
        loop = asyncio.get_running_loop()
        self._wire = Wire(sock, loop, decode_in_supervisor, lambda frame: on_frame(self, frame), lambda: on_end(self))

    @property
    def wire(self) -> Wire[ToSupervisor]:
        assert self._wire is not None
        return self._wire

    def setup(self, setup: Setup) -> None:
        self.wire.send(setup)

    def begin(self, layout: list[tuple[Intake | None, int]]) -> None:
        self.begun = True
        for intake, slots in layout:
            self._new_lane(intake).widen(slots)
        self.wire.send(Begin([(lane.intake.queue if lane.intake else "", lane.slots) for lane in self.lanes]))

    def share(self, intake: Intake, slots: int) -> bool:
        """Change its share of a queue's slots. False: it has no place left to mark so many, or its code does not know the queue."""
        lane = next((lane for lane in self.lanes if lane.intake is intake), None)
        if lane is None:
            if self.hello is None or intake.queue not in {spec.name for spec in self.hello.specs}:
                return False
            lane = self._new_lane(intake)
        if self.marked + slots - sum(number for _, number in lane.marks) > MAX_SLOTS:
            return False
        first_mark = lane.widen(slots)
        self.wire.send(Share(lane.index, slots, first_mark))
        return True

    def _new_lane(self, intake: Intake | None) -> ChildLane:
        lane = ChildLane(self, len(self.lanes), intake)
        self.lanes.append(lane)
        return lane

    def deal(self, lane: ChildLane, deliveries: list[Delivery]) -> int:
        """Returns the bytes it took."""
        first, count = self._next_serial, len(deliveries)
        self._next_serial += count
        lane.held.update(zip(range(first, first + count), deliveries, strict=True))
        self.dealt_all += count
        if self.tasks_left is not None:
            self.tasks_left -= count
        return self.wire.send(Deal(lane.index, first, deliveries))

    def halt(self, serials: list[int], why: str) -> None:
        for serial in serials:
            self.halted[serial] = why
        self.wire.send(Halt(serials, why))

    def take_back(self) -> None:
        self.asked_back_at = monotonic()
        self.wire.send(TakeBack())

    def stop(self) -> None:
        if self.stage < Stage.STOPPING:
            self.stage = Stage.STOPPING
            self.stopped_at = monotonic()
            self.wire.send(Stop())

    def forget(self) -> None:
        """Give back the wire and the page. Call once it is gone and the blame is settled."""
        self.stage = Stage.GONE
        self.wire.close()
        self.marks.close()
        os.close(self._marks_fd)

    # ---- the two kinds

    def start(self, on_frame: Callable[["Child", ToSupervisor], None], on_end: Callable[["Child"], None]) -> None:
        raise NotImplementedError

    def ended(self) -> int | None:
        """The exit code (negative: the signal), None = it lives."""
        raise NotImplementedError

    def kill(self) -> bool:
        """False: it cannot be killed."""
        raise NotImplementedError


class ProcessChild(Child):
    """A process of its own."""

    _process: "subprocess.Popen[bytes]"

    def start(self, on_frame: Callable[[Child, ToSupervisor], None], on_end: Callable[[Child], None]) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "beltline.worker", str(theirs.fileno()), str(self._marks_fd), str(os.getpid())]
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  # our own interpreter, our own module, three numbers
                command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(), self._marks_fd), start_new_session=True
            )
        self.pid = self._process.pid
        self._connect(ours, on_frame, on_end)
        self._pidfd = -1
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(self.pid)
                asyncio.get_running_loop().add_reader(self._pidfd, on_end, self)

    def ended(self) -> int | None:
        process = self._process
        if process.returncode is None and hasattr(os, "waitid"):
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
            self.kill()  # what its tasks have started and left behind in its group, while its own number is still taken
        return process.poll()

    def kill(self) -> bool:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        return True

    def forget(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        with contextlib.suppress(subprocess.TimeoutExpired):  # killed, but held in the kernel: its number stays ours
            self._process.wait(timeout=WAIT_S)
        super().forget()


class ThreadChild(Child):
    """A thread of this process with its own event loop, running the very same runner. Nothing can kill it: what never returns keeps its thread."""

    def __init__(self, number: int, *, alone: bool, max_tasks: int | None, app: App | None) -> None:
        super().__init__(number, alone=alone, max_tasks=max_tasks)
        self._app = app
        self._thread: threading.Thread | None = None
        self._code: int | None = None

    def start(self, on_frame: Callable[[Child, ToSupervisor], None], on_end: Callable[[Child], None]) -> None:
        ours, theirs = socket.socketpair()
        self.pid = os.getpid()
        self._connect(ours, on_frame, on_end)
        loop = asyncio.get_running_loop()
        tell = lambda: loop.call_soon_threadsafe(on_end, self)  # noqa: E731
        self._thread = threading.Thread(target=self._main, args=(theirs, tell), name=f"beltline-runner-{self.number}", daemon=True)
        self._thread.start()

    def _main(self, sock: socket.socket, tell: Callable[[], object]) -> None:
        from beltline.worker.runner import Runner

        async def run() -> int:
            return await Runner(sock, self._marks_fd, own_process=False, app=self._app).run()

        try:
            self._code = asyncio.run(run())
        finally:
            if self._code is None:
                self._code = 1
            with contextlib.suppress(RuntimeError):  # the supervisor's loop has closed
                tell()

    def ended(self) -> int | None:
        return self._code

    def kill(self) -> bool:
        return self.ended() is not None

    def forget(self) -> None:
        if self._thread is not None:
            self._thread.join(timeout=1.0)
        if self.ended() is not None:
            super().forget()
        else:  # it may still write its marks: the page stays
            self.stage = Stage.GONE
            self.wire.close()


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "?"
    hint = " (out of memory, or somebody's kill -9)" if -code == signal.SIGKILL else ""
    return f"signal {-code} {name}{hint}"
