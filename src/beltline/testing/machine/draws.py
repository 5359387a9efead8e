"""What the steps draw from. Every value is one of a few, so that they meet: two equal keys, a delay that ends with a lease."""

from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from beltline.core.flow import Claim, Flow, KillSwitch, Unique
from beltline.core.names import QueueName
from beltline.core.schedule import LEFT_S
from beltline.testing.conformance.kit import LAST, NEXT, OTHER, QUEUES, WORK

queues = st.sampled_from((WORK, WORK, WORK, NEXT, NEXT, LAST, OTHER))
some = st.integers(0, 10_000)  # "one of those there are", modulo how many there are
delays = st.sampled_from((0.0, 0.0, 0.0, 0.0, 5.0, 20.0, 3600.0))
leases = st.sampled_from((30.0, 30.0, 10.0, 600.0, 0.0))
workers = st.sampled_from(("w1", "w2"))


def rarely(*values: Any) -> "st.SearchStrategy[Any]":
    """Mostly None."""
    return st.sampled_from((None,) * 3 * len(values) + values)


# ------------------------------------------------------------------------------------------------------------ flow control

BOTH = ("delayed", "ready")
LIMITS = ("places", "rate", "both")
flows = st.builds(
    Flow,
    tenant=st.sampled_from(("", "t", "t", "u")),
    weight=st.sampled_from((1.0, 1.0, 3.0, 0.5)),
    claims=st.sampled_from(
        (
            (),
            (),
            (Claim("places"),),
            (Claim("places", "x"),),
            (Claim("rate", "x"),),
            (Claim("rate", "y", 1.5),),
            (Claim("places", "x"), Claim("rate")),
            (Claim("both", "x"), Claim("places", "y")),
            (Claim("nowhere"),),
        )
    ),
    sticky=st.sampled_from(("", "", "", "model-1", "model-2")),
    unique=rarely(
        Unique(key="k"),
        Unique(key="k", states=BOTH, replace=True),
        Unique(key="k", states=BOTH, replace=True, most_s=15.0),
        Unique(key="k", states=("ready", "leased", "done"), window_s=30.0),
    ),
)
limit_numbers = st.sampled_from(
    (
        {"concurrency": 1},
        {"concurrency": 2},
        {"concurrency": 0},
        {"rate": 0.1, "burst": 2.0},
        {"rate": 3.0, "burst": 4.0},
        {"rate": 1.0, "per_s": 60.0, "burst": 3.0, "concurrency": 2},
    )
)
queue_limits = st.sampled_from(((), (), (), ("places",), ("rate",), ("both", "rate")))
switches = rarely(
    KillSwitch(share=0.5, least=2, window_s=60.0, pause_s=10.0, tries=2), KillSwitch(share=0.8, least=3, window_s=5.0, pause_s=30.0, tries=1)
)
flow_steps = st.one_of(
    st.tuples(st.just("set"), st.sampled_from(LIMITS), limit_numbers),
    st.tuples(st.just("declare"), st.sampled_from(LIMITS), limit_numbers),
    st.tuples(st.just("reset"), st.sampled_from(LIMITS)),
    st.tuples(st.just("snooze"), st.sampled_from((NEXT, LAST, OTHER, WORK)), st.sampled_from((5.0, 0.0))),
    st.tuples(st.just("live"), workers, st.sampled_from(("up", "up", "up", "draining")), st.lists(queues, min_size=1, max_size=4)),
    st.tuples(st.just("leave"), workers),
)

# ----------------------------------------------------------------------------------------------------- schedules and fleets

NOWHERE = QueueName("nowhere")  # declared by nobody
NO_ZONE = "Mars/Olympus"
names = st.sampled_from(("a", "a", "a", "b", "B.1"))
# what is due when; `message`: fields of what is sent
timings = st.sampled_from(
    (
        {"every": 10.0},
        {"every": 60.0},
        {"every": 45.001},
        {"every": 3600.0, "start": datetime(2023, 11, 16, tzinfo=UTC)},
        {"cron": "* * * * *"},
        {"cron": "*/20 * * * *", "tz": "Europe/Berlin"},
        {"cron": "30 2 * * *", "tz": "Europe/Berlin"},
        {"cron": "0 3 1 * MON", "tz": "America/New_York"},
        {"cron": "0 * * * *", "tz": NO_ZONE},
    )
)
specs = st.fixed_dictionaries(
    {
        "name": names,
        "timing": timings,
        "catch_up": st.sampled_from((("once", 100), ("all", 1), ("all", 4), ("all", 4), ("skip", 100))),
        "queue": st.sampled_from((WORK, WORK, NEXT, LAST, NOWHERE)),
        "chained": st.sampled_from((False, False, True)),
        "message": st.sampled_from(
            (
                {},
                {},
                {},
                {"group": "g"},
                {"delay_s": 20.0, "priority": 1},
                {"dedup_key": "k", "dedup_window_s": 300.0},
                {"expires_s": 40.0},
                {"delay_s": -1.0},
            )
        ),
        "flow": st.one_of(st.none(), flows),
    }
)
waits = st.sampled_from((60.0, 60.0, 61.0, 10.0, 5.0, 0.0, LEFT_S, 3600.0, 86400.0, 86400.0 * 400, -3600.0, "change", 90.0))
looks = st.sampled_from(("all", "all", "all", "first", "two", "two", "nobody"))  # which schedulers look
schedule_steps = st.one_of(
    st.tuples(st.just("put"), st.lists(specs, min_size=1, max_size=3), st.sampled_from(("", "one", "two")), st.just(True)),
    st.tuples(st.just("order"), st.lists(specs, min_size=1, max_size=1), st.just(""), st.booleans()),
    st.tuples(st.just("name"), st.lists(names, max_size=2), st.sampled_from(("", "one", "two"))),
    st.tuples(st.sampled_from(("turn", "turn", "turn", "pause", "resume", "remove", "trigger", "trigger")), names),
    st.tuples(st.just("again"), some, st.sampled_from((0.0, 0.0, 3600.0, -1e6))),
)

