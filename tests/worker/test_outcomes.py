"""Every way a delivery can end, through a real supervisor and an in-process runner."""

import asyncio
from pathlib import Path

import msgspec

from beltline.core.codec import pack, unpack
from beltline.core.names import QueueName, TaskName
from beltline.core.outcome import Cause
from beltline.core.policy import PARKED
from tests.worker import lines
from tests.worker.kit import counts, ended, new_engine, outcomes, result, run, send, started, until, worker


async def test_async_and_plain_tasks_of_one_queue_run_side_by_side() -> None:
    engine = await new_engine()
    async with worker(engine, "work"):
        ids = await send(engine, *(task.call(n) for n in range(100) for task in (lines.double, lines.triple)))
        values = [await result(engine, id) for id in ids]
    assert values == [value for n in range(100) for value in (2 * n, 3 * n)]
    assert (await counts(engine, "work")).done == 200


async def test_what_a_task_leaves_in_a_context_variable_the_next_one_does_not_see() -> None:
    engine = await new_engine()
    async with worker(engine, "work", queues={"work": (1, 1)}):
        assert await run(engine, lines.leave_behind.call("mine")) == "clean mine 1"
        assert await run(engine, lines.leave_behind.call("mine")) == "clean mine 1"
        for _ in range(2):
            [id] = await send(engine, lines.leave_behind_in_thread.call("mine"))
            assert await result(engine, id) == f"clean {id}"


async def test_resources_are_opened_once_injected_and_closed_with_the_runner() -> None:
    engine = await new_engine()
    lines.opened.clear()
    async with worker(engine, "work"):
        assert await run(engine, lines.greet.call("Ada")) == "hello Ada"
        assert await run(engine, lines.greet.call("Alan")) == "hello Alan"
        assert lines.opened == ["open"]
    assert lines.opened == ["open", "closed"]


async def test_a_failing_task_is_retried_then_dead_lettered_with_its_traceback() -> None:
    engine = await new_engine()
    async with worker(engine, "work"):
        [id] = await send(engine, lines.boom.call("no photo"))
        view = await ended(engine, id)
    assert view.state == "dead"
    assert view.why == "failed after 2 attempts"
    assert view.failure is not None
    assert (view.failure.cause, view.failure.type, view.failure.text) == (Cause.ERROR, "ValueError", "no photo")
    assert "lines.py" in view.failure.traceback
    assert "slots.py" not in view.failure.traceback
    assert await outcomes(engine, id) == ["retry", "dead_letter"]


async def test_sys_exit_in_a_task_ends_the_delivery_and_not_the_runner() -> None:
    engine = await new_engine()
    async with worker(engine, "work"):
        [id] = await send(engine, lines.leave_by_exit.call())
        view = await ended(engine, id)
        assert view.failure is not None
        assert view.failure.type == "SystemExit"
        assert await run(engine, lines.double.call(4)) == 8


async def test_an_exception_named_in_never_is_not_retried_even_by_an_ancestor() -> None:
    engine = await new_engine()
    async with worker(engine, "work"):
        [id] = await send(engine, lines.look_up.call())
        view = await ended(engine, id)
    assert view.why == "KeyError is not retried"
    assert await outcomes(engine, id) == ["dead_letter"]


async def test_retry_later_spends_an_attempt_and_snooze_does_not(tmp_path: Path) -> None:
    engine = await new_engine()
    async with worker(engine, "work"):
        assert await run(engine, lines.later.call()) == 2
        assert await run(engine, lines.snooze.call(str(tmp_path))) == 1


async def test_cancel_and_reject_end_a_message_at_once() -> None:
    engine = await new_engine()
    async with worker(engine, "work"):
        [cancelled, rejected] = await send(engine, lines.cancel.call(), lines.reject.call())
        view = await ended(engine, cancelled)
        assert (view.state, view.outcome) == ("done", "cancelled")
        view = await ended(engine, rejected)
        assert (view.state, view.why) == ("dead", "the file is no photo")
        assert view.failure is not None
        assert view.failure.cause is Cause.REJECTED


async def test_a_result_no_queue_can_carry_is_a_failure_with_its_reason() -> None:
    engine = await new_engine()
    async with worker(engine, "work"):
        [id] = await send(engine, lines.carry_nothing.call())
        view = await ended(engine, id)
    assert view.state == "dead"
    assert view.failure is not None
    assert "cannot be carried" in view.failure.text


async def test_arguments_that_do_not_fit_are_dead_lettered_at_once() -> None:
    engine = await new_engine()
    async with worker(engine, "work"):
        [id] = await send(engine, lines.double.call(1), body=pack({"n": "three"}))
        view = await ended(engine, id)
    assert (view.state, view.why) == ("dead", "invalid_arguments")
    assert view.failure is not None
    assert "argument 'n'" in view.failure.text.lower()


async def test_a_task_nobody_here_knows_is_parked_without_an_attempt_and_blocks_nobody() -> None:
    engine = await new_engine()
    async with worker(engine, "work") as supervisor:
        [strange] = await send(engine, lines.double.call(1), task=TaskName("other.resise"))
        [ours] = await send(engine, lines.double.call(2))
        assert await result(engine, ours) == 4
        await until(lambda: supervisor.settler.parked)
        view = await engine.get(strange)
    assert (view.state, view.why, view.failed, view.lost) == ("delayed", PARKED, 0, 0)
    assert (await engine.counts(QueueName("work"))).parked == 1


