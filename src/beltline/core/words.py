"""Numbers and times as people read them. Pure; the terminal and everything that says why use the same."""


def span(seconds: float) -> str:
    """`0.31 s`, `6.2 s`, `41 s`, `4 m`, `2 h 5 m`, `3 d`."""
    seconds = max(0.0, seconds)
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} m"
    if seconds < 48 * 3600:
        hours, minutes = divmod(int(seconds // 60), 60)
        return f"{hours} h {minutes} m" if minutes else f"{hours} h"
    return f"{seconds / 86400:.0f} d"


def count(number: float) -> str:
    """`1 204`: thousands set apart by a narrow gap that every font has. inf reads `no bound`."""
    if number == float("inf"):
        return "no bound"
    return f"{int(number):,}".replace(",", " ")


def things(number: int, one: str, many: str = "") -> str:
    """`1 message`, `2 messages`."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def rate(number: float, per_s: float) -> str:
    """`50/s`, `600/10m`, `0.5/s`; "no rate" when there is none."""
    if number == float("inf"):
        return "no rate"
    unit = {1.0: "s", 60.0: "m", 3600.0: "h", 86400.0: "d"}.get(per_s)
    if unit is None:
        for seconds, letter in ((86400.0, "d"), (3600.0, "h"), (60.0, "m"), (1.0, "s")):
            if per_s >= seconds and per_s % seconds == 0:
                unit = f"{per_s / seconds:g}{letter}"
                break
        else:
            unit = f"{per_s:g}s"
    return f"{number:g}/{unit}"
