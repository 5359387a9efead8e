"""beltline migrate: the tables of the store, brought to this version."""

import asyncio

import click
from msgspec import Struct

from beltline.cli.command import Command, Session, check_reachable, pass_session
from beltline.cli.output import SCHEMA_VERSION
from beltline.cli.problems import OK, REFUSED
from beltline.cli.selecting import Span
from beltline.cli.text import safe, things
from beltline.core.config import redact
from beltline.core.errors import Unsupported
from beltline.core.views import SchemaView
from beltline.engines.protocol import Engine, Migratable


class MigrateItem(Struct, frozen=True, kw_only=True):
    """`found`: the number of the last step before; `newest`: this version's. `min_reader`: what a process must know to work with it now. `fits`: this version does."""

    version: int = SCHEMA_VERSION
    url: str
    found: int
    newest: int
    min_reader: int
    fits: bool
    taken: list[str] = []
    missing: list[str] = []


@click.command(cls=Command, shape=MigrateItem)
@click.option("--check", is_flag=True, help="Only say what is missing. Exit code 6 when something is.")
@click.option("--wait", "wait_s", type=Span(), metavar="TIME", default="60s", show_default=True, help="For transactions that stand in the way.")
@pass_session
def migrate(session: Session, check: bool, wait_s: float) -> int:
    """Bring the tables of the store to this version. Run it before the first worker of a new version starts; doing it twice does nothing.

    Workers of the version before go on working after every step but those called contract.
    """
    return asyncio.run(_migrate(session, check=check, wait_s=wait_s))


async def _migrate(session: Session, *, check: bool, wait_s: float) -> int:
    from beltline.engines.registry import make_engine

    url = session.config.url
    check_reachable(url, create=True)
    engine: Engine = make_engine(url, durability=session.durability, max_body=session.config.max_body)
    if not isinstance(engine, Migratable):
        raise Unsupported(feature="migrate", need=1, have=0, engine=engine.name, engines=("sqlite", "postgresql"))
    before = await engine.schema()
    taken = [] if check or before.min_reader > before.newest else await engine.migrate(wait_s=wait_s, tell=session.out.note)
    after = await engine.schema()
    item = MigrateItem(
        url=redact(url),
        found=before.have,
        newest=after.newest,
        min_reader=after.min_reader,
        fits=after.min_reader <= after.newest and (after.have >= after.oldest or not after.have),
        taken=taken,
        missing=list(after.missing),
    )
    session.out.thing(item, lambda: [_line(item, after)], id=item.url)
    return OK if item.fits and not item.missing else REFUSED


def _line(item: MigrateItem, now: SchemaView) -> str:
    where = safe(item.url)
    if not item.fits and now.min_reader > now.newest:
        return f"{where}: its tables need a newer Beltline (they need {now.min_reader}, this one knows up to {now.newest}): pip install --upgrade beltline"
    if item.missing:
        return f"{where}: {things(len(item.missing), 'step')} missing: {', '.join(item.missing)}. Take them: beltline migrate"
    if item.taken:
        return f"{where}: schema {now.have}, {things(len(item.taken), 'step')} taken"
    return f"{where}: schema {now.have}, nothing to do"
