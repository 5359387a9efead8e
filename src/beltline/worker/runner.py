"""The process that runs task code. It holds no lease and no store: what it knows comes in frames, what it decides goes out in frames.

Life      Setup: load the app, say Hello. Begin: open the resources, say Ready. Deal, Deal, … Stop: close the resources, exit.
Orphan    it dies with its supervisor: by the parent-death signal (Linux), and by a thread that sees the other end of the socket close (everywhere).
Signals   SIGINT and SIGTERM are the supervisor's affair; a signal to the whole process group must not interrupt a drain.
"""

import asyncio
import importlib.metadata
import logging
import os
import platform
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from operator import mul
from time import monotonic

from beltline.app import App
from beltline.core.errors import BeltlineError
from beltline.core.message import Delivery, Receipt
from beltline.loading import load_app
from beltline.origin import owner
from beltline.resources import Resources
from beltline.worker.conduct import Conduct
from beltline.worker.failures import failure_of
from beltline.worker.frames import (
    Back,
    Begin,
    Broken,
    Deal,
    Done,
    Halt,
    Hello,
    Notes,
    Ready,
    Setup,
    Share,
    Stop,
    TakeBack,
    ToRunner,
    Written,
    decode_in_runner,
)
from beltline.worker.marks import Marks
from beltline.worker.slots import Lane
from beltline.worker.wire import Wire

NOTES_S = 0.1  # progress of one delivery is passed on this often at most
WATCH_MS = 1_000
CLOSE_S = 10.0  # for the resources; the supervisor is not more patient either


