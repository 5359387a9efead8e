"""The short version of `make chaos`: what a killed process may cost is one attempt of what it held, never an item."""

import pytest

from tests.system import chaos


@pytest.mark.timeout(180)
@pytest.mark.parametrize("chain", ["plain", "split"])
def test_a_line_whose_processes_are_killed_at_random_loses_and_doubles_nothing(chain: str) -> None:
    outcome = chaos.run(items=250, kills=12, chain=chain, seed=7, pause_s=(0.1, 0.5))
    assert outcome["findings"] == dict.fromkeys(outcome["findings"], 0), outcome  # type: ignore[call-overload]
