"""The kill switch of a queue as its row keeps it: what ended lately, and whether it has tripped. The rule is that of core.flow.KillSwitch, judged once a verb."""

import math

import msgspec
from msgspec import Struct

from beltline.core.flow import KillSwitch

MOST_PAUSES = 10  # times pause_s


class Switch(Struct, array_like=True, gc=False):
    """`trying`: it has tripped, and after `tripped` (milliseconds) a few may show that things are well again. Counts are of this half window and the one before."""

    tripped: int = 0
    trying: bool = False
    succeeded: int = 0
    pauses: int = 0
    span: int = 0
    ended: int = 0
    failed: int = 0
    ended_before: int = 0
    failed_before: int = 0

    def judge(self, rule: KillSwitch, ended: int, failed: int, now: int) -> "Switch":
        """What it is after so many deliveries ended in one verb, `failed` of them badly."""
        if self.tripped > now:
            return self  # of deliveries that were out when it tripped
        if self.trying:
            self.succeeded += ended - failed
            if failed:
                return self._trip(rule, now)
            return Switch() if self.succeeded >= rule.tries else self
        span = now // int(rule.window_s * 500)
        if span != self.span:
            follows = span == self.span + 1
            self.ended_before, self.failed_before = (self.ended, self.failed) if follows else (0, 0)
            self.span, self.ended, self.failed = span, 0, 0
        self.ended += ended
        self.failed += failed
        all_ended, all_failed = self.ended + self.ended_before, self.failed + self.failed_before
        return self._trip(rule, now) if all_ended >= rule.least and all_failed >= rule.share * all_ended else self

    def _trip(self, rule: KillSwitch, now: int) -> "Switch":
        pause = int(rule.pause_s * 1000 * min(2**self.pauses, MOST_PAUSES))
        return Switch(tripped=now + pause, trying=True, pauses=min(self.pauses + 1, 10))

    def room(self, rule: KillSwitch | None, leased: int) -> float:
        """How many deliveries may be handed out now."""
        return math.inf if rule is None or not self.trying else max(0, rule.tries - self.succeeded - leased)


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Switch).decode
NEVER = encode(Switch())
