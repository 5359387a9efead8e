"""The demo's line: a copyright mark on every photo, three widths of each, then a thumbnail and the notice in every file.

    photo ─> [watermark] ─> photo ─> [resize] ─> 3 photos ─> [thumbnail] ─> album

Between every two stages is a queue, so each stage has as many workers as it needs and a worker that dies loses nothing. `beltline demo` runs this
file as it is.

A crash can make a task run twice for one message, so a task must be safe to repeat. These are: each writes its file whole, under a name that depends
on the photo alone. Queues carry `Photo`s, which say where the pixels are, never the pixels. What happens to those is plain Pillow, in pictures.py.
"""

from beltline import App, Retry
from beltline.demo.photo import Album, Photo
from beltline.demo.pictures import credit, jpeg, read, save, shrink, sign, square, stamp

app = App()


@app.task(retry=Retry(attempts=3, never=("UnidentifiedImageError",)), timeout=60)  # what is no picture will not become one
def watermark(photo: Photo) -> Photo:
    """Turn the photo upright and write whose it is into the corner."""
    image = read(photo.source)
    photo = photo.credited(*credit(photo.source))
    marked = stamp(image, photo.copyright or photo.artist or "made with Beltline")
    return photo.at(save(photo.draft("marked"), jpeg(marked, quality=95)))


@app.task(retry=3, timeout=60)
def resize(photo: Photo, width: int) -> Photo:
    """The photo at most this wide. A smaller one keeps its size; the file's name says what was asked for."""
    image = shrink(read(photo.path), width)
    return photo.at(save(photo.draft(width), jpeg(image)), width)


@app.task(retry=3, timeout=60)
def thumbnail(photos: list[Photo]) -> Album:
    """Cut a thumbnail, write the copyright notice into every file, and put them where they belong."""
    small = min(photos, key=lambda photo: photo.width)
    files = {str(photo.width): photo.path.read_bytes() for photo in photos}
    files["thumb"] = jpeg(square(read(small.path), 256))
    *pictures, thumb = [save(small.final(label), sign(data, small.copyright, small.artist)) for label, data in files.items()]
    return Album(small.name, pictures, thumb)


album = app.chain("album", watermark >> resize.each(width=[1920, 1280, 640]) >> thumbnail.gather())
