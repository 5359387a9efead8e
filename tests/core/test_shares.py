"""Shares of a fleet add up, and everybody works out the same."""

from hypothesis import given
from hypothesis import strategies as st

from beltline.core.names import QueueName, WorkerId
from beltline.core.shares import shares, workers_for

WORK = QueueName("work")
offers = st.dictionaries(
    st.text("abcdef0123", min_size=1).map(WorkerId),
    st.tuples(st.integers(0, 8), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1])),
    min_size=1,
    max_size=12,
)


@given(offers, st.integers(0, 300))
def test_shares_add_up_to_the_fleet_as_far_as_the_ranges_allow(given_offers: dict[WorkerId, tuple[int, int]], slots: int):
    parts = shares(WORK, slots, given_offers)
    assert all(least <= parts[worker] <= most for worker, (least, most) in given_offers.items())
    low, high = (sum(each[end] for each in given_offers.values()) for end in (0, 1))
    assert sum(parts.values()) == max(low, min(slots, high))


@given(offers, st.integers(0, 300))
def test_everybody_works_out_the_same_shares(given_offers: dict[WorkerId, tuple[int, int]], slots: int):
    backwards = dict(reversed(list(given_offers.items())))
    assert shares(WORK, slots, given_offers) == shares(WORK, slots, backwards)


def test_equal_workers_are_shared_evenly_and_queues_break_ties_differently():
    given_offers = {WorkerId(f"w{number}"): (0, 8) for number in range(4)}
    assert sorted(shares(WORK, 10, given_offers).values()) == [2, 2, 3, 3]
    assert len({tuple(shares(QueueName(f"q{number}"), 1, given_offers).values()) for number in range(20)}) > 1


def test_workers_for_slots_are_rounded_up():
    assert [workers_for(slots, 4) for slots in (0, 1, 4, 5)] == [0, 1, 1, 2]
