"""The retry policy of a task: data that travels, never a decorator around the code."""

from msgspec import Struct

from beltline.core.limits import MAX_DELAY_S, Seconds, integer, seconds


class Retry(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """How often and how soon a failed attempt is tried again.

    `attempts` counts all tries, so 1 means no retry. The delay before try n+1 is drawn evenly from 0..min(cap_s, base_s * 2**(n-1)) ("full jitter");
    with `jitter=False` it is that bound itself. `on` / `never`: qualified or bare names of exception types (a subclass counts, the runner sends the
    whole line of ancestors); `never` wins; an empty `on` means every exception.
    """

    attempts: int = 5
    base_s: float = 1.0
    cap_s: float = 900.0
    jitter: bool = True
    on: tuple[str, ...] = ()
    never: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        integer("attempts", self.attempts, least=1, most=1_000_000)
        seconds("base_s", self.base_s, most=MAX_DELAY_S)
        seconds("cap_s", self.cap_s, most=MAX_DELAY_S)

    def delay_s(self, failed: int, draw: float) -> float:
        """Seconds before the next try after `failed` failures (1 = the first). `draw` is a random number in 0..1."""
        bound = min(self.cap_s, self.base_s * 2.0 ** min(failed - 1, 60))
        return bound * draw if self.jitter else bound

    def covers(self, lineage: tuple[str, ...]) -> bool:
        """Whether a failure with these class names (itself first, then its bases) is worth another try."""
        if any(name in self.never for name in lineage):
            return False
        return not self.on or any(name in self.on for name in lineage)


NO_RETRY = Retry(attempts=1)


def as_retry(value: "Retry | int | bool | None") -> Retry:
    """What a user may write for `retry=`: a policy, a number of attempts, or False for none."""
    if isinstance(value, Retry):
        return value
    if value is None or value is True:
        return Retry()
    if value is False:
        return NO_RETRY
    return Retry(attempts=value)


__all__ = ["NO_RETRY", "Retry", "Seconds", "as_retry"]
