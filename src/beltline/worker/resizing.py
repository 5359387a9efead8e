"""How many slots a queue has in this worker, and how many runners carry them, changed while it works.

Growth    the slots are there at once, on the runners that are ready; a further runner takes its share over when it is ready. The host is asked first: without
          free memory nothing grows. What was refused is tried again every RETRY_S.
Shrinking the budget falls at once, so nothing more is received; slots rest as they become free; a runner without slots finishes what it runs and stops.
          Nothing that runs is stopped for it.
Runners   as many as there are processors (or as configured), never more than slots. Tasks of kind "process" have a runner for each slot beside those.
Zero      a queue without slots has no runner. While it listens it receives one message, and that one gets it a slot until nothing has come for `rest_s`; where
          there is no memory for a runner the message goes back untouched, and the queue listens again when there is. One that does not listen gives
          back whatever it still holds.
Memory    what is free must be above a margin (a tenth of what there is, at most 256 MiB), and above one and a half times the mean size of a runner for each that is to be
          started or has just been. A runner that died is replaced without asking, and the worker's first one is always started: it says what the app is.
Threads   runners within this process: one at most, and only the margin is asked for.
"""

import logging
from collections.abc import Callable, Mapping

from beltline.core.names import QueueName
from beltline.core.outcome import Release
from beltline.worker.children import Stage
from beltline.worker.config import MAX_SLOTS, WorkerConfig
from beltline.worker.crew import LONE_IDLE_S, Crew
from beltline.worker.dealing import Dealing
from beltline.worker.host import Memory, memory
from beltline.worker.intake import Intake
from beltline.worker.settler import Settler

log = logging.getLogger("beltline.worker")

RETRY_S = 1.0
WAKE_S = 30.0  # how long a message may wait for the runner that it has woken; then it goes back
MARGIN_BYTES = 256 << 20
RUNNER_BYTES = 64 << 20  # of a runner, before one has been measured
GROWTH = 1.5


def need_bytes(found: Memory, runners: int, runner_bytes: float = RUNNER_BYTES) -> float:
    """What must be free, and a little more, for so many runners that are not there yet; for 0 of them, the margin."""
    return max(min(MARGIN_BYTES, found.total_bytes / 10), GROWTH * runners * runner_bytes)


def startable(found: Memory, count: int, *, starting: int = 0, runner_bytes: float = RUNNER_BYTES) -> int:
    """How many of `count` further runners there is memory for, beside those that are just starting. -1: not even for a slot."""
    while count and found.available_bytes <= need_bytes(found, count + starting, runner_bytes):
        count -= 1
    return count if found.available_bytes > need_bytes(found, 0) else -1