rarely_altered = st.one_of(st.none(), st.none(), schedule_steps)
fleet_queues = st.sampled_from((WORK, WORK, WORK, NEXT, NEXT, NOWHERE))
hosts = st.fixed_dictionaries(
    {
        "id": workers,
        "state": st.sampled_from(("up", "up", "up", "draining")),
        "queues": st.dictionaries(queues, st.integers(1, 4), min_size=1, max_size=2),
        "ranges": st.dictionaries(queues, st.sampled_from(((0, 4), (1, 8), (2, 2))), max_size=2),
        "service": st.dictionaries(queues, st.sampled_from(((0, 0.0, 0.0), (3, 1.5, 0.75), (9, 90.0, 2700.0))), max_size=2),
        "refusal": st.sampled_from(("", "", "", "memory is low")),
    }
)
ranges = st.sampled_from(((0, 3), (1, 1), (2, 8), (2, 8), (5, 2), (-1, 4), (0, 0)))
fleet_steps = st.one_of(
    st.tuples(st.just("beat"), hosts),
    st.tuples(st.just("leave"), workers),
    st.tuples(st.just("round"), st.lists(fleet_queues, min_size=1, max_size=2), st.booleans()),
    st.tuples(st.just("round"), st.lists(queues, min_size=1, max_size=2), st.booleans()),
    st.tuples(st.just("decide"), fleet_queues, st.sampled_from((0, 0, 0, -1, 1)), st.integers(0, 9), st.booleans(), st.booleans()),
    st.tuples(st.just("order"), fleet_queues, ranges),
    st.tuples(st.just("clear"), fleet_queues),
    st.tuples(st.just("read"), st.one_of(st.none(), fleet_queues), st.integers(1, 4)),
)


# --------------------------------------------------------------------------------------------------------------- the steps

crowded = st.fixed_dictionaries(
    {
        "queue": st.sampled_from((WORK, WORK, WORK, NEXT)),
        "in_a_run": st.just(False),
        "again": st.none(),
        "group": rarely("g"),
        "delay_s": st.sampled_from((0.0, 0.0, 0.0, 0.0, 5.0)),
        "priority": st.sampled_from((0, 0, 0, 1)),
        "flow": flows,
    }
)
new_message = st.fixed_dictionaries(
    {
        "queue": queues,
        "in_a_run": st.booleans(),
        "again": st.one_of(st.none(), st.none(), st.none(), st.none(), some),
        "group": st.sampled_from((None, None, "g", "g", "h")),
        "dedup_key": rarely("k"),
        "dedup_window_s": st.sampled_from((300.0, 10.0)),
        "delay_s": delays,
        "priority": st.integers(-2, 2),
        "expires_s": rarely(5.0, 40.0),
        "flow": st.one_of(st.none(), flows, flows),
    }
)
VERBS = (
    "cancel",
    "cancel",
    "cancel_run",
    "hurry",
    "redrive",
    "redrive",
    "redrive_here",
    "redrive_elsewhere",
    "delete",
    "edit",
    "pause",
    "resume",
    "purge",
)
endings = st.sampled_from(
    (
        "ack",
        "result",
        "hand_on",
        "hand_on",
        "split",
        "split",
        "split",
        "cancelled",
        "retry",
        "retry",
        "lost",
        "release",
        "snooze",
        "parked",
        "dead_letter",
        "dead_letter",
    )
)
# which delivery, how it ends, after what delay, a number of parts or results, into which queue, what a dead part does
ways = st.tuples(some, endings, delays, st.integers(0, 3), queues, st.sampled_from(("hold", "skip", "fail")))
steps = st.one_of(
    st.tuples(st.just("send"), st.lists(new_message, min_size=1, max_size=5)),
    st.tuples(st.just("receive"), st.permutations(QUEUES), st.integers(1, 8), leases, workers),
    st.tuples(st.just("receive"), st.lists(queues, min_size=1, max_size=3), st.integers(1, 6), leases, workers),
    st.tuples(st.just("settle"), st.lists(ways, min_size=1, max_size=6)),
)
