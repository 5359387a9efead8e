"""A line target is a part of the chain's plan."""

import math
from datetime import timedelta
from typing import Any

import pytest

from beltline import App
from beltline.core.errors import ConfigInvalid, ValueInvalid
from beltline.core.names import QueueName
from beltline.core.queues import QueueSpec


def line(**options: Any) -> Any:
    app = App("memory://")

    @app.task
    def first(n: int) -> int:
        return n

    @app.task
    def second(n: int) -> int:
        return n

    return app.chain("line", first >> second, **options)


@pytest.mark.parametrize("said", ["60s", "1m", 60, 60.0, timedelta(minutes=1)])
def test_a_line_target_is_seconds_a_timedelta_or_a_text(said: Any) -> None:
    assert line(within=said).plan.within_s == 60.0


def test_a_chain_without_one_has_all_the_time() -> None:
    assert line().plan.within_s == math.inf


@pytest.mark.parametrize("said", ["soon", "60 x", 0, -1, "0s", math.nan, True])
def test_what_is_no_target_is_refused_where_it_is_said(said: Any) -> None:
    with pytest.raises(ValueInvalid, match="within"):
        line(within=said)


def test_a_queue_has_a_target_of_its_own() -> None:
    app = App("memory://")
    assert app.queue("resize", target=timedelta(seconds=30)).target_s == 30.0
    assert app.queue("mail") == QueueSpec(name=QueueName("mail"))
    with pytest.raises(ValueInvalid, match="target"):
        app.queue("resize", target=0)


def test_the_configuration_lays_its_target_over_the_code(tmp_path: Any) -> None:
    from beltline.config import load

    (tmp_path / "beltline.toml").write_text('queues.resize = { target_s = "2m" }\n', encoding="utf-8")
    assert load({}, file=tmp_path / "beltline.toml").queues["resize"].target_s == 120.0
    (tmp_path / "beltline.toml").write_text('queues.resize = { target_s = "soon" }\n', encoding="utf-8")
    with pytest.raises(ConfigInvalid, match="target_s"):
        load({}, file=tmp_path / "beltline.toml")
