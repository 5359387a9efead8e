"""A Hypothesis state machine that drives an engine with random steps, compares every answer and the whole store with a second engine, and checks the invariants.

    TestMine = machine.case(MyHarness, oracle=MemoryHarness)

Steps       everything a producer, a worker, an operator and the clock can do, with ids sent twice, stale and doubled receipts, and new starts of the process (steps.py).
            Half of the histories have flow control in them as well: tenants, limits, sticky and unique keys, snoozes, kill switches (flow.py). Half of them have
            schedules, schedulers and long times (schedules.py), and fleets with heartbeats, decisions and orders (fleets.py).
Comparison  after each step: the answer, the counts, the limits, the schedules, the sizes and every message of both engines are equal (looking.py).
Invariants  checked against a ledger of what was answered, so that two engines cannot be wrong together. Their numbers:
            I1 acknowledged => in exactly one place · I2 there => it was sent · I3 one id => one message · I4 one current epoch · I5 hand-out e+1 only after the end
            of e · I6 one settle per epoch · I7 nothing changes under an old epoch · I8 result <=> ack · I9 entered runs = running + done + dead + failed +
            cancelled · I10 first deliveries of a group in send order · I11 one lease per group · I12 one message per dedup key and window · I13 one message per schedule
            and instant · I14 sent >= due · I15 starts in any window T <= burst + rate * T, and what runs when one starts <= limit

A failure prints the steps and how to replay them. BELTLINE_EXAMPLES (40) says how many histories are tried, each of up to 40 steps; BELTLINE_SHRINK=1
makes a history that failed shorter, which takes minutes (it is remembered: run the test again).
"""

import os
from typing import Any, cast
from unittest import TestCase

from hypothesis import HealthCheck, Phase, settings

from beltline.testing.conformance.harness import Harness
from beltline.testing.machine.steps import EngineMachine

STEPS = 40


def case(kind: type[Harness], *, oracle: type[Harness] | None = None, parts: frozenset[str] | None = None) -> type[TestCase]:
    """A test case for pytest or unittest: `kind` alone against the invariants, or beside an `oracle`.

    `parts`: of "flow" (control) and "schedules" (with fleets) those that every history has; None: each history draws them.
    """
    machine: Any = type(f"{kind.__name__}Machine", (EngineMachine,), {"subject_kind": kind, "oracle_kind": oracle, "parts": parts})
    found = cast("type[TestCase]", machine.TestCase)
    found.settings = settings(  # type: ignore[attr-defined]  # Hypothesis puts it there
        max_examples=int(os.environ.get("BELTLINE_EXAMPLES", "40")),
        stateful_step_count=STEPS,
        deadline=None,
        print_blob=True,
        phases=[phase for phase in Phase if phase is not Phase.shrink or "BELTLINE_SHRINK" in os.environ],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    return found


__all__ = ["EngineMachine", "case"]
