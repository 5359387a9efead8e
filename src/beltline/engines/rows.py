"""Messages as rows and back. A plain message (all defaults but id, queue, task, body) needs no `head` and takes the short way."""

from typing import Any

import msgspec
from msgspec import Struct, structs

from beltline.core.flow import Flow
from beltline.core.message import Message, Place
from beltline.core.names import MessageId, QueueName, TaskName
from beltline.core.retry import Retry

# What a plain message has behind (id, queue, task, body), in the order of Message's fields.
PLAIN = structs.astuple(Message(id=MessageId(""), queue=QueueName(""), task=TaskName(""), body=b""))[4:]


class Head(Struct, frozen=True, array_like=True, gc=False):
    """The envelope without id, queue, task and body: same fields, same order as Message."""

    headers: dict[str, str]
    priority: int = 0
    delay_s: float = 0.0
    ready_at: float | None = None
    group: str | None = None
    dedup_key: str | None = None
    dedup_window_s: float = 300.0
    expires_s: float | None = None
    timeout_s: float | None = None
    retry: Retry | None = None
    place: Place | None = None
    flow: Flow | None = None


assert Head.__struct_fields__ == Message.__struct_fields__[4:]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Head).decode
fields = structs.astuple
encode_head = _encode
read_head = _decode


def message(id: str, queue: str, task: str, head: bytes | None, body: bytes) -> Message:
    """The message as it was sent (in the queue it stands in now)."""
    if head is None:
        return Message(id=id, queue=queue, task=task, body=body)  # type: ignore[arg-type]  # NewTypes of str, checked when it was sent
    h = _decode(head)
    return Message(
        id=id,  # type: ignore[arg-type]
        queue=queue,  # type: ignore[arg-type]
        task=task,  # type: ignore[arg-type]
        body=body,
        headers=h.headers,
        priority=h.priority,
        delay_s=h.delay_s,
        ready_at=h.ready_at,
        group=h.group,
        dedup_key=h.dedup_key,
        dedup_window_s=h.dedup_window_s,
        expires_s=h.expires_s,
        timeout_s=h.timeout_s,
        retry=h.retry,
        place=h.place,
        flow=h.flow,
    )


def flow_of(head: bytes | None) -> Flow | None:
    return None if head is None else _decode(head).flow


def place_of(head: bytes | None) -> Place | None:
    return None if head is None else _decode(head).place


def pack(value: Any) -> bytes:
    return _encode(value)


def priority_of(head: bytes | None) -> int:
    return 0 if head is None else _decode(head).priority


def key_of(id: str) -> bytes | None:
    """The stored form of an id; None if it is none."""
    try:
        key = bytes.fromhex(id)
    except ValueError:
        return None
    return key if len(key) == 16 and len(id) == 32 else None
