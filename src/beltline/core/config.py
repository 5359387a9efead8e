"""Settings as data: which keys exist, what each may be, and how layers of them become one frozen Config that remembers where every value came from.

A setting is (key, value, origin); a layer is the settings of one place (flags, environment, one file). Layers come strongest first.
Keys are dotted: `url`, `drain_s`, `queues.resize.slots`. Values may be texts (flags, environment) or what TOML makes of them; the reader of a
key accepts both. Every value of every layer is checked, also one that a stronger layer hides: it would bite later.

One rule is not "first wins": `slots` says which queues a worker serves, so the strongest layer that names any slots replaces those of all
weaker layers. Beside `slots` the numbers of a queue merge field by field.
"""

import math
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from msgspec import Struct

from beltline.core.capabilities import Durability
from beltline.core.errors import ConfigInvalid, NameInvalid, ValueInvalid
from beltline.core.flow import KillSwitch, check_switch, queue_limits
from beltline.core.limits import MAX_BODY_BYTES, MAX_BODY_CEILING, MAX_LEASE_S, duration
from beltline.core.names import queue_name

DEFAULT_URL = "sqlite:///beltline.db"
DEFAULT = "default"
MAX_SLOTS = 1000
MAX_DRAIN_S = 3600.0
LOG_LEVELS = ("debug", "info", "warning", "error")

_SLOTS = re.compile(r"([0-9]{1,6})(?:\.\.([0-9]{1,6}))?", re.ASCII)
_SIZES = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_SIZE = re.compile(r"([0-9][0-9_,]*)\s*(?:([kmg])(?:i?b)?)?", re.ASCII)


class Slots(Struct, frozen=True):
    """How many deliveries of a queue a worker runs at once: between `least` and `most`; equal when the number is fixed. 0..0 = what the key `slots` says."""

    least: int
    most: int

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least}..{self.most}"


class QueueSettings(Struct, frozen=True, kw_only=True):
    """What was said about one queue; None = nothing, the code's own declaration stands. `kill_switch`: False = it has none, whatever the code declares."""

    slots: Slots | None = None
    max_backlog: float | None = None
    high_water: float | None = None
    low_water: float | None = None
    ageing_s: float | None = None
    max_deliveries: int | None = None
    on_dead: str | None = None
    target_s: float | None = None
    limits: tuple[str, ...] | None = None
    kill_switch: KillSwitch | bool | None = None


class Config(Struct, frozen=True, kw_only=True):
    """Everything that is configured, handed down whole. `origins`: key -> where its value came from; a key that is missing there has its default.

    `app` "" = none named. `queues`: name -> what was said about it. `lease_s`, `drain_s` in seconds, `max_body` in bytes.
    """

    url: str = DEFAULT_URL
    app: str = ""
    queues: dict[str, QueueSettings] = {}
    slots: int = 4
    durability: Durability = Durability.DISK
    max_body: int = MAX_BODY_BYTES
    lease_s: float = 30.0
    drain_s: float = 30.0
    history_s: float = 7 * 86400.0
    log: str = "text"
    log_level: str = "info"
    env: str = ""
    origins: dict[str, str] = {}

    def origin(self, key: str) -> str:
        return self.origins.get(key, DEFAULT)

    @property
    def served(self) -> dict[str, Slots]:
        """Queue -> slots, for every queue that a worker was told to serve."""
        named = {name: settings.slots for name, settings in self.queues.items() if settings.slots is not None}
        return {name: given if given.most else Slots(self.slots, self.slots) for name, given in named.items()}


class Setting(Struct, frozen=True):
    key: str
    value: object
    origin: str


class Key(Struct, frozen=True, kw_only=True):
    """One key: how its value is read (`read` raises ValueError), what is allowed, in words, and whether it may hold a password."""

    name: str
    read: Callable[[object], Any]
    allowed: str
    about: str
    secret: bool = False

    @property
    def variable(self) -> str:
        return "BELTLINE_" + self.name.upper()


# ------------------------------------------------------------------------------------------------------------- readers
def slots(value: object) -> Slots:
    """`4` or `2..8`, each at most 1000 and the first not above the second; "" leaves it to the key `slots`. Raises ValueError."""
    if value == "":
        return Slots(0, 0)
    found = _SLOTS.fullmatch(str(value).strip()) if isinstance(value, (int, str)) and not isinstance(value, bool) else None
    if found is None:
        raise ValueError(value)
    least, most = int(found[1]), int(found[2] or found[1])
    if not 0 <= least <= most <= MAX_SLOTS or most == 0:
        raise ValueError(value)
    return Slots(least, most)


def queue_slots(text: str) -> tuple[str, str]:
    """`resize:2..8` as name and slots, both still text; without a colon the slots are "". The name is checked. Raises NameInvalid."""
    name, _, number = text.strip().partition(":")
    return queue_name(name), number.strip()