class Runner:
    """`own_process`: False for a runner that lives in a thread of its supervisor's process, with `app` given."""

    def __init__(self, sock: socket.socket, marks_fd: int, *, own_process: bool = True, app: App | None = None) -> None:
        self.worker = ""
        self.marks = Marks(marks_fd)
        self.loop = asyncio.get_running_loop()
        self.own_process = own_process
        self._app = app
        self._lanes: list[Lane] = []
        self._group: asyncio.TaskGroup
        self.conducts: dict[str, Conduct] = {}
        self._stages: dict[str, frozenset[str]] = {}
        self._resources: Resources | None = None
        self._notes: dict[Receipt, bytes] = {}
        self._notes_lock = threading.Lock()
        self._noted_at = 0.0
        self._setup: asyncio.Future[Setup] = self.loop.create_future()
        self._begin: asyncio.Future[Begin] = self.loop.create_future()
        self._stop = asyncio.Event()
        self._wire = Wire(sock, self.loop, decode_in_runner, self._on_frame, self._on_end)

    async def run(self) -> int:
        """The exit code. Returns when told to stop, when the app is broken, or, in a thread, when the supervisor is gone."""
        try:
            setup = await self._setup
            app = self._load(setup)
            self._wire.send(_hello(app))
            begin = await self._begin
            self._resources = app.resources()
            await self._resources.open()
            policies = {policy.task: policy for policy in app.policies()}
            self.conducts = {name: Conduct(app, task, policies[name], self._resources) for name, task in app.tasks.items()}
            self._stages = {name: frozenset(stage.name for stage in plan.stages) for name, plan in app.plans.items()}
        except BaseException as error:  # noqa: BLE001  # whatever the user's module raises while it loads, the supervisor must hear of it
            if self._stop.is_set():
                self._wire.close()
                return 0
            found = failure_of(error)
            if isinstance(error, BeltlineError):
                self._wire.send(Broken(text=f"{error} [{error.code}]", traceback=found.traceback, usage=True))
            else:
                self._wire.send(Broken(text=f"{found.type}: {found.text}", traceback=found.traceback, usage=False))
            await self._wire.flush()
            self._wire.close()
            return 3
        try:
            await self._serve(begin)
        finally:
            await self._close()
        return 0

    async def _serve(self, begin: Begin) -> None:
        async with asyncio.TaskGroup() as self._group:
            first_mark = 0
            for index, (_, slots) in enumerate(begin.lanes):
                self._share(Share(index, slots, first_mark))
                first_mark += slots
            self._wire.send(Ready())
            await self._stop.wait()
            for lane in self._lanes:
                for slot in lane.slots:
                    slot.close()

    def _share(self, share: Share) -> None:
        if self._stop.is_set():
            return
        if share.lane == len(self._lanes):
            self._lanes.append(Lane(self, share.lane))
        lane = self._lanes[share.lane]
        for slot in lane.share(share.slots, share.first_mark):
            self._group.create_task(slot.run())
        if lane.surplus or not share.slots:
            self._return([lane])

    def _return(self, lanes: list[Lane]) -> None:
        """What has not started."""
        self.flush()
        for lane in lanes:
            if taken := lane.take_back():
                self._wire.send(Back(lane.index, taken))

    async def _close(self) -> None:
        if self._resources is not None:
            try:
                async with asyncio.timeout(CLOSE_S):
                    await self._resources.close()
            except Exception:  # the user's own closing code; the runner ends all the same
                logging.getLogger("beltline.runner").exception("closing the resources failed")
        if self.own_process and self._app is not None:
            try:
                async with asyncio.timeout(CLOSE_S):
                    await self._app.aclose()  # what its tasks have opened: for sends, for transactions
            except Exception:  # the store is the supervisor's to worry about
                logging.getLogger("beltline.runner").exception("closing the engine failed")
        self.flush()
        await self._wire.flush()
        self._wire.close()

    def _load(self, setup: Setup) -> App:
        self.worker = setup.worker
        if self._app is not None:
            return self._app
        _title(setup.title)
        if setup.app_dir and setup.app_dir not in sys.path:
            sys.path.insert(0, setup.app_dir)
        app = self._app = load_app(setup.app)
        if not logging.getLogger().handlers:
            logging.basicConfig(level=setup.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        if setup.url:
            app.use_url(setup.url, durability=setup.durability or None)
        app.check()
        return app

    # ---- what slots need

    @property
    def app(self) -> App:
        assert self._app is not None
        return self._app

    def conduct(self, delivery: Delivery) -> Conduct | None:
        """None: this code does not know the task, or the chain, or the stage."""
        place = delivery.message.place
        if place is not None and place.stage not in self._stages.get(place.chain, ()):
            return None
        return self.conducts.get(delivery.message.task)

    def note(self, delivery: Delivery, value: bytes) -> None:
        """From any thread. The newest of each delivery is sent within NOTES_S."""
        with self._notes_lock:
            first = not self._notes
            self._notes[delivery.receipt] = value
        if first:
            self.loop.call_soon_threadsafe(self._note_soon)

    def _note_soon(self) -> None:
        self.loop.call_later(max(0.0, self._noted_at + NOTES_S - monotonic()), self._send_notes)

    def _send_notes(self) -> None:
        with self._notes_lock:
            notes, self._notes = self._notes, {}
        self._noted_at = monotonic()
        if notes:
            self._wire.send(Notes(list(notes.items())))

    def flush(self) -> None:
        """Send the answers of all lanes."""
        for lane in self._lanes:
            written = lane.written
            while written:
                serial, settlement, answer, ran = written.popleft()
                self._wire.send(Written(lane.index, [serial], [settlement], [answer], ran))
            ended = lane.ended
            if ended:
                serials, settlements, ran_s = zip(*(ended.popleft() for _ in range(len(ended))), strict=True)
                squares, ran = sum(map(mul, ran_s, ran_s)), len(ran_s) - ran_s.count(0.0)
                self._wire.send(Done(lane.index, serials, settlements, sum(ran_s), squares, ran))  # type: ignore[arg-type]  # tuples encode like lists

    # ---- frames

    def _on_frame(self, frame: ToRunner) -> None:
        match frame:
            case Deal(lane, first, deliveries):
                self._lanes[lane].deal(first, deliveries)
            case Halt(serials, why):
                for serial in serials:
                    self._halt(serial, why)
            case TakeBack():
                self._return(self._lanes)
            case Share():
                self._share(frame)
            case Stop():
                self._on_stop()
            case Setup():
                self._setup.set_result(frame)
            case Begin():
                self._begin.set_result(frame)

    def _halt(self, serial: int, why: str) -> None:
        for lane in self._lanes:
            if lane.drop(serial, why) or any(slot.halt(serial, why) for slot in lane.slots if slot.serial == serial):
                return

    def _on_stop(self) -> None:
        self._stop.set()
        for future in (self._setup, self._begin):
            future.cancel()

    def _on_end(self) -> None:
        if self.own_process:
            os._exit(1)
        self._on_stop()


def _hello(app: App) -> Hello:
    return Hello(
        url=app.url,
        durability=app._durability or "",
        max_body=app.max_body,
        specs=app.specs(),
        policies=app.policies(),
        plans=list(app.plans.values()),
        versions={"beltline": importlib.metadata.version("beltline"), "python": platform.python_version()},
        limits=list(app.limits.values()),
        schedules=app.schedules.specs(),
        owner=owner(app),
    )


def _title(title: str) -> None:
    from setproctitle import setproctitle

    setproctitle(title)


def _die_with_parent(parent: int) -> None:
    """Linux: SIGKILL when the supervisor's thread that started us ends. It must be asked for by the main thread of this process."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it was gone before we asked
        os._exit(1)


def _watch_for_end(fd: int) -> None:
    """End the process when the other end of the socket is closed, even while a task blocks the event loop."""
    poll = select.poll()
    poll.register(fd, 0)  # only hang-up and error, which are always reported
    while not poll.poll(WATCH_MS):  # again and again, because a poll does not notice that a task has closed our own end
        pass
    os._exit(1)


async def _run(sock: socket.socket, marks_fd: int) -> int:
    return await Runner(sock, marks_fd).run()


def main(arguments: list[str]) -> int:
    """Arguments: file descriptors of the socket and of the page of marks, and the supervisor's process id."""
    fd, marks_fd, parent = map(int, arguments)
    _die_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ignore)  # not SIG_IGN: processes started by tasks would inherit that
    sock = socket.socket(fileno=fd)
    threading.Thread(target=_watch_for_end, args=(fd,), name="beltline-watch", daemon=True).start()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        code = runner.run(_run(sock, marks_fd))
    _flush_output()
    return code


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _ignore(*_: object) -> None:
    """The supervisor has got the same signal and says what follows."""


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue
