"""Read by mypy in `make check`, never run: what the editor must accept and refuse. An ignore that is not needed is an error."""

from dataclasses import dataclass
from typing import assert_type

from beltline import App, Handle, Retry, branch
from beltline.sending import Call

app = App()


@dataclass(frozen=True)
class Photo:
    name: str


@dataclass(frozen=True)
class Album:
    photos: int


@app.task(retry=Retry(attempts=5), timeout=30)
def watermark(photo: Photo) -> Photo:
    return photo


@app.task
async def resize(photo: Photo, width: int) -> Photo:
    return photo


@app.task
def thumbnail(photos: list[Photo]) -> Album:
    return Album(len(photos))


@app.task
def unzip(archive: str) -> list[Photo]:
    return [Photo(archive)]


@app.task
def count(words: str) -> int:
    return len(words)


def ok() -> None:
    album = app.chain("album", watermark >> resize.each(width=[1920, 640]) >> thumbnail.gather())
    assert_type(album.call(Photo("a")), Call[Album])
    assert_type(album.send(Photo("a")), Handle[Album])
    assert_type(album.send(Photo("a")).result(timeout=1), Album)
    unpacked = app.chain("unpacked", unzip >> watermark.each() >> thumbnail.gather())
    assert_type(unpacked.call("a.zip"), Call[Album])
    assert_type(resize.send(Photo("a"), width=3), Handle[Photo])
    assert_type(resize.with_options(delay=5).send(Photo("a"), 3), Handle[Photo])
    assert_type(resize.with_options(connection=object()).send(Photo("a"), 3), Handle[Photo])
    assert_type(resize.send_many([resize.call(Photo("a"), 3)], connection=object()), list[Handle[Photo]])
    app.send_many([resize.call(Photo("a"), 3), count.call("a b")], connection=object())
    resize.send_many(resize.call(Photo("a"), w) for w in (1, 2))
    assert_type(watermark(Photo("a")), Photo)
    app.chain("ways", watermark >> branch(lambda photo: photo.name, jpg=watermark.stage(name="jpg"), raw=watermark.stage(name="raw")))


def refused() -> None:
    resize.send(Photo("a"), "wide")  # type: ignore[arg-type]
    resize.send(Photo("a"))  # type: ignore[call-arg]
    resize.call(3, 3)  # type: ignore[arg-type]
    watermark >> count  # type: ignore[operator]
    watermark >> resize.each(width=[1]) >> count.gather()  # type: ignore[misc]
    count.send_many([resize.call(Photo("a"), 3)])  # type: ignore[list-item]
    resize.send(Photo("a"), 3, connection=object())  # type: ignore[call-arg]  # it works, but a ParamSpec has no room for it: with_options has
