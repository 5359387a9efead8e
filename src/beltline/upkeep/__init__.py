"""Floor 3: what keeps a store tidy. Each loop can be started and stopped, any number of them may run anywhere at the same time, and none is needed for
safety: `receive` recovers everything by itself.
"""
