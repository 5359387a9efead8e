"""What `beltline demo` does: sends every photo of a folder into the line of image_line.py, runs a real worker, and watches until each run has ended.

Nothing here is kept in memory that a second start would need. The id of a photo's run is derived from where the pictures go, where the photo lies, its
size and its time: starting again after ctrl-c, kill -9 or a power cut sends the same ids, the store says "known", and the worker goes on where the
queues stand. A photo that was changed is another photo. One whose finished pictures were deleted is sent again, under the next id.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path

from beltline.core.codec import unpack
from beltline.core.config import Slots
from beltline.core.errors import ConfigInvalid, ExtraMissing, Refused
from beltline.core.names import MessageId, derive_id
from beltline.core.outcome import Cause
from beltline.core.queues import Counts
from beltline.core.views import MessageFilter, ResultView
from beltline.demo.photo import SUFFIXES, Photo, photos_in
from beltline.engines.protocol import Control, Results
from beltline.events import MessageSettled
from beltline.loading import load_app
from beltline.worker.config import WorkerConfig
from beltline.worker.serve import serve
from beltline.worker.supervisor import Supervisor

APP = "beltline.demo.image_line:app"
SAMPLES = Path(__file__).parent / "photos"
CODE = Path(__file__).parent / "image_line.py"
LEASE_S = 5.0  # after a kill -9 the next start waits at most so long for what the dead worker held
LOOK_S = 0.25
SEND_BATCH = 200
LOOK_BATCH = 500  # results asked for at one look
MAX_PARTS = 1000  # of one run
RATE_WINDOW_S = 15.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`folder`: where the photos are. `out`: where pictures and, unless `url` says otherwise, the database go. `slots`: stage -> slots."""

    folder: Path = SAMPLES
    out: Path = Path("demo")
    url: str = ""
    slots: dict[str, Slots] = field(default_factory=dict)
    cpus: int = 1

    @property
    def engine_url(self) -> str:
        return self.url or f"sqlite:///{(self.out / 'beltline.db').absolute()}"

    @property
    def samples(self) -> bool:
        return self.folder.resolve() == SAMPLES


@dataclass(frozen=True, kw_only=True)
class StageNow:
    """`total` counts what has passed, what is here and what is certain to come. `ran_s`: mean of an item, 0.0 = none has run yet."""

    name: str
    done: int
    dead: int
    total: int
    backlog: int
    running: int
    ran_s: float
    oldest_s: float
    slowest: bool = False


@dataclass(frozen=True, kw_only=True)
class Now:
    """One look at the whole. `left_s`: an estimate, None = nothing to estimate from yet."""

    stages: tuple[StageNow, ...]
    entered: int
    done: int
    dead: int
    cancelled: int
    known_before: int
    per_minute: float
    left_s: float | None
    last_dead: str

    @property
    def ended(self) -> int:
        return self.done + self.dead + self.cancelled


@dataclass(frozen=True, kw_only=True)
class DeadPhoto:
    photo: str
    id: str
    reason: str


@dataclass(kw_only=True)
class Summary:
    """`done`, `dead`, `cancelled` sum up to `entered` unless `interrupted`. `skipped`: files that are no pictures by their suffix. `resumed`: sent by an earlier start.

    `worker_code`: exit code of the worker, 0 = it drained. `idle`: this start found everything done.
    """

    entered: int = 0
    done: int = 0
    dead: int = 0
    cancelled: int = 0
    skipped: int = 0
    resumed: int = 0
    seconds: float = 0.0
    outputs: list[Path] = field(default_factory=list)
    dead_photos: list[DeadPhoto] = field(default_factory=list)
    interrupted: bool = False
    worker_code: int = 0
    idle: bool = True


@dataclass
class Found:
    """The photos of a folder, each with the part of its id that changes with its content."""

    photos: list[tuple[Photo, str]]
    skipped: int


