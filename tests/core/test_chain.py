"""What follows a message of a chain: to, split, gather, branch, and all of them inside each other."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from beltline.core.chain import Answer, ChainPlan, Choose, End, Next, Split, StagePlan, To, advance, follow, gathered, split
from beltline.core.codec import pack, unpack
from beltline.core.errors import BodyTooLarge, MessageInvalid
from beltline.core.limits import MAX_BATCH
from beltline.core.message import Gather, Message, Part, Place
from beltline.core.names import ChainName, MessageId, QueueName, RunId, StageName, TaskName, message_id
from beltline.core.outcome import Ack
from beltline.core.queues import Feed
from beltline.core.retry import Retry

RUN = RunId("a" * 32)
NO_KEYS: dict[str, list[Any]] = {}


def stage(name: str, what: Next, *, param: str = "value", retry: Retry | None = None, timeout_s: float | None = None) -> StagePlan:
    return StagePlan(
        name=StageName(name), task=TaskName(f"do_{name}"), queue=QueueName(f"q.{name}"), param=param, next=what, retry=retry, timeout_s=timeout_s
    )


def chain(*stages: StagePlan, result_ttl_s: float = 60.0) -> ChainPlan:
    return ChainPlan(name=ChainName("album"), stages=stages, result_ttl_s=result_ttl_s)


def to(name: str) -> To:
    return To(StageName(name))


def each(name: str, *, gather: str = "", keys: dict[str, list[Any]] = NO_KEYS, over_items: bool = True, on_dead: str = "hold") -> Split:
    return Split(StageName(name), over_items, keys, gather, on_dead)


def entry(plan: ChainPlan) -> Message:
    first = plan.stages[0]
    return Message(
        id=MessageId("0190" + "b" * 28),
        queue=first.queue,
        task=first.task,
        body=pack({}),
        headers={"trace": "t1"},
        priority=7,
        group="customer 5",
        place=Place(RUN, plan.name, first.name),
    )


def body(message: Message) -> Any:
    return unpack(message.body)


LINE = chain(stage("a", to("b")), stage("b", End(), param="photo", retry=Retry(attempts=9), timeout_s=5.0))


def test_a_message_without_a_place_keeps_its_result_itself() -> None:
    message = structs.replace(entry(LINE), place=None)
    ack = Ack(ran_s=2.0, result_ttl_s=9.0)
    assert advance(ack, LINE, message, pack(5)) == structs.replace(ack, result=pack(5))


def test_the_value_goes_to_the_next_stage_as_its_parameter() -> None:
    ack = advance(Ack(ran_s=2.0), LINE, entry(LINE), pack("x.jpg"))
    [message] = ack.then
    assert body(message) == {"photo": "x.jpg"}
    assert (message.queue, message.task, message.retry, message.timeout_s) == ("q.b", "do_b", Retry(attempts=9), 5.0)
    assert message.place == Place(RUN, ChainName("album"), StageName("b"))
    assert (ack.result, ack.part, ack.gathers, ack.ran_s) == (None, None, (), 2.0)


def test_trace_priority_and_group_travel_down_the_chain() -> None:
    [message] = advance(Ack(), LINE, entry(LINE), pack(1)).then
    assert (message.headers, message.priority, message.group) == ({"trace": "t1"}, 7, "customer 5")


def test_the_last_value_is_the_result_of_the_run_for_the_time_the_chain_says() -> None:
    [last] = advance(Ack(), LINE, entry(LINE), pack(1)).then
    ack = advance(Ack(result_ttl_s=1.0), LINE, last, pack([1, 2]))
    assert (ack.result, ack.result_ttl_s, ack.then, ack.part) == (pack([1, 2]), 60.0, (), None)


def test_a_repeated_hand_off_makes_the_same_message() -> None:
    assert advance(Ack(), LINE, entry(LINE), pack(1)) == advance(Ack(), LINE, entry(LINE), pack(1))


def test_a_stage_that_is_gone_makes_the_message_invalid_not_the_worker_crash() -> None:
    message = entry(LINE)
    assert message.place is not None
    with pytest.raises(MessageInvalid, match="Stages: a, b"):
        advance(Ack(), LINE, structs.replace(message, place=structs.replace(message.place, stage=StageName("old"))), pack(1))


PHOTOS = chain(
    stage("mark", each("resize", gather="album", keys={"width": [64, 640]}, over_items=False)),
    stage("resize", Answer("album")),
    stage("album", End(), param="photos"),
)


def test_a_split_makes_one_message_per_combination_and_one_gather_for_all() -> None:
    ack = advance(Ack(), PHOTOS, entry(PHOTOS), pack("x.jpg"))
    [gather] = ack.gathers
    assert [body(message) for message in ack.then] == [{"value": "x.jpg", "width": 64}, {"value": "x.jpg", "width": 640}]
    assert [message.place and (message.place.item, message.place.parts) for message in ack.then] == [
        ("0", (Part(gather.id, 0),)),
        ("1", (Part(gather.id, 1),)),
    ]
    assert (gather.expected, gather.param, gather.on_dead, gather.run, gather.outer, gather.result_ttl_s) == (2, "photos", "hold", RUN, None, 60.0)
    assert gather.then is not None
    assert gather.then.place == Place(RUN, ChainName("album"), StageName("album"))


def test_items_times_keys_with_the_items_slowest() -> None:
    plan = chain(stage("a", each("b", keys={"x": [1, 2], "y": ["p", "q"]})), stage("b", Answer()))
    ack = advance(Ack(), plan, entry(plan), pack(["m", "n"]))
    assert [tuple(body(message).values()) for message in ack.then] == [(v, x, y) for v in "mn" for x in (1, 2) for y in "pq"]


def test_a_part_answers_its_gather() -> None:
    part = advance(Ack(), PHOTOS, entry(PHOTOS), pack("x")).then[0]
    ack = advance(Ack(), PHOTOS, part, pack("x-64"))
    assert (ack.part, ack.result, ack.then) == (pack("x-64"), None, ())


def test_the_gather_sends_the_list_of_answers() -> None:
    [gather] = advance(Ack(), PHOTOS, entry(PHOTOS), pack("x")).gathers
    message = gathered(gather, [pack("x-64"), pack({"n": [1]})])
    assert gather.then is not None
    assert body(message) == {"photos": ["x-64", {"n": [1]}]}
    assert structs.replace(message, body=gather.then.body) == gather.then


def test_an_empty_split_has_no_parts_and_a_gather_that_waits_for_none() -> None:
    plan = chain(stage("a", each("b", gather="c")), stage("b", Answer("c")), stage("c", End()))
    ack = advance(Ack(), plan, entry(plan), pack([]))
    assert ack.then == ()
    assert [gather.expected for gather in ack.gathers] == [0]
    assert body(gathered(ack.gathers[0], [])) == {"value": []}


def test_a_split_over_no_combination_is_empty_too() -> None:
    plan = chain(stage("a", each("b", keys={"width": []})), stage("b", Answer()))
    assert advance(Ack(), plan, entry(plan), pack([1, 2])).then == ()


def test_without_a_stage_for_the_answers_their_list_is_the_result() -> None:
    plan = chain(stage("a", each("b", on_dead="skip")), stage("b", Answer()))
    [gather] = advance(Ack(), plan, entry(plan), pack([1, 2])).gathers
    assert (gather.then, gather.param, gather.outer, gather.on_dead) == (None, "", None, "skip")


@pytest.mark.parametrize("value", [5, "abc", None, {"a": 1}])
def test_what_is_no_list_cannot_be_split_over_its_items(value: object) -> None:
    plan = chain(stage("a", each("b")), stage("b", Answer()))
    with pytest.raises(MessageInvalid):
        advance(Ack(), plan, entry(plan), pack(value))


def test_more_parts_than_fit_in_one_write_are_refused() -> None:
    plan = chain(stage("a", each("b", keys={"x": [1, 2]})), stage("b", Answer()))
    with pytest.raises(BodyTooLarge):
        advance(Ack(), plan, entry(plan), pack([0] * (MAX_BATCH // 2 + 1)))


# a splits into b, each b splits into c, the cs of one b are gathered by d, the ds by e.
NESTED = chain(
    stage("a", each("b", gather="e")),
    stage("b", each("c", gather="d")),
    stage("c", to("c2")),
    stage("c2", Answer("d")),
    stage("d", Answer("e")),
    stage("e", End()),
)


def test_a_split_inside_a_split_stacks_its_gathers_innermost_last() -> None:
    outer = advance(Ack(), NESTED, entry(NESTED), pack([[1, 2], [3]]))
    first = outer.then[0]
    inner = advance(Ack(), NESTED, first, pack([1, 2]))
    grandchild = inner.then[1]
    assert grandchild.place is not None
    assert (grandchild.place.item, grandchild.place.parts) == ("0.1", (Part(outer.gathers[0].id, 0), Part(inner.gathers[0].id, 1)))
    [moved] = advance(Ack(), NESTED, grandchild, pack(20)).then
    assert moved.place == structs.replace(grandchild.place, stage=StageName("c2"))
    assert advance(Ack(), NESTED, moved, pack(20)).part == pack(20)


def test_what_an_inner_gather_sends_is_again_a_part_of_the_outer_one() -> None:
    outer = advance(Ack(), NESTED, entry(NESTED), pack([[1, 2], [3]]))
    second = outer.then[1]
    [inner] = advance(Ack(), NESTED, second, pack([3])).gathers
    message = gathered(inner, [pack(30)])
    assert message.place == Place(RUN, ChainName("album"), StageName("d"), "1", (Part(outer.gathers[0].id, 1),))
    assert inner.outer is None
    assert advance(Ack(), NESTED, message, pack("done")).part == pack("done")


def test_an_inner_split_without_a_stage_of_its_own_answers_the_outer_gather() -> None:
    plan = chain(stage("a", each("b", gather="d")), stage("b", each("c")), stage("c", Answer()), stage("d", End()))
    outer = advance(Ack(), plan, entry(plan), pack([[1], [2]]))
    [inner] = advance(Ack(), plan, outer.then[1], pack([2])).gathers
    assert (inner.then, inner.outer) == (None, Part(outer.gathers[0].id, 1))


def test_an_empty_split_inside_a_split_still_has_its_gather() -> None:
    outer = advance(Ack(), NESTED, entry(NESTED), pack([[]]))
    ack = advance(Ack(), NESTED, outer.then[0], pack([]))
    assert ack.then == ()
    assert [(gather.expected, gather.then is not None) for gather in ack.gathers] == [(0, True)]


BRANCH = chain(
    stage("sniff", Choose({"jpg": to("jpeg"), "raw": each("tile", gather="join"), "": End()})),
    stage("jpeg", End(), param="photo"),
    stage("tile", Answer("join")),
    stage("join", End()),
)


def test_a_branch_takes_the_arm_of_its_choice() -> None:
    [message] = advance(Ack(), BRANCH, entry(BRANCH), pack("x"), "jpg").then
    assert (message.queue, body(message)) == ("q.jpeg", {"photo": "x"})
    assert len(advance(Ack(), BRANCH, entry(BRANCH), pack([1, 2, 3]), "raw").then) == 3
    assert advance(Ack(), BRANCH, entry(BRANCH), pack("x"), "").result == pack("x")


def test_a_choice_that_is_no_branch_is_told_which_there_are() -> None:
    with pytest.raises(MessageInvalid, match="Branches: jpg, raw"):
        advance(Ack(), BRANCH, entry(BRANCH), pack("x"), "gif")


def test_a_stage_feeds_the_queues_of_what_follows_it() -> None:
    assert [NESTED.feeds(stage) for stage in NESTED.stages] == [
        (Feed(QueueName("q.b")),),
        (Feed(QueueName("q.c")),),
        (Feed(QueueName("q.c2")),),
        (Feed(QueueName("q.d")),),
        (Feed(QueueName("q.e")),),
        (),
    ]
    assert PHOTOS.feeds(PHOTOS.stages[0]) == (Feed(QueueName("q.resize"), 2),)
    assert set(BRANCH.feeds(BRANCH.stages[0])) == {Feed(QueueName("q.jpeg")), Feed(QueueName("q.tile"))}


def test_no_stage_feeds_itself() -> None:
    for plan in (LINE, PHOTOS, NESTED, BRANCH):
        for stage in plan.stages:
            assert stage.queue not in {feed.queue for feed in plan.feeds(stage)}


TREES = st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=4)


def walk(plan: ChainPlan, values: dict[str, Any]) -> tuple[list[Message], Any]:
    """A tiny engine for tests of this module only: runs every message of NESTED in order, fires gathers, returns all messages and the result."""
    todo, seen, result = [entry(plan)], list[Message](), None
    gathers: dict[str, tuple[Gather, dict[int, bytes]]] = {}
    while todo:
        message = todo.pop(0)
        seen.append(message)
        assert message.place is not None
        given = body(message).get("value")
        ack = advance(Ack(), plan, message, pack(values.get(message.place.stage, given)))
        for gather in ack.gathers:
            gathers[gather.id] = (gather, {})
        todo += ack.then
        if ack.part is not None:
            part = message.place.parts[-1]
            gathers[part.gather][1][part.index] = ack.part
        for id in [id for id, (gather, answers) in gathers.items() if len(answers) == gather.expected]:
            gather, answers = gathers.pop(id)
            todo.append(gathered(gather, [answers[index] for index in sorted(answers)]))
        result = ack.result if ack.result is not None else result
    assert not gathers
    return seen, unpack(result or b"\xc0")


@given(TREES)
def test_every_item_comes_out_once_in_order_under_ids_of_its_own(tree: list[list[int]]) -> None:
    messages, result = walk(NESTED, {"a": tree})
    assert result == tree
    assert len({message.id for message in messages}) == len(messages)
    assert all(message_id(message.id) == message.id for message in messages)
    assert all(message.place is not None and message.place.run == RUN for message in messages)


def test_split_and_follow_are_the_parts_advance_is_made_of() -> None:
    arm = PHOTOS.stages[0].next
    assert isinstance(arm, Split)
    message = entry(PHOTOS)
    assert split(PHOTOS, arm, message, pack("x")) == (
        advance(Ack(), PHOTOS, message, pack("x")).then,
        advance(Ack(), PHOTOS, message, pack("x")).gathers[0],
    )
    [then] = advance(Ack(), LINE, entry(LINE), pack("x")).then
    assert follow(LINE, LINE.stages[1], entry(LINE), pack("x"), "", ()) == then
