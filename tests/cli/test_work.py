"""Real processes: a worker, what the commands say while and after it works, and how it stops."""

import json
import signal

import pytest

from tests.cli.conftest import ENDS_S, until


@pytest.fixture
def worker(process, tasks):
    """A worker of the folder's app, receiving. Its runners and the store are real."""
    child = process("worker", "--json", "--slots", "2", "--runners", "1", "--lease", "5")
    started = json.loads(child.stdout.readline())
    assert started["queues"]["double"] == 2
    child.started = started
    return child


def test_a_result_comes_back_and_the_worker_is_seen(worker, beltline):
    said = beltline("send", "double", "21", "--wait", "--timeout", "30")
    assert (said.code, said.out) == (0, "42\n")
    [seen] = beltline("fleet", "ls", "--json").json
    assert (seen["id"], seen["state"], seen["queues"]["double"]) == (worker.started["worker"], "up", 2)
    assert beltline("fleet", "show", seen["id"][:-3], "--json").json["id"] == seen["id"]
    shown = beltline("fleet", "show", seen["id"]).out
    assert "number 1, pid " in shown
    assert "MB, up " in shown
    assert "{" not in shown
    assert beltline("fleet", "show", "nobody").code == 3
    assert beltline("health").code == 0
    assert any(each["check"] == "workers" and each["found"] == "1 worker up" for each in beltline("doctor", "--json").json)


def test_a_failed_task_is_exit_code_1_and_a_dead_letter(worker, beltline):
    said = beltline("send", "refuse", "not today", "--wait", "--timeout", "30")
    assert said.code == 1
    assert "error[BLT-305]" in said.err
    assert "not today" in said.err
    [dead] = beltline("dead", "ls", "--json").json
    assert dead["error"]["cause"] == "rejected"


def test_a_run_through_a_chain_is_shown_stage_by_stage_and_run_again(worker, beltline):
    said = beltline("send", "words", "a,bb,ccc", "--wait", "--timeout", "30", "--json")
    assert said.json["result"] == 6
    id = said.json["id"]
    detail = beltline("run", "show", id, "--json").json
    assert (detail["state"], detail["result"], detail["open"]) == ("done", 6, 0)
    assert [(part["stage"], part["item"]) for part in detail["messages"]] == [
        ("lines", ""),
        ("measure", "0"),
        ("measure", "1"),
        ("measure", "2"),
        ("total", ""),
    ]
    assert all(part["waited_s"] >= 0 and part["state"] == "done" for part in detail["messages"])
    [gather] = detail["gathers"]
    assert (gather["stage"], gather["expected"], gather["missing"], gather["fired"]) == ("total", 3, 0, True)
    text = beltline("run", "show", id).out
    assert "measure 2" in text
    assert "result 6" in text

    again = beltline("run", "rerun", id, "--from", "measure", "--json").json
    assert (again["rerun_of"], again["stage"], again["chain"]) == (id, "measure", "words")
    rerun = until(lambda: found if (found := beltline("run", "show", again["id"], "--json").json)["state"] == "done" else None)
    assert rerun["result"] == 6
    assert {part["stage"] for part in rerun["messages"]} == {"measure", "total"}
    assert [item["id"] for item in beltline("run", "ls", "--json").json] == [id, again["id"]]

    chain = beltline("chain", "show", "words", "--json").json
    assert (chain["entered"], chain["done"]) == (2, 2)
    assert [(stage["name"], stage["kind"]) for stage in chain["stages"]] == [("lines", "one"), ("measure", "split"), ("total", "gather")]


def test_a_gather_that_lost_a_part_says_so(worker, beltline):
    [id] = beltline("send", "words", "a,bad").out.split()
    until(lambda: beltline("run", "show", id, "--json").json["state"] == "dead")
    text = beltline("run", "show", id).out
    assert "gather at total: 1 part of 2 missing, of which some are dead" in text
    assert "Reject: a bad line" in text
    assert beltline("run", "cancel", id, "--yes", "--json").code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_the_worker_and_it_leaves_no_trace(worker, beltline, number):
    worker.send_signal(number)
    assert worker.wait(ENDS_S) == 0
    assert beltline("fleet", "ls", "--json").json == []


def test_burst_ends_when_nothing_is_left(run, tasks, beltline):
    ids = [beltline("send", "double", str(n)).out.strip() for n in range(3)]
    said = run("worker", "--burst", "-q", "double:2")
    assert said.code == 0, said.err
    assert [beltline("message", "show", id, "--json").json["outcome"] for id in ids] == ["succeeded"] * 3


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (("-q", "nothing:2"), 2, "error[BLT-205]"),
        (("-q", "double:0"), 2, "error[BLT-101]"),
        (("-q", "double:9..2"), 2, "error[BLT-101]"),
        (("--drain", "-1"), 2, "error[BLT-101]"),
        (("--lease", "never"), 2, "error[BLT-101]"),
        (("--url", "memory://"), 2, "runners are processes of their own"),
        (("nothing_there:app",), 2, "no module 'nothing_there'"),
    ],
)
def test_a_worker_that_cannot_start_says_why(run, tasks, words, code, part):
    said = run("worker", *words)
    assert said.code == code
    assert said.err.startswith("error")
    assert part in said.err


def test_without_an_app_the_worker_says_how_to_name_one(beltline, folder):
    said = beltline("worker")
    assert said.code == 2
    assert "BELTLINE_APP" in said.err


def test_dev_takes_up_changed_code_and_keeps_the_old_when_the_new_is_broken(process, tasks, beltline, run):
    child = process("dev", "--json")
    assert json.loads(child.stdout.readline())["queues"]["double"] == 4
    assert run("send", "double", "1", "--wait").out == "2\n"
    good = tasks.read_text()
    tasks.write_text(good.replace("2 * number", "3 * number"))
    assert json.loads(child.stdout.readline()) == {"version": 1, "files": [tasks.name], "restarts": "runners"}
    until(lambda: run("send", "double", "1", "--wait").out == "3\n")
    (tasks.parent / "beltline.toml").write_text(f'app = "{tasks.stem}:app"\nslots = 2\n')
    assert json.loads(child.stdout.readline())["restarts"] == "worker"
    assert json.loads(child.stdout.readline())["queues"]["double"] == 2
    child.send_signal(signal.SIGINT)
    assert child.wait(ENDS_S) == 0


def test_dev_waits_for_a_change_when_the_first_code_is_broken(process, tasks, run):
    good = tasks.read_text()
    tasks.write_text("def broken(:")
    child = process("dev", "--json")
    for line in child.stderr:
        if "Waiting for a change" in line:
            break
    tasks.write_text(good)
    assert json.loads(child.stdout.readline())["restarts"] == "worker"
    assert json.loads(child.stdout.readline())["queues"]["double"] == 4
    child.send_signal(signal.SIGTERM)
    assert child.wait(ENDS_S) == 0


def test_bench_measures_in_a_file_of_its_own_and_leaves_nothing(run, folder):
    said = run("bench", "300", "--slots", "4", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["messages"] == 300
    assert min(found[name] for name in ("send_one_p50_s", "send_many_per_s", "drain_per_s")) > 0
    assert [path for path in folder.iterdir() if not path.name.startswith(".cache")] == []
