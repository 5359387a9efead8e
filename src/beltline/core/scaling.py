"""How many slots the fleet of a queue gets. Pure: a sample and the trend of those before in, a decision and the next trend out.

    steady   N1 = a * S / r                              what arrives keeps so many slots busy, with air to breathe (r = 0.75)
    drain    N2 = S * (a + B / max(T - g - t0, T / 4))   what waits has started before anything has waited for longer than the target
    protect  N3 = leased                                 nothing is taken away from under what runs

a arrivals per second (smoothed, with trend) · S mean service time · B runnable messages (none that a limit, a pause or its group holds back) · T target wait ·
g age of the oldest of them · t0 start of a runner. The need is max(N1, N2), at most what can run at once: the keys of FIFO groups, the room on the next belt.
Draining asks for no more slots than there are messages that run or could start. The size is the need, clamped to the range of the fleet.

Out  at once, on any sample, but never for a stage whose next belt is over its high water.
In   after AGREEING samples in a row, and not before COOL_DOWN_S after the last growth; a step (a tenth, at least one slot) at a time; never below what is leased.
     To nothing only when nothing has stirred for the cool-down. From nothing at the first message, also when that is through before anybody looks.
Slow tasks give no news while they run: when every slot is busy and nothing has ended for longer than the mean and four deviations, S is that while.
Source: Amazon EC2 Auto Scaling, "acceptable backlog per instance" (a = g = t0 = 0: N = B * S / T); Holt's linear trend for a.
"""

import math

from msgspec import Struct, structs

from beltline.core.limits import integer
from beltline.core.names import QueueName

TARGET_S = 10.0  # aimed at where no target was given
LOGGED = 1000  # decisions kept of each queue
MOST = 100_000  # slots of one fleet; far above any real one, it only keeps numbers finite
RARE_PER_S = 0.001  # arrivals of less than that are called nothing
REMEMBERED = 100  # deliveries whose service times weigh as much as all new ones together

# Why a decision is as large as it is: the term, and what held it below (or above) that.
STEADY, DRAIN, FIRST, IDLE, LEAST = "steady", "drain", "first message", "idle", "least"
BELT, KEYS, RANGE, HOST, PROTECT, PATIENCE = "next belt", "keys", "range", "host", "protect", "patience"

NOTHING = "|False|False"  # Trend.told when nothing held the size down


class Rules(Struct, frozen=True, kw_only=True):
    """`utilisation`: r. `start_s`: t0. `smooth_s`: how far back arrivals count. `agreeing`, `cool_down_s`: patience before a fleet shrinks."""

    utilisation: float = 0.75
    start_s: float = 1.0
    smooth_s: float = 10.0
    agreeing: int = 3
    cool_down_s: float = 120.0


RULES = Rules()


class Belt(Struct, frozen=True, array_like=True):
    """A queue this one feeds: `load` = ready there and on the way to it, all its feeders together; `fan_out` messages for each of ours."""

    queue: QueueName
    load: float
    high_water: float
    fan_out: int = 1


class Service(Struct, frozen=True, array_like=True):
    """Seconds a delivery runs. `count` 0 = nothing is known; it stops at REMEMBERED, so that new times count."""

    count: float = 0.0
    mean_s: float = 0.0
    variance: float = 0.0

    @property
    def known(self) -> bool:
        return self.count > 0

    @property
    def usual_s(self) -> float:
        """What nearly every delivery takes: the mean and two standard deviations."""
        return self.mean_s + 2 * math.sqrt(self.variance)

    def learn(self, count: int, sum_s: float, sum_squares: float) -> "Service":
        if count <= 0:
            return self
        old = min(self.count, REMEMBERED)
        total = old + count
        mean = (old * self.mean_s + sum_s) / total
        squares = (old * (self.variance + self.mean_s**2) + sum_squares) / total
        return Service(total, mean, max(0.0, squares - mean * mean))


