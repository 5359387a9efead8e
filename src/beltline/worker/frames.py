"""What supervisor and runner say to each other: few frames, each of many deliveries or outcomes, encoded once.

    supervisor -> runner   Setup · Begin · Share · Deal · TakeBack · Halt · Stop
    runner -> supervisor   Hello · Ready | Broken · Done · Written · Back · Notes

A serial names one dealing of one delivery to one runner; they only grow. A lane is the share of a queue's slots that one runner has, by its place in
Begin or the order in which Share has added it. Every dealt serial is answered exactly once, by Done, Written or Back, unless the runner dies.
"""

from msgspec import Struct
from msgspec.msgpack import Decoder, Encoder

from beltline.core.chain import ChainPlan
from beltline.core.flow import Limit
from beltline.core.message import Delivery, Receipt
from beltline.core.outcome import Settled, Settlement
from beltline.core.policy import TaskPolicy
from beltline.core.queues import QueueSpec
from beltline.core.schedule import Schedule

# Why a running delivery is asked to stop; the runner turns it into the outcome.
TIMEOUT = "timeout"
CANCELLED = "cancelled"
LEASE_LOST = "lease lost"
DRAINED = "drained"


class Setup(Struct, frozen=True, array_like=True, tag="setup"):
    """Where the app is and how to load it. `app_dir`, `url`, `durability`: "" = nothing said."""

    app: str
    app_dir: str
    url: str
    durability: str
    worker: str
    title: str
    log_level: str


class Begin(Struct, frozen=True, array_like=True, tag="begin"):
    """Queue and slots of each lane. A lane of queue "" takes deliveries of any queue."""

    lanes: list[tuple[str, int]]


class Share(Struct, frozen=True, array_like=True, tag="share"):
    """From now on `slots` of this lane run. A lane beyond the last one is new. Slots it has not had before are marked from place `first_mark` on.

    A lane that gets smaller returns what has not started (Back), lets run what runs, and rests its slots as they become free.
    """

    lane: int
    slots: int
    first_mark: int


class Deal(Struct, frozen=True, array_like=True, tag="deal"):
    """Deliveries with the serials `first`, `first` + 1, …"""

    lane: int
    first: int
    deliveries: list[Delivery]


class TakeBack(Struct, frozen=True, array_like=True, tag="take_back"):
    """Return what has not started; answered by one Back per lane that had something."""


class Halt(Struct, frozen=True, array_like=True, tag="halt"):
    """Stop these: cancel what runs, drop what has not started. Each is still answered."""

    serials: list[int]
    why: str


class Stop(Struct, frozen=True, array_like=True, tag="stop"):
    """Nothing more will come: close the resources and exit."""


class Hello(Struct, frozen=True, array_like=True, tag="hello"):
    """The app is loaded. All a supervisor must know of it, as data. `owner`: whose the schedules are, "" = nobody can say."""

    url: str
    durability: str
    max_body: int
    specs: list[QueueSpec]
    policies: list[TaskPolicy]
    plans: list[ChainPlan]
    versions: dict[str, str]
    limits: list[Limit] = []
    schedules: list[Schedule] = []
    owner: str = ""


class Ready(Struct, frozen=True, array_like=True, tag="ready"):
    """Resources are open, the slots wait."""


class Broken(Struct, frozen=True, array_like=True, tag="broken"):
    """The app cannot be loaded or its resources not be opened; the runner exits. `usage`: `text` is complete for its reader, no traceback needed."""

    text: str
    traceback: str
    usage: bool


class Done(Struct, frozen=True, array_like=True, tag="done"):
    """Outcomes, with the serials they answer in the same order. `ran_s`: seconds of task code in all of them; `ran_squares_s2`: the sum of their squares; `ran`: how many
    have run at all."""

    lane: int
    serials: list[int]
    settlements: list[Settlement]
    ran_s: float
    ran_squares_s2: float
    ran: int


class Written(Struct, frozen=True, array_like=True, tag="written"):
    """Outcomes that the runner itself has brought to the store, in the task's own transaction, with the store's answers: nothing is left to settle.

    The settlements tell how it ended and how long it ran; what else was written with them is not repeated here.
    """

    lane: int
    serials: list[int]
    settlements: list[Settlement]
    answers: list[Settled]
    ran_s: float


class Back(Struct, frozen=True, array_like=True, tag="back"):
    """These have not started and never will here."""

    lane: int
    serials: list[int]


class Notes(Struct, frozen=True, array_like=True, tag="notes"):
    """The newest progress of running deliveries."""

    notes: list[tuple[Receipt, bytes]]


ToRunner = Setup | Begin | Share | Deal | TakeBack | Halt | Stop
ToSupervisor = Hello | Ready | Broken | Done | Written | Back | Notes

encode = Encoder().encode
decode_in_runner = Decoder(ToRunner).decode
decode_in_supervisor = Decoder(ToSupervisor).decode
