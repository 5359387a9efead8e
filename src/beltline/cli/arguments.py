"""Words of the command line as arguments: the signature of the task says what each word is."""

from collections.abc import Sequence
from typing import Any

from beltline.core.errors import InvalidArguments, UsageError


def named_values(words: Sequence[str], option: str) -> dict[str, str]:
    """`NAME=VALUE` words as a dict. Raises UsageError."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UsageError(f"{option} {word!r} is not NAME=VALUE.")
        found[name] = value
    return found


def by_signature(target: Any, words: Sequence[str], named: dict[str, str]) -> tuple[list[Any], dict[str, Any]]:
    """Each word as the type of its parameter; as text where the code is not known. Raises InvalidArguments."""
    task = getattr(target, "links", (None,))[0]
    signature = getattr(task.task if task is not None else target, "signature", None)
    if signature is None:
        return list(words), dict(named)
    types: dict[str, Any] = signature.types
    parameters = list(types)
    positional = []
    for index, word in enumerate(words):
        # Words beyond the last parameter take its type (*args), or are refused by the signature itself.
        parameter = parameters[min(index, len(parameters) - 1)] if parameters else ""
        positional.append(read_word(signature.task, parameter, types.get(parameter, Any), word))
    return positional, {name: read_word(signature.task, name, types.get(name, Any), word) for name, word in named.items()}


def read_word(task: str, parameter: str, kind: Any, word: str) -> Any:
    """`640` for an int, `cat.jpg` for a path or text, `2026-12-24` for a date, `true` for a bool, JSON for everything that has fields or elements."""
    import msgspec

    from beltline.core import codec

    if kind is Any or kind is str:
        return word
    reasons = []
    looks_like_json = word[:1] in ("{", "[", '"')
    readers = (_json, _word) if looks_like_json else (_word, _json)
    for reader in readers:
        try:
            return reader(kind, word)
        except (msgspec.MsgspecError, ValueError, TypeError, NotImplementedError) as error:
            reasons.append(str(error))
    raise InvalidArguments(task=task, parameter=parameter, expected=codec.type_name(kind), got=repr(word)[:80], detail=f"{reasons[0]}.")


def _word(kind: Any, word: str) -> Any:
    import msgspec

    from beltline.core.codec import hook_in

    return msgspec.convert(word, kind, strict=False, dec_hook=hook_in)


def _json(kind: Any, word: str) -> Any:
    import msgspec

    from beltline.core.codec import hook_in

    return msgspec.json.decode(word.encode(), type=kind, dec_hook=hook_in)