class Sample(Struct, frozen=True, kw_only=True):
    """What is true at `at` (seconds on the engine's clock).

    `came`      messages that ever became ready here; only differences count. `ended`: those that ended. `served`: deliveries that ended, as workers have told it.
    `runnable`  ready and held back by nothing but the number of slots; `held`: the other ready ones (core/queues.py, Counts.held).
    `oldest_s`  how long the oldest ready one waits. `shut`: why nothing may be received ("paused", "snoozed", …); "" = it may.
    `least`, `most`  the range of the fleet; `most` inf = as many as somebody will start. `ordered`: an operator said so.
    `offered`   slots that the live workers can have at most; `standing`: that they have now. `refusal`: why one of their hosts starts no more runners.
    `hopeless`  why no number of slots can reach the target; "" = one can.
    """

    queue: QueueName
    at: float
    came: int
    ended: int
    runnable: int
    held: int
    leased: int
    oldest_s: float
    shut: str = ""
    service: Service = Service()
    target_s: float = TARGET_S
    least: int = 0
    most: float = math.inf
    ordered: bool = False
    offered: int = 0
    standing: int = 0
    belts: tuple[Belt, ...] = ()
    refusal: str = ""
    hopeless: str = ""
    served: int = 0


class Trend(Struct, frozen=True, kw_only=True, array_like=True):
    """What is remembered from sample to sample. `at` 0.0 = there was none. Instants on the engine's clock.

    `per_s`, `slope`  Holt's level and trend of the arrivals.    `stirred_at`  when something last came, waited or ran.
    `quiet_from`      since when every slot is busy and nothing ends.
    `agreeing`, `peak`  samples in a row that want fewer slots, and the highest number among what they want.
    `told`, `told_at`   what was last said to hold the size down, and when.
    """

    slots: int = 0
    at: float = 0.0
    came: int = 0
    ended: int = 0
    samples: int = 0
    per_s: float = 0.0
    slope: float = 0.0
    stirred_at: float = -math.inf
    quiet_from: float = 0.0
    grown_at: float = -math.inf
    agreeing: int = 0
    peak: int = 0
    told: str = ""
    told_at: float = -math.inf
    served: int = 0


class Decision(Struct, frozen=True, kw_only=True):
    """One round's answer, with what it was made of. `before` and `slots`: the size until now and from now on.

    `need`: what was called for before anything held it; `desired`: what should be there if more workers could be started, the number for other autoscalers.
    `term` called for it; `limit` held it ("" = nothing did). `news`: it belongs into the log. `by`: the worker that decided.
    """

    queue: QueueName
    at: float
    before: int
    slots: int
    need: int
    desired: int
    term: str
    limit: str
    reason: str
    news: bool
    arrivals_per_s: float
    service_s: float
    runnable: int
    held: int
    leased: int
    oldest_s: float
    target_s: float
    least: int
    most: float
    offered: int
    by: str = ""


class Size(Struct, frozen=True, kw_only=True):
    """The fleet of a queue as the store has it. `turn` grows by one with every decision, 0 = there was none; `decided_at` 0.0 = the next one is due.

    `state`: what whoever decided wants to remember. `ordered`: the range (least, most) an operator has given; None = the workers' own.
    """

    queue: QueueName
    turn: int = 0
    slots: int = 0
    decided_at: float = 0.0
    state: bytes = b""
    ordered: tuple[int, int] | None = None


def decide(sample: Sample, trend: Trend, rules: Rules = RULES) -> tuple[Decision, Trend]:
    """The size from now on, and what to remember until the next sample."""
    least, most = min(sample.least, _most(sample)), _most(sample)
    seen = _look(sample, trend, rules)
    arrivals = 0.0 if sample.shut else seen.per_s
    runnable = 0 if sample.shut else sample.runnable
    service_s = _service(sample, seen)
    need, term = _need(sample, trend, seen, rules, arrivals, runnable, service_s)
    capped, limit = _cap(need, seen.slots, sample, runnable)
    wanted = max(least, min(capped, most))
    if wanted < capped:
        limit = RANGE
    elif wanted > capped:
        term, limit = LEAST, ""
    slots, after, patience = _move(wanted, most, sample, seen, rules)
    if sample.refusal and slots >= wanted > sample.standing:
        limit = limit or HOST

    told = f"{limit}|{bool(sample.hopeless)}|{bool(sample.refusal)}"
    patient = sample.at - seen.told_at >= rules.cool_down_s or (sample.refusal and not seen.told.endswith("True"))
    more = told not in (NOTHING, seen.told) and patient
    news = slots != trend.slots or bool(more)
    decision = Decision(
        queue=sample.queue,
        at=sample.at,
        before=trend.slots,
        slots=slots,
        need=need,
        desired=max(slots, capped) if limit == RANGE and not sample.ordered else slots,
        term=term,
        limit=limit or patience,
        reason=_reason(sample, after, rules, term, limit, patience, need, capped, arrivals, runnable, service_s),
        news=news,
        arrivals_per_s=round(arrivals, 4),
        service_s=round(service_s, 6),
        runnable=runnable,
        held=sample.held,
        leased=sample.leased,
        oldest_s=round(sample.oldest_s, 3),
        target_s=sample.target_s,
        least=least,
        most=sample.most,
        offered=sample.offered,
    )
    if news:
        after = structs.replace(after, told=told, told_at=seen.told_at if told == NOTHING else sample.at)
    return decision, structs.replace(after, slots=slots)


