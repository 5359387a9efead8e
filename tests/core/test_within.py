"""What a line target means for the wait before each of its stages."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beltline.core.chain import Answer, ChainPlan, Choose, End, Next, Split, StagePlan, To
from beltline.core.names import ChainName, QueueName, StageName, TaskName
from beltline.core.scaling import Service
from beltline.core.within import targets


def stage(name: str, what: Next) -> StagePlan:
    return StagePlan(name=StageName(name), task=TaskName(name), queue=QueueName(name), param="value", next=what)


def chain(*stages: StagePlan, within_s: float = 60.0) -> ChainPlan:
    return ChainPlan(name=ChainName("album"), stages=stages, within_s=within_s)


def to(name: str) -> To:
    return To(StageName(name))


def each(name: str, gather: str = "") -> Split:
    return Split(StageName(name), True, {}, gather, "hold")


def steady(**means: float) -> dict[QueueName, Service]:
    return {QueueName(name): Service(100, mean_s, 0.0) for name, mean_s in means.items()}


LINE = chain(stage("a", to("b")), stage("b", to("c")), stage("c", End()))


def test_a_chain_without_a_target_has_none():
    assert targets(chain(stage("a", End()), within_s=math.inf), {}).wait_s == {}


def test_at_first_all_stages_may_take_the_same():
    assert targets(LINE, {}).wait_s == pytest.approx({"a": 20.0, "b": 20.0, "c": 20.0})


def test_shares_are_in_proportion_to_the_service():
    """12 s of service in 60 s: each share is five times its service, four of them waiting."""
    waits = targets(LINE, steady(a=2.0, b=9.0, c=1.0)).wait_s
    assert waits == pytest.approx({"a": 8.0, "b": 36.0, "c": 4.0})


def test_a_stage_whose_times_vary_gets_more_than_its_mean_says():
    waits = targets(LINE, {**steady(a=2.0, b=2.0), QueueName("c"): Service(100, 2.0, 4.0)}).wait_s
    assert waits["c"] == pytest.approx(3 * waits["a"])  # 2 s and two deviations of 2 s


def test_a_stage_nobody_has_measured_counts_like_the_others():
    waits = targets(LINE, steady(a=1.0, b=3.0)).wait_s
    assert waits["c"] == pytest.approx((waits["a"] + waits["b"]) / 2)


def test_a_stage_that_takes_next_to_nothing_may_still_wait_a_moment():
    waits = targets(LINE, steady(a=0.0001, b=10.0, c=10.0)).wait_s
    assert waits["a"] > 1.0
    assert sum(waits.values()) == pytest.approx(60.0 - 20.0, abs=0.01)


def test_parts_run_side_by_side_and_count_once():
    line = chain(stage("a", each("b", "c")), stage("b", Answer("c")), stage("c", End()))
    assert targets(line, steady(a=1.0, b=1.0, c=1.0)).wait_s == pytest.approx({"a": 19.0, "b": 19.0, "c": 19.0})


def test_a_stage_on_a_fast_branch_has_more_time_than_one_on_the_slow_branch():
    line = chain(stage("a", Choose({"x": to("b"), "y": to("c")})), stage("b", to("d")), stage("c", to("d")), stage("d", End()))
    waits = targets(line, steady(a=1.0, b=10.0, c=1.0, d=1.0)).wait_s
    assert waits["a"] == pytest.approx(48.0 / 12.0)  # on the slow way: 12 s of service
    assert waits["c"] == pytest.approx(57.0 / 3.0)  # on the fast one: 3 s


def test_a_target_below_the_work_itself_is_said_to_be_out_of_reach():
    found = targets(LINE, steady(a=10.0, b=50.0, c=5.0))
    assert "cannot be through within 60 s with any number of slots" in found.hopeless
    assert "65 s, 50 s of it in b" in found.hopeless
    assert all(wait_s > 0 for wait_s in found.wait_s.values())


@given(st.lists(st.floats(0, 100), min_size=3, max_size=3), st.floats(0.001, 10_000))
def test_waits_and_services_fit_into_the_target_whenever_they_can(means: list[float], within_s: float):
    line = chain(*LINE.stages, within_s=within_s)
    services = dict(zip((QueueName("a"), QueueName("b"), QueueName("c")), (Service(1, mean, 0.0) for mean in means), strict=True))
    found = targets(line, services)
    assert all(wait_s > 0 for wait_s in found.wait_s.values())
    if sum(means) <= 0.9 * within_s:
        assert sum(found.wait_s.values()) + sum(means) <= within_s * 1.000001
        assert not found.hopeless
    if sum(means) > within_s * 1.000001:
        assert found.hopeless
