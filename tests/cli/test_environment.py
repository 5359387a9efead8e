"""init, config, doctor, engine, health, completion, chain and run without a worker."""

import json
import os
import subprocess
import sys
import tomllib

import pytest

from beltline.cli.init import NEXT
from tests.cli.conftest import ENDS_S


def by_check(said):
    found = {}
    for item in said.json:
        found.setdefault(item["check"], []).append(item)
    return found


# ---------------------------------------------------------------------------------------------------------------- init
def test_init_writes_what_works(beltline, run, folder, process):
    made = beltline("init", "--json").json
    assert made["files"] == ["tasks.py", "beltline.toml"]
    assert tomllib.loads((folder / "beltline.toml").read_text())["app"] == "tasks:app"
    worker = process(*NEXT[0].split()[1:], "--json")
    worker.stdout.readline()
    assert run("send", "greet", "World", "--wait", "--timeout", "30").out == '"Hello, World!"\n'
    assert run("send", "words", "one two three", "--wait", "--timeout", "30").out == '"3 words in 1 lines"\n'
    assert "[count]" in run("chain", "show", "words").out


def test_init_never_writes_over_a_file(beltline, folder):
    (folder / "tasks.py").write_text("mine")
    said = beltline("init")
    assert said.code == 6
    assert "tasks.py is already here" in said.err
    assert (folder / "tasks.py").read_text() == "mine"
    assert not (folder / "beltline.toml").exists()


# -------------------------------------------------------------------------------------------------------------- config
def test_config_show_says_where_everything_comes_from(beltline, folder, monkeypatch):
    (folder / "beltline.toml").write_text('url = "sqlite:///file.db"\nqueues.resize = "2..8"\n')
    monkeypatch.setenv("BELTLINE_DRAIN_S", "2m")
    monkeypatch.setenv("BELTLINE_DRIAN_S", "1")
    said = beltline("config", "show", "--origin", "--json")
    found = {item["key"]: (item["value"], item["origin"]) for item in said.json}
    assert found["url"] == ("sqlite:///file.db", "beltline.toml:1")
    assert found["queues.resize.slots"] == ("2..8", "beltline.toml:2")
    assert found["drain_s"] == (120.0, "BELTLINE_DRAIN_S")
    assert found["durability"] == ("disk", "default")
    assert "BELTLINE_DRIAN_S is set, and this version does not read it. Did you mean BELTLINE_DRAIN_S?" in said.err


def test_a_password_in_a_url_is_never_shown(beltline, monkeypatch):
    monkeypatch.setenv("BELTLINE_URL", "postgresql://ann:secret@db/app")
    for words in (("config", "show"), ("doctor",), ("queue", "ls"), ("config", "show", "--json")):
        said = beltline(*words)
        assert "secret" not in said.out + said.err, words


def test_a_bad_value_names_key_value_range_and_origin(beltline, monkeypatch):
    monkeypatch.setenv("BELTLINE_DRAIN_S", "-1")
    said = beltline("config", "show")
    assert said.code == 2
    assert "error[BLT-101]: drain_s = '-1' is not allowed (from BELTLINE_DRAIN_S)." in said.err
    assert "seconds 0..3600" in said.err


# -------------------------------------------------------------------------------------------------------------- doctor
def test_doctor_finds_nothing_wrong_with_a_healthy_folder(beltline, store):
    said = beltline("doctor", "--json")
    assert said.code == 0
    found = by_check(said)
    assert {"python", "packages", "clock", "configuration", "sqlite", "folder", "file system", "disk", "file", "engine", "workers", "queues"} <= set(
        found
    )
    assert "durability disk" in found["engine"][0]["found"]


def test_doctor_before_the_first_send_is_no_problem(beltline, folder):
    said = beltline("doctor", "--json")
    assert said.code == 0
    assert by_check(said)["file"][0]["verdict"] == "note"


def test_doctor_names_a_foreign_file_a_missing_folder_and_a_bad_setting(beltline, folder, monkeypatch):
    (folder / "beltline.db").write_bytes(b"x" * 5000)
    said = beltline("doctor", "--json")
    assert said.code == 1
    assert "BLT-402" in by_check(said)["engine"][0]["found"]
    said = beltline("doctor", "--json", "--url", f"sqlite:///{folder}/nothing/x.db")
    assert by_check(said)["folder"][0]["verdict"] == "problem"
    monkeypatch.setenv("BELTLINE_SLOTS", "many")
    said = beltline("doctor", "--json")
    assert (said.code, by_check(said)["configuration"][0]["verdict"]) == (1, "problem")


def test_doctor_tells_of_dead_and_paused(beltline, store):
    store.kill("mail")
    beltline("queue", "pause", "resize")
    texts = [item["found"] for item in by_check(beltline("doctor", "--json"))["queues"]]
    assert "mail: 1 dead message" in texts
    assert "resize is paused" in texts


# ------------------------------------------------------------------------------------------------------ engine, health
def test_engines_are_listed_with_numbers(beltline):
    found = {item["name"]: item for item in beltline("engine", "ls", "--json").json}
    assert set(found) >= {"sqlite", "memory"}
    assert found["sqlite"]["here"] is True
    assert found["sqlite"]["capabilities"]["durability"] == "disk"
    assert found["sqlite"]["capabilities"]["max_delay_s"] is None