class Resizing:
    """`free`: how memory is read. `rest_s`: how long a queue that was woken keeps its slot without a message."""

    def __init__(
        self,
        config: WorkerConfig,
        crew: Crew,
        dealing: Dealing,
        settler: Settler,
        *,
        free: Callable[[], Memory] = memory,
        rest_s: float = LONE_IDLE_S,
    ) -> None:
        self.rest_s = rest_s
        self._config = config
        self._crew = crew
        self._dealing = dealing
        self._settler = settler
        self._free = free
        self._asked: dict[QueueName, int] = {}
        self._why: dict[QueueName, str] = {}  # of what was asked for last: some of it may come later
        self._deaf: set[QueueName] = set(self.ranges()) if config.dry_run else set()  # a dry run only looks
        self._woken: dict[QueueName, float] = {}
        self._used_at: dict[QueueName, float] = {}
        self._runner_bytes = float(RUNNER_BYTES)
        self._refusal = ""
        self._looked_at = 0.0

    # ---- what there is

    def ranges(self) -> Mapping[QueueName, tuple[int, int]]:
        """The queues whose number of slots is the load's to say: (least, most)."""
        return {QueueName(name): (least, most) for name, (least, most) in self._config.queues.items() if least < most}

    def size(self, queue: QueueName) -> int:
        """Slots now. More may still run, where the number has just fallen."""
        return self._dealing.intakes[queue].slots

    def busy(self, queue: QueueName) -> int:
        """Slots that run something of the queue."""
        intake = self._dealing.intakes[queue]
        lanes = [lane for child in self._crew.children for lane in child.lanes]
        lone = [lane for lane in lanes if lane.intake is None and any(delivery.message.queue == queue for delivery in lane.held.values())]
        return sum(lane.busy for lane in lanes if lane.intake is intake) + sum(lane.busy for lane in lone)

    def service(self, queue: QueueName) -> tuple[int, float, float]:
        """(deliveries that have run and ended, seconds they ran, sum of the squares of those), since the start."""
        intake = self._dealing.intakes[queue]
        return intake.ran, intake.ran_s, intake.ran_squares_s2

    def refusal(self) -> str:
        """Why the host did not allow the last growth; "" = it did."""
        return self._refusal

    # ---- changes

    def begin(self) -> None:
        """Lay out what the intakes say: at the start, and when new code has brought new queues."""
        for queue, intake in self._dealing.intakes.items():
            self._asked.setdefault(queue, intake.slots)
        self._arrange()
        self._listen()

    def resize(self, queue: QueueName, slots: int, *, listen: bool = True, why: str = "") -> int:
        """Ask for so many slots, 0..MAX_SLOTS, also outside of the range. How many it will be: the host may allow fewer.

        `listen`: with 0 slots, whether a message may wake the queue. False where other workers of the fleet have slots. `why`: for the log.
        """
        intake = self._dealing.intakes[queue]
        if not self._dealing.open:
            return intake.slots
        slots = max(0, min(slots, MAX_SLOTS))
        (self._deaf.discard if listen else self._deaf.add)(queue)
        self._asked[queue], self._why[queue] = slots, why
        if slots or not listen:
            self._woken.pop(queue, None)
        if slots or queue not in self._woken:
            self._give(intake, self._allowed(intake, slots), why)
        self._listen()
        return intake.slots

    def tick(self, now: float) -> None:
        """Several times a second: queues are woken and put to rest; what was refused is asked for again."""
        if not self._dealing.open:
            return
        for queue, intake in self._dealing.intakes.items():
            if not self._asked[queue]:
                self._look_after_sleeper(queue, intake, now)
        if now - self._looked_at < RETRY_S:
            return
        self._looked_at = now
        self._runner_bytes = self._crew.mean_rss_bytes() or self._runner_bytes
        for queue, intake in self._dealing.intakes.items():
            if self._asked[queue] > intake.slots:
                self._give(intake, self._allowed(intake, self._asked[queue]), self._why.get(queue, ""))
        if self._runners() > len(self._crew.posts):
            self._arrange()
        self._listen()
        if not self._lacks():
            self._refusal = ""

    def _look_after_sleeper(self, queue: QueueName, intake: Intake, now: float) -> None:
        waits = bool(intake.ahead or intake.alone)
        if queue not in self._woken:
            if waits and not intake.slots:
                self._wake(queue, intake, now)  # by what was received for it, or is left of what it had
            return
        if intake.held:
            self._used_at[queue] = now
            if waits and now - self._woken[queue] < WAKE_S:
                intake.dealt_at = now  # its runner is on the way
        elif now - self._used_at[queue] > self.rest_s:
            del self._woken[queue]
            self._give(intake, 0, f"no message for {self.rest_s:.3g} s")
            self._listen()

    def _wake(self, queue: QueueName, intake: Intake, now: float) -> None:
        if queue not in self._deaf and self._allowed(intake, 1):
            self._woken[queue] = self._used_at[queue] = now
            self._give(intake, 1, "a message has come")
            return
        intake.listening = False
        for delivery in intake.empty():
            self._settler.end(delivery, Release(why="its queue has no slots here" if queue in self._deaf else self._refusal))

    def _listen(self) -> None:
        """Which of those that have no slots may be woken now."""
        for queue, intake in self._dealing.intakes.items():
            listening = not intake.slots and queue not in self._deaf and bool(self._allowed(intake, 1, silent=True))
            if listening and not intake.listening:
                intake.listening = True
                intake.room.set()
            intake.listening = listening

    def _give(self, intake: Intake, slots: int, why: str) -> None:
        if slots != intake.slots:
            log.info("queue %s: from %d to %d slots%s", intake.queue, intake.slots, slots, why and f": {why}")
            intake.slots = slots
            self._arrange()
            self._dealing.deal_all()

    def _lacks(self) -> bool:
        """Something was refused and is still wanted."""
        short = any(
            self._asked[queue] > intake.slots or not (intake.slots or intake.listening or queue in self._deaf)
            for queue, intake in self._dealing.intakes.items()
        )
        return short or self._runners() > len(self._crew.posts)

    # ---- runners and memory

    def _runners(self) -> int:
        return self._config.runner_count(sum(intake.slots for intake in self._dealing.intakes.values()))

    def _arrange(self) -> None:
        """As many runners as the slots ask for; of those that are missing, as many as the host allows. One is never asked for: without it nothing would work."""
        intakes, wanted, have = list(self._dealing.intakes.values()), self._runners(), len(self._crew.posts)
        if wanted > max(1, have):
            missing = wanted - max(1, have)
            found, possible = self._look(missing)
            self._refusal = "" if possible == missing else self._words(found, missing)
            wanted = max(1, have) + max(0, possible)
        self._crew.lay_out(intakes, wanted)

    def _allowed(self, intake: Intake, slots: int, *, silent: bool = False) -> int:
        """How many of `slots` the host lets the queue have."""
        now = intake.slots
        if slots <= now:
            return slots
        first = 0 if self._crew.posts else 1
        needed = first + (slots - now if intake.processes else 0)
        found, possible = self._look(needed)
        allowed = now + max(0, possible - first) if intake.processes else slots if possible >= first else now
        if not silent:
            self._refusal = "" if allowed == slots else self._words(found, needed)
        return allowed

    def _look(self, count: int) -> tuple[Memory, int]:
        """What is free, and for how many of `count` further runners that is enough."""
        found = self._free()
        if self._config.in_process:
            return found, count if startable(found, 0) == 0 else -1
        return found, startable(found, count, starting=self._starting(), runner_bytes=self._runner_bytes)

    def _starting(self) -> int:
        """Runners whose memory is not in use yet."""
        return sum(child.stage < Stage.READY for child in self._crew.children)

    def _words(self, found: Memory, count: int) -> str:
        need = need_bytes(found, count + self._starting() if count and not self._config.in_process else 0, self._runner_bytes)
        free, total, need = (round(size / (1 << 20)) for size in (found.available_bytes, found.total_bytes, need))
        return f"no free memory: {free} of the {total} MiB of {found.source} are free, more than {need} are needed"
