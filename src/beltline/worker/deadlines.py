"""No task runs for ever: ten times a second the marks of all runners are read. Over its timeout a delivery is asked to stop; after the grace its runner is killed.

The same patience holds for every other reason to stop (cancelled, lease lost): a task that swallows the request keeps neither its slot nor its runner.
"""

import logging
from collections.abc import Mapping

from beltline.core.message import Delivery
from beltline.core.policy import TaskPolicy
from beltline.worker.children import Child, Stage
from beltline.worker.crew import Crew
from beltline.worker.frames import TIMEOUT

log = logging.getLogger("beltline.worker")

NO_POLICY = TaskPolicy(task="", queue="")


class Deadlines:
    def __init__(self, crew: Crew, policies: Mapping[str, TaskPolicy], *, grace_s: float) -> None:
        self._crew = crew
        self._policies = policies
        self._grace_s = grace_s

    def check(self, now: float) -> None:
        for child in tuple(self._crew.children):
            if child.marked and child.stage < Stage.GONE and not child.doomed:
                self._check_child(child, now)

    def _check_child(self, child: Child, now: float) -> None:
        for serial, started_at in child.started().items():
            if serial in child.overdue:
                if now > child.overdue[serial]:
                    why = child.halted[serial]
                    delivery = find(child, serial)
                    log.warning("%s does not stop (%s): killing %r", _name(delivery), why, child)
                    self._crew.kill(child, f"a delivery beside it did not stop ({why})", {s for s, until in child.overdue.items() if now > until})
                    return
                continue
            delivery = find(child, serial)
            if delivery is None:
                continue  # it has ended; its answer is being read
            policy = self._policies.get(delivery.message.task, NO_POLICY)
            timeout_s = delivery.message.timeout_s or policy.timeout_s
            if now - started_at > timeout_s:
                self.halt(child, serial, TIMEOUT, now)

    def halt(self, child: Child, serial: int, why: str, now: float) -> None:
        """Ask a delivery to stop, once."""
        if serial not in child.halted:
            child.overdue[serial] = now + self._grace_s
            child.halt([serial], why)


def find(child: Child, serial: int) -> Delivery | None:
    for lane in child.lanes:
        if (delivery := lane.held.get(serial)) is not None:
            return delivery
    return None


def _name(delivery: Delivery | None) -> str:
    return f"{delivery.message.task} {delivery.message.id}" if delivery else "a delivery"
