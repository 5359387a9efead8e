"""A chain: stages in order with a queue before each, written as `a >> b.each(width=[…]) >> c.gather()`.

    a >> b                     the result of a is the first argument of b
    a >> b.each(width=[1, 2])  split: one message per value; without a parameter, one per element of the list a returned
    … >> c.gather()            join: c receives the list of all parts' results, in order
    a >> branch(by, jpg=b, raw=c >> d)   one of several ways, chosen by the function `by` from the result of a
    x.stage(name=…, queue=…)   a stage with its own name, queue or policy

Declaring it compiles the notation into a plan (core.chain.ChainPlan) and checks every joint: type against type where both are known.
"""

import math
import types
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from msgspec import structs

from beltline.core import limits
from beltline.core.chain import Answer, ChainPlan, Choose, End, Next, Split, StagePlan, To
from beltline.core.codec import type_name
from beltline.core.errors import BodyTooLarge, ChainInvalid, InvalidArguments, MessageInvalid
from beltline.core.limits import Seconds
from beltline.core.message import Message, Place
from beltline.core.names import ChainName, QueueName, RunId, StageName, TaskName, chain_name, queue_name, stage_name
from beltline.core.outcome import Ack
from beltline.core.policy import TaskPolicy
from beltline.core.retry import Retry, as_retry
from beltline.fitting import element, fits
from beltline.handles import Host
from beltline.limiting import FlowRules
from beltline.sending import Options, Sendable, Target
from beltline.signature import Signature

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
L = TypeVar("L")
T = TypeVar("T")
E = TypeVar("E")
X = TypeVar("X")

ON_DEAD = ("hold", "skip", "fail")


class StageTask(Protocol):
    """What a stage needs of a task."""

    @property
    def name(self) -> TaskName: ...

    @property
    def short_name(self) -> str: ...

    @property
    def queue(self) -> QueueName: ...

    @property
    def signature(self) -> Signature: ...

    @property
    def policy(self) -> TaskPolicy: ...

    rules: FlowRules | None

    def message(self, args: tuple[Any, ...], kwargs: dict[str, Any], chosen: Options) -> Message: ...


class Link:
    """One element of the notation: a task in a role (one, each, gather) with what was said about the stage."""

    def __init__(
        self,
        task: StageTask,
        *,
        name: str | None = None,
        queue: str | None = None,
        retry: Retry | int | bool | None = None,
        timeout: Seconds | None = None,
    ) -> None:
        self.task = task
        self.role = "one"
        self.name = stage_name(name or task.short_name)
        self.queue = queue_name(queue) if queue else (queue_name(name) if name else task.queue)
        self.retry = None if retry is None else as_retry(retry)
        self.timeout_s = None if timeout is None else limits.seconds("timeout", timeout, least=0.001, most=limits.MAX_LEASE_S)
        self.keys: dict[str, list[Any]] = {}
        self.on_dead = "hold"

    def __repr__(self) -> str:
        return f"<{self.role} stage {self.name} on queue {self.queue}>"


class Each(Link, Generic[T, R]):
    """A split over given values: made by `task.each(width=[…])`. Each part takes the whole value that arrives."""


class EachItem(Link, Generic[T, R]):
    """A split over the elements of the list that arrives: made by `task.each()`."""


class Gathered(Link, Generic[E, R]):
    """A join: made by `task.gather()`."""


class Joint(Generic[P, R_co]):
    """What can be joined by >>: tasks and stages of them. `a >> b` type-checks when b's first parameter takes what a returns."""

    def as_stage(self) -> "Stage[P, R_co]":
        raise TypeError("a Joint is a task or a stage")

    @overload
    def each(self: "Joint[Concatenate[T, ...], X]") -> EachItem[T, X]: ...

    @overload
    def each(self: "Joint[Concatenate[T, ...], X]", **values: Sequence[Any]) -> Each[T, X]: ...

    def each(self: "Joint[Concatenate[T, ...], X]", **values: Sequence[Any]) -> Any:
        """Split: one message per value of the given parameter (all combinations of several). Without any: one per element of the list that arrives."""
        stage = self.as_stage()
        return stage.derive(Each, "each", keys=stage.split_keys(values)) if values else stage.derive(EachItem, "each")

    def gather(self: "Joint[Concatenate[list[E], ...], X]", *, on_dead: str = "hold") -> Gathered[E, X]:
        """Join: one message with the list of all parts' results, in order.

        `on_dead`: what a dead part means: "hold" waits for its redrive, "skip" goes on without it, "fail" ends the run.
        """
        if on_dead not in ON_DEAD:
            raise ChainInvalid(f"on_dead = {on_dead!r} is unknown.", help=f"One of {', '.join(ON_DEAD)}.")
        joined: Gathered[E, X] = self.as_stage().derive(Gathered, "gather", on_dead=on_dead)
        return joined

    @overload
    def __rshift__(self, other: "Joint[Concatenate[R_co, ...], X]") -> "Line[P, X]": ...

    @overload
    def __rshift__(self, other: "Each[R_co, X]") -> "Line[P, X]": ...

    @overload
    def __rshift__(self: "Joint[P, list[E]]", other: "EachItem[E, X]") -> "Line[P, X]": ...

    @overload
    def __rshift__(self, other: "Branch[R_co, X]") -> "Line[P, X]": ...

    @overload
    def __rshift__(self, other: "Line[Concatenate[R_co, ...], X]") -> "Line[P, X]": ...

    def __rshift__(self, other: Any) -> Any:
        return Line((self.as_stage(),)).then(other)


