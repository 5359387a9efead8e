"""Running an item again from any stage: the messages that entered that stage are copied into a new run, with the gathers they need around them.

The old run stays as it is: its history is a record. Inside a split, every part that reached the stage is copied, and each gather above them is opened
anew for just those parts.
"""

from collections.abc import Sequence

from msgspec import structs

from beltline.core.chain import Answer, ChainPlan, Choose, End, Split, StagePlan, To
from beltline.core.errors import NotFound
from beltline.core.flow import downstream
from beltline.core.message import Gather, Message, Part, Place
from beltline.core.names import GatherId, MessageId, RunId, derive_id

Enclosing = tuple[Split, ...]


def enclosing(plan: ChainPlan) -> dict[str, Enclosing]:
    """For every stage the splits it stands inside, outermost first."""
    found: dict[str, Enclosing] = {}

    def walk(stage: StagePlan, around: Enclosing) -> None:
        if stage.name in found:
            return
        found[stage.name] = around
        arms = tuple(stage.next.arms.values()) if isinstance(stage.next, Choose) else (stage.next,)
        for arm in arms:
            match arm:
                case To(name):
                    walk(plan.stage(name), around)
                case Split():
                    walk(plan.stage(arm.stage), (*around, arm))
                case Answer(gather):
                    if gather:
                        walk(plan.stage(gather), around[:-1])
                case End():
                    pass

    walk(plan.stages[0], ())
    return found


def rerun(plan: ChainPlan, stage_name: str, entered: Sequence[Message], run: RunId) -> tuple[tuple[Message, ...], tuple[Gather, ...]]:
    """New messages and gathers for run `run`, from the messages that `entered` the stage in the old one. Raises NotFound when none did."""
    stage = plan.stage(stage_name)
    entered = [message for message in entered if message.place is not None and message.place.stage == stage.name]
    if not entered:
        raise NotFound(kind=f"message of this run at stage {stage_name!r}", name=run)
    splits = enclosing(plan)[stage.name]
    gathers = _gathers(plan, splits, entered, run)
    messages = []
    for message in entered:
        place = message.place
        assert place is not None
        parts = tuple(Part(_renamed(run, part.gather), part.index) for part in place.parts)
        id = MessageId(run) if not parts else MessageId(derive_id(run, stage.name, place.item))
        # Without its unique key, which would make the old run stand for the new one.
        flow = None if message.flow is None else structs.replace(message.flow, unique=None)
        again = structs.replace(message, id=id, queue=stage.queue, task=stage.task, delay_s=0.0, ready_at=None, dedup_key=None, flow=flow)
        messages.append(structs.replace(again, place=Place(run, plan.name, stage.name, place.item, parts)))
    return tuple(messages), gathers


def _renamed(run: RunId, gather: GatherId) -> GatherId:
    return GatherId(derive_id(run, "gather", gather))


def _gathers(plan: ChainPlan, splits: Enclosing, entered: Sequence[Message], run: RunId) -> tuple[Gather, ...]:
    """One gather per old one that any copied message stands in, at every depth, expecting the parts that are copied."""
    found: dict[GatherId, Gather] = {}
    for depth, split in enumerate(splits):
        members: dict[GatherId, set[int]] = {}
        sample: dict[GatherId, Message] = {}
        for message in entered:
            assert message.place is not None
            part = message.place.parts[depth]
            members.setdefault(part.gather, set()).add(part.index)
            sample.setdefault(part.gather, message)
        for old, indexes in members.items():
            message = sample[old]
            assert message.place is not None
            above = tuple(Part(_renamed(run, part.gather), part.index) for part in message.place.parts[:depth])
            item = message.place.item.rsplit(".", len(message.place.parts) - depth)[0] if depth else ""
            then = None
            if split.gather:
                target = plan.stage(split.gather)
                then = structs.replace(
                    message,
                    id=MessageId(derive_id(run, target.name, item)),
                    queue=target.queue,
                    task=target.task,
                    body=b"\xc0",
                    timeout_s=target.timeout_s,
                    retry=target.retry,
                    delay_s=0.0,
                    ready_at=None,
                    dedup_key=None,
                    place=Place(run, plan.name, target.name, item, above),
                    flow=downstream(message.flow, target.claims),
                )
            found[old] = Gather(
                id=_renamed(run, old),
                run=run,
                expected=len(indexes),
                then=then,
                param=plan.stage(split.gather).param if split.gather else "",
                on_dead=split.on_dead,
                outer=above[-1] if above and not split.gather else None,
                result_ttl_s=plan.result_ttl_s,
            )
    return tuple(found.values())
