"""What the conformance suite itself promises to authors of engines and to the docs."""

import re

import pytest
from msgspec import structs

from beltline.core.capabilities import Counting, Order
from beltline.engines.memory import MemoryEngine
from beltline.testing import conformance
from beltline.testing.clock import ManualClock
from beltline.testing.conformance.harness import Harness
from tests.engines.test_memory import MemoryHarness

LAWS = {law.number: law for law in conformance.laws()}


def test_every_law_is_one_sentence_that_can_be_printed():
    for promise in conformance.promises():
        assert re.fullmatch(r"[A-Z].{30,}\.", promise.sentence), promise.sentence
        assert "\n" not in promise.sentence
    assert len({promise.sentence for promise in conformance.promises()}) == len(LAWS)


def test_a_promise_names_what_an_engine_needs_for_it():
    needs = {promise.law: promise.capability for promise in conformance.promises()}
    assert needs["L24"] == "Browse, Control, order >= GROUP"
    assert needs["L12"] == ""
    assert needs["L15"].endswith("max_delay_s >= inf")


def test_laws_are_in_order_and_none_is_numbered_twice():
    numbers = [law.number for law in conformance.laws()]
    assert numbers == sorted(set(numbers))
    assert all(law.tests for law in conformance.laws())


def test_a_suite_is_one_function_per_test_in_the_namespace_given():
    namespace = {"__name__": "tests.engines.test_mine"}
    conformance.suite(namespace, MemoryHarness)
    functions = [value for name, value in namespace.items() if name.startswith("test_")]
    assert len(functions) == sum(len(law.tests) for law in conformance.laws())
    assert {function.__module__ for function in functions} == {"tests.engines.test_mine"}
    assert namespace["test_l03_a_new_id_is_stored"].__doc__ == LAWS["L03"].sentence


class Without(Harness):
    """The memory engine as one that carries less."""

    capability: str
    number: float

    def engine(self, *, clock=None, max_body=conformance.MAX_BODY_BYTES):
        engine = MemoryEngine(clock=clock, max_body=max_body)
        engine.capabilities = structs.replace(engine.capabilities, **{self.capability: self.number})
        return engine


@pytest.mark.parametrize(
    ("law", "capability", "number"), [("L24", "order", Order.PARTITION), ("L34", "counts", Counting.APPROXIMATE), ("L15", "max_delay_s", 900.0)]
)
def test_a_law_above_the_engines_numbers_is_refused_loudly_and_left_out(law, capability, number, tmp_path):
    kind = type("Less", (Without,), {"capability": capability, "number": number})
    namespace = {"__name__": "tests.engines.test_mine"}
    conformance.suite(namespace, kind)
    name = next(name for name in namespace if name.startswith(f"test_{law.lower()}_"))
    with pytest.raises(pytest.skip.Exception, match=f"memory: {capability}"):
        namespace[name](tmp_path)


class NoControl:
    """All of the memory engine but the power Control."""

    hidden = ("pause", "resume", "cancel", "cancel_asked", "hurry", "redrive", "edit", "delete")

    def __init__(self, clock):
        self._engine = MemoryEngine(clock=clock)

    def __getattr__(self, name):
        if name in self.hidden:
            raise AttributeError(name)
        return getattr(self._engine, name)


def test_a_law_about_a_power_the_engine_does_not_have_is_left_out(tmp_path):
    class Harness(conformance.Harness):
        def engine(self, *, clock=None, max_body=conformance.MAX_BODY_BYTES):
            return NoControl(clock)

    assert set(conformance.check(Harness, only=("L33",)).values()) == {None}
    namespace = {"__name__": "tests.engines.test_mine"}
    conformance.suite(namespace, Harness)
    with pytest.raises(pytest.skip.Exception, match="memory has no Control"):
        namespace["test_l33_cancelling_twice_is_the_same_as_once"](tmp_path)


def test_a_check_tells_which_tests_of_which_law_hold():
    outcomes = conformance.check(MemoryHarness, only=("L03", "L12"))
    assert {name.partition(" ")[0] for name in outcomes} == {"L03", "L12"}
    assert set(outcomes.values()) == {None}


def test_a_manual_clock_stands_still_until_it_is_moved_and_says_so():
    clock, moves = ManualClock(100.0), []
    unsubscribe = clock.subscribe(lambda: moves.append(clock.now()))
    clock.advance(5.0)
    clock.set_back(20.0)
    unsubscribe()
    unsubscribe()
    clock.advance(1.0)
    assert (clock.now(), moves) == (86.0, [105.0, 85.0])
