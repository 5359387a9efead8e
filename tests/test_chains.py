"""Notation into plan: what fits together, what is refused, and where the error points."""

from dataclasses import dataclass
from typing import Any

import pytest
from msgspec import structs

from beltline import App, branch
from beltline.core.chain import Answer, Choose, End, Split, To
from beltline.core.errors import ChainInvalid
from beltline.core.queues import HIGH_WATER, Feed


@dataclass(frozen=True)
class Photo:
    name: str


app = App("memory://chains")


@app.task
def watermark(photo: Photo) -> Photo: ...


@app.task
async def resize(photo: Photo, width: int, quality: int = 1) -> Photo: ...


@app.task
def thumbnail(photos: list[Photo]) -> int: ...


@app.task
def unzip(archive: str) -> list[Photo]: ...


@app.task
def count(number: int) -> int: ...


@app.task
def untyped(value):  # type: ignore[no-untyped-def]
    return value


def nexts(chain: Any) -> dict[str, Any]:
    return {stage.name: stage.next for stage in chain.plan.stages}


def test_split_and_gather_compile_into_one_split_that_knows_its_gather() -> None:
    chain = app.chain("album", watermark >> resize.each(width=[3, 2]) >> thumbnail.gather(on_dead="skip"))
    assert nexts(chain) == {
        "watermark": Split(stage="resize", over_items=False, keys={"width": [3, 2]}, gather="thumbnail", on_dead="skip"),
        "resize": Answer("thumbnail"),
        "thumbnail": End(),
    }


def test_stages_stand_in_the_order_in_which_they_run() -> None:
    chain = app.chain("long", unzip >> watermark.each() >> resize.each(width=[1]) >> thumbnail.gather() >> untyped >> count)
    assert [stage.name for stage in chain.plan.stages] == ["unzip", "watermark", "resize", "thumbnail", "untyped", "count"]


def test_a_split_that_is_never_gathered_has_the_list_of_all_answers_as_result() -> None:
    chain = app.chain("open", unzip >> watermark.each())
    assert nexts(chain) == {"unzip": Split(stage="watermark", over_items=True, keys={}, gather="", on_dead="hold"), "watermark": Answer()}


def test_a_branch_goes_one_way_and_joins_again() -> None:
    raw = watermark.stage(name="raw")
    chain = app.chain(
        "ways", untyped >> branch(lambda photo: photo.name, jpg=watermark, raw=raw >> watermark.stage(name="again")) >> count.stage(name="end")
    )
    assert nexts(chain)["untyped"] == Choose({"jpg": To("watermark"), "raw": To("raw")})
    assert nexts(chain)["watermark"] == nexts(chain)["again"] == To("end")
    assert chain.choose("untyped", Photo("raw")) == "raw"
    assert chain.choose("raw", Photo("raw")) == ""


def test_a_branch_may_stand_inside_a_split_and_after_a_gather() -> None:
    inside = app.chain("inside", unzip >> untyped.each() >> branch(str, a=watermark, b=resize.stage(name="b")) >> thumbnail.gather())
    assert nexts(inside)["watermark"] == nexts(inside)["b"] == Answer("thumbnail")
    after = app.chain("after", unzip >> watermark.each() >> untyped.gather() >> branch(str, a=count, b=count.stage(name="b")))
    assert nexts(after)["untyped"] == Choose({"a": To("count"), "b": To("b")})


def test_every_stage_tells_what_it_feeds_so_that_a_full_queue_can_stall_it() -> None:
    small = App("memory://x")
    mark, size, thumb = small.task(watermark.fn), small.task(resize.fn), small.task(thumbnail.fn)
    small.chain("album", mark >> size.each(width=[1, 2], quality=[1, 2, 3]) >> thumb.gather())
    specs = {spec.name: spec for spec in small.specs()}
    assert specs["watermark"].feeds == (Feed("resize", 6),)
    assert specs["resize"].feeds == (Feed("thumbnail", 1),)
    assert [specs[name].high_water for name in ("resize", "thumbnail")] == [HIGH_WATER, HIGH_WATER]


REFUSED = {
    "types that contradict each other": (lambda: watermark >> count, "gives Photo, .*count takes int"),
    "an element that does not fit": (lambda: unzip >> count.each(), "gives Photo, .*count takes int"),
    "splitting what is no list": (lambda: watermark >> watermark.stage(name="b").each(), "no list"),
    "a gather of what is no list": (lambda: unzip >> watermark.each() >> count.gather(), "takes int"),
    "a gather without a split": (lambda: watermark >> thumbnail.gather(), "no split before it"),
    "two stages of one name": (lambda: watermark >> watermark, "two stages called 'watermark'"),
    "two stages on one queue": (lambda: watermark >> watermark.stage(name="b", queue="watermark"), "share queue"),
    "a split at the start": (lambda: watermark.each() >> resize, "unsupported operand|must start with a plain task"),
    "a split over an unknown parameter": (lambda: watermark >> resize.each(height=[1]), "cannot be split over 'height'"),
    "a split over nothing": (lambda: watermark >> resize.each(width=[]), "needs a list of values"),
    "an unknown on_dead": (lambda: unzip >> watermark.each() >> thumbnail.gather(on_dead="ignore"), "on_dead = 'ignore'"),
    "a branch right after a branch": (lambda: untyped >> branch(str, a=watermark) >> branch(str, b=resize), ""),
    "an open split inside a branch that joins again": (
        lambda: untyped >> branch(str, a=unzip >> watermark.each(), b=resize) >> thumbnail,
        "gathered inside its branch",
    ),
    "something that is no task": (lambda: watermark >> print, "cannot stand in a chain"),
    "a branch without arms": (lambda: watermark >> branch(str), "at least one arm"),
}


@pytest.mark.parametrize("why", [name for name in REFUSED if name != "a branch right after a branch"])
def test_a_chain_that_cannot_work_is_refused_where_it_is_declared(why: str) -> None:
    line, message = REFUSED[why]
    with pytest.raises((ChainInvalid, TypeError), match=message):
        app.chain("refused", line())


def test_a_declared_name_cannot_come_to_mean_another_chain() -> None:
    small = App("memory://x")
    mark, size = small.task(watermark.fn), small.task(resize.fn)
    first = small.chain("c", mark >> size.each(width=[1]))
    assert small.chain("c", mark >> size.each(width=[1])).plan == first.plan
    with pytest.raises(ChainInvalid, match="Two chains"):
        small.chain("c", mark >> size.each(width=[2]))


def test_an_entry_message_carries_its_own_id_as_run_and_the_options_given() -> None:
    chain = app.chain("entry", watermark >> untyped.stage(name="n"))
    message = chain.with_options(priority=5, group="g").call(Photo("a")).message
    assert message.place is not None
    assert (message.place.run, message.place.chain, message.place.stage) == (message.id, "entry", "watermark")
    assert (message.priority, message.group) == (5, "g")


def test_a_plan_survives_the_way_to_the_supervisor_as_data() -> None:
    import msgspec

    from beltline.core.chain import ChainPlan

    plan = app.chain("carried", unzip >> watermark.each() >> thumbnail.gather()).plan
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=ChainPlan) == plan
    assert structs.asdict(plan)["name"] == "carried"
