"""The worker's sign of life: what it serves and what its runners do, every BEAT_S. Nobody's lease hangs on it; it is for people and for scaling."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Mapping
from importlib.metadata import version
from time import monotonic

from beltline.core.errors import BeltlineError
from beltline.core.names import WorkerId
from beltline.core.policy import TaskPolicy
from beltline.core.views import WorkerView
from beltline.engines.protocol import Fleet
from beltline.worker.crew import Crew, rss_bytes
from beltline.worker.dealing import Dealing
from beltline.worker.resizing import Resizing
from beltline.worker.settler import Settler
from beltline.worker.store import Store

log = logging.getLogger("beltline.worker")

BEAT_S = 2.0


class Heartbeat:
    def __init__(
        self, worker: str, store: Store, dealing: Dealing, crew: Crew, resizing: Resizing, settler: Settler, policies: Mapping[str, TaskPolicy]
    ) -> None:
        self._worker = WorkerId(worker)
        self._store = store
        self._dealing = dealing
        self._crew = crew
        self._resizing = resizing
        self._settler = settler
        self._policies = policies
        self._started_at = time.time()

    def view(self) -> WorkerView:
        now = monotonic()
        runners = [
            {
                "number": child.number,
                "pid": child.pid,
                "stage": child.stage.name.lower(),
                "alone": child.alone,
                "slots": child.slots,
                "busy": child.busy,
                "done": child.done,
                "rss_bytes": rss_bytes(child.pid),
                "up_s": round(now - child.started_at, 1),
            }
            for child in self._crew.children
        ]
        received_s = [now - intake.received_at for intake in self._dealing.intakes.values() if intake.received_at]
        detail: dict[str, object] = {
            "runners": runners,
            "settled": self._settler.settled,
            "lost": self._settler.lost,
            "parked": self._settler.parked,
            "deaths": self._crew.deaths,
            "unsettled": self._settler.waiting,
            "received_s": round(min(received_s), 1) if received_s else None,
            "held": {name: intake.held for name, intake in self._dealing.intakes.items()},
            "ranges": self._resizing.ranges(),
            "service": {name: self._resizing.service(name) for name in self._dealing.intakes},
            "refusal": self._resizing.refusal(),
            "versions": self._versions(),
        }
        return WorkerView(
            id=self._worker,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_at=self._started_at,
            age_s=0.0,
            state="up" if self._dealing.open else "draining",
            queues={name: intake.slots for name, intake in self._dealing.intakes.items()},
            tasks=tuple(self._policies),
            detail=detail,
        )

    def _versions(self) -> dict[str, str]:
        for child in reversed(self._crew.children):
            if child.hello is not None:
                return child.hello.versions
        return {"beltline": version("beltline")}

    async def beat(self) -> None:
        if isinstance(self._store.engine, Fleet):
            view = self.view()
            await self._store.ask("beat", lambda engine: engine.beat(view))  # type: ignore[attr-defined]

    async def beat_for_ever(self) -> None:
        while True:
            try:
                await self.beat()
            except BeltlineError as error:
                log.debug("no heartbeat: %s", error)
            await asyncio.sleep(BEAT_S)

    async def forget(self) -> None:
        """A clean stop: no trace is left, so that a worker that is missing is one that died."""
        if isinstance(self._store.engine, Fleet):
            await self._store.ask("forget", lambda engine: engine.forget(self._worker))  # type: ignore[attr-defined]