def test_the_opened_engine_names_its_powers(beltline, store):
    found = beltline("engine", "show", "--json").json
    assert set(found["powers"]) == {"browse", "results", "control", "runs", "fleet", "sizes", "upkeep", "transactional", "movable"}
    assert beltline("engine", "show", "--json", "--url", "sqlite:///beltline.db?durability=os").json["capabilities"]["durability"] == "os"


def test_health_is_1_when_messages_wait_and_nobody_serves_them(beltline, store):
    assert beltline("health").code == 0
    store.send("resize")
    said = beltline("health", "--json")
    assert (said.code, said.json["ok"], said.json["unserved"]) == (1, False, ["resize"])
    assert beltline("health", "--live").code == 0


# ------------------------------------------------------------------------------------------------- chains without work
def test_a_chain_is_drawn_with_its_stages(beltline, tasks):
    beltline("send", "words", "a,b")
    text = beltline("chain", "show", "words").out
    assert text.index("[lines]") < text.index("each: each element") < text.index("[measure]") < text.index("[total]")
    [item] = beltline("chain", "ls", "--json").json
    assert (item["name"], item["entered"], item["running"]) == ("words", 1, 1)


def test_pausing_a_chain_pauses_every_stage(beltline, tasks):
    found = beltline("chain", "pause", "words", "--json").json
    assert [stage["paused"] for stage in found["stages"]] == [True, True, True]
    assert [stage["paused"] for stage in beltline("chain", "resume", "words", "--json").json["stages"]] == [False, False, False]


def test_looking_at_a_chain_before_the_first_send_makes_nothing(beltline, tasks, folder):
    assert beltline("chain", "show", "words").code == 4
    assert not (folder / "beltline.db").exists()


def test_an_unknown_chain_or_stage_is_not_found(beltline, tasks):
    [id] = beltline("send", "words", "a,b").out.split()
    said = beltline("chain", "show", "wrods")
    assert (said.code, "Did you mean 'words'?" in said.err) == (3, True)
    assert beltline("run", "rerun", id, "--from", "nowhere").code == 3
    assert beltline("run", "show", "0" * 32).code == 3


def test_run_ls_by_chain_and_state_needs_no_code(beltline, tasks, folder):
    [id] = beltline("send", "words", "a,b").out.split()
    (folder / "beltline.toml").unlink()
    assert beltline("run", "ls", "--chain", "words", "--quiet").out.split() == [id]
    assert beltline("run", "ls", "--chain", "words", "--state", "done", "--json").json == []
    assert beltline("run", "ls").code == 2


def test_a_run_is_cancelled_with_a_reason(beltline, tasks):
    [id] = beltline("send", "words", "a,b").out.split()
    assert beltline("run", "cancel", id).code == 6
    found = beltline("run", "cancel", id, "--yes", "--reason", "wrong input", "--json").json
    assert (found["state"], found["reason"]) == ("cancelled", "wrong input")
    assert beltline("run", "cancel", id, "--yes").code == 6


def test_chain_watch_ends_when_nothing_runs(beltline, store, tasks):
    said = beltline("chain", "watch", "words", "--until-done", "--json")
    assert json.loads(said.out)["running"] == 0


def test_what_the_code_says_of_the_engine_wins_over_the_environment_and_is_told(run, folder, tasks, store, monkeypatch):
    tasks.write_text(tasks.read_text().replace("App()", 'App("sqlite:///code.db")'))
    said = run("send", "double", "1")
    assert (said.code, said.err) == (0, "")
    assert (folder / "code.db").exists()
    monkeypatch.setenv("BELTLINE_URL", "sqlite:///env.db")
    assert "the app's code says sqlite:///code.db, BELTLINE_URL says sqlite:///env.db: using the former" in run("chain", "ls").err
    assert not (folder / "env.db").exists()


# ---------------------------------------------------------------------------------------------------------- completion
@pytest.mark.parametrize(("shell", "mark"), [("bash", "complete -o nosort -F"), ("zsh", "#compdef beltline"), ("fish", "complete --no-files")])
def test_scripts_for_three_shells(beltline, shell, mark):
    said = beltline("completion", shell)
    assert said.code == 0
    assert mark in said.out
    assert beltline("completion", shell, "--json").json["script"] == said.out.rstrip("\n")


def test_another_shell_is_a_usage_error(beltline):
    assert beltline("completion", "cmd").code == 2


def completed(*words):
    environ = {**os.environ, "_BELTLINE_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(["beltline", *words]), "COMP_CWORD": str(len(words))}
    said = subprocess.run([sys.executable, "-m", "beltline"], env=environ, capture_output=True, text=True, timeout=ENDS_S, check=True)
    assert said.stderr == ""
    return {line.partition(",")[2] for line in said.stdout.splitlines()}


def test_commands_and_options_complete(folder):
    assert {"queue", "message"} <= completed("")
    assert completed("queue", "pu") == {"purge"}
    assert "--dry-run" in completed("queue", "purge", "--")


def test_real_queue_names_complete(store):
    assert completed("queue", "show", "") == {"resize", "mail"}
    assert completed("queue", "show", "re") == {"resize"}


def test_tasks_and_chains_of_the_app_complete_even_if_its_module_prints(tasks, store):
    tasks.write_text("print('hello')\n" + tasks.read_text())
    assert {"words", f"{tasks.stem}.double"} <= completed("send", "")


def test_without_a_store_completion_is_silent(folder):
    assert completed("queue", "show", "") == set()


def test_a_broken_app_does_not_speak_in_the_middle_of_the_line(tasks, store):
    tasks.write_text("1 / 0")
    assert completed("send", "") == set()