def prepare(plan: Plan) -> Found:
    """Look at the folders before anything is opened. Raises ConfigInvalid, ExtraMissing."""
    if find_spec("PIL") is None:
        raise ExtraMissing(extra="demo", needed_for="The demo")
    if not plan.folder.is_dir():
        raise ConfigInvalid(key="DIR", value=str(plan.folder), allowed="a folder with photos", origin="the command line")
    _make_writable(plan.out)
    try:
        photos = [(photo, _content(photo.source)) for path in photos_in(plan.folder, plan.out) for photo in [_photo(plan, path)]]
    except ValueError as error:
        raise ConfigInvalid(
            key="--out", value=str(plan.out), allowed="a folder apart from the photos", origin="the command line", help=f"{error}."
        ) from None
    except OSError as error:
        raise ConfigInvalid(
            key="DIR", value=str(plan.folder), allowed="a folder this user may read", origin="the command line", help=f"{error}."
        ) from None
    skipped = sum(1 for _ in _others(plan.folder, plan.out))
    if not photos:
        allowed = f"a folder with pictures ({', '.join(sorted(suffix[1:] for suffix in SUFFIXES))})"
        help = f"{skipped} other files are there." if skipped else "It is empty."
        raise ConfigInvalid(key="DIR", value=str(plan.folder), allowed=allowed, origin="the command line", help=help)
    return Found(photos, skipped)


def _photo(plan: Plan, path: Path) -> Photo:
    return Photo.of(path, root=plan.folder, out=plan.out)


def _make_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".beltline-may-write"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigInvalid(
            key="--out", value=str(out), allowed="a folder this user may write to", origin="the command line", help=f"{error}."
        ) from None


def _content(path: Path) -> str:
    """What changes when a file does, without reading it."""
    facts = path.stat()
    return f"{facts.st_size}:{facts.st_mtime_ns}"


def _others(folder: Path, out: Path) -> Iterator[Path]:
    """Visible files that are no pictures by their suffix, outside of `out`."""
    out = out.resolve()
    for path in folder.resolve().rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder.resolve()).parts)
        if not hidden and path.is_file() and path.suffix.lower() not in SUFFIXES and out not in path.parents:
            yield path


