"""Hop 1 and hop 6: arguments into a body and back, checked against the signature on both sides by the same reader.

A body made here is a map from parameter name to value, so that parameters may be added (with defaults) or reordered while messages wait.
Senders that do not know the signature write `[[positional…], {named…}]`; the reader takes both.
"""

import inspect
import typing
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from beltline.core import codec
from beltline.core.errors import InvalidArguments, MessageInvalid, TaskInvalid, ValueInvalid
from beltline.resources import Resource, injected

_loose = msgspec.msgpack.Decoder(tuple[list[Raw], dict[str, Raw]])
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Signature:
    """Packs calls of one task and reads its bodies. Built at first use, so that forward references in annotations are resolved."""

    def __init__(self, task: str, fn: Callable[..., Any]) -> None:
        self.task = task
        self._plain = inspect.signature(fn)
        self.needs: dict[str, Resource] = injected(fn)
        self._parameters = [p for name, p in self._plain.parameters.items() if name not in self.needs]
        self._wire = self._plain.replace(parameters=self._parameters)
        self.types = _types(task, fn, [p.name for p in self._parameters])
        self.returns = self.types.pop("return", Any)
        self._names = tuple(p.name for p in self._parameters if p.kind in _POSITIONAL)
        self._required = frozenset(p.name for p in self._parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
        self._by_position = all(p.kind in _POSITIONAL for p in self._parameters)
        self._read_types = {p.name: _wire_type(p, self.types[p.name]) for p in self._parameters}
        self._decoder = self._build_decoder()
        self._fields = attrgetter(*(f"p{i}" for i in range(len(self._parameters)))) if len(self._parameters) > 1 else None
        self._result = _reader(self.returns)

    def _build_decoder(self) -> msgspec.msgpack.Decoder[Any]:
        fields: list[Any] = []
        for index, parameter in enumerate(self._parameters):
            kind = self._read_types[parameter.name]
            fields.append((f"p{index}", kind) if parameter.name in self._required else (f"p{index}", typing.Union[kind, UnsetType], UNSET))  # noqa: UP007 - `kind` is a value
        names = {f"p{index}": parameter.name for index, parameter in enumerate(self._parameters)}
        try:
            struct = msgspec.defstruct("Arguments", fields, rename=names, kw_only=True, forbid_unknown_fields=True, gc=False)
            return msgspec.msgpack.Decoder(struct, dec_hook=codec.hook_in)
        except TypeError as error:
            for name, kind in self._read_types.items():
                try:
                    msgspec.msgpack.Decoder(kind)
                except TypeError as cause:
                    what = f"Parameter {name!r} of task {self.task} has a type that a queue cannot carry: {codec.type_name(kind)}."
                    raise TaskInvalid(what, why=str(cause)) from None
            raise TaskInvalid(f"Task {self.task} has parameters that a queue cannot carry.", why=str(error)) from None

    @property
    def first_parameter(self) -> str:
        """The parameter that takes the value of the stage before; "" if there is none."""
        return self._names[0] if self._names else ""

    def takes(self, name: str) -> bool:
        """Whether a call may have an argument of this name."""
        return name in self.types or any(p.kind is p.VAR_KEYWORD for p in self._parameters)

    def type_of(self, parameter: str) -> Any:
        return self.types.get(parameter, Any)

    def pack(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """The body of this call. Raises InvalidArguments naming parameter, expected and got; nothing has happened then."""
        if self._by_position and len(args) <= len(self._names):
            named = dict(zip(self._names, args, strict=False))
            if kwargs:
                if not named.keys().isdisjoint(kwargs):
                    raise self._misfit(args, kwargs)
                named.update(kwargs)
            if not self._required <= named.keys():
                raise self._misfit(args, kwargs)
        else:
            named = self._bind(args, kwargs)
        try:
            body = codec.encoder.encode(named)
            self._decoder.decode(body)
        except Exception:  # noqa: BLE001 - whatever the codec or a value's own hook raised, the answer names the parameter
            raise self._explain(args, kwargs, named) from None
        return body

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        try:
            return dict(self._wire.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise self._call_error(error, args, kwargs) from None

    def _misfit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> InvalidArguments:
        try:
            self._wire.bind(*args, **kwargs)
        except TypeError as error:
            return self._call_error(error, args, kwargs)
        return self._call_error(TypeError("the call does not fit"), args, kwargs)

    def _call_error(self, error: TypeError, args: tuple[Any, ...], kwargs: dict[str, Any]) -> InvalidArguments:
        missing = sorted(self._required - set(self._names[: len(args)]) - kwargs.keys())
        unknown = sorted(kwargs.keys() - self.types.keys())
        parameter = (missing or unknown or [""])[0]
        expected = codec.type_name(self.types.get(parameter, Any)) if missing else f"({', '.join(self.types)})"
        got = "nothing" if missing else "an unknown name" if unknown else f"{len(args)} positional and {len(kwargs)} named arguments"
        return InvalidArguments(task=self.task, parameter=parameter, expected=expected, got=got, detail=f"{error}.")

    def _explain(self, args: tuple[Any, ...], kwargs: dict[str, Any], named: dict[str, Any]) -> InvalidArguments:
        for name, value in named.items():
            kind = self._read_types.get(name)
            if kind is None:
                return self._misfit(args, kwargs)
            expected = codec.type_name(self.types[name])
            try:
                packed = codec.pack(value)
            except ValueInvalid as error:
                return InvalidArguments(
                    task=self.task, parameter=name, expected=expected, got=type(value).__name__, detail=f"Allowed: {error.allowed}."
                )
            try:
                codec.Typed(kind).read(packed)
            except MessageInvalid as error:
                return InvalidArguments(task=self.task, parameter=name, expected=expected, got=type(value).__name__, detail=error.what)
        return self._misfit(args, kwargs)

    def read(self, body: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and named arguments for the function, without the injected ones. Raises InvalidArguments when the body does not fit the signature."""
        head = body[0] if body else 0
        if 0x90 <= head <= 0x9F or head in (0xDC, 0xDD):
            body = self._name(body)
        try:
            read = self._decoder.decode(body)
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
            raise self._unreadable(body, error) from None
        values = self._fields(read) if self._fields else (read.p0,) if self._parameters else ()
        if self._by_position and UNSET not in values:
            return values, {}
        return self._spread(values)

    def _spread(self, values: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        gap = False  # after an omitted positional parameter the others go by name
        for parameter, value in zip(self._parameters, values, strict=True):
            if value is UNSET:
                gap = True
            elif parameter.kind is parameter.VAR_POSITIONAL:
                args.extend(value)
            elif parameter.kind is parameter.VAR_KEYWORD:
                kwargs.update(value)
            elif parameter.kind is parameter.KEYWORD_ONLY or (gap and parameter.kind is parameter.POSITIONAL_OR_KEYWORD):
                kwargs[parameter.name] = value
            else:
                args.append(value)
        return tuple(args), kwargs

    def _name(self, body: bytes) -> bytes:
        """A positional body as one by parameter names."""
        try:
            args, kwargs = _loose.decode(body)
        except msgspec.MsgspecError as error:
            raise InvalidArguments(
                task=self.task, parameter="", expected="[[positional…], {named…}]", got="another shape", detail=f"{error}."
            ) from None
        return codec.encoder.encode(self._bind(tuple(args), dict(kwargs)))

    def _unreadable(self, body: bytes, error: Exception) -> InvalidArguments:
        try:
            plain = codec.unpack(body)
        except MessageInvalid:
            plain = None
        if not isinstance(plain, dict):
            return InvalidArguments(
                task=self.task, parameter="", expected=f"({', '.join(self.types)})", got="bytes of another shape", detail=f"{error}."
            )
        return self._explain((), {str(k): v for k, v in plain.items()}, plain)

    def pack_result(self, value: Any) -> bytes:
        """Raises ValueInvalid when the value cannot be carried."""
        try:
            return codec.encoder.encode(value)
        except Exception:  # noqa: BLE001 - pack() says what cannot be carried
            return codec.pack(value)

    def read_result(self, data: bytes) -> Any:
        return self._result.read(data)


def _types(task: str, fn: Callable[..., Any], names: list[str]) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(fn, include_extras=True)
    except (NameError, AttributeError, TypeError) as error:
        raise TaskInvalid(
            f"The annotations of task {task} cannot be resolved: {error}.", help="Import the types where the task's module can see them."
        ) from None
    found = {name: hints.get(name, Any) for name in names}
    returns = hints.get("return", Any)
    found["return"] = None if returns is type(None) else returns
    return found


def _reader(kind: Any) -> codec.Typed:
    """A result whose declared type no queue can carry is read as plain values: callers lose the type, never the value."""
    try:
        return codec.Typed(kind)
    except TypeError:
        return codec.Typed(Any)


def _wire_type(parameter: inspect.Parameter, kind: Any) -> Any:
    if parameter.kind is parameter.VAR_POSITIONAL:
        return list[kind]
    if parameter.kind is parameter.VAR_KEYWORD:
        return dict[str, kind]
    return kind
