"""The optional powers of an engine, or the refusal of a command that needs one the engine has not."""

from beltline.core.errors import Unsupported
from beltline.engines.protocol import Browse, Control, Engine, Fleet, Limits, Runs, Sizes


def browse_of(engine: Engine) -> Browse:
    if isinstance(engine, Browse):
        return engine
    raise _missing(engine, "browse")


def control_of(engine: Engine) -> Control:
    if isinstance(engine, Control):
        return engine
    raise _missing(engine, "control")


def runs_of(engine: Engine) -> Runs:
    if isinstance(engine, Runs):
        return engine
    raise _missing(engine, "runs")


def fleet_of(engine: Engine) -> Fleet:
    if isinstance(engine, Fleet):
        return engine
    raise _missing(engine, "fleet")


def sizes_of(engine: Engine) -> Sizes:
    if isinstance(engine, Sizes):
        return engine
    raise _missing(engine, "sizes")


def limits_of(engine: Engine) -> Limits:
    if isinstance(engine, Limits):
        return engine
    raise _missing(engine, "limits")


def _missing(engine: Engine, feature: str) -> Unsupported:
    return Unsupported(feature=feature, need=1, have=0, engine=engine.name)
