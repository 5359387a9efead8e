"""Arguments into a body and back: what fits arrives as it was, what does not is told before anything is stored."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import pydantic
import pytest

from beltline import App, InvalidArguments, inject
from beltline.core.codec import pack
from beltline.core.errors import TaskInvalid
from beltline.sending import DEFAULTS

app = App("memory://signature")


class Colour(Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: int


@dataclass(frozen=True)
class Photo:
    path: Path
    taken: datetime


class Size(msgspec.Struct):
    width: int


class Order(pydantic.BaseModel):
    id: UUID
    total: Decimal


def body_of(task: Any, *args: Any, **kwargs: Any) -> bytes:
    return bytes(task.message(args, kwargs, DEFAULTS).body)


def there_and_back(task: Any, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    read: tuple[tuple[Any, ...], dict[str, Any]] = task.read(body_of(task, *args, **kwargs))
    return read


CARRIED = [
    (Photo, Photo(Path("a/b.jpg"), datetime(2026, 1, 2, tzinfo=UTC))),
    (Size, Size(3)),
    (Order, Order(id=UUID(int=7), total=Decimal("1.10"))),
    (datetime, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
    (date, date(2026, 1, 2)),
    (timedelta, timedelta(seconds=5)),
    (UUID, UUID(int=9)),
    (Path, Path("x")),
    (bytes, b"\x00\xff"),
    (Colour, Colour.RED),
    (Decimal, Decimal("3.1415926535897932384626")),
    (Point, Point(1, 2)),
    (set[int], {1, 2}),
    (tuple[int, str], (1, "a")),
    (list[Photo], [Photo(Path("a"), datetime(2026, 1, 2, tzinfo=UTC))]),
    (Photo | None, None),
    (dict[str, Size], {"a": Size(1)}),
    (float, float("inf")),
    (str, "nul \x00 and \U0001f600"),
]


@pytest.mark.parametrize(("kind", "value"), CARRIED, ids=[str(kind) for kind, _ in CARRIED])
def test_a_value_of_a_declared_type_arrives_as_it_was(kind: Any, value: Any) -> None:
    def take(value: Any) -> Any: ...

    take.__annotations__ = {"value": kind, "return": kind}
    task = App("memory://x").task(take)
    assert there_and_back(task, value) == ((value,), {})
    assert task.read_result(task.pack_result(value)) == value


@app.task
def resize(photo: Photo, width: int, *more: int, quality: float = 0.8, **tags: str) -> None: ...


PHOTO = Photo(Path("a"), datetime(2026, 1, 2, tzinfo=UTC))


def test_positional_named_variable_and_default_arguments_all_arrive_where_they_belong() -> None:
    assert there_and_back(resize, PHOTO, 3) == ((PHOTO, 3), {})
    assert there_and_back(resize, PHOTO, width=3) == ((PHOTO, 3), {})
    assert there_and_back(resize, PHOTO, 3, 4, 5, quality=0.5, author="me") == ((PHOTO, 3, 4, 5), {"quality": 0.5, "author": "me"})


def test_a_body_by_position_from_a_sender_without_the_code_is_read_by_the_same_rules() -> None:
    assert resize.read(pack([[PHOTO, 3], {"quality": 0.5}])) == ((PHOTO, 3), {"quality": 0.5})


def test_a_parameter_added_with_a_default_reads_bodies_from_before() -> None:
    @App("memory://x").task
    def grown(old: int, new: str = "default") -> None: ...

    assert grown.read(pack({"old": 1})) == ((1,), {})


MISFITS = [
    ((3, 3), {}, "photo", "Photo", "int"),
    ((PHOTO, "wide"), {}, "width", "int", "str"),
    ((PHOTO,), {}, "width", "int", "nothing"),
    ((), {}, "photo", "Photo", "nothing"),
    ((PHOTO, 3), {"quality": "high"}, "quality", "float", "str"),
    ((PHOTO, 2**70), {}, "width", "int", "int"),
    ((PHOTO, 3), {"author": "\ud800"}, "tags", "str", "dict"),
    ((PHOTO, True), {}, "width", "int", "bool"),
]


@pytest.mark.parametrize(("args", "kwargs", "parameter", "expected", "got"), MISFITS)
def test_a_misfit_names_parameter_expected_and_got(args: Any, kwargs: Any, parameter: str, expected: str, got: str) -> None:
    with pytest.raises(InvalidArguments) as caught:
        body_of(resize, *args, **kwargs)
    assert (caught.value.parameter, caught.value.expected, caught.value.got) == (parameter, expected, got)
    assert str(caught.value).endswith("Nothing was sent.")


def test_the_same_argument_given_twice_is_a_misfit() -> None:
    with pytest.raises(InvalidArguments, match="multiple values"):
        body_of(resize, PHOTO, 3, width=4)


def test_an_unknown_name_is_a_misfit() -> None:
    @App("memory://x").task
    def plain(a: int) -> None: ...

    with pytest.raises(InvalidArguments) as caught:
        body_of(plain, 1, b=2)
    assert caught.value.parameter == "b"


@pytest.mark.parametrize("body", [b"", b"\xc1", pack(3), pack("text"), pack([1, 2, 3]), pack({"photo": 1, "width": 2}), pack({1: 2}), b"\x91" * 5000])
def test_bytes_that_do_not_fit_are_refused_at_the_worker_without_another_error(body: bytes) -> None:
    with pytest.raises(InvalidArguments) as caught:
        resize.read(body)
    assert "Nothing was sent" not in str(caught.value)


def test_a_value_nested_too_deeply_is_refused() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]

    @App("memory://x").task
    def take(value: Any) -> None: ...

    with pytest.raises(InvalidArguments, match="nested"):
        body_of(take, deep)
    while deep:  # taken apart by hand: the interpreter's own destructor may not like the depth either
        deep = deep[0]


def test_a_type_no_queue_can_carry_is_refused_where_it_is_declared() -> None:
    class Connection: ...

    task = App("memory://x").task(lambda_with(Connection | int))
    with pytest.raises(TaskInvalid, match="cannot carry"):
        task.app.check()


def lambda_with(kind: Any) -> Any:
    def take(value: Any) -> None: ...

    take.__annotations__ = {"value": kind}
    return take


def test_an_annotation_that_cannot_be_resolved_says_so_at_the_check() -> None:
    def take(value: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821 - that is the test

    small = App("memory://x")
    small.task(take)
    with pytest.raises(TaskInvalid, match="Nowhere"):
        small.check()


def test_an_injected_parameter_is_no_part_of_the_message() -> None:
    small = App("memory://x")

    @small.resource
    def pool() -> list[str]:
        return []

    @small.task
    def take(number: int, pool: list[str] = inject(pool)) -> None: ...

    assert there_and_back(take, 1) == ((1,), {})
    with pytest.raises(InvalidArguments):
        body_of(take, 1, pool=["mine"])


def test_what_was_packed_for_one_signature_is_told_when_the_signature_has_changed() -> None:
    old = pack({"photo": PHOTO, "size": 3})
    with pytest.raises(InvalidArguments) as caught:
        App("memory://x").task(lambda_two).read(old)
    assert caught.value.parameter == "width"


def lambda_two(photo: Photo, width: int) -> None: ...