def _seconds(least: float, most: float) -> Callable[[object], float]:
    def read(value: object) -> float:
        number = duration(value)
        if not least <= number <= most:
            raise ValueError(value)
        return number

    return read


def _bound(value: object) -> float:
    """A count of at least 1, or inf ("no bound")."""
    if isinstance(value, str):
        plain = value.strip().replace("_", "")
        value = math.inf if plain == "inf" else int(plain)
    if value == math.inf:
        return math.inf
    return float(_whole(1, 2**53)(value))


def _whole(least: int, most: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if isinstance(value, str):
            value = int(value.strip())
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(value)
        return value

    return read


def _size(value: object) -> int:
    if isinstance(value, str):
        found = _SIZE.fullmatch(value.strip().lower())
        if found is None:
            raise ValueError(value)
        value = int(found[1].replace("_", "").replace(",", "")) * _SIZES[found[2] or ""]
    return _whole(1, MAX_BODY_CEILING)(value)


def _one_of(*words: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or value.strip().lower() not in words:
            raise ValueError(value)
        return value.strip().lower()

    return read


def _durability(value: object) -> Durability:
    return Durability[_one_of("disk", "os", "memory")(value).upper()]


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or "\x00" in value:
        raise ValueError(value)
    return value.strip()


def _app(value: object) -> str:
    text = _text(value)
    place, colon, attribute = text.partition(":")
    if not place or (colon and not all(part.isidentifier() for part in attribute.split("."))):
        raise ValueError(value)
    return text


def _ageing(value: object) -> float:
    return math.inf if value in ("inf", math.inf) else _seconds(0.001, 86400.0 * 365)(value)


def _limits(value: object) -> tuple[str, ...]:
    """Names of limits: a list, or a text with blanks between."""
    names = value.split() if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)):
        raise ValueError(value)
    try:
        return queue_limits(names)
    except NameInvalid:
        raise ValueError(value) from None


def _kill_switch(value: object) -> KillSwitch | bool:
    """`true`, `false` (none), or a table of its numbers; windows and pauses also as `30s`, `2m`."""
    if isinstance(value, str):
        value = _one_of("true", "false")(value) == "true"
    if isinstance(value, bool):
        return KillSwitch() if value else False
    known: dict[object, str] = {field.removesuffix("_s"): field for field in KillSwitch.__struct_fields__}
    if not isinstance(value, dict) or not value.keys() <= {*known, *known.values()}:
        raise ValueError(value)
    said: dict[str, Any] = {known.get(name, str(name)): each for name, each in value.items()}
    try:
        said |= {name: duration(each) for name, each in said.items() if name.endswith("_s")}
        return check_switch(KillSwitch(**said))
    except ValueInvalid:
        raise ValueError(value) from None


# ---------------------------------------------------------------------------------------------------------------- keys
KEYS: tuple[Key, ...] = (
    Key(name="url", read=_text, allowed="an engine URL such as sqlite:///beltline.db", about="the engine", secret=True),
    Key(name="app", read=_app, allowed="MODULE:NAME or FILE.py:NAME, for example tasks:app", about="where the App object is found"),
    Key(name="slots", read=_whole(1, MAX_SLOTS), allowed=f"a whole number 1..{MAX_SLOTS}", about="slots of a queue that names none of its own"),
    Key(name="durability", read=_durability, allowed="disk, os or memory", about="what a send has survived when it returns"),
    Key(name="max_body", read=_size, allowed=f"bytes 1..{MAX_BODY_CEILING} (also 512k, 4M)", about="largest body of a message"),
    Key(name="lease_s", read=_seconds(1.0, MAX_LEASE_S), allowed=f"seconds 1..{MAX_LEASE_S:g}", about="how soon the messages of a dead host are received again"),
    Key(name="drain_s", read=_seconds(0.0, MAX_DRAIN_S), allowed=f"seconds 0..{MAX_DRAIN_S:g}", about="how long a stopping worker waits for what runs (0 = not at all)"),
    Key(name="history_s", read=_seconds(0.0, 10 * 366 * 86400.0), allowed="seconds from 0 (also 7d)", about="how long ended messages and runs are kept"),
    Key(name="log", read=_one_of("text", "json"), allowed="text or json", about="form of the log"),
    Key(name="log_level", read=_one_of(*LOG_LEVELS), allowed=", ".join(LOG_LEVELS), about="least severe line that is logged"),
    Key(name="env", read=_text, allowed="a short text such as production", about="name of this environment, shown to people"),
)  # fmt: skip

