"""The short version of `make chaos`: what a killed process or server may cost is one attempt of what it held, never an item."""

from typing import Any

import pytest

from tests.services.postgres import PostgresServer, fresh_database
from tests.system import chaos


def nothing_found(outcome: dict[str, Any]) -> bool:
    assert outcome["findings"] == dict.fromkeys(outcome["findings"], 0), outcome
    return True


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("chain", "groups"), [("plain", 0), ("split", 7)])
def test_a_line_whose_processes_are_killed_at_random_loses_and_doubles_nothing(chain: str, groups: int) -> None:
    assert nothing_found(chaos.run(items=250, kills=12, chain=chain, seed=7, pause_s=(0.1, 0.5), groups=groups))


@pytest.mark.timeout(180)
def test_no_limit_is_exceeded_and_no_lane_stays_closed_while_everything_is_killed() -> None:
    assert nothing_found(chaos.run(items=80, kills=8, chain="flow", seed=5, pause_s=(0.2, 0.6), groups=6))


@pytest.mark.timeout(180)
def test_a_store_that_allows_twice_what_its_limits_say_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAOS_LIE", "roomy")
    outcome = chaos.run(items=100, kills=3, chain="flow", seed=9, pause_s=(0.1, 0.5))
    assert outcome["findings"]["crowded"] > 0, outcome


@pytest.mark.timeout(180)
def test_a_supervisor_that_stands_still_for_longer_than_a_lease_settles_too_late_and_without_effect() -> None:
    outcome = chaos.run(items=200, kills=8, seed=5, pause_s=(0.1, 0.5), freezes=1)
    assert nothing_found(outcome)
    assert outcome["stale_settles_refused"] > 0


@pytest.mark.timeout(240)
def test_a_server_that_is_stopped_as_if_it_had_crashed_loses_and_doubles_nothing(own_postgres: PostgresServer) -> None:
    outcome = chaos.run(items=250, kills=15, seed=7, pause_s=(0.1, 0.5), url=fresh_database(own_postgres), server=own_postgres, restart_every_s=1.5)
    assert nothing_found(outcome)
    assert outcome["server_restarts"] > 0


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("lie", "freezes", "expected"), [("forgets", 0, {"stale"}), ("twice", 0, {"unexplained", "overlap"}), ("unfenced", 1, {"stale"})]
)
def test_an_engine_that_lies_now_and_then_is_found_out(monkeypatch: pytest.MonkeyPatch, lie: str, freezes: int, expected: set[str]) -> None:
    monkeypatch.setenv("CHAOS_LIE", lie)
    outcome = chaos.run(items=150, kills=4, seed=9, pause_s=(0.1, 0.4), freezes=freezes)
    assert {name for name, count in outcome["findings"].items() if count} >= expected, outcome
