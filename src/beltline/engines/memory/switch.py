"""The kill switch of a queue: what ended lately, and whether it has tripped. The rule is that of core.flow.KillSwitch, judged once a verb."""

from math import inf

from beltline.core.flow import KillSwitch

MOST_PAUSES = 10.0  # times pause_s


class Switch:
    """`trying`: it has tripped, and after `tripped_until` a few may show that things are well again."""

    def __init__(self) -> None:
        self.close()

    def close(self) -> None:
        self.tripped_until = 0.0
        self.trying = False
        self.succeeded = 0
        self.pauses = 0
        self._window = 0
        self._ended = self._failed = self._ended_before = self._failed_before = 0

    def judge(self, rule: KillSwitch, ended: int, failed: int, now_ms: int) -> None:
        """So many deliveries ended in one verb, `failed` of them badly."""
        if self.tripped_until * 1000 > now_ms:
            return  # of deliveries that were out when it tripped
        if self.trying:
            self.succeeded += ended - failed
            if failed:
                self._trip(rule, now_ms)
            elif self.succeeded >= rule.tries:
                self.close()
            return
        window = now_ms // int(rule.window_s * 500)
        if window != self._window:
            follows = window == self._window + 1
            self._ended_before, self._failed_before = (self._ended, self._failed) if follows else (0, 0)
            self._window, self._ended, self._failed = window, 0, 0
        self._ended += ended
        self._failed += failed
        all_ended, all_failed = self._ended + self._ended_before, self._failed + self._failed_before
        if all_ended >= rule.least and all_failed >= rule.share * all_ended:
            self._trip(rule, now_ms)

    def _trip(self, rule: KillSwitch, now_ms: int) -> None:
        pauses = self.pauses
        self.close()
        self.tripped_until = (now_ms + int(rule.pause_s * 1000 * min(2.0**pauses, MOST_PAUSES))) / 1000
        self.trying, self.pauses = True, min(pauses + 1, 10)

    def room(self, rule: KillSwitch | None, leased: int) -> float:
        """How many deliveries may be handed out now."""
        return inf if rule is None or not self.trying else max(0, rule.tries - self.succeeded - leased)