QUEUE_KEYS: tuple[Key, ...] = (
    Key(name="slots", read=slots, allowed=f"a number or range such as 4 or 2..8, at most {MAX_SLOTS}", about="deliveries at once"),
    Key(name="max_backlog", read=_bound, allowed="a whole number from 1, or inf", about="sends above it are refused"),
    Key(name="high_water", read=_bound, allowed="a whole number from 1, or inf", about="stages before receive nothing above it"),
    Key(name="low_water", read=_bound, allowed="a whole number from 1, or inf", about="stages before receive again below it"),
    Key(name="ageing_s", read=_ageing, allowed="seconds above 0, or inf", about="seconds of waiting that one priority point is worth"),
    Key(name="max_deliveries", read=_whole(1, 1000), allowed="a whole number 1..1000", about="unanswered deliveries before a message is poison"),
    Key(name="on_dead", read=_one_of("hold", "skip"), allowed="hold or skip", about="what a dead head does to its group"),
    Key(name="target_s", read=_ageing, allowed="seconds above 0 (also 10s, 2m), or inf", about="a message should not wait longer: what the fleet is sized for"),
    Key(name="limits", read=_limits, allowed="names of limits", about="what every start in this queue uses up"),
    Key(name="kill_switch", read=_kill_switch, allowed="true, false, or a table of share, least, window, pause, tries", about="it stops by itself when too much fails"),
)  # fmt: skip

_BY_NAME = {key.name: key for key in KEYS}
_QUEUE_BY_NAME = {key.name: key for key in QUEUE_KEYS}
_AS_IN_CODE = {key.name.removesuffix("_s"): key for key in QUEUE_KEYS if key.name.endswith("_s")}  # app.queue(…, target="10s") names no unit


def known_variables() -> dict[str, str]:
    """Environment variable -> key. Keys that may hold a password are also read from the file named in …_FILE."""
    return {key.variable: key.name for key in KEYS} | {"BELTLINE_QUEUES": "queues"}


def find_key(setting: Setting) -> Key:
    """The key of a setting. Raises ConfigInvalid with the nearest known key."""
    parts = setting.key.split(".")
    if parts[0] == "queues" and len(parts) >= 3:
        try:
            queue_name(".".join(parts[1:-1]))
        except NameInvalid as error:
            raise ConfigInvalid(key=setting.key, value=setting.value, allowed="a valid queue name", origin=setting.origin, help=error.why) from None
        known, last = _QUEUE_BY_NAME, parts[-1]
    else:
        known, last = _BY_NAME, setting.key
    if last in known:
        return known[last]
    if known is _QUEUE_BY_NAME and last in _AS_IN_CODE:
        return _AS_IN_CODE[last]
    near = get_close_matches(last, known, n=1)
    raise ConfigInvalid(
        key=setting.key,
        value=setting.value,
        allowed=f"only the keys {', '.join(known)}" + ("" if known is _QUEUE_BY_NAME else ", queues"),
        origin=setting.origin,
        help=f"Did you mean {near[0]!r}?" if near else "",
    )


def read(setting: Setting) -> Any:
    """The checked value of a setting. Raises ConfigInvalid with key, value, what is allowed, and origin."""
    key = find_key(setting)
    try:
        return key.read(setting.value)
    except (ValueError, KeyError, OverflowError):
        shown = redact(str(setting.value)) if key.secret else setting.value
        raise ConfigInvalid(key=setting.key, value=shown, allowed=key.allowed, origin=setting.origin) from None


def merge(layers: Sequence[Sequence[Setting]]) -> Config:
    """One Config from layers, strongest first. Raises ConfigInvalid."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    served = False
    for layer in layers:
        names_slots = False
        for setting in layer:
            value = read(setting)
            dotted = ".".join([*setting.key.split(".")[:-1], find_key(setting).name])
            is_slots = dotted.startswith("queues.") and dotted.endswith(".slots")
            names_slots |= is_slots
            if dotted not in values and not (is_slots and served):
                values[dotted] = value
                origins[dotted] = setting.origin
        served |= names_slots
    queues: dict[str, dict[str, Any]] = {}
    for dotted in [key for key in values if key.startswith("queues.")]:
        name, field = dotted.removeprefix("queues.").rsplit(".", 1)
        queues.setdefault(name, {})[field] = values.pop(dotted)
    config = Config(**values, queues={name: QueueSettings(**fields) for name, fields in queues.items()}, origins=origins)
    _check_water(config)
    return config


def _check_water(config: Config) -> None:
    for name, queue in config.queues.items():
        if queue.low_water is not None and queue.high_water is not None and queue.low_water > queue.high_water:
            key = f"queues.{name}.low_water"
            raise ConfigInvalid(key=key, value=queue.low_water, allowed=f"at most high_water ({queue.high_water:g})", origin=config.origin(key))


def redact(url: str) -> str:
    """A URL without its password, fit to be shown."""
    return re.sub(r"(://[^/?#@:]*):[^/?#]*@", r"\1:***@", url)
