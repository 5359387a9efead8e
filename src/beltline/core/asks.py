"""What a task may raise to say how its delivery shall end. No errors: a request to the worker, with a meaning of its own.

RetryLater  a failed attempt, tried again after a delay of the task's own choice (the policy is `Retry`; it still bounds the attempts)
Snooze      not now: the same attempt again after a delay, none spent; with queue=True nothing of its queue until then (an API said "too many requests")
Cancel      stop here: the message is done, outcome cancelled, nothing follows
Reject      dead-letter now, whatever the policy says
"""

from beltline.core.limits import MAX_DELAY_S, Seconds, seconds


class Ask(Exception):
    """Base of the four; catch-all handlers in task code should let it pass."""


class RetryLater(Ask):
    def __init__(self, delay: Seconds = 0.0, reason: str = "") -> None:
        self.delay_s = seconds("delay", delay, most=MAX_DELAY_S)
        self.reason = reason
        super().__init__(reason or f"retry in {self.delay_s:g} s")


class Snooze(Ask):
    def __init__(self, delay: Seconds, *, queue: bool = False) -> None:
        self.delay_s = seconds("delay", delay, most=MAX_DELAY_S)
        self.queue = queue
        super().__init__(f"snooze {'the queue ' if queue else ''}for {self.delay_s:g} s")


class Cancel(Ask):
    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        super().__init__(reason)


class Reject(Ask):
    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)
