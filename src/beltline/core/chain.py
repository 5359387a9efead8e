"""Hop 7, second half: what follows when a message of a chain has succeeded. Pure: a plan (data), a message and its value in, the rest of the Ack out.

A chain is compiled once into stages, each with what comes next:

    End      the value is the result of the run               Answer   the value is one part's answer to the innermost gather
    To       one message for the next stage                   Split    many messages and one gather row that waits for them all
    Choose   one of several of the above, by a key

Ids of followers are derived from the message before, run, stage and item: a repeated hand-off makes the same ids, and the store drops the repeat.
Priority, group, headers (trace), tenant and weight travel down the chain. Claims and sticky key are the next stage's own: those that take no arguments are in the
plan, those that do are added by the worker that hands on (chains.Chain.shaped).
Failure  a stage that dies is an ordinary dead letter. If it was a part, the gather's `on_dead` decides ("hold", "skip", "fail"): the engine applies it in
         the same write. A part that is cancelled or expired can never come back, so under "hold" it counts like under "skip".
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any, assert_never

from msgspec import Struct, structs

from beltline.core.codec import join_list, named_body, split_list
from beltline.core.errors import BodyTooLarge, MessageInvalid
from beltline.core.flow import Claim, downstream
from beltline.core.limits import MAX_BATCH
from beltline.core.message import Gather, Message, Part, Place
from beltline.core.names import ChainName, GatherId, MessageId, QueueName, StageName, TaskName, derive_id
from beltline.core.outcome import Ack
from beltline.core.queues import Feed
from beltline.core.retry import Retry


class End(Struct, frozen=True, array_like=True, tag="end", gc=False):
    pass


class Answer(Struct, frozen=True, array_like=True, tag="answer", gc=False):
    """`gather`: the stage that receives the answers; "" = none, their list is the result."""

    gather: str = ""


class To(Struct, frozen=True, array_like=True, tag="to", gc=False):
    stage: StageName


class Split(Struct, frozen=True, array_like=True, tag="split", gc=False):
    """One message of `stage` per element of the value (`over_items`) and per combination of `keys` (parameter -> values).

    `gather` is the stage that receives the list of all answers; "" = the list itself is the result.
    """

    stage: StageName
    over_items: bool
    keys: dict[str, list[Any]]
    gather: str
    on_dead: str


class Choose(Struct, frozen=True, array_like=True, tag="choose", gc=False):
    arms: dict[str, End | Answer | To | Split]


Next = End | Answer | To | Split | Choose


class StagePlan(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """One stage: task, its queue, the parameter that takes the value of the stage before, and what comes next. `retry`, `timeout_s`: None = the task's.

    `claims`: what each start uses up of limits, as far as it is known without arguments.
    """

    name: StageName
    task: TaskName
    queue: QueueName
    param: str
    next: Next
    retry: Retry | None = None
    timeout_s: float | None = None
    claims: tuple[Claim, ...] = ()


class ChainPlan(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """A chain as data: stages by name in order, the first is where runs enter. `result_ttl_s`: how long the result of a run is kept.

    `within_s`: how soon an item should be through, for the size of the fleets (core/within.py); inf = nothing was said.
    """

    name: ChainName
    stages: tuple[StagePlan, ...]
    result_ttl_s: float = 86400.0
    within_s: float = math.inf

    def stage(self, name: str) -> StagePlan:
        """Raises MessageInvalid: a message may come from an older version of the chain."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise MessageInvalid(f"Chain {self.name!r} has no stage {name!r}.", why=f"Stages: {', '.join(s.name for s in self.stages)}.")

    def feeds(self, stage: StagePlan) -> tuple[Feed, ...]:
        """The queues that messages of this stage hand on to, for backpressure."""
        found: dict[QueueName, int] = {}
        arms = stage.next.arms.values() if isinstance(stage.next, Choose) else (stage.next,)
        for arm in arms:
            if isinstance(arm, To):
                found.setdefault(self.stage(arm.stage).queue, 1)
            elif isinstance(arm, Split):
                found[self.stage(arm.stage).queue] = max(1, len(list(product(*arm.keys.values()))))
            elif isinstance(arm, Answer) and arm.gather:
                found.setdefault(self.stage(arm.gather).queue, 1)
        return tuple(Feed(queue, fan_out) for queue, fan_out in found.items())


