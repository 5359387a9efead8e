"""Bytes and values: MessagePack inside, JSON outside, with declared types on both ends. Data is never code: nothing here imports a name it read.

Carried as they are: None, bool, int (64 bit), float, str, bytes, list, dict with str keys. Carried by declared type: tuple, set, datetime, date, time,
timedelta, UUID, Decimal, Enum, dataclass, msgspec.Struct, TypedDict, NamedTuple, Path, pydantic models (if installed).
"""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import msgspec
from msgspec import Raw

from beltline.core.errors import MessageInvalid, ValueInvalid

MAX_DEPTH_HINT = "a few hundred levels"


def _hook_out(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    dump = getattr(type(value), "model_dump", None)
    if dump is not None:  # a pydantic model: JSON mode, so that the reader needs no Python types
        return dump(value, mode="json")
    raise NotImplementedError(f"values of type {type(value).__qualname__} cannot be carried by a queue")


def hook_in(kind: type, value: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, PurePath):
        if not isinstance(value, str):
            raise ValueError(f"expected a path as text, got {type(value).__name__}")
        return kind(value)
    validate = getattr(kind, "model_validate", None)
    if validate is not None:
        return validate(value)
    raise NotImplementedError(f"type {kind!r} cannot be carried by a queue")


encoder = msgspec.msgpack.Encoder(enc_hook=_hook_out)
_plain = msgspec.msgpack.Decoder()
_raws = msgspec.msgpack.Decoder(list[Raw])


def pack(value: object) -> bytes:
    """One value as MessagePack. Raises ValueInvalid naming what cannot be carried (a type, a lone surrogate, an int beyond 64 bits, a circle)."""
    try:
        return encoder.encode(value)
    except (TypeError, NotImplementedError, OverflowError, UnicodeEncodeError, RecursionError, ValueError) as error:
        raise ValueInvalid(name="value", value=_short(value), allowed=_reason(error)) from None


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"values nested up to {MAX_DEPTH_HINT} and without circles"
    if isinstance(error, OverflowError):
        return "whole numbers of at most 64 bits (send larger ones as text)"
    if isinstance(error, UnicodeEncodeError):
        return "text in valid Unicode (this one holds a lone surrogate)"
    return f"values a queue can carry ({error})"


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a broken __repr__ must not hide the error that is being told
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else text[:77] + "..."


def unpack(data: bytes) -> Any:
    """Plain values without declared types. Raises MessageInvalid."""
    try:
        return _plain.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise MessageInvalid(f"The bytes are not MessagePack: {error}.") from None


def split_list(data: bytes) -> list[bytes]:
    """The elements of a MessagePack array, each still packed. Raises MessageInvalid if it is no array."""
    try:
        return [bytes(raw) for raw in _raws.decode(data)]
    except (msgspec.MsgspecError, RecursionError) as error:
        raise MessageInvalid(f"Expected a list: {error}.") from None


def join_list(parts: Sequence[bytes]) -> bytes:
    """The packed list of already packed values."""
    return encoder.encode([Raw(part) for part in parts])


def named_body(first: str, value: bytes, others: dict[str, Any] | None = None) -> bytes:
    """A body whose parameter `first` is the already packed `value`, beside further named plain values. With `first` "" the body is positional."""
    if not first:
        return encoder.encode([[Raw(value)], others or {}])
    return encoder.encode({first: Raw(value), **(others or {})})


class Typed:
    """A packer and reader for one declared type (any `Any`-like type reads plain values)."""

    __slots__ = ("_decoder", "kind")

    def __init__(self, kind: Any) -> None:
        self.kind = kind
        self._decoder = msgspec.msgpack.Decoder(kind, dec_hook=hook_in)

    def read(self, data: bytes) -> Any:
        """Raises MessageInvalid when the bytes do not fit the type."""
        try:
            return self._decoder.decode(data)
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
            raise MessageInvalid(f"The stored value does not fit {type_name(self.kind)}: {error}.") from None


def type_name(kind: Any) -> str:
    """A type as a user would write it."""
    if kind is Any:
        return "anything"
    if isinstance(kind, type) and not getattr(kind, "__args__", None):
        return kind.__qualname__
    return str(kind).replace("typing.", "")


def to_json(value: object, *, indent: bool = False) -> str:
    """For people and programs outside. Bytes become base64, NaN null, unknown types their text, what JSON cannot hold at all its text: printing never fails."""
    try:
        data = msgspec.json.encode(value, enc_hook=_hook_json, order="deterministic")
    except (RecursionError, UnicodeEncodeError, ValueError, TypeError):  # a circle, a lone surrogate, a dict with odd keys
        data = msgspec.json.encode(_short(value).encode(errors="backslashreplace").decode())
    return (msgspec.json.format(data) if indent else data).decode()


def _hook_json(value: Any) -> Any:
    try:
        return _hook_out(value)
    except NotImplementedError:
        return str(value)


def from_json(text: str | bytes) -> Any:
    """Raises ValueInvalid naming what is wrong with the JSON."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise ValueInvalid(name="JSON", value=_short(text), allowed=f"valid JSON ({error})") from None


__all__ = ["Raw", "Typed", "encoder", "from_json", "hook_in", "join_list", "named_body", "pack", "split_list", "to_json", "type_name", "unpack"]
