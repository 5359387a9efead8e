"""Flow control as users say it: limits, tenants, sticky keys, unique messages. What it becomes is core/flow.py; what follows from it is decided inside `receive`.

Where a key comes from   in `@app.task(…)` it names a parameter of the task, or is a function of some of its parameters, found by their names:
                         `key="customer"`, `key=lambda photo: photo.owner`. In `with_options(…)` it is the key itself.
None and ""              no key: the message counts for the limit itself, is nobody's, is not sticky, is not unique.
Down a chain             tenant and weight are inherited. Claims and sticky key are those of the next stage's own task, worked out from its own arguments by the worker
                         that hands on. The arguments of a gathered stage come together in the store: there only limits without a key can be counted, others are
                         refused when the chain is declared, and it is sticky to nobody.
"""

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from hashlib import blake2b
from typing import Any
from uuid import UUID

from msgspec import Struct, structs

from beltline.core import flow, limits
from beltline.core.errors import InvalidArguments, TaskInvalid, Unsupported, UsageError, ValueInvalid
from beltline.core.flow import MAX_COST, MAX_PER_S, UNIQUE_STATES, Claim, Flow, Limit, check_flow, check_limit
from beltline.core.limits import MAX_KEY, Seconds
from beltline.core.names import check_name
from beltline.engines.protocol import Engine, Limits
from beltline.resources import injected

Pick = str | Callable[..., object]
"""A parameter's name, or a function of parameters."""

_RATE = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?)\s*/\s*([0-9.]*\s*(?:ms|s|m|h|d))", re.ASCII)
_PLACED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_PLAIN = (*_PLACED, inspect.Parameter.KEYWORD_ONLY)


class Limited(Struct, frozen=True):
    """In `@app.task(limits=[…])`: a start uses `cost` of the limit's bucket of `key`. `cost`: a number, or a Pick. A name alone means no key and cost 1."""

    limit: str | Limit
    key: Pick | None = None
    cost: float | Pick = 1.0


class Unique(Struct, frozen=True):
    """While another message with this key is in one of `states` and was sent less than `window` ago, it stands for a new one.

    `newest`: one that waits takes over the newest arguments, and while one runs the next waits behind it (they are one group): every change is worked off, and
    never two at a time. `states`: of delayed, ready, leased, done, dead; the first three unless given, with `newest` the first two.
    """

    key: Pick
    states: tuple[str, ...] | str = ()
    window: Seconds = math.inf
    newest: bool = False

    def of(self, key: str) -> flow.Unique:
        """As data. Raises ValueInvalid."""
        said = (self.states,) if isinstance(self.states, str) else self.states
        states = said or (("delayed", "ready") if self.newest else UNIQUE_STATES)
        return flow.Unique(key=key, states=tuple(states), window_s=limits.seconds("window", self.window), replace=self.newest)


Debounce = tuple[Any, Seconds] | tuple[Any, Seconds, Seconds]
"""Key, wait, and at most: sent when nothing new has come for `wait`, with the newest arguments, and no later than `most` after the first."""

Throttle = tuple[Any, Seconds]
"""Key and time: the first of each `per` is sent, the others are not."""


class FlowOptions(Struct, frozen=True, kw_only=True):
    """What was said about one send, each value checked where it was said. `delay_s`, `throttle` (key, window) and `group` come from debounce, throttle and
    Unique(newest=True); a delay, dedup key or group that was said beside them wins."""

    tenant: str | None = None
    weight: float | None = None
    cost: float | None = None
    sticky: str | None = None
    claims: tuple[Claim, ...] = ()
    unique: flow.Unique | None = None
    delay_s: float = 0.0
    throttle: tuple[str, float] | None = None
    group: str | None = None

    def flow(self) -> Flow | None:
        """As data. Raises UsageError."""
        if self is NO_FLOW:
            return None
        if self.cost is not None and not self.claims:
            raise UsageError(
                "cost= says how much of its limits a message uses up, and this task has none.", help='Give it some: @app.task(limits=["api"]).'
            )
        claims = self.claims if self.cost is None else tuple(structs.replace(claim, cost=float(self.cost)) for claim in self.claims)
        made = Flow(
            tenant=self.tenant or "", weight=1.0 if self.weight is None else self.weight, claims=claims, sticky=self.sticky or "", unique=self.unique
        )
        return None if made == NOTHING else made


