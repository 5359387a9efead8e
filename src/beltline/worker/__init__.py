"""Floor 3: a worker is a supervisor, which holds leases and the store, and its runners, which run task code in processes of their own.

This package imports nothing by itself: a runner must not pay for the supervisor, nor the other way round. Start at `serve`, `supervisor` or `runner`.
"""