def advance(ack: Ack, plan: ChainPlan, message: Message, value: bytes, choice: str = "") -> Ack:
    """`ack` completed with result, next messages, gathers or part. `value` is the packed value of the stage, `choice` the arm a branch has chosen.

    Raises MessageInvalid: the stage is gone, the value is no list where it is split, or there is no such arm. BodyTooLarge: too many parts.
    """
    place = message.place
    if place is None:
        return structs.replace(ack, result=value)
    arm = plan.stage(place.stage).next
    if isinstance(arm, Choose):
        if choice not in arm.arms:
            raise MessageInvalid(f"Stage {place.stage!r} chose {choice!r}, which is no branch.", why=f"Branches: {', '.join(arm.arms)}.")
        arm = arm.arms[choice]
    match arm:
        case End():
            return structs.replace(ack, result=value, result_ttl_s=plan.result_ttl_s)
        case Answer():
            return structs.replace(ack, part=value)
        case To(name):
            return structs.replace(ack, then=(follow(plan, plan.stage(name), message, value, place.item, place.parts),))
        case Split():
            messages, gather = split(plan, arm, message, value)
            return structs.replace(ack, then=messages, gathers=(gather,))
        case _:
            assert_never(arm)


def follow(
    plan: ChainPlan, stage: StagePlan, before: Message, value: bytes, item: str, parts: tuple[Part, ...], others: dict[str, Any] | None = None
) -> Message:
    """The message for `stage` that carries `value`, with everything that travels down the chain."""
    place = before.place
    assert place is not None  # only messages of a chain are followed
    return Message(
        id=MessageId(derive_id(before.id, place.run, stage.name, item)),
        queue=stage.queue,
        task=stage.task,
        body=named_body(stage.param, value, others),
        headers=before.headers,
        priority=before.priority,
        group=before.group,
        timeout_s=stage.timeout_s,
        retry=stage.retry,
        place=Place(place.run, plan.name, stage.name, item, parts),
        flow=downstream(before.flow, stage.claims),
    )


def split(plan: ChainPlan, arm: Split, before: Message, value: bytes) -> tuple[tuple[Message, ...], Gather]:
    """The parts of one message and the gather that waits for them, to be written together."""
    place = before.place
    assert place is not None
    stage = plan.stage(arm.stage)
    values = split_list(value) if arm.over_items else [value]
    combinations = [dict(zip(arm.keys, combination, strict=True)) for combination in product(*arm.keys.values())]
    if len(values) * len(combinations) > MAX_BATCH:
        raise BodyTooLarge(what="The split, in parts,", size_bytes=len(values) * len(combinations), limit_bytes=MAX_BATCH)
    gather_id = GatherId(derive_id(before.id, place.run, "gather", stage.name, place.item))
    messages = []
    for index, (each, others) in enumerate(product(values, combinations)):
        item = f"{place.item}.{index}" if place.item else str(index)
        messages.append(follow(plan, stage, before, each, item, (*place.parts, Part(gather_id, index)), others))
    then, param, outer = None, "", None
    if arm.gather:
        target = plan.stage(arm.gather)
        then, param = follow(plan, target, before, b"\xc0", place.item, place.parts), target.param
    elif place.parts:
        outer = place.parts[-1]
    gather = Gather(
        id=gather_id, run=place.run, expected=len(messages), then=then, param=param, on_dead=arm.on_dead, outer=outer, result_ttl_s=plan.result_ttl_s
    )
    return tuple(messages), gather


def gathered(gather: Gather, values: Sequence[bytes]) -> Message:
    """The message a complete gather sends: its template with the list of the parts' values, in part order. Only for gathers with `then`."""
    assert gather.then is not None
    return structs.replace(gather.then, body=named_body(gather.param, join_list(values)))
