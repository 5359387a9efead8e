"""Which messages of a send are new: ids, dedup keys, unique keys. Looks only; `stored` notes what was written."""

from collections.abc import Sequence

from beltline.core.lifecycle import State
from beltline.core.message import Message
from beltline.core.names import MessageId, QueueName
from beltline.core.outcome import Admission, Sent
from beltline.engines.memory.rows import Row, due_at

Key = tuple[QueueName, str]


class AdmissionBook:
    """`remembered`: ids whose history is over, until when. `dedup`: until when, and who stands for the key. `unique`: the last one sent with the key."""

    def __init__(self, rows: dict[MessageId, Row]) -> None:
        self._rows = rows
        self.remembered: dict[MessageId, float] = {}
        self.dedup: dict[Key, tuple[float, MessageId]] = {}
        self.unique: dict[Key, MessageId] = {}

    def admit(self, messages: Sequence[Message], now: float) -> list[Sent]:
        """What will become of each message, before anything is written."""
        answers: list[Sent] = []
        ids, keys, unique = set[MessageId](), dict[Key, MessageId](), dict[Key, Message]()
        for message in messages:
            key = None if message.dedup_key is None else (message.queue, message.dedup_key)
            stands = None if key is None else keys.get(key) or self._stands_for(key, now)
            if message.id in self._rows or message.id in self.remembered or message.id in ids:
                answers.append(Sent(message.id, Admission.SAME_ID))
            elif stands is not None:
                answers.append(Sent(stands, Admission.DEDUPLICATED))
            elif (other := self._same(message, unique, now)) is not None:
                assert message.flow is not None
                assert message.flow.unique is not None
                answers.append(Sent(other, Admission.REPLACED if message.flow.unique.replace else Admission.DEDUPLICATED))
            else:
                answers.append(Sent(message.id))
                ids.add(message.id)
                if key is not None and message.dedup_window_s > 0:
                    keys[key] = message.id
                if message.flow is not None and message.flow.unique is not None:
                    unique[message.queue, message.flow.unique.key] = message
        return answers

    def _same(self, message: Message, batch: dict[Key, Message], now: float) -> MessageId | None:
        """The message that stands for this one by its unique key. `batch`: those of this send, which are not stored yet."""
        unique = message.flow.unique if message.flow is not None else None
        if unique is None:
            return None
        earlier = batch.get((message.queue, unique.key))
        if earlier is not None:
            state = "ready" if due_at(earlier, now) <= now else "delayed"
            return earlier.id if state in unique.states and unique.window_s > 0 else None
        row = self._rows.get(self.unique.get((message.queue, unique.key), MessageId("")))
        if row is None or row.message.queue != message.queue or now >= row.sent_at + unique.window_s:
            return None
        state = row.state.word if row.state is State.LEASED else row.shown(now).word
        return row.id if state in unique.states else None

    def _stands_for(self, key: Key, now: float) -> MessageId | None:
        entry = self.dedup.get(key)
        return entry[1] if entry is not None and now < entry[0] else None

    def stored(self, message: Message, now: float) -> None:
        """It is new, and stands for its keys from now on."""
        if message.dedup_key is not None:
            self.dedup[message.queue, message.dedup_key] = (now + message.dedup_window_s, message.id)
        if message.flow is not None and message.flow.unique is not None:
            self.unique[message.queue, message.flow.unique.key] = message.id

    def known(self, id: MessageId) -> bool:
        return id in self._rows or id in self.remembered

    def drop(self, limit: int, now: float) -> int:
        """Forget keys and ids whose time is over; at most `limit` dedup keys. Returns how many of these."""
        keys = [key for key, (until, _) in self.dedup.items() if until <= now][:limit]
        for key in keys:
            del self.dedup[key]
        for key in [key for key, id in self.unique.items() if id not in self._rows]:
            del self.unique[key]
        for id in [id for id, until in self.remembered.items() if until <= now]:
            del self.remembered[id]
        return len(keys)