NOTHING = Flow()
NO_FLOW = FlowOptions()


def flow_options(
    before: FlowOptions,
    *,
    tenant: str | None = None,
    weight: float | None = None,
    cost: float | None = None,
    sticky: str | None = None,
    unique_key: str | Unique | None = None,
    debounce: Debounce | None = None,
    throttle: Throttle | None = None,
) -> FlowOptions:
    """`before` with the given changes, each checked; keys are literal. Raises ValueInvalid."""
    changes: dict[str, Any] = {}
    for name, text in (("tenant", tenant), ("sticky", sticky)):
        if text is not None:
            changes[name] = limits.key(name, text) if text != "" else ""
    if weight is not None:
        changes["weight"] = float(check_flow(Flow(weight=weight)).weight)
    if cost is not None:
        changes["cost"] = float(check_flow(Flow(claims=(Claim("any", "", cost),))).claims[0].cost)
    if unique_key is not None and debounce is not None:
        raise ValueInvalid(name="debounce", value=debounce, allowed="not together with unique_key: it is one")
    if unique_key is not None:
        rule = unique_key if isinstance(unique_key, Unique) else Unique(unique_key)
        key = limits.key("unique_key", rule.key)
        changes["unique"] = _checked(rule.of(key))
        changes["group"] = fit(f"unique:{key}") if rule.newest else None
    if debounce is not None:
        name, wait_s, most_s = _debounce(debounce)
        changes["unique"] = _debounced(limits.key("debounce", name), most_s)
        changes["delay_s"], changes["group"] = wait_s, None
    if throttle is not None:
        name, per_s = _throttle(throttle)
        changes["throttle"] = (fit(f"throttle:{limits.key('throttle', name)}"), per_s)
    return structs.replace(before, **changes)


