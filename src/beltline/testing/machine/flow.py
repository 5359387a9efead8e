"""Flow control in a random history: limits that are set and taken back, workers that come and go, snoozes; and I15 against a ledger of starts and leases."""

from typing import Any, NamedTuple

from hypothesis.stateful import precondition, rule

from beltline.core.flow import KillSwitch, Limit
from beltline.core.message import Delivery
from beltline.core.names import MessageId, QueueName, WorkerId
from beltline.core.queues import QueueSpec
from beltline.core.views import WorkerView
from beltline.engines.protocol import Explain, Limits
from beltline.testing.conformance import kit
from beltline.testing.machine.draws import flow_steps
from beltline.testing.machine.driving import Driver

Bucket = tuple[str, str]


class Lease(NamedTuple):
    """What is out. Its places are those of its claims, and of the limits that its queue has at the moment."""

    queue: QueueName
    until: float
    claims: tuple[Bucket, ...]


class FlowSteps(Driver):
    """Only in histories that were begun with `begin_flow`. An engine without the power Limits has none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.shaped = self.explained = False
        self.said: dict[str, Limit] = {}  # by the code
        self.ordered: dict[str, Limit] = {}  # by an operator
        self.limits_of: dict[QueueName, tuple[str, ...]] = {}
        self.leases: dict[MessageId, Lease] = {}
        self.starts: dict[Bucket, list[tuple[float, int]]] = {}  # when, and how far it moved the bucket, since the numbers are what they are

    def begin_flow(self) -> None:
        self.shaped = all(isinstance(engine, Limits) for engine in self.engines)
        self.explained = self.shaped and all(isinstance(engine, Explain) for engine in self.engines)
        if self.shaped:
            self.flow_step(("declare", "places", {"concurrency": 2}))
            self.flow_step(("declare", "rate", {"rate": 0.5, "burst": 3.0}))
            switch = KillSwitch(share=0.5, least=3, window_s=60.0, pause_s=5.0, tries=2)
            self.do(lambda engine: engine.declare([kit.specs(kit.NEXT, ageing_s=self.ageing_s, kill_switch=switch)]))

    @precondition(lambda self: self.shaped)
    @rule(step=flow_steps)
    def flow_step(self, step: tuple[Any, ...]) -> None:
        verb, *how = step
        match verb, how:
            case "set", (name, numbers):
                self.ordered[name] = Limit(name=name, **numbers)
                self.do(lambda engine: engine.set_limit(self.ordered[name]))
                self.renumbered(name)
            case "declare", (name, numbers):
                self.said[name] = Limit(name=name, **numbers)
                self.do(lambda engine: engine.declare_limits([self.said[name]]))
                self.renumbered(name)
            case "reset", (name,):
                self.do(lambda engine: engine.reset_limit(name))
                self.ordered.pop(name, None)
                self.renumbered(name)
            case "snooze", (queue, seconds):
                self.do(lambda engine: engine.snooze(queue, seconds=seconds))
            case "live", (name, state, queues):
                worker = WorkerView(id=name, host="h", pid=1, started_at=0.0, age_s=0.0, state=state, queues=dict.fromkeys(map(str, queues), 2))
                self.do(lambda engine: engine.beat(worker))
            case "leave", (name,):
                self.do(lambda engine: engine.forget(WorkerId(name)))
            case _:
                raise AssertionError(f"no such step: {step}")

    # ------------------------------------------------------------------------------------------------------ I15, the ledger

    def limit(self, name: str) -> Limit | None:
        return self.ordered.get(name) or self.said.get(name)

    def declared(self, spec: QueueSpec) -> None:
        for name in {*self.limits_of.get(spec.name, ()), *spec.limits}:
            self.renumbered(name)
        self.limits_of[spec.name] = spec.limits

    def renumbered(self, name: str) -> None:
        """Windows with other numbers say nothing about these."""
        for bucket in [bucket for bucket in self.starts if bucket[0] == name]:
            del self.starts[bucket]

    def buckets_of(self, lease: Lease) -> set[Bucket]:
        return {*lease.claims, *((name, "") for name in self.limits_of.get(lease.queue, ()))}

    def started(self, delivery: Delivery, now: float) -> None:
        message = delivery.message
        costs = {(claim.limit, claim.key): claim.cost for claim in message.flow.claims} if message.flow is not None else {}
        lease = self.leases[message.id] = Lease(message.queue, delivery.lease_until, tuple(costs))
        for bucket in self.buckets_of(lease):
            limit = self.limit(bucket[0])
            if limit is None:
                continue
            running = [other for other in self.leases.values() if other.until > now and bucket in self.buckets_of(other)]
            # a lease of no length is over at once, and holds no place
            assert len(running) <= limit.concurrency or lease not in running, f"I15: {len(running)} run in {bucket}, {limit.concurrency} may"
            if limit.interval_us:
                self._in_time(limit, bucket, (now, limit.takes_us(costs.get(bucket, 1.0))))

    def _in_time(self, limit: Limit, bucket: Bucket, start: tuple[float, int]) -> None:
        """Looks at every window that ends with this start."""
        starts = self.starts.setdefault(bucket, [])
        starts.append(start)
        used_us = 0
        for at, takes_us in reversed(starts):
            used_us += takes_us
            assert used_us <= limit.burst_us + (start[0] - at) * 1e6 + 1000, f"I15: too many starts in {start[0] - at} s in {bucket}"

    def renewed(self, id: MessageId, until: float) -> None:
        if id in self.leases:
            self.leases[id] = self.leases[id]._replace(until=until)

    def ended(self, id: MessageId) -> None:
        self.leases.pop(id, None)


__all__ = ["FlowSteps"]