async def test_a_stage_that_is_gone_parks_its_message() -> None:
    engine = await new_engine()
    async with worker(engine, "begin") as supervisor:
        call = lines.app.chains["sums"].call(1).message
        assert call.place is not None
        place = msgspec.structs.replace(call.place, stage="renamed")
        [sent] = await engine.send([msgspec.structs.replace(call, place=place)])
        await until(lambda: supervisor.settler.parked)
        assert (await engine.get(sent.id)).why == PARKED


async def test_a_chain_splits_gathers_and_gives_one_result() -> None:
    engine = await new_engine()
    async with worker(engine, "begin", "widen", "add_up"):
        ids = [sent.id for sent in await engine.send([lines.app.chains["sums"].call(n).message for n in range(1, 20)])]
        assert [await result(engine, id) for id in ids] == [111 * n for n in range(1, 20)]


async def test_a_branch_chooses_by_the_value() -> None:
    engine = await new_engine()
    async with worker(engine, "look", "is_even", "is_odd"):
        ids = [sent.id for sent in await engine.send([lines.app.chains["parity"].call(n).message for n in (1, 2)])]
        assert [await result(engine, id) for id in ids] == ["odd", "even"]


async def test_progress_reaches_the_store_while_the_task_runs(tmp_path: Path) -> None:
    engine = await new_engine()
    async with worker(engine, "work"):
        [id] = await send(engine, lines.tell.call(42, str(tmp_path)))
        view = await until(lambda: progress_of(engine, id))
        assert unpack(view) == 42
        (tmp_path / "go").touch()
        await result(engine, id)


async def progress_of(engine: object, id: str) -> bytes | None:
    [view] = await engine.results([id])  # type: ignore[attr-defined]
    return view.progress if view else None


async def test_a_running_task_is_cancelled_on_request_within_seconds(tmp_path: Path) -> None:
    engine = await new_engine()
    async with worker(engine, "gate"):
        [first, second] = await send(engine, lines.gate.call(str(tmp_path)), lines.gate_in_thread.call(str(tmp_path)))
        await until(lambda: len(started(tmp_path)) == 2)
        await engine.cancel([first, second], reason="changed my mind")
        for id in (first, second):
            view = await ended(engine, id)
            assert (view.state, view.outcome) == ("done", "cancelled")
        assert (tmp_path / f"stopped-{first}").exists()


async def test_an_async_task_over_its_timeout_is_cancelled_and_retried() -> None:
    engine = await new_engine()
    async with worker(engine, "short"):
        [id] = await send(engine, lines.wait_for_ever.call())
        view = await ended(engine, id)
    assert view.state == "dead"
    assert view.failure is not None
    assert view.failure.cause is Cause.TIMEOUT
    assert await outcomes(engine, id) == ["retry", "dead_letter"]


async def test_a_thread_over_its_timeout_is_stopped_in_its_python_code_and_its_slot_works_on() -> None:
    engine = await new_engine()
    async with worker(engine, "short", "work", queues={"short": (1, 1), "work": (1, 1)}):
        [id] = await send(engine, lines.loop_for_ever.call())
        view = await ended(engine, id)
        assert view.failure is not None
        assert view.failure.cause is Cause.TIMEOUT
        [again] = await send(engine, lines.loop_for_ever.call())
        assert (await ended(engine, again)).state == "dead"
        assert await run(engine, lines.triple.call(5)) == 15


async def test_a_thread_that_looks_at_stop_asked_can_end_by_itself(tmp_path: Path) -> None:
    engine = await new_engine()
    async with worker(engine, "short"):
        [id] = await send(engine, lines.look_at_stop_asked.call(str(tmp_path)), retry=None)
        await until((tmp_path / "asked").exists)
        await ended(engine, id)


async def test_the_messages_own_timeout_wins_over_the_tasks(tmp_path: Path) -> None:
    engine = await new_engine()
    async with worker(engine, "gate"):
        [id] = await send(engine, lines.gate.call(str(tmp_path)), timeout_s=0.2)
        await until((tmp_path / f"stopped-{id}").exists)
        (tmp_path / "go").touch()
        assert await result(engine, id)


async def test_slots_bound_what_runs_at_once_and_nothing_waits_in_a_busy_worker(tmp_path: Path) -> None:
    engine = await new_engine()
    async with worker(engine, "gate"):
        await send(engine, *(lines.gate.call(str(tmp_path)) for _ in range(10)))
        await until(lambda: len(started(tmp_path)) == 4)
        await asyncio.sleep(0.1)  # long enough for a worker that hoards to do it
        seen = await counts(engine, "gate")
        assert (seen.leased, seen.ready) == (4, 6)
        (tmp_path / "go").touch()
        await until(lambda: counts_done(engine, "gate", 10))


async def counts_done(engine: object, queue: str, number: int) -> bool:
    found = await counts(engine, queue)  # type: ignore[arg-type]
    return found.done == number


async def test_burst_ends_when_nothing_is_left_to_run() -> None:
    engine = await new_engine()
    await send(engine, *(lines.double.call(n) for n in range(50)))
    await send(engine, lines.double.call(1), delay_s=3600.0)
    async with worker(engine, "work", burst=True) as supervisor:
        await until(lambda: supervisor.draining)
    seen = await counts(engine, "work")
    assert (seen.done, seen.delayed) == (50, 1)
