"""The laws every engine keeps, one file per promise. An author of an engine proves it with these lines:

    from beltline.testing import conformance

    class MyHarness(conformance.Harness):
        url = "mine://localhost/test"

        def engine(self, *, clock=None, max_body=conformance.MAX_BODY_BYTES):
            return MyEngine(self.folder, clock=clock, max_body=max_body)

    conformance.suite(globals(), MyHarness)

The law of a file is its docstring; its tests are its public coroutine functions, whose names are sentences. They are called with what they name:
`engine` (open and empty, all QUEUES declared), `time` (moves the engine's clock), `harness` (makes further engines on the same store).
A test that needs more than the engine's capabilities say asserts the loud refusal and is then skipped. There is no other reason to skip.
Needs pytest and nothing else: every test runs in an event loop of its own.
"""

from beltline.core.limits import MAX_BODY_BYTES
from beltline.testing.conformance.harness import Full, Harness, Time
from beltline.testing.conformance.runner import Law, Promise, check, check_each, laws, promises, suite

__all__ = ["MAX_BODY_BYTES", "Full", "Harness", "Law", "Promise", "Time", "check", "check_each", "laws", "promises", "suite"]
