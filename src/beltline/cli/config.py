"""beltline config: every setting, its value, and where it comes from."""

import click
from msgspec import Struct, structs

from beltline.cli.command import Group, Session, pass_session
from beltline.cli.output import SCHEMA_VERSION, Column
from beltline.config import shown, unknown_variables
from beltline.core.capabilities import Durability
from beltline.core.config import KEYS, QUEUE_KEYS
from beltline.core.flow import KillSwitch


@click.group(cls=Group)
def config() -> None:
    """Every setting and where it comes from."""


class SettingItem(Struct, frozen=True, kw_only=True):
    """`origin`: a flag, an environment variable, FILE:LINE, or default. Passwords in URLs are shown as ***."""

    version: int = SCHEMA_VERSION
    key: str
    value: object
    origin: str
    about: str


@config.command(shape=SettingItem)
@click.option("--origin/--no-origin", default=True, help="Where each value comes from (shown unless --no-origin).")
@pass_session
def show(session: Session, origin: bool) -> None:
    """The whole configuration as it is used here and now."""
    loaded = session.config
    items = [SettingItem(key=key.name, value=_plain(shown(loaded, key.name)), origin=loaded.origin(key.name), about=key.about) for key in KEYS]
    for name, settings in sorted(loaded.queues.items()):
        for field in QUEUE_KEYS:
            value, dotted = getattr(settings, field.name), f"queues.{name}.{field.name}"
            if value is not None:
                items.append(SettingItem(key=dotted, value=_plain(value), origin=loaded.origin(dotted), about=field.about))
    columns = [
        Column("key", lambda item: item.key),
        Column("value", lambda item: item.value, elastic=True),
        Column("about", lambda item: item.about, elastic=True),
    ]
    if origin:
        columns.insert(2, Column("origin", lambda item: item.origin))
    session.out.things(items, columns, id=lambda item: item.key)
    for variable, near in unknown_variables().items():
        session.out.warn(f"{variable} is set, and this version does not read it." + (f" Did you mean {near}?" if near else ""))


def _plain(value: object) -> object:
    if isinstance(value, Durability):
        return value.name.lower()
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if isinstance(value, KillSwitch):
        return structs.asdict(value)
    return value if isinstance(value, (int, float, str)) else str(value)
