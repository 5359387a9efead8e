"""Queues in a PostgreSQL database: the same laws as SQLite, for any number of hosts.

address   what a URL says                   schema    tables, versions, migrations           sql/      the verbs themselves: one function each
desk      connections of one event loop     hints     wake-ups, as hints only                 trouble   what an error means: none or unknown
wire      batches as columns                browsing, control   reading, and people's verbs   engine    the contract
"""

from beltline.engines.postgres.engine import PostgresEngine

__all__ = ["PostgresEngine"]
