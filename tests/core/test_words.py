"""Numbers and times as people read them."""

import math

import pytest

from beltline.core.words import rate


@pytest.mark.parametrize(
    ("number", "per_s", "text"),
    [
        (50.0, 1.0, "50/s"),
        (0.5, 1.0, "0.5/s"),
        (600.0, 60.0, "600/m"),
        (600.0, 600.0, "600/10m"),
        (1000.0, 7200.0, "1000/2h"),
        (5.0, 86400.0, "5/d"),
        (5.0, 1.5, "5/1.5s"),
        (math.inf, 1.0, "no rate"),
    ],
)
def test_a_rate(number: float, per_s: float, text: str) -> None:
    assert rate(number, per_s) == text


def test_a_rate_that_was_shown_can_be_said_again() -> None:
    from beltline.limiting import rate_of

    for number, per_s in ((50.0, 1.0), (0.5, 1.0), (600.0, 600.0), (5.0, 1.5), (7.0, 0.25), (3.0, 86400.0)):
        assert rate_of(rate(number, per_s)) == (number, per_s)
