"""Who may run when, and how many: what a message says about itself (Flow), and what the store is told about limits (Limit). Pure numbers, equal in every engine.

    tenant   whose message it is; the tenants of a queue share its worker fairly, by weight. "" = nobody's: all these are one tenant
    claims   what it uses up of limits: (limit, key, cost). Every (limit, key) is a bucket of its own
    sticky   a key that one worker keeps while it lives
    unique   which other message stands for this one

Rates are GCRA in whole microseconds, so that every engine counts alike: a bucket keeps `tat_us`, the instant at which it would be full again. A start of cost c
at `now` moves it to max(tat, now) + c * interval, and is allowed if that is at most now + burst * interval. So in any window T there are at most burst + rate * T
starts. A cost above the burst may start when the bucket is full: otherwise it never could.
Turns count what a tenant has been given: a hand-out costs TURN / weight, and the tenant with the lowest count is next.
Source: ITU-T I.371 (GCRA, virtual scheduling); start-time fair queueing (Goyal, Vin, Cheng 1996); the rule of the noisy tenant is that of SQS fair queues.
"""

import math
from collections.abc import Iterable
from hashlib import sha256

from msgspec import Struct

from beltline.core.errors import ValueInvalid
from beltline.core.limits import MAX_DEDUP_WINDOW_S, key, seconds
from beltline.core.names import check_name

TURN = 1_000_000
WORK_WINDOW_MS = 150_000  # recent worker time: this window and the one before
NOISY_SHARE = 10  # a tenant is noisy with more than a tenth of what is leased …
NOISY_LEAST = 30  # … if that is at least so many, or with more than a tenth of the recent worker time
MAX_WEIGHT = 1000.0
MAX_COST = 1_000_000.0
MAX_RATE = 1_000_000.0  # per second: an interval of one microsecond
MAX_INTERVAL_S = 31 * 86400.0  # between two starts at the full rate; with MAX_COST and MAX_REFILL_S all sums fit into 63 bits
MAX_REFILL_S = 366 * 86400.0  # of an empty bucket: its burst at its rate
MAX_PER_S = 366 * 86400.0  # the time a rate is said for
MAX_CLAIMS = 8
MOST_US = 1e17  # three thousand years: the instants of every bucket fit 64 bits
MEMBER_S = 10.0  # a worker whose last heartbeat is older keeps no sticky keys: five heartbeats
CLOSED = 1000  # lanes that one receive closes at most; then it gives what it has, and whoever waits asks again at once
BURST_S = 0.2  # a default burst lasts so long: lateness of workers up to it costs nothing of the rate
UNIQUE_STATES = ("delayed", "ready", "leased")


class Claim(Struct, frozen=True, array_like=True, gc=False):
    """A start of this message uses `cost` of what the bucket (`limit`, `key`) allows; running, it holds one of its places."""

    limit: str
    key: str = ""
    cost: float = 1.0