class Stage(Joint[P, R], Link):
    """A task as a stage."""

    def as_stage(self) -> "Stage[P, R]":
        return self

    def derive(self, kind: type[L], role: str, *, keys: dict[str, list[Any]] | None = None, on_dead: str = "hold") -> L:
        """The same stage in another role of the notation."""
        made = kind.__new__(kind)
        made.__dict__.update({**self.__dict__, "role": role, "keys": keys or {}, "on_dead": on_dead})
        return made

    def split_keys(self, values: dict[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """The values to split over, checked. Raises ChainInvalid."""
        known, first = self.task.signature.types, self.task.signature.first_parameter
        for parameter, choices in values.items():
            if parameter not in known or parameter == first:
                others = ", ".join(name for name in known if name != first) or "none"
                raise ChainInvalid(f"{self.task.name} cannot be split over {parameter!r}.", help=f"One of: {others}.")
            if isinstance(choices, (str, bytes)) or not choices:
                raise ChainInvalid(f"each({parameter}=…) needs a list of values.", why=f"Got {choices!r}.")
        return {parameter: list(choices) for parameter, choices in values.items()}


class Branch(Generic[T, R]):
    """One of several ways: made by `branch(…)`."""

    def __init__(self, by: Callable[[T], str], arms: "dict[str, Line[..., Any]]") -> None:
        self.by = by
        self.arms = arms


def branch(by: Callable[[T], str], arms: "dict[str, Any] | None" = None, /, **named: Any) -> Branch[T, Any]:
    """`by` gets the result of the stage before, in the worker, and returns the name of an arm (a task, stage or line). After the branch the ways join again."""
    given = {**(arms or {}), **named}
    if not given or not callable(by):
        raise ChainInvalid("A branch needs a function and at least one arm.", help="branch(lambda photo: photo.kind, jpg=a, raw=b)")
    return Branch(by, {str(key): _line(arm) for key, arm in given.items()})


class Line(Generic[P, R_co]):
    """Stages joined by >>, not yet a chain."""

    def __init__(self, links: "tuple[Link | Branch[Any, Any], ...]") -> None:
        self.links = links

    @overload
    def __rshift__(self, other: "Joint[Concatenate[R_co, ...], X]") -> "Line[P, X]": ...

    @overload
    def __rshift__(self, other: "Each[R_co, X]") -> "Line[P, X]": ...

    @overload
    def __rshift__(self: "Line[P, list[E]]", other: "EachItem[E, X]") -> "Line[P, X]": ...

    @overload
    def __rshift__(self, other: "Gathered[R_co, X]") -> "Line[P, X]": ...

    @overload
    def __rshift__(self, other: "Branch[R_co, X]") -> "Line[P, X]": ...

    @overload
    def __rshift__(self, other: "Line[Concatenate[R_co, ...], X]") -> "Line[P, X]": ...

    def __rshift__(self, other: Any) -> Any:
        return self.then(other)

    def then(self, other: Any) -> "Line[P, Any]":
        """`>>` for callers without types."""
        return Line((*self.links, other) if isinstance(other, Branch) else (*self.links, *_line(other).links))


def _line(thing: Any) -> "Line[..., Any]":
    if isinstance(thing, Line):
        return thing
    if isinstance(thing, Link):
        return Line((thing,))
    if isinstance(thing, Joint):
        return Line((thing.as_stage(),))
    raise ChainInvalid(f"{thing!r} cannot stand in a chain.", help="A chain is made of tasks: a >> b.each(x=[…]) >> c.gather().")


class ChainHost(Host, Protocol):
    @property
    def max_body(self) -> int: ...


class Chain(Sendable[P, R]):
    """A declared chain: sends like a task, and what it sends is a run. Made by `app.chain(name, line)`."""

    def __init__(
        self,
        app: ChainHost,
        name: str,
        line: "Line[P, R]",
        *,
        result_ttl: Seconds = 86400.0,
        high_water: float | None = None,
        within: Seconds | None = None,
    ) -> None:
        self._app = app
        self.name: ChainName = chain_name(name)
        self.links = _line(line).links
        compiled = _Compiler(self.name, self.links)
        self.plan = ChainPlan(
            name=self.name,
            stages=compiled.plans(),
            result_ttl_s=limits.seconds("result_ttl", result_ttl, most=limits.MAX_DELAY_S),
            within_s=math.inf if within is None else limits.seconds("within", within, least=0.001, most=limits.MAX_DELAY_S),
        )
        self.high_water = high_water
        self._by = compiled.by
        self._rules = compiled.rules()
        self._first = compiled.first
        self._last = compiled.last_result

    def __repr__(self) -> str:
        return f"<chain {self.name}: {' >> '.join(stage.name for stage in self.plan.stages)}>"

    @property
    def app(self) -> ChainHost:
        return self._app

    def _target(self) -> Target:
        return self

    def takes(self, name: str) -> bool:
        return self._first.task.signature.takes(name)

    def message(self, args: tuple[Any, ...], kwargs: dict[str, Any], chosen: Options) -> Message:
        """The message that enters the first stage. Its id is the run's."""
        stage = self.plan.stages[0]
        plain = self._first.task.message(args, kwargs, chosen)
        if len(plain.body) > self._app.max_body:
            raise BodyTooLarge(size_bytes=len(plain.body), limit_bytes=self._app.max_body)
        return structs.replace(
            plain,
            queue=stage.queue,
            retry=plain.retry or stage.retry,
            timeout_s=plain.timeout_s or stage.timeout_s,
            place=Place(RunId(plain.id), self.name, stage.name),
        )

    def choose(self, stage: str, value: Any) -> str:
        """Which arm follows: "" when no branch stands behind this stage. Runs the user's function."""
        by = self._by.get(stage)
        return "" if by is None else str(by(value))

    def shaped(self, ack: Ack) -> Ack:
        """`ack` with what the next stage's task says about flow control, where that takes its arguments. Raises ValueInvalid, and what a key's function raises."""
        if not self._rules or not ack.then:
            return ack
        return structs.replace(ack, then=tuple(self._shape(message) for message in ack.then))

    def _shape(self, message: Message) -> Message:
        link = self._rules.get(message.place.stage) if message.place is not None else None
        if link is None or link.task.rules is None:
            return message
        try:
            args, kwargs = link.task.signature.read(message.body)
        except (InvalidArguments, MessageInvalid):  # its own worker will say so
            return message
        return structs.replace(message, flow=link.task.rules.next(message.flow, args, kwargs))

    def read_result(self, data: bytes) -> Any:
        return self._last(data)


class _Compiler:
    """Notation in, stages with their `next` out. Works from the end, because a stage must know what follows it."""

    def __init__(self, chain: ChainName, links: "tuple[Link | Branch[Any, Any], ...]") -> None:
        self.chain = chain
        self.by: dict[str, Callable[[Any], Any]] = {}
        self._stages: dict[StageName, StagePlan] = {}
        self._links: dict[StageName, Link] = {}
        if not links or not isinstance(links[0], Link) or links[0].role != "one":
            raise ChainInvalid(f"Chain {chain!r} must start with a plain task.", why="A split or join has nothing before it.")
        self.first = links[0]
        self._compile(links, End())
        self._check_queues()
        self.last_result = self._result_reader(links)

    def plans(self) -> tuple[StagePlan, ...]:
        return tuple(reversed(self._stages.values()))

    def rules(self) -> dict[StageName, Link]:
        """The stages whose messages need their arguments for flow control. Those of gathers come together in the store and cannot be asked."""
        return {name: link for name, link in self._links.items() if link.role != "gather" and link.task.rules is not None and link.task.rules.follow}

    def _compile(self, links: "Sequence[Link | Branch[Any, Any]]", after: Next) -> Next:
        """The Next that leads into `links`, which are followed by `after`."""
        if not links:
            return after
        head, rest = links[0], links[1:]
        if isinstance(head, Branch):
            joined = self._compile(rest, after)
            arms: dict[str, End | Answer | To | Split] = {}
            for key, line in reversed(head.arms.items()):  # from the end here too, so that plans() lists them as they were written
                arm = self._compile(line.links, joined)
                if isinstance(arm, Choose):
                    raise ChainInvalid(f"Branch {key!r} of chain {self.chain!r} starts with a branch.", help="Put a stage between them.")
                arms[key] = arm
            return Choose({key: arms[key] for key in head.arms})
        if head.role == "gather":
            raise ChainInvalid(
                f"{head.name}.gather() in chain {self.chain!r} has no split before it.", help="Split first: a >> b.each() >> c.gather()"
            )
        if head.role == "each":
            return self._compile_split(head, rest, after)
        following = self._compile(rest, after)
        self._check_joint(head, rest)
        if isinstance(following, Choose) and isinstance(rest[0], Branch):
            self.by[head.name] = rest[0].by
        self._add(head, following)
        return To(head.name)

    def _compile_split(self, head: Link, rest: "Sequence[Link | Branch[Any, Any]]", after: Next) -> Split:
        end = _matching_gather(rest)
        if end is None:
            if not isinstance(after, (End, Answer)):
                raise ChainInvalid(f"The split at {head.name!r} in chain {self.chain!r} must be gathered inside its branch.")
            inside, gather, on_dead = rest, "", "hold"
        else:
            join = rest[end]
            assert isinstance(join, Link)
            following = self._compile(rest[end + 1 :], after)
            self._check_joint(join, rest[end + 1 :])
            if isinstance(following, Choose):
                branch_after = rest[end + 1]
                assert isinstance(branch_after, Branch)
                self.by[join.name] = branch_after.by
            self._add(join, following)
            inside, gather, on_dead = rest[:end], join.name, join.on_dead
        following = self._compile(inside, Answer(gather))
        self._check_joint(head, inside if end is None else [*inside, rest[end]])
        if isinstance(following, Choose) and isinstance(inside[0], Branch):
            self.by[head.name] = inside[0].by
        self._add(head, following)
        return Split(stage=head.name, over_items=not head.keys, keys=head.keys, gather=gather, on_dead=on_dead)

    def _add(self, link: Link, following: Next) -> None:
        known = self._links.get(link.name)
        if known is not None:
            raise ChainInvalid(
                f"Chain {self.chain!r} has two stages called {link.name!r}.", help=f"Name one: {link.task.short_name}.stage(name='…')."
            )
        rules = link.task.rules
        if link.role == "gather" and rules is not None and rules.by_arguments:
            raise ChainInvalid(
                f"{link.task.name} gathers in chain {self.chain!r}, and its limit {rules.by_arguments[0]!r} depends on its arguments.",
                why="The arguments of a gathered stage come together in the store, where no key can be worked out.",
                help="Use a limit without key and with a fixed cost there.",
            )
        self._links[link.name] = link
        self._stages[link.name] = StagePlan(
            name=link.name,
            task=link.task.name,
            queue=link.queue,
            param=link.task.signature.first_parameter,
            next=following,
            retry=link.retry,
            timeout_s=link.timeout_s,
            claims=() if rules is None else rules.plain,
        )

    def _check_queues(self) -> None:
        seen: dict[QueueName, StageName] = {}
        for name, link in self._links.items():
            if link.queue in seen:
                why = "Between every two stages stands a queue of its own."
                raise ChainInvalid(
                    f"Stages {seen[link.queue]!r} and {name!r} of chain {self.chain!r} share queue {link.queue!r}.",
                    why=why,
                    help="Give one stage(queue='…').",
                )
            seen[link.queue] = name

    def _check_joint(self, link: Link, rest: "Sequence[Link | Branch[Any, Any]]") -> None:
        """Type against type: what `link` returns and what the next stage takes. Unknown types fit anything."""
        if not rest:
            return
        following = rest[0]
        heads = [arm.links[0] for arm in following.arms.values()] if isinstance(following, Branch) else [following]
        for head in heads:
            if not isinstance(head, Link):
                continue
            takes = head.task.signature
            if not takes.first_parameter:
                raise ChainInvalid(f"{head.task.name} takes no argument, so it cannot follow {link.task.name}.")
            given, into = link.task.signature.returns, takes.type_of(takes.first_parameter)
            if head.role == "each" and not head.keys:
                given = element(given)
            elif head.role == "gather":
                given = types.GenericAlias(list, (given,)) if given is not Any and given is not None else Any
            if not fits(given, into):
                joint = f"{link.task.name} gives {type_name(given)}, {head.task.name} takes {type_name(into)} as {takes.first_parameter!r}"
                raise ChainInvalid(f"Chain {self.chain!r} does not fit together: {joint}.")

    def _result_reader(self, links: "tuple[Link | Branch[Any, Any], ...]") -> Callable[[bytes], Any]:
        from beltline.core.codec import unpack

        last = links[-1]
        if isinstance(last, Branch):
            return unpack
        open_splits = 0
        for link in links:
            if isinstance(link, Link):
                open_splits += {"each": 1, "gather": -1}.get(link.role, 0)
        return last.task.signature.read_result if open_splits == 0 else unpack


def _matching_gather(links: "Sequence[Link | Branch[Any, Any]]") -> int | None:
    depth = 0
    for index, link in enumerate(links):
        if isinstance(link, Link) and link.role == "each":
            depth += 1
        elif isinstance(link, Link) and link.role == "gather":
            if depth == 0:
                return index
            depth -= 1
    return None