def _most(sample: Sample) -> int:
    return int(min(MOST, max(0, sample.most)))


def _look(sample: Sample, trend: Trend, rules: Rules) -> Trend:
    """The trend with this sample in it, before anything is decided."""
    stirs = sample.runnable > 0 or sample.leased > 0 or sample.came > trend.came or sample.served > trend.served
    if trend.at == 0.0:
        start = max(trend.slots, sample.least, min(sample.leased, _most(sample)))
        stirred_at = sample.at if sample.runnable or sample.leased else -math.inf
        return structs.replace(
            trend,
            slots=start,
            at=sample.at,
            came=sample.came,
            ended=sample.ended,
            served=sample.served,
            stirred_at=stirred_at,
            quiet_from=sample.at,
            grown_at=sample.at,
        )
    gap_s = sample.at - trend.at
    all_busy = sample.leased >= max(1, min(trend.slots, sample.offered or trend.slots))
    noted = structs.replace(
        trend,
        at=sample.at,
        came=sample.came,
        ended=sample.ended,
        served=sample.served,
        stirred_at=sample.at if stirs else trend.stirred_at,
        quiet_from=trend.quiet_from if all_busy and sample.ended <= trend.ended else sample.at,
    )
    if gap_s <= 0:
        return noted
    # One burst is a backlog (drain sees it), no rate: what a sample may add is bounded by what is usual, and by ten messages where that is nothing.
    rate = min(max(0, sample.came - trend.came) / gap_s, 5 * trend.per_s + 10 / gap_s)
    samples = trend.samples + 1
    expected = max(0.0, trend.per_s + trend.slope * gap_s)
    per_s = expected + max(1 - math.exp(-gap_s / rules.smooth_s), 1 / samples) * (rate - expected)
    slope = trend.slope + (1 - math.exp(-gap_s / (4 * rules.smooth_s))) * ((per_s - trend.per_s) / gap_s - trend.slope)
    return structs.replace(noted, samples=samples, per_s=per_s if per_s > 1e-9 else 0.0, slope=slope if samples > 1 else 0.0)


def _service(sample: Sample, seen: Trend) -> float:
    quiet_s = sample.at - seen.quiet_from
    return quiet_s if quiet_s > sample.service.mean_s + 4 * math.sqrt(sample.service.variance) else sample.service.mean_s


def _need(sample: Sample, trend: Trend, seen: Trend, rules: Rules, arrivals: float, runnable: int, service_s: float) -> tuple[int, str]:
    """How many slots the load calls for, and which term says so."""
    # A message woke a worker, and was through before anybody looked. At the very first look only workers with a range tell that: others may have served for long.
    passed = sample.served > trend.served and not sample.shut and (trend.at > 0.0 or sample.most < math.inf)
    if not (runnable or sample.leased or passed) and (seen.slots == 0 or sample.at - seen.stirred_at >= rules.cool_down_s):
        return 0, IDLE
    steady = arrivals * service_s / rules.utilisation
    drain = service_s * (arrivals + runnable / _time_left(sample, rules)) if runnable else 0.0
    if not sample.held:  # else `_cap` says why there is no more to do at once
        drain = min(drain, runnable + sample.leased)
    number = min(MOST, math.ceil(max(steady, drain) - 1e-9))
    if number <= 1 and (trend.slots == 0 or not service_s):
        return 1, FIRST
    return max(1, number), DRAIN if drain > steady else STEADY


def _time_left(sample: Sample, rules: Rules) -> float:
    # Some are held back, so the oldest may be one of those: its age says nothing about the slots.
    oldest_s = 0.0 if sample.held else sample.oldest_s
    return max(sample.target_s - oldest_s - rules.start_s, sample.target_s / 4)


