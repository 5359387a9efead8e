"""Names and ids: what may be called what, checked once, so that no query, file or label is ever built from an unchecked text.

Names  1 to 80 characters of A-Z a-z 0-9 _ . -, the first a letter or digit; `.fifo` may end one (counted in the 80). Source: SQS queue names.
Ids    128-bit UUIDs written as 32 lower-case hex digits. New ones are UUIDv7 (made by the sender, floor 2); they sort by time, so that
       every key grows at its end. Derived ids keep the time of their parent in front and a hash behind: equal input, equal id.
"""

import re
from hashlib import blake2b
from typing import NewType

from beltline.core.errors import NameInvalid

QueueName = NewType("QueueName", str)
TaskName = NewType("TaskName", str)
ChainName = NewType("ChainName", str)
StageName = NewType("StageName", str)
MessageId = NewType("MessageId", str)
RunId = NewType("RunId", str)
GatherId = NewType("GatherId", str)
WorkerId = NewType("WorkerId", str)

MAX_NAME = 80
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}", re.ASCII)
_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)


def check_name(kind: str, text: object) -> str:
    """`text` itself if it is a valid name. `kind` (queue, task, chain, …) is only for the message. Raises NameInvalid."""
    if not isinstance(text, str) or _NAME.fullmatch(text) is None:
        raise NameInvalid(kind=kind, name=text)
    return text


def queue_name(text: object) -> QueueName:
    return QueueName(check_name("queue", text))


def task_name(text: object) -> TaskName:
    return TaskName(check_name("task", text))


def chain_name(text: object) -> ChainName:
    return ChainName(check_name("chain", text))


def stage_name(text: object) -> StageName:
    return StageName(check_name("stage", text))


def message_id(text: object) -> MessageId:
    """Any usual writing of a UUID (dashes, upper case, a `uuid.UUID`) as 32 hex digits. Raises NameInvalid."""
    plain = str(text).replace("-", "").lower()
    if _ID.fullmatch(plain) is None:
        raise NameInvalid(kind="id", name=text)
    return MessageId(plain)


def derive_id(parent: str, *parts: str) -> str:
    """An id made from its parent and what it stands for: the same every time, so that a repeat is recognised, and near its parent in time.

    The first 48 bits are the parent's (its time), version 8, then 74 bits of BLAKE2b over parent and parts. Source: RFC 9562, 5.8.
    """
    digest = blake2b("\x00".join((parent, *parts)).encode(), digest_size=10).hexdigest()
    return f"{parent[:12]}8{digest[:3]}{'89ab'[int(digest[3], 16) & 3]}{digest[4:19]}"
