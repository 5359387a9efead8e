"""The memory engine: the laws of engines/protocol.py as plain data structures, without a store in between.

rows    what is kept: a row per message, run and gather          runs    the accounts of runs and gathers
queue   one queue: states, counts, order, FIFO lanes              store   every verb as one step
engine  the face: lock, time, waiting                             views   rows as callers see them
"""

from beltline.engines.memory.engine import MemoryEngine

__all__ = ["MemoryEngine"]