class Unique(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """While another message with this `key` in its queue is in one of `states`, and was sent less than `window_s` ago, it stands for a new one.

    `replace`: one that has not begun takes over the body, headers and options of the new one (the newest wins), and, delayed, is put off: until the new one would be
    due, but no longer than `most_s` after it was sent itself. States are those of the glossary, as everybody sees them but for `leased`, which lasts until a settle.
    """

    key: str
    states: tuple[str, ...] = UNIQUE_STATES
    window_s: float = math.inf
    replace: bool = False
    most_s: float = math.inf


class Flow(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """What of a message flow control looks at. A message without it (None) is only subject to its queue's own limits."""

    tenant: str = ""
    weight: float = 1.0
    claims: tuple[Claim, ...] = ()
    sticky: str = ""
    unique: Unique | None = None

    @property
    def shaped(self) -> bool:
        """Whether it needs a lane of its own; `unique` alone does not."""
        return bool(self.tenant or self.claims or self.sticky)


class Limit(Struct, frozen=True, kw_only=True):
    """`rate` starts (or units of cost) in `per_s` seconds, `burst` of them at once, and `concurrency` running at the same time, for each key."""

    name: str
    rate: float = math.inf
    per_s: float = 1.0
    burst: float = 0.0  # 0 = what the rate yields in BURST_S, at least 1
    concurrency: float = math.inf

    @property
    def interval_us(self) -> int:
        """Between two starts at the full rate; 0 = no rate."""
        return 0 if self.rate == math.inf else math.floor(min(self.per_s * 1e6 / self.rate + 0.5, MOST_US))

    @property
    def burst_us(self) -> int:
        return math.floor(min(self.most_at_once * self.interval_us + 0.5, MOST_US))

    @property
    def most_at_once(self) -> float:
        return self.burst or max(1.0, math.ceil(self.rate / self.per_s * BURST_S)) if self.rate < math.inf else math.inf

    def takes_us(self, cost: float) -> int:
        """How far a start of this cost moves the bucket."""
        return math.floor(min(cost * self.interval_us + 0.5, MOST_US))

    def opens_us(self, tat_us: int, cost: float) -> int:
        """The earliest instant at which a start of this cost is allowed."""
        return tat_us + self.takes_us(cost) - max(self.burst_us, self.takes_us(cost))

    def fits(self, tat_us: int, now_us: int) -> float:
        """How many starts of cost 1 are allowed at `now_us`."""
        if not self.interval_us:
            return math.inf
        return max(0, (now_us + self.burst_us - max(tat_us, now_us)) // self.interval_us)


class KillSwitch(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """When at least `least` deliveries ended within about `window_s` and `share` of them or more failed, the queue stops by itself for `pause_s`.

    Then `tries` deliveries are let through: if all succeed, it goes on; at the first failure it stops again, twice as long, at most ten times `pause_s`.
    """

    share: float = 0.5
    least: int = 20
    window_s: float = 60.0
    pause_s: float = 60.0
    tries: int = 3


def check_flow(flow: Flow) -> Flow:
    """Raises ValueInvalid."""
    for name, text in (("tenant", flow.tenant), ("sticky", flow.sticky)):
        if text:
            key(name, text)
    _number("weight", flow.weight, 0.001, MAX_WEIGHT)
    if len(flow.claims) > MAX_CLAIMS or len({(claim.limit, claim.key) for claim in flow.claims}) < len(flow.claims):
        raise ValueInvalid(name="claims", value=flow.claims, allowed=f"at most {MAX_CLAIMS}, each of another limit or key")
    for claim in flow.claims:
        check_name("limit", claim.limit)
        if claim.key:
            key("key of a limit", claim.key)
        _number("cost", claim.cost, 0.0, MAX_COST)
    if flow.unique is not None:
        _check_unique(flow.unique)
    return flow


def _check_unique(unique: Unique) -> None:
    key("unique key", unique.key)
    allowed = ("delayed", "ready", "leased", "done", "dead")
    if not unique.states or not set(unique.states) <= set(allowed):
        raise ValueInvalid(name="states", value=unique.states, allowed=f"at least one of {', '.join(allowed)}")
    if unique.replace and not set(unique.states) <= {"delayed", "ready"}:
        raise ValueInvalid(
            name="states", value=unique.states, allowed="with replace only delayed and ready: what has begun cannot take other arguments"
        )
    for name, value in (("window", unique.window_s), ("most", unique.most_s)):
        seconds(name, value)


def check_limit(limit: Limit) -> Limit:
    """Raises NameInvalid, ValueInvalid."""
    check_name("limit", limit.name)
    seconds("per", limit.per_s, least=0.001, most=MAX_PER_S)
    if limit.rate != math.inf:
        _number("rate", limit.rate, limit.per_s / MAX_INTERVAL_S, MAX_RATE * limit.per_s)
        if limit.burst:
            _number("burst", limit.burst, 1.0, MAX_REFILL_S * limit.rate / limit.per_s)
    if limit.concurrency != math.inf:
        number = isinstance(limit.concurrency, (int, float)) and not isinstance(limit.concurrency, bool)
        if not number or not 0 <= limit.concurrency <= 2**31 - 1 or limit.concurrency != int(limit.concurrency):
            raise ValueInvalid(name="concurrency", value=limit.concurrency, allowed="a whole number from 0, or no bound")
    return limit


def check_switch(switch: KillSwitch) -> KillSwitch:
    """Raises ValueInvalid."""
    if not isinstance(switch, KillSwitch):
        raise ValueInvalid(name="kill_switch", value=switch, allowed="True, or KillSwitch(share=…, least=…, window_s=…, pause_s=…, tries=…)")
    _number("share", switch.share, 0.001, 1.0)
    for name, number in (("least", switch.least), ("tries", switch.tries)):
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 1_000_000:
            raise ValueInvalid(name=name, value=number, allowed="a whole number from 1 to 1000000")
    for name, time in (("window_s", switch.window_s), ("pause_s", switch.pause_s)):
        if not isinstance(time, (int, float)):  # kept as it is said: a text would reach the store
            raise ValueInvalid(name=name, value=time, allowed="a number of seconds")
    seconds("window_s", switch.window_s, least=1.0, most=MAX_DEDUP_WINDOW_S)
    seconds("pause_s", switch.pause_s, least=0.1, most=MAX_DEDUP_WINDOW_S)
    return switch


def _number(name: str, value: object, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or not least <= value <= most:
        raise ValueInvalid(name=name, value=value, allowed=f"a number from {least:g} to {most:g}")


def downstream(before: Flow | None, claims: tuple[Claim, ...]) -> Flow | None:
    """What a message that follows in a chain has of the one before: tenant and weight, with claims of its own."""
    if before is None and not claims:
        return None
    made = Flow(claims=claims) if before is None else Flow(tenant=before.tenant, weight=before.weight, claims=claims)
    return None if made == Flow() else made


def turn_cost(weight: float) -> int:
    """What one hand-out costs a tenant of this weight."""
    return math.floor(TURN / weight + 0.5)


def head_start(priority: int, ageing_s: float) -> int:
    """How many turns a priority is worth: as many as the queue's ageing has seconds (decision 0004 in turns)."""
    return priority * round((ageing_s if ageing_s < math.inf else 3.2e10) * 1000) * (TURN // 1000)


def noisy(leased: int, leased_of_all: int, work_ms: int, work_of_all_ms: int) -> bool:
    """Source: the rule of SQS fair queues, with worker time beside it for tasks that are few and long."""
    many = leased >= NOISY_LEAST and leased * NOISY_SHARE > leased_of_all
    return many or work_ms * NOISY_SHARE > work_of_all_ms


def keeper(sticky: str, members: "tuple[str, ...] | list[str]") -> str:
    """Which of these workers keeps the key; "" when there is none. At the loss of one, only its keys move (rendezvous hashing).

    Source: Thaler, Ravishankar 1998. SHA-256, because every store has it.
    """
    if not members:
        return ""
    return max(members, key=lambda worker: (sha256(f"{sticky}\n{worker}".encode()).hexdigest(), worker))


def queue_limits(names: object) -> tuple[str, ...]:
    """The limits a whole queue is subject to. Raises NameInvalid."""
    if not isinstance(names, Iterable):
        raise ValueInvalid(name="limits", value=names, allowed='names of limits: limits=["api"]')
    given = (names,) if isinstance(names, str) else tuple(names)
    return tuple(check_name("limit", name) for name in given)