class FlowRules:
    """What the declaration of a task says. Raises TaskInvalid, ValueInvalid, NameInvalid: at the declaration, not at the first send."""

    def __init__(
        self,
        task: str,
        fn: Callable[..., Any],
        *,
        limited: Sequence[str | Limit | Limited] | str | Limit | Limited = (),
        tenant: Pick | None = None,
        sticky: Pick | None = None,
        unique_key: Pick | Unique | None = None,
        debounce: Debounce | None = None,
        throttle: Throttle | None = None,
    ) -> None:
        if unique_key is not None and debounce is not None:
            raise TaskInvalid(
                f"Task {task} has a unique_key and a debounce.", why="A debounce is a unique key of its own kind.", help="Use one of the two."
            )
        needs = injected(fn)
        self._task = task
        self._signature = inspect.signature(fn)
        self._signature = self._signature.replace(parameters=[each for name, each in self._signature.parameters.items() if name not in needs])
        parameters = self._signature.parameters.values()
        self._by_place = tuple(each.name for each in parameters if each.kind in _PLACED)
        self._defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
        self.limited = tuple(_limited(each) for each in _listed(limited))
        self._tenant, self._sticky = self._reader("tenant", tenant), self._reader("sticky", sticky)
        self._keys = tuple(self._reader("key of a limit", each.key) for each in self.limited)
        self._costs = tuple(each.cost if isinstance(each.cost, (int, float)) else self._reader("cost", each.cost) for each in self.limited)
        self._unique = unique_key if isinstance(unique_key, Unique) else None if unique_key is None else Unique(unique_key)
        if debounce is not None:
            name, self._wait_s, self._most_s = _debounce(debounce)
            self._unique = Unique(name, newest=True)
        self._debounced = debounce is not None
        self._unique_key = None if self._unique is None else self._reader("unique_key" if debounce is None else "debounce", self._unique.key)
        if self._unique is not None:
            _checked(self._unique.of("any"))
        throttled = (None, 0.0) if throttle is None else _throttle(throttle)
        self._throttle, self._per_s = self._reader("throttle", throttled[0]), throttled[1]
        keyless = [each.name for each in self.limited if each.key is None]
        if len(set(keyless)) < len(keyless):
            raise ValueInvalid(name="limits", value=keyless, allowed="each limit once, or with another key")
        self.plain = self._plain()
        self._fixed = not (self.follow or self._unique_key or self._throttle)
        check_flow(Flow(claims=self.plain))
        check_flow(Flow(claims=tuple(Claim(each.name, str(at)) for at, each in enumerate(self.limited))))

    def _plain(self) -> tuple[Claim, ...]:
        """The claims that are known without arguments."""
        each = zip(self.limited, self._keys, self._costs, strict=True)
        return tuple(Claim(one.name, "", float(cost)) for one, key, cost in each if key is None and isinstance(cost, (int, float)))

    @property
    def by_arguments(self) -> tuple[str, ...]:
        """The limits whose key or cost depends on arguments."""
        each = zip(self.limited, self._keys, self._costs, strict=True)
        return tuple(one.name for one, key, cost in each if key is not None or not isinstance(cost, (int, float)))

    @property
    def follow(self) -> bool:
        """Whether a stage of a chain needs its arguments for what it says."""
        return bool(self.by_arguments or self._tenant or self._sticky)

    def options(self, said: FlowOptions, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> FlowOptions:
        """What this call says, with what was said about the send laid over it. Raises InvalidArguments, ValueInvalid."""
        if self._fixed:
            return structs.replace(said, claims=self.plain)
        values = self._values(args, kwargs)
        changes: dict[str, Any] = self._shape(values)
        if said.tenant is not None:
            changes["tenant"] = said.tenant
        if said.sticky is not None:
            changes["sticky"] = said.sticky
        key = self._text("unique_key", self._unique_key, values) if said.unique is None else ""
        if key and self._unique is not None:
            key = fit(f"{self._task}:{key}")
            changes["unique"] = _debounced(key, self._most_s) if self._debounced else self._unique.of(key)
            changes["group"] = fit(f"unique:{key}") if self._unique.newest and not self._debounced else None
            changes["delay_s"] = self._wait_s if self._debounced else 0.0
        key = self._text("throttle", self._throttle, values) if said.throttle is None else ""
        if key:
            changes["throttle"] = (fit(f"throttle:{self._task}:{key}"), self._per_s)
        return structs.replace(said, **changes)

    def next(self, before: Flow | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Flow | None:
        """Of a message that follows in a chain: `before` is what it has inherited. Raises InvalidArguments, ValueInvalid."""
        found = self._shape(self._values(args, kwargs))
        inherited = before or NOTHING
        made = structs.replace(inherited, claims=found["claims"], sticky=found["sticky"], tenant=inherited.tenant or found["tenant"])
        return None if made == NOTHING else made

    def _shape(self, values: Mapping[str, Any]) -> dict[str, Any]:
        each = zip(self.limited, self._keys, self._costs, strict=True)
        costs: dict[tuple[str, str], float] = {}
        for one, key, cost in each:
            bucket = (one.name, self._text("key of a limit", key, values))
            costs[bucket] = costs.get(bucket, 0.0) + self._number(cost, values)  # two keys that happen to be the same are one bucket
        return {
            "claims": tuple(Claim(name, key, cost) for (name, key), cost in costs.items()),
            "tenant": self._text("tenant", self._tenant, values),
            "sticky": self._text("sticky", self._sticky, values),
        }

    def _values(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Arguments that fit the signature (Task.message and Signature.read have seen to that) by name. Not Signature.bind: it takes ten times as long."""
        return {**self._defaults, **dict(zip(self._by_place, args, strict=False)), **kwargs}

    def _text(self, what: str, read: "Callable[[Mapping[str, Any]], object] | None", values: Mapping[str, Any]) -> str:
        if read is None:
            return ""
        value = read(values)
        text = key_text(value)
        if text is None:
            raise InvalidArguments(
                task=self._task, parameter=what, expected="a text, a whole number, a UUID or an enum of these as key", got=type(value).__name__
            )
        text = fit(text)
        return text if text.isascii() and "\0" not in text else limits.key(what, text)

    def _number(self, cost: "float | Callable[[Mapping[str, Any]], object] | None", values: Mapping[str, Any]) -> float:
        value = cost(values) if callable(cost) else cost
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidArguments(task=self._task, parameter="cost", expected="a number", got=type(value).__name__)
        if not 0.0 <= value <= MAX_COST:
            raise ValueInvalid(name="cost", value=value, allowed=f"a number from 0 to {MAX_COST:g}")
        return float(value)

    def _reader(self, what: str, pick: Pick | None) -> "Callable[[Mapping[str, Any]], object] | None":
        """Takes what `pick` names out of bound arguments. Raises TaskInvalid."""
        known = tuple(name for name, each in self._signature.parameters.items() if each.kind in _PLAIN)
        if pick is None:
            return None
        if isinstance(pick, str):
            if pick not in known:
                raise TaskInvalid(
                    f"Task {self._task} has no parameter {pick!r} ({what}).",
                    why=f"Parameters: {', '.join(known) or 'none'}.",
                    help="In @app.task a key names a parameter, or is a function of parameters; with_options takes the key itself.",
                )
            return lambda values: values.get(pick)
        try:
            parameters = inspect.signature(pick).parameters
        except (TypeError, ValueError):
            raise TaskInvalid(f"{what} of task {self._task} is {pick!r}.", help="Name a parameter, or give a function of parameters.") from None
        if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            return lambda values: pick(**values)
        names = tuple(name for name, each in parameters.items() if each.default is each.empty or name in known)
        strange = [name for name in names if name not in known]
        if strange:
            raise TaskInvalid(
                f"The function for {what} of task {self._task} takes {strange[0]!r}, which is no parameter of the task.",
                why=f"Parameters: {', '.join(known)}.",
            )
        return lambda values: pick(**{name: values.get(name) for name in names})


def check_charges(task: str, rules: FlowRules | None, where: str, limits: Sequence[str]) -> None:
    """`limits`: those of a queue the task's messages wait in, `where` in words. Raises TaskInvalid: a start there would be charged twice."""
    for one in () if rules is None else rules.limited:
        if one.key is None and one.name in limits:
            raise TaskInvalid(
                f"Task {task} and {where} both name the limit {one.name!r}.",
                why="Each start would be charged twice: once for the task, once for the queue.",
                help=f"Leave limits=[{one.name!r}] out of the task, if every start in the queue counts, or out of the queue, if only this task's do.",
            )


class _Limited(Struct, frozen=True):
    name: str
    key: Pick | None
    cost: float | Pick


def _limited(given: object) -> _Limited:
    if isinstance(given, Limited):
        return _Limited(limit_name(given.limit), given.key, given.cost)
    return _Limited(limit_name(given), None, 1.0)


def limit_name(given: object) -> str:
    """Raises NameInvalid."""
    return given.name if isinstance(given, Limit) else check_name("limit", given)


def limit_names(given: object) -> tuple[str, ...]:
    """What `app.queue(…, limits=…)` says. Raises NameInvalid, ValueInvalid."""
    return tuple(limit_name(each) for each in _listed(given))


def _listed(given: object) -> Iterable[object]:
    if isinstance(given, (str, Limit, Limited)):
        return [given]
    if isinstance(given, Iterable):
        return given
    raise ValueInvalid(name="limits", value=given, allowed='names of limits: limits=["api"]')


def limits_of(engine: Engine) -> Limits:
    """Raises Unsupported."""
    if isinstance(engine, Limits):
        return engine
    raise Unsupported(feature="limits", need=1, have=0, engine=engine.name)


def make_limit(
    name: str, *, rate: float | str | None = None, per: Seconds = 1.0, burst: float | None = None, concurrency: float | None = None
) -> Limit:
    """A limit as users say it: `rate=50, per="1m"` or `rate="50/m"`. What would have no effect is refused. Raises NameInvalid, ValueInvalid."""
    if burst is not None and rate is None:
        raise ValueInvalid(name="burst", value=burst, allowed="only beside a rate: it says how many of its starts may come at once")
    if burst == 0:
        raise ValueInvalid(name="burst", value=burst, allowed="a number from 1; where none is said, it is what the rate yields in 0.2 s")
    if per != 1.0 and (rate is None or isinstance(rate, str)):
        allowed = "only beside a rate that is a number" if rate is None else f"not beside rate = {rate!r}, which says its time itself"
        raise ValueInvalid(name="per", value=per, allowed=allowed)
    if isinstance(rate, str):
        rate, per = rate_of(rate)
    return check_limit(
        Limit(
            name=name,
            rate=math.inf if rate is None else rate,
            per_s=limits.seconds("per", per, least=0.001, most=MAX_PER_S),
            burst=0.0 if burst is None else burst,
            concurrency=math.inf if concurrency is None else concurrency,
        )
    )


def rate_of(text: str) -> tuple[float, float]:
    """`50/s`, `600/10m`, `1000/h` as a rate and its seconds. Raises ValueInvalid."""
    found = _RATE.fullmatch(text.strip())
    try:
        if found is None:
            raise ValueError
        number, per = float(found[1].replace("_", "")), found[2].strip()
        per_s = limits.duration(per if per[0] in "0123456789." else f"1{per}")
        if not (number > 0 and 0.001 <= per_s <= MAX_PER_S):
            raise ValueError
    except ValueError:
        allowed = "a number above 0 per time (1ms to 366d), such as 50/s, 600/10m or 1000/h; a concurrency of 0 lets nothing start"
        raise ValueInvalid(name="rate", value=text, allowed=allowed) from None
    return number, per_s


def key_text(value: object) -> str | None:
    """A value as a key; "" = no key, None = it cannot be one."""
    match value:
        case None:
            return ""
        case Enum():
            return key_text(value.value)
        case bool():
            return "true" if value else "false"
        case str():
            return value
        case int() | UUID():
            return str(value)
        case _:
            return None


def fit(text: str) -> str:
    """A key of any length as one that fits: the beginning for people, a hash for being another one."""
    if len(text) <= MAX_KEY:
        return text
    return f"{text[: MAX_KEY - 41]}~{blake2b(text.encode(errors='surrogatepass'), digest_size=20).hexdigest()}"


def _debounce(given: Debounce) -> tuple[Any, float, float]:
    if not isinstance(given, tuple) or len(given) not in (2, 3):
        raise ValueInvalid(name="debounce", value=given, allowed="(key, wait) or (key, wait, most)")
    wait_s = limits.seconds("debounce", given[1], least=0.001, most=limits.MAX_DELAY_S)
    return given[0], wait_s, limits.seconds("debounce", given[2] if len(given) == 3 else math.inf, least=wait_s)


def _debounced(key: str, most_s: float) -> flow.Unique:
    return flow.Unique(key=key, states=("delayed", "ready"), replace=True, most_s=most_s)


def _throttle(given: Throttle) -> tuple[Any, float]:
    if not isinstance(given, tuple) or len(given) != 2:
        raise ValueInvalid(name="throttle", value=given, allowed="(key, seconds)")
    return given[0], limits.seconds("throttle", given[1], least=0.001, most=limits.MAX_DEDUP_WINDOW_S)


def _checked(unique: flow.Unique) -> flow.Unique:
    check_flow(Flow(unique=unique))
    return unique
