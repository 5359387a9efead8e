"""The retry policy: how often, how soon, for which exceptions."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beltline.core.errors import ValueInvalid
from beltline.core.retry import NO_RETRY, Retry, as_retry


def test_the_delay_doubles_up_to_the_cap() -> None:
    retry = Retry(base_s=1.0, cap_s=10.0, jitter=False)
    assert [retry.delay_s(n, 0.0) for n in (1, 2, 3, 4, 5, 6)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_a_message_that_failed_a_million_times_still_has_a_delay() -> None:
    assert Retry(jitter=False).delay_s(1_000_000, 1.0) == 900.0


@given(st.integers(1, 10_000), st.floats(0, 1), st.floats(0, 1e6), st.floats(0, 1e6))
def test_jitter_draws_from_zero_to_the_bound(failed: int, draw: float, base_s: float, cap_s: float) -> None:
    retry = Retry(base_s=base_s, cap_s=cap_s)
    bound = Retry(base_s=base_s, cap_s=cap_s, jitter=False).delay_s(failed, draw)
    assert 0.0 <= retry.delay_s(failed, draw) <= bound <= cap_s


def test_without_names_every_exception_is_covered() -> None:
    assert Retry().covers(("KeyError", "LookupError", "Exception"))
    assert Retry().covers(())


def test_a_name_covers_its_subclasses() -> None:
    retry = Retry(on=("LookupError",))
    assert retry.covers(("KeyError", "LookupError", "Exception"))
    assert not retry.covers(("ValueError", "Exception"))
    assert not retry.covers(())


def test_never_wins_over_on() -> None:
    retry = Retry(on=("LookupError",), never=("KeyError",))
    assert not retry.covers(("KeyError", "LookupError", "Exception"))
    assert retry.covers(("IndexError", "LookupError", "Exception"))


@pytest.mark.parametrize("attempts", [0, -1, 1_000_001, 1.5, True, "3"])
def test_a_senseless_number_of_attempts_is_refused(attempts: object) -> None:
    with pytest.raises(ValueInvalid):
        Retry(attempts=attempts)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["base_s", "cap_s"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, "1"])
def test_a_senseless_delay_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueInvalid):
        Retry(**{field: value})  # type: ignore[arg-type]


def test_what_a_user_may_write_for_retry() -> None:
    policy = Retry(attempts=7)
    assert as_retry(policy) is policy
    assert as_retry(None) == as_retry(True) == Retry()
    assert as_retry(False) == NO_RETRY
    assert as_retry(4) == Retry(attempts=4)
    with pytest.raises(ValueInvalid):
        as_retry(0)
