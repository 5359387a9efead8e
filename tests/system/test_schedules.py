"""The short version of `python -m tests.system.schedules`: schedulers that are killed as their schedules come due send each occurrence once, and none early."""

from typing import Any

import pytest

from beltline.core.schedule import occurrence
from beltline.core.views import MessageView
from tests.engines.postgres_kit import shared_server
from tests.services.postgres import fresh_database
from tests.system import schedules


def nothing_found(outcome: dict[str, Any]) -> bool:
    assert outcome["findings"] == dict.fromkeys(outcome["findings"], 0), outcome
    return True


@pytest.mark.timeout(180)
@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
def test_three_schedulers_that_are_killed_send_each_of_500_occurrences_once_and_none_early(engine: str) -> None:
    url = fresh_database(shared_server("wheel")) if engine == "postgres" else ""
    outcome = schedules.run(items=500, number=50, kills=12, seed=7, url=url)
    assert nothing_found(outcome)
    assert outcome["sent"] == outcome["occurrences"] == 500
    assert outcome["kills"] == 12


def test_the_checker_sees_what_is_missing_doubled_early_or_never_due() -> None:
    """Broken on purpose, each in its own way."""

    def views(*changes: tuple[int, dict[str, Any]]) -> list[Any]:
        made = schedules.specs(1)[0]
        messages = {due: occurrence(made, due) for due in (101.0, 102.0, 103.0)}
        return [MessageView(message=messages[due], state="ready", epoch=0, failed=0, lost=0, sent_at=due + late_s) for due, late_s in changes]

    def findings(*sent: tuple[float, float]) -> set[str]:
        verdict = schedules._judge(views(*sent), {"s0000": 100.5}, {"s0000": 102})
        return {name for name, texts in verdict["findings"].items() if texts}

    assert findings((101.0, 0.0), (102.0, 0.1), (103.0, 0.0)) == set()
    assert findings((101.0, 0.0)) == {"missing"}
    assert findings((101.0, 0.0), (102.0, 0.0), (102.0, 0.5)) == {"doubled"}
    assert findings((101.0, -0.001), (102.0, 0.0)) == {"early"}
