"""What the demo's line does to pictures: plain functions around Pillow that know nothing of queues."""

import os
import secrets
from contextlib import suppress
from io import BytesIO
from pathlib import Path

from PIL import ExifTags, Image, ImageCms, ImageDraw, ImageFilter, ImageFont, ImageOps

MAX_PIXELS = 64_000_000  # a small file can unpack to gigabytes; 64 million pixels are about 200 MB
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def read(path: Path) -> Image.Image:
    """The picture, upright and in sRGB. Raises what Pillow raises: UnidentifiedImageError for what is no picture at all."""
    with Image.open(path) as image:
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{image.width} × {image.height} pixels are more than {MAX_PIXELS:,}")
        return _plain(ImageOps.exif_transpose(image))


def credit(path: Path) -> tuple[str, str]:
    """The copyright notice and the artist that a file names."""
    with Image.open(path) as image:
        exif = image.getexif()
        return _text(exif.get(ExifTags.Base.Copyright)), _text(exif.get(ExifTags.Base.Artist))


def stamp(image: Image.Image, text: str) -> Image.Image:
    """A copy with the text in the lower right corner: half-clear white over a soft shadow, so that it shows on snow and at night."""
    text = " ".join(text.split()).replace("(c)", "©")
    size = max(9.0, min(image.size) / 26)
    length = ImageFont.load_default(size).getlength(text)
    size = max(1.0, size * min(1.0, image.width * 0.9 / max(1.0, length)))
    font = ImageFont.load_default(size)
    edge = round(size)
    left, top, right, bottom = (round(side) for side in font.getbbox(text))
    light = Image.new("L", (right - left + 2 * edge, bottom - top + 2 * edge))  # the text, and room for its shadow
    ImageDraw.Draw(light).text((edge - left, edge - top), text, 255, font)
    shadow = light.filter(ImageFilter.GaussianBlur(size / 7))
    corner = (image.width - light.width, image.height - light.height)
    marked = image.copy()
    marked.paste("black", corner, shadow.point([min(150, level) for level in range(256)]))
    marked.paste("white", corner, light.point([level * 3 // 4 for level in range(256)]))
    return marked


def shrink(image: Image.Image, width: int) -> Image.Image:
    """At most `width` wide. Never larger than it was: made-up pixels help nobody."""
    if image.width <= width:
        return image
    return image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)


def square(image: Image.Image, side: int) -> Image.Image:
    """The middle of the picture, `side` × `side` or as much as there is: a little closer in and higher up, which leaves the stamp out, not cut in two."""
    part = max(1, round(min(image.size) * 0.86))
    left, top = (image.width - part) // 2, round((image.height - part) * 0.3)
    side = min(side, part)
    return image.resize((side, side), Image.Resampling.LANCZOS, box=(left, top, left + part, top + part))


def jpeg(image: Image.Image, quality: int = 85) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=True, progressive=True)
    return file.getvalue()


def sign(data: bytes, copyright: str, artist: str = "") -> bytes:  # noqa: A002
    """A JPEG of ours with the notice in its EXIF. The pixels are not encoded again, so nothing is lost."""
    exif = Image.Exif()
    for tag, text in ((ExifTags.Base.Copyright, copyright), (ExifTags.Base.Artist, artist)):
        if text:
            exif[tag] = text.replace("©", "(c)").encode()  # the field is ASCII by its rules, UTF-8 by custom
    block = exif.tobytes()
    return data[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + data[2:]


def save(path: Path, data: bytes) -> Path:
    """Write the file whole or not at all: a reader, a crash or a second writer never meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _text(value: object) -> str:
    """Pillow reads these fields as Latin-1; most programs write UTF-8. A file may hold anything: one line of it, not too long."""
    text = value.replace("\0", " ") if isinstance(value, str) else ""
    with suppress(UnicodeError):
        text = text.encode("latin-1").decode()
    return " ".join(text.split())[:200]


def _plain(image: Image.Image) -> Image.Image:
    """In sRGB, whatever it came in: CMYK, a palette, 16 bits a channel, another colour space; what is clear becomes white."""
    if image.mode.startswith("I"):  # 16 bits
        image = image.convert("I").point(lambda level: level / 257).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    elif (profile := image.info.get("icc_profile")) and image.mode in {"RGB", "CMYK", "L"}:
        with suppress(ImageCms.PyCMSError):  # a profile that is broken or for another mode
            image = ImageCms.profileToProfile(image, BytesIO(profile), _SRGB, outputMode="RGB") or image
    image = image.convert("RGB")
    image.info.clear()  # where it was taken, with what, what somebody noted: none of our business
    return image
