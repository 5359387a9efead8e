"""From a URL to an engine, and a clear word for every URL that leads nowhere."""

from pathlib import Path

import pytest

from beltline.core.capabilities import Durability
from beltline.core.errors import UrlInvalid
from beltline.engines.memory import MemoryEngine
from beltline.engines.protocol import Browse, Control, Engine, Fleet, Results, Runs, Upkeep
from beltline.engines.registry import known_engines, make_engine
from beltline.engines.sqlite import SqliteEngine
from beltline.testing.clock import ManualClock


def test_three_slashes_are_relative_to_where_we_are_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    engine = make_engine("sqlite:///queues/work.db")
    monkeypatch.chdir("/")
    assert isinstance(engine, SqliteEngine)
    assert engine.path == tmp_path / "queues" / "work.db"


def test_four_slashes_are_absolute_and_names_may_be_odd() -> None:
    for url, path in {
        "sqlite:////var/lib/app/queue.db": "/var/lib/app/queue.db",
        "sqlite:////tmp/my%20queue%23.db": "/tmp/my queue#.db",
        "sqlite:////tmp/q%C3%BC.db": "/tmp/qü.db",
    }.items():
        engine = make_engine(url)
        assert isinstance(engine, SqliteEngine)
        assert str(engine.path) == path


@pytest.mark.parametrize("word", ["disk", "os", "memory", "OS"])
def test_the_durability_is_asked_for_by_name(word: str) -> None:
    level = Durability[word.upper()]
    assert make_engine(f"sqlite:///q.db?durability={word}").capabilities.durability is level
    assert make_engine("sqlite:///q.db", durability=word).capabilities.durability is level
    assert make_engine("sqlite:///q.db?durability=disk", durability=word).capabilities.durability is level
    assert make_engine("sqlite:///q.db").capabilities.durability is Durability.DISK


def test_memory_by_name_is_one_engine_and_without_a_name_its_own() -> None:
    assert make_engine("memory://shop") is make_engine("memory://shop")
    assert make_engine("memory://shop") is not make_engine("memory://other")
    assert make_engine("memory://") is not make_engine("memory://")
    assert isinstance(make_engine("memory://"), MemoryEngine)


def test_limit_clock_and_audit_reach_the_engine(tmp_path: Path) -> None:
    clock = ManualClock()
    engine = make_engine(f"sqlite:///{tmp_path}/q.db?audit=1", max_body=10, clock=clock)
    assert isinstance(engine, SqliteEngine)
    assert (engine.capabilities.max_body, engine._clock, engine._audit) == (10, clock, True)
    assert make_engine("memory://", max_body=10).capabilities.max_body == 10


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlit:///q.db", "Did you mean sqlite://"),
        ("memroy://", "Did you mean memory://"),
        ("ftp://host", "sqlite:///beltline.db"),
        ("q.db", "begins with its scheme"),
        ("", "begins with its scheme"),
        ("sqlite:q.db", "begins with its scheme"),
        ("sqlite://q.db", "three slashes"),
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:///folder/", "names no file"),
        ("sqlite:///q%00.db", "names no file"),
        ("sqlite:///q.db?durabilty=os", "no option"),
        ("sqlite:///q.db?durability=fast", "disk, os or memory"),
        ("sqlite:///q.db?audit=maybe", "audit=1"),
        ("sqlite:///q#1.db", "%23"),
        ("memory://name/path", "no path"),
        ("memory://?durability=disk", "cannot hold"),
        ("memory://?audit=1", "no option"),
    ],
)
def test_a_url_that_leads_nowhere_says_why_and_what_to_write(url: str, says: str) -> None:
    with pytest.raises(UrlInvalid) as refused:
        make_engine(url)
    assert says in str(refused.value)


@pytest.mark.parametrize("scheme", ["redis", "nats", "sqs", "amqp", "kafka", "azure"])
def test_an_engine_of_a_later_version_is_not_sold_as_a_missing_package(scheme: str) -> None:
    with pytest.raises(UrlInvalid, match="in this version") as refused:
        make_engine(f"{scheme}://user:geheim@host/db")
    assert "pip install" not in str(refused.value)
    assert "geheim" not in str(refused.value)


def test_every_engine_of_the_list_can_be_made_and_has_every_power() -> None:
    infos = known_engines()
    assert {info.scheme for info in infos} == {"sqlite", "postgresql", "memory"}
    for info in infos:
        engine = make_engine(info.example)
        assert engine.capabilities == info.capabilities
        assert engine.name == info.scheme
        for power in (Engine, Browse, Results, Control, Runs, Fleet, Upkeep):
            assert isinstance(engine, power)