def run_id(photo: Photo, content: str, again: int = 0) -> MessageId:
    """The id of a photo's run: the same at every start. `again`: how often its finished pictures were deleted."""
    millis = max(0, int(content.partition(":")[2] or 0) // 1_000_000) & (2**48 - 1)
    parent = f"{millis:012x}" + blake2b(str(photo.out).encode("utf-8", "surrogateescape"), digest_size=10).hexdigest()
    return MessageId(derive_id(parent, repr(str(photo.source)), content, str(again)))


# ------------------------------------------------------------------------------------------------------------ the run
class Demo:
    """One start of the demo."""

    def __init__(self, plan: Plan, found: Found) -> None:
        self.plan = plan
        self.found = found
        self.app = load_app(APP)
        self.app.use_url(plan.engine_url)
        self.chain = self.app.chains["album"]
        self.summary = Summary(skipped=found.skipped)
        self._photos: dict[str, Photo] = {}
        self._open: dict[str, None] = {}  # ids of runs that have not ended, in the order sent
        self._ended: list[tuple[float, int]] = []  # (monotonic, ended so far) of the last seconds
        self._ran: dict[str, tuple[float, int]] = {}  # stage -> seconds, how many
        self._given_back: set[str] = set()  # runs whose dead messages were redriven by this start
        self._all_sent = False

    async def run(self, watch: Callable[[Now], None]) -> Summary:
        """Send, work, watch, until every run has ended or the worker was told to stop. `watch` gets a look about four times a second."""
        began = time.monotonic()
        stop = asyncio.Event()
        try:
            await self.app.ready()
            async with asyncio.TaskGroup() as group:
                worker = group.create_task(self._work(stop))
                feeding = group.create_task(self._send_all())
                await self._watch(watch, worker)
                self.summary.interrupted = not self._all_sent or bool(self._open)
                feeding.cancel()
                stop.set()
            self.summary.worker_code = worker.result()
        except BaseExceptionGroup as errors:
            raise _first(errors) from errors
        finally:
            self.summary.seconds = round(time.monotonic() - began, 2)
            await self.app.aclose()
        self.summary.outputs.sort()
        return self.summary

    async def _work(self, stop: asyncio.Event) -> int:
        stages = {str(stage.queue): self.plan.slots.get(stage.name, Slots(self.plan.cpus, self.plan.cpus)) for stage in self.chain.plan.stages}
        config = WorkerConfig(
            app=APP,
            url=self.plan.engine_url,
            queues={queue: (slots.least, slots.most) for queue, slots in stages.items()},
            runners=self.plan.cpus,
            lease_s=LEASE_S,
            drain_s=20.0,
            log_level="ERROR",
        )

        def ready(supervisor: Supervisor) -> None:
            supervisor.events.listen(self._settled)

        return await serve(config, on_ready=ready, stop=stop)

    async def _send_all(self) -> None:
        """All photos, in batches; ids that are known already are how an earlier start is resumed."""
        photos = self.found.photos
        for start in range(0, len(photos), SEND_BATCH):
            batch = [(photo, await self._id_for(photo, content)) for photo, content in photos[start : start + SEND_BATCH]]
            handles = await self.chain.asend_many(self.chain.with_options(id=id).call(photo) for photo, id in batch)
            for handle, (photo, _) in zip(handles, batch, strict=True):
                self._photos[handle.id] = photo
                self._open[handle.id] = None
                self.summary.entered += 1
                self.summary.resumed += not handle.new
        self._all_sent = True

    async def _id_for(self, photo: Photo, content: str) -> MessageId:
        """The first id whose run is not a success with its pictures gone."""
        again = 0
        while True:
            id = run_id(photo, content, again)
            [view] = await self._results([id])
            if view is None or view.state != "done" or view.outcome == "cancelled" or all(path.exists() for path in _pictures(view)):
                return id
            again += 1

    async def _watch(self, watch: Callable[[Now], None], worker: "asyncio.Task[int]") -> None:
        while not worker.done():
            await self._look_at_runs()
            watch(await self._now())
            if self._all_sent and not self._open:
                return
            await asyncio.wait([worker], timeout=LOOK_S)

    async def _look_at_runs(self) -> None:
        """Up to some hundred open runs a look; those that have not ended go to the back, so that every one gets its turn."""
        ids = list(self._open)[:LOOK_BATCH]
        if not ids:
            return
        for id, view in zip(ids, await self._results(ids), strict=True):
            del self._open[id]
            if view is None or await self._revived(id, view) or not self._count(id, view):
                self._open[id] = None

    async def _revived(self, id: str, view: ResultView) -> bool:
        """Somebody who kills the demo three times must not lose the photos that were in work each time: nobody proved them guilty.

        Once a start; a photo that takes its runner down dies of another cause and stays dead.
        """
        if view.state != "dead" or view.failure is None or view.failure.cause is not Cause.LEASE_LOST or id in self._given_back:
            return False
        self._given_back.add(id)
        engine = await self.app.ready()
        return isinstance(engine, Control) and bool(await engine.redrive(MessageFilter(run=id, states=("dead",)), limit=MAX_PARTS))

    def _count(self, id: str, view: ResultView) -> bool:
        """Whether the run has ended, and what became of it."""
        if view.state == "dead":
            failure = view.failure
            reason = ": ".join(part for part in (failure.type.rpartition(".")[2], failure.text) if part) if failure is not None else ""
            self.summary.dead += 1
            self.summary.dead_photos.append(DeadPhoto(photo=self._name(id), id=id, reason=reason or view.why))
        elif view.state == "done" and view.outcome == "cancelled":
            self.summary.cancelled += 1
        elif view.state == "done":
            self.summary.done += 1
            self.summary.outputs += _pictures(view)
        else:
            return False
        return True

    def _name(self, id: str) -> str:
        photo = self._photos[id]
        with suppress(ValueError):
            return str(photo.source.relative_to(self.plan.folder.resolve()))
        return str(photo.source)

    async def _results(self, ids: Sequence[str]) -> list[ResultView | None]:
        engine = await self.app.ready()
        if not isinstance(engine, Results):
            raise Refused(f"The demo needs an engine that keeps results; {engine.name} does not.")
        return await engine.results(ids)

    # ----------------------------------------------------------------------------------------------------------- looks
    async def _now(self) -> Now:
        engine = await self.app.ready()
        stages = self.chain.plan.stages
        counts = [await engine.counts(stage.queue) for stage in stages]
        summary = self.summary
        running = len(self._open)
        looks = tuple(self._stage(index, counts, running) for index in range(len(stages)))
        work_s = [(look.total - look.done - look.dead) * look.ran_s for look in looks]
        if running and max(work_s) > 0:
            slowest = work_s.index(max(work_s))
            looks = tuple(_marked(look, index == slowest and look.backlog > 0) for index, look in enumerate(looks))
        ended = summary.done + summary.dead + summary.cancelled
        rate = self._rate(ended)
        known = all(self._ran.get(stage.name) for stage in stages)
        return Now(
            stages=looks,
            entered=summary.entered,
            done=summary.done,
            dead=summary.dead,
            cancelled=summary.cancelled,
            known_before=summary.resumed,
            per_minute=rate * 60,
            left_s=sum(work_s) / max(1, self.plan.cpus) if known and running else None,
            last_dead=f"{summary.dead_photos[-1].photo}: {summary.dead_photos[-1].reason.partition(': ')[2]}" if summary.dead_photos else "",
        )

    def _stage(self, index: int, counts: list[Counts], running: int) -> StageNow:
        """Totals follow from what is where: each item before the split will be so many parts behind it, and every open run comes to the last stage."""
        stage, here = self.chain.plan.stages[index], counts[index]
        live = here.ready + here.delayed + here.leased
        if index == 0:
            coming = 0 if self._all_sent else max(0, len(self.found.photos) - here.done - here.dead - live)
        elif index == len(counts) - 1:
            coming = max(0, running - live)
        else:
            before = counts[index - 1]
            coming = (before.ready + before.delayed + before.leased) * self._fan_out(index)
        seconds, many = self._ran.get(stage.name, (0.0, 0))
        return StageNow(
            name=stage.name,
            done=here.done,
            dead=here.dead,
            total=here.done + here.dead + live + coming,
            backlog=here.ready + here.delayed,
            running=here.leased,
            ran_s=seconds / many if many else 0.0,
            oldest_s=here.oldest_ready_s,
        )

    def _fan_out(self, index: int) -> int:
        stages = self.chain.plan.stages
        return next((feed.fan_out for feed in self.chain.plan.feeds(stages[index - 1]) if feed.queue == stages[index].queue), 1)

    def _rate(self, ended: int) -> float:
        """Ended a second over the last seconds."""
        now = time.monotonic()
        self._ended.append((now, ended))
        while len(self._ended) > 2 and self._ended[0][0] < now - RATE_WINDOW_S:
            self._ended.pop(0)
        (since, before) = self._ended[0]
        took_s = now - since
        return (ended - before) / took_s if took_s > 0.5 else 0.0

    def _settled(self, events: Sequence[MessageSettled]) -> None:
        """How long stages take, from the facts our own worker tells after each write."""
        self.summary.idle = False
        for event in events:
            if event.stage is not None and event.outcome == "ack":
                seconds, many = self._ran.get(event.stage, (0.0, 0))
                self._ran[event.stage] = (seconds + event.ran_s, many + 1)


def _marked(look: StageNow, slowest: bool) -> StageNow:
    return replace(look, slowest=slowest)


def _first(errors: BaseExceptionGroup) -> BaseException:
    """The one a person should read: tasks that fail together fail for the same cause."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _pictures(view: ResultView) -> list[Path]:
    """The finished files an album names; none when it cannot be read."""
    album = unpack(view.result) if view.result is not None else None
    if not isinstance(album, dict):
        return []
    return [Path(path) for path in (*album.get("pictures", []), album.get("thumbnail", "")) if path]
