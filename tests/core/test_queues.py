"""The place of a message in its queue."""

import math

from hypothesis import given
from hypothesis import strategies as st

from beltline.core.limits import MAX_PRIORITY
from beltline.core.queues import QueueSpec, rank

INSTANTS = st.floats(0, 4e9)
PRIORITIES = st.integers(-MAX_PRIORITY, MAX_PRIORITY)


@given(INSTANTS, PRIORITIES, PRIORITIES, st.floats(0.001, 1e6))
def test_of_two_sent_together_the_higher_priority_goes_first(now: float, low: int, high: int, ageing_s: float) -> None:
    if low < high:
        assert rank(now, high, ageing_s) < rank(now, low, ageing_s)


@given(INSTANTS, PRIORITIES, PRIORITIES)
def test_nothing_starves_waiting_outweighs_every_priority_in_the_end(now: float, mine: int, theirs: int) -> None:
    ageing_s = QueueSpec(name="q").ageing_s  # type: ignore[arg-type]
    much_later = now + (2 * MAX_PRIORITY + 1) * ageing_s
    assert rank(now, mine, ageing_s) < rank(much_later, theirs, ageing_s)


@given(INSTANTS, INSTANTS, PRIORITIES, PRIORITIES)
def test_with_strict_priorities_no_waiting_outweighs_one_point(mine: float, theirs: float, low: int, high: int) -> None:
    if low < high:
        assert rank(mine, high, math.inf) < rank(theirs, low, math.inf)


def test_one_point_is_worth_the_ageing_time() -> None:
    assert rank(1000.0, 0, 60.0) == rank(1060.0, 1, 60.0) == 1000.0
