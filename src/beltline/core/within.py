"""A line target: an item shall be through a chain within W seconds. What may each stage take of it?

A stage's service is what nearly every delivery of it takes (mean and two standard deviations). Along the slowest way through a stage the services add up to
P; what is left of W, the slack, is what messages may wait, and is split in the same proportion: share = W * service / P, wait target = share - service.
A stage that takes next to nothing still gets a little slack (a tenth of an even part), or a moment's wait there would miss the target.
Services nobody has measured count as the mean of those that are known; with none known all shares are equal.

Splits   their parts run side by side: the way counts their stage once.   Branches   each stage belongs to the slowest way that passes through it.
When P is above W there is no slack: waiting less cannot help, only a faster task can. That is said, with the numbers.
"""

import math
from collections.abc import Mapping

from msgspec import Struct

from beltline.core.chain import Answer, ChainPlan, Choose, Split, StagePlan, To
from beltline.core.names import QueueName, StageName
from beltline.core.scaling import Service

LEAST_SLACK = 0.05  # of the target: what stages are sized for when the line cannot be in time anyway


class Targets(Struct, frozen=True):
    """`wait_s`: queue -> how long a message should wait there at most. `hopeless`: why no number of slots can keep the target; "" = one can."""

    wait_s: dict[QueueName, float]
    hopeless: str = ""


def targets(plan: ChainPlan, services: Mapping[QueueName, Service]) -> Targets:
    """What `plan.within_s` means for the queue of each stage. Without a target: nothing."""
    if plan.within_s == math.inf:
        return Targets({})
    known = {stage.name: services[stage.queue].usual_s for stage in plan.stages if stage.queue in services and services[stage.queue].known}
    usual = sum(known.values()) / len(known) if known else 0.0
    weights = {stage.name: known.get(stage.name, usual) for stage in plan.stages}
    ways = _Ways(plan)
    waits: dict[QueueName, float] = {}
    longest_s, where = 0.0, plan.stages[0]
    for stage in plan.stages:
        way = ways.through(stage.name, weights)
        service_s = sum(weights[name] for name in way)
        if service_s > longest_s:
            longest_s, where = service_s, stage
        parts = {name: max(weights[name], 0.1 * service_s / len(way), 1e-6) for name in way}
        slack_s = max(plan.within_s - service_s, LEAST_SLACK * plan.within_s)
        waits[stage.queue] = slack_s * parts[stage.name] / sum(parts.values())
    if longest_s < plan.within_s:
        return Targets(waits)
    slowest = max(ways.through(where.name, weights), key=lambda name: weights[name])
    why = f"chain {plan.name} cannot be through within {plan.within_s:g} s with any number of slots: its tasks alone take {longest_s:.3g} s"
    return Targets(waits, f"{why}, {weights[slowest]:.3g} s of it in {slowest}")


class _Ways:
    """The slowest way through a stage. A chain has no circles, so each search ends."""

    def __init__(self, plan: ChainPlan) -> None:
        self._after = {stage.name: _followers(stage) for stage in plan.stages}
        self._before: dict[StageName, list[StageName]] = {stage.name: [] for stage in plan.stages}
        for name, followers in self._after.items():
            for follower in followers:
                self._before[follower].append(name)

    def through(self, name: StageName, weights: Mapping[StageName, float]) -> list[StageName]:
        before, after = self._longest(name, self._before, weights), self._longest(name, self._after, weights)
        return [*reversed(before), name, *after]

    def _longest(self, name: StageName, edges: Mapping[StageName, list[StageName]], weights: Mapping[StageName, float]) -> list[StageName]:
        """The heaviest way from `name` along `edges`, without `name`; of equal ones that of more stages."""
        best: dict[StageName, list[StageName]] = {}

        def search(at: StageName) -> list[StageName]:
            if at not in best:
                ways = [[next_name, *search(next_name)] for next_name in edges[at]]
                best[at] = max(ways, key=lambda way: (sum(weights[each] for each in way), len(way)), default=[])
            return best[at]

        return search(name)


def _followers(stage: StagePlan) -> list[StageName]:
    arms = stage.next.arms.values() if isinstance(stage.next, Choose) else (stage.next,)
    names: dict[StageName, None] = {}
    for arm in arms:
        if isinstance(arm, To | Split):
            names[arm.stage] = None
        elif isinstance(arm, Answer) and arm.gather:
            names[StageName(arm.gather)] = None
    return list(names)
