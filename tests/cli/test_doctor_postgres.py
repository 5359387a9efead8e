"""`beltline doctor` on a PostgreSQL: what it promises, who stands in the way, whether hints come through."""

import psycopg


def findings(said) -> dict[str, dict[str, str]]:
    return {item["check"]: item for item in said.json}


def test_a_sound_server_has_no_problem(beltline, postgres, postgres_url):
    said = beltline("doctor", "--url", postgres_url, "--json")
    assert said.code == 0, said.out
    found = findings(said)
    assert found["postgresql"]["found"].startswith(f"version {postgres.version[0]}")
    for check in ("durability", "autovacuum", "connections", "tables", "wakeups"):
        assert found[check]["verdict"] == "ok", found[check]
    assert found["wakeups"]["found"] == "hints are heard"
    assert "the server's clock" in found["clock"]["found"]


def test_the_oldest_transaction_is_named(beltline, postgres_url):
    assert beltline("migrate", "--url", postgres_url).code == 0
    with psycopg.connect(postgres_url, application_name="a report") as user:
        user.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        user.execute("SELECT 1")
        found = findings(beltline("doctor", "--url", postgres_url, "--json"))["oldest"]
        assert found["found"].startswith(f"backend {user.info.backend_pid} (a report) holds back vacuum by")
        assert "its last statement began 20" in found["found"]


def test_behind_a_pooler_it_says_that_polling_is_all_there_is(beltline, pooler_url):
    found = findings(beltline("doctor", "--url", pooler_url, "--json"))
    assert found["wakeups"]["verdict"] == "note"


def test_a_store_that_takes_part_in_a_move_says_so(beltline, store, postgres_url):
    store.send("resize")
    assert beltline("engine", "move", "--from", "sqlite:///beltline.db", "--to", postgres_url).code == 0
    assert "closed by a move" in findings(beltline("doctor", "--json"))["move"]["found"]
    assert "move" not in findings(beltline("doctor", "--url", postgres_url, "--json"))


def test_engine_ls_shows_postgresql(beltline, postgres_url):
    [item] = [item for item in beltline("engine", "ls", "--url", postgres_url, "--json").json if item["name"] == "postgresql"]
    assert item["here"] is True
    assert item["capabilities"]["durability"] == "disk"
    assert item["extra"] == "postgres"
    powers = beltline("engine", "show", "--url", postgres_url, "--json").json["powers"]
    assert {"movable", "upkeep", "transactional"} <= set(powers)