def _cap(need: int, slots: int, sample: Sample, runnable: int) -> tuple[int, str]:
    """At most what can run at once: what is runnable, and what the next belts have room for."""
    number, limit = need, ""
    at_once = max(1, runnable + sample.leased)  # one stays until the queue is idle
    if sample.held and number > at_once:
        number, limit = at_once, KEYS
    for belt in sample.belts:
        if belt.load >= belt.high_water:
            room = slots
        elif belt.high_water < math.inf:
            room = max(1, sample.leased + int((belt.high_water - belt.load) // belt.fan_out))
        else:
            continue
        if number > room:
            number, limit = room, BELT
    return number, limit


def _move(wanted: int, most: int, sample: Sample, seen: Trend, rules: Rules) -> tuple[int, Trend, str]:
    """From the size that stands towards the one that is wanted, what to remember, and what holds it up."""
    slots = seen.slots
    if slots > most:  # the range was narrowed: that is an order
        return most, structs.replace(seen, agreeing=0, peak=0), ""
    if wanted >= slots:
        grown_at = sample.at if wanted > slots else seen.grown_at
        return wanted, structs.replace(seen, agreeing=0, peak=0, grown_at=grown_at), ""
    agreeing, peak = seen.agreeing + 1, max(seen.peak, wanted)
    waiting = structs.replace(seen, agreeing=agreeing, peak=peak)
    if agreeing < rules.agreeing or sample.at - seen.grown_at < rules.cool_down_s:
        return slots, waiting, PATIENCE
    fewer = min(slots, max(peak, slots - max(1, slots // 10), sample.leased))
    if fewer == slots:
        return slots, waiting, PROTECT
    return fewer, structs.replace(seen, agreeing=0, peak=0), PATIENCE if fewer > wanted else ""


def _reason(
    sample: Sample,
    after: Trend,
    rules: Rules,
    term: str,
    limit: str,
    patience: str,
    need: int,
    capped: int,
    arrivals: float,
    runnable: int,
    service_s: float,
) -> str:
    """In words, for people."""
    match term:
        case "steady" if arrivals < RARE_PER_S:
            text = f"next to nothing arrives: {_slots(need)} until nothing has come, waited or run for {rules.cool_down_s:.3g} s"
        case "steady":
            text = f"{arrivals:.3g}/s arrive and take {service_s:.3g} s each: {_slots(need)} for that"
        case "drain":
            text = f"{runnable} wait, the oldest for {sample.oldest_s:.3g} s, {arrivals:.3g}/s arrive, {service_s:.3g} s each"
            text += f": {_slots(need)} to start them within {sample.target_s:.3g} s"
        case "first message":
            text = "the first message has come" if service_s else "a first message: 1 slot until it is known how long tasks take"
        case "idle":
            text = "nothing waits" if after.slots == 0 else f"nothing has come, waited or run for {rules.cool_down_s:.3g} s"
        case _:
            text = f"{_slots(capped)} would do, the range begins at {sample.least}"
    if sample.shut:
        text = f"the queue is {sample.shut}; {text}"
    for belt in sample.belts if limit == BELT else ():
        if belt.high_water < math.inf:
            text += f"; {belt.queue} behind it holds {belt.load:g} of {belt.high_water:g}: it has room for no more"
    if limit == KEYS:
        text += (
            f"; only {runnable + sample.leased} can run at once, {sample.held} are held back by limits or by their groups: more slots would not help"
        )
    elif limit == RANGE:
        text += f"; the range ends at {_most(sample)}"
    if sample.refusal:
        text += f"; a host starts no more runners: {sample.refusal}"
    if patience == PATIENCE and not after.agreeing:
        text += "; one step at a time"
    elif patience == PATIENCE:
        left_s = max(0.0, rules.cool_down_s - (sample.at - after.grown_at))
        text += f"; fewer only when {rules.agreeing} samples agree ({min(after.agreeing, rules.agreeing)} do) and the cool-down is over ({left_s:.0f} s left)"
    elif patience == PROTECT:
        text += f"; {sample.leased} are leased, and what runs is left alone"
    return f"{text}; {sample.hopeless}" if sample.hopeless else text


def _slots(number: int) -> str:
    return f"{number} slot" if number == 1 else f"{number} slots"


def check_range(least: int, most: int) -> tuple[int, int]:
    """Raises ValueInvalid."""
    integer("the lower end of a range", least, least=0, most=MOST)
    integer("the upper end of a range", most, least=max(1, least), most=MOST)
    return least, most
