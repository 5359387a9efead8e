"""The engine `sqlite`: queues in one file, the default.

schema   the tables and their upgrades             ledger    what the writer knows by heart between two transactions
storing  new messages become rows                  lanes     FIFO groups
sending, receiving, settling, control, upkeep      the verbs, each a function of one transaction
endings  what the end of a message brings about    runbook   rows of runs and gathers within a transaction
browsing what people see                           facts, rows, times   rows and instants as values
place    where a file may lie, how it is made      trouble   what SQLite's errors mean
writer   the thread that writes: group commit      reader    the thread that looks
transactions  sends and settles in a transaction that also holds the user's writes
turnstile, bell   one writer per host, hints to other processes             engine    the face
"""

from beltline.engines.sqlite.engine import SqliteEngine

__all__ = ["SqliteEngine"]
