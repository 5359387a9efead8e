"""The answers of monitor/explain.py as JSON and as lines."""

import math
from datetime import datetime

from msgspec import Struct

from beltline.cli.output import SCHEMA_VERSION
from beltline.cli.shapes import instant
from beltline.cli.text import safe
from beltline.core.views import MessageView
from beltline.monitor.explain import Why
from beltline.monitor.queues import QueueWhy, Reason, summary

WAITING = ("ready", "delayed", "leased")


class WhyItem(Struct, frozen=True, kw_only=True):
    """`rule`: the word for programs. `opens_at` null: no time is known. `holders`: ids of messages. `more_workers`: whether adding workers would help."""

    version: int = SCHEMA_VERSION
    id: str
    state: str
    why: str
    rule: str
    opens_at: datetime | None
    limit: str
    key: str
    holders: list[str]
    help: str
    more_workers: bool


def why_item(view: MessageView, found: Why) -> WhyItem:
    return WhyItem(
        id=view.message.id,
        state=view.state,
        why=found.why,
        rule=found.rule,
        opens_at=_at(found.opens_at),
        limit=found.limit,
        key=found.key,
        holders=list(found.holders),
        help=found.help,
        more_workers=found.more_workers,
    )


def help_lines(item: WhyItem) -> list[str]:
    if not item.help:
        return []
    return [f"  help: {safe(item.help)}"] + ([] if item.more_workers or item.state != "ready" else ["  adding workers will not help"])


class ReasonItem(Struct, frozen=True, kw_only=True):
    """`messages`: how many; with `sampled`, of the `looked_at` oldest that were asked. `example`: the id of one."""

    messages: int
    sampled: bool
    rule: str
    why: str
    opens_at: datetime | None
    limit: str
    help: str
    more_workers: bool
    example: str


class QueueWhyItem(Struct, frozen=True, kw_only=True):
    version: int = SCHEMA_VERSION
    queue: str
    summary: str
    ready: int
    held: int
    leased: int
    workers: int
    slots: int
    looked_at: int
    reasons: list[ReasonItem]


def queue_why_item(found: QueueWhy) -> QueueWhyItem:
    around = found.around
    return QueueWhyItem(
        queue=around.queue,
        summary=summary(found),
        ready=around.counts.ready,
        held=around.counts.held,
        leased=around.counts.leased,
        workers=len(around.serving),
        slots=around.slots,
        looked_at=found.looked_at,
        reasons=[_reason(reason) for reason in found.reasons],
    )


def _reason(reason: Reason) -> ReasonItem:
    return ReasonItem(
        messages=reason.messages,
        sampled=reason.sampled,
        rule=reason.why.rule,
        why=reason.why.why,
        opens_at=_at(reason.why.opens_at),
        limit=reason.why.limit,
        help=reason.why.help,
        more_workers=reason.why.more_workers,
        example=reason.example,
    )


def _at(seconds: float) -> datetime | None:
    return None if math.isinf(seconds) else instant(seconds)
