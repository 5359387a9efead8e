"""No test here is timed: a busy machine makes an example slow, not wrong."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
