"""The demo's picture code: plain functions, tested without a queue."""

import io
from pathlib import Path

import pytest

pytest.importorskip("PIL", reason="the demo extra is not installed")

from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from beltline.demo import pictures
from beltline.demo.photo import Photo, photos_in
from beltline.demo.pictures import credit, jpeg, read, save, shrink, sign, square, stamp

SAMPLES = Path(pictures.__file__).parent / "photos"
ORIENTATION, COPYRIGHT, ARTIST = ExifTags.Base.Orientation, ExifTags.Base.Copyright, ExifTags.Base.Artist
NOTICE = "(c) 2024 Ada Example, CC BY 4.0"


def near(pixel, colour, within=6) -> bool:
    return all(abs(a - b) <= within for a, b in zip(pixel, colour, strict=True))


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def photo_at(root: Path, name: str, out: Path | None = None, **notice: str) -> Photo:
    return Photo.of(root / name, root=root, out=out or root / "out", **notice)


def as_tasks_do(photo: Photo, widths=(1920, 640)) -> list[Path]:
    """What image_line.py does, without its tasks."""
    photo = photo.credited(*credit(photo.source))
    marked = photo.at(save(photo.draft("marked"), jpeg(stamp(read(photo.source), photo.copyright), quality=95)))
    sized = [marked.at(save(marked.draft(width), jpeg(shrink(read(marked.path), width))), width) for width in widths]
    done = [save(each.final(each.width), sign(each.path.read_bytes(), each.copyright, each.artist)) for each in sized]
    small = jpeg(square(read(sized[-1].path), 256))
    return [*done, save(photo.final("thumb"), sign(small, photo.copyright, photo.artist))]


# ---- reading


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_that_lies_on_its_side_is_turned_upright(tmp_path, orientation):
    upright = Image.new("RGB", (64, 32), "blue")
    upright.paste("red", (0, 0, 16, 16))  # the upper left corner
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that Orientation undoes, by its number in Pillow
    lying = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    lying.save(tmp_path / "photo.png", exif=exif)

    image = read(tmp_path / "photo.png")
    assert image.size == (64, 32)
    assert image.getpixel((4, 4)) == (255, 0, 0)
    assert image.getpixel((60, 28)) == (0, 0, 255)
    assert ORIENTATION not in Image.open(io.BytesIO(jpeg(image))).getexif(), "turned once must not be turned again"


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "expected"),
    [
        ("RGB", (200, 30, 30), "png", (200, 30, 30)),
        ("L", 120, "png", (120, 120, 120)),
        ("1", 1, "png", (255, 255, 255)),
        ("I;16", 120 * 257, "png", (120, 120, 120)),
        ("RGBA", (200, 30, 30, 255), "png", (200, 30, 30)),
        ("RGBA", (200, 30, 30, 0), "png", (255, 255, 255)),
        ("LA", (0, 0), "png", (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), "jpg", (255, 0, 0)),
        ("CMYK", (0, 0, 0, 0), "tif", (255, 255, 255)),
        ("YCbCr", (76, 85, 255), "jpg", (254, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb_with_its_colours(tmp_path, mode, colour, suffix, expected):
    path = tmp_path / f"photo.{suffix}"
    Image.new(mode, (32, 32), colour).save(path)
    image = read(path)
    assert image.mode == "RGB"
    assert near(image.getpixel((16, 16)), expected)
    assert jpeg(image).startswith(b"\xff\xd8")


def test_a_palette_keeps_its_colours_and_its_clear_entry_becomes_white(tmp_path):
    image = Image.new("P", (32, 32), 0)
    image.putpalette([0, 0, 0, 10, 200, 10])
    image.paste(1, (16, 0, 32, 32))
    image.save(tmp_path / "photo.gif", transparency=0)
    plain = read(tmp_path / "photo.gif")
    assert plain.getpixel((4, 4)) == (255, 255, 255)
    assert plain.getpixel((24, 4)) == (10, 200, 10)


def test_a_colour_profile_is_applied_and_a_broken_one_does_no_harm(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, data in (("good", profile), ("broken", b"no profile at all" * 20)):
        Image.new("RGB", (32, 32), (200, 30, 30)).save(tmp_path / f"{name}.png", icc_profile=data)
        assert near(read(tmp_path / f"{name}.png").getpixel((4, 4)), (200, 30, 30)), name


def test_nothing_private_of_the_source_reaches_a_picture(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = "SecretCam"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.jpg", exif=exif, comment=b"at my sister's")
    data = sign(jpeg(read(tmp_path / "photo.jpg")), NOTICE)
    assert b"SecretCam" not in data
    assert b"sister" not in data
    assert set(Image.open(io.BytesIO(data)).getexif()) == {COPYRIGHT}


def test_what_is_no_picture_raises_what_pillow_raises():
    with pytest.raises(UnidentifiedImageError, match="cannot identify image file"):
        read(SAMPLES / "broken.jpg")
    with pytest.raises(UnidentifiedImageError):
        credit(SAMPLES / "broken.jpg")


def test_half_a_picture_raises(tmp_path):
    whole = (SAMPLES / "cat.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match="truncated"):
        read(tmp_path / "half.jpg")


def test_a_small_file_of_too_many_pixels_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    Image.new("1", (9000, 8000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    monkeypatch.setattr(pictures, "_plain", lambda image: pytest.fail("it was unpacked"))
    with pytest.raises(Image.DecompressionBombError):
        read(tmp_path / "bomb.png")


# ---- changing


@pytest.mark.parametrize("ground", ["white", "black", "grey"])
def test_the_stamp_shows_on_any_ground_and_only_in_its_corner(ground):
    before = Image.new("RGB", (900, 600), ground)
    after = stamp(before, NOTICE)
    assert after.size == before.size
    assert before.getextrema() == Image.new("RGB", (900, 600), ground).getextrema(), "the original is left alone"
    corner = after.crop((450, 500, 900, 600)).convert("L")
    darkest, lightest = corner.getextrema()
    assert lightest - darkest > 80
    assert len(after.crop((0, 0, 900, 500)).getcolors()) == 1
    assert lightest < 255 or ground == "white", "half-clear, not opaque"


def test_the_stamp_fits_whatever_its_length_and_the_size_of_the_photo():
    long = stamp(Image.new("RGB", (600, 400)), "a very long notice " * 10)
    assert long.crop((0, 0, 20, 400)).getcolors() == [(20 * 400, (0, 0, 0))], "it would begin outside"
    assert stamp(Image.new("RGB", (1, 1)), NOTICE).size == (1, 1)
    assert stamp(Image.new("RGB", (3000, 3)), NOTICE).size == (3000, 3)
    assert stamp(Image.new("RGB", (60, 40)), "").size == (60, 40)
    assert stamp(Image.new("RGB", (600, 400)), "two\nlines and 木").size == (600, 400)


@pytest.mark.parametrize(
    ("size", "width", "expected"),
    [
        ((2000, 1000), 640, (640, 320)),
        ((640, 480), 640, (640, 480)),
        ((451, 300), 1920, (451, 300)),
        ((1000, 1), 10, (10, 1)),
    ],
)
def test_shrink_keeps_the_shape_and_never_makes_larger(size, width, expected):
    assert shrink(Image.new("RGB", size), width).size == expected


@pytest.mark.parametrize(("size", "expected"), [((640, 426), 256), ((426, 640), 256), ((300, 300), 256), ((640, 100), 86), ((1, 1), 1)])
def test_a_thumbnail_is_square_and_never_larger_than_the_picture(size, expected):
    assert square(Image.new("RGB", size), 256).size == (expected, expected)


@pytest.mark.parametrize("size", [(640, 426), (426, 640), (500, 500)])
def test_a_thumbnail_leaves_the_stamp_out(size):
    thumb = square(stamp(Image.new("RGB", size, "grey"), NOTICE), 256)
    assert len(thumb.getcolors()) == 1


# ---- the notice


def test_the_notice_can_be_read_back():
    file = io.BytesIO(sign(jpeg(Image.new("RGB", (8, 8))), NOTICE, "Ada Example"))
    exif = Image.open(file).getexif()
    assert exif[COPYRIGHT] == NOTICE
    assert exif[ARTIST] == "Ada Example"


def test_the_notice_survives_letters_of_other_languages(tmp_path):
    path = save(tmp_path / "signed.jpg", sign(jpeg(Image.new("RGB", (8, 8))), "© José Müller, 木", "José Müller"))
    assert credit(path) == ("(c) José Müller, 木", "José Müller")


def test_a_notice_of_two_parts_or_of_any_length_is_one_line(tmp_path):
    save(tmp_path / "signed.jpg", sign(jpeg(Image.new("RGB", (8, 8))), "photographer\0editor\n" + "x" * 10_000))
    notice, artist = credit(tmp_path / "signed.jpg")
    assert notice.startswith("photographer editor xxx")
    assert len(notice) == 200
    assert artist == ""


def test_signing_leaves_every_pixel_as_it_is():
    image = Image.effect_noise((64, 64), 80).convert("RGB")
    data = jpeg(image)
    assert Image.open(io.BytesIO(sign(data, NOTICE))).tobytes() == Image.open(io.BytesIO(data)).tobytes()


def test_the_senders_notice_wins_over_the_files():
    photo = Photo(Path("a"), Path("b"), "a", Path("a"), copyright="mine")
    assert photo.credited("theirs", "them") == Photo(Path("a"), Path("b"), "a", Path("a"), 0, "mine", "them")


# ---- names and files


def test_photos_of_one_name_keep_out_of_each_others_way(tmp_path):
    names = ["cat.jpg", "cat.png", "cat.jpeg", "cat.JPG", "a/cat.jpg", "b/cat.jpg", "a-cat.jpg", "cat-640.jpg", "cat-marked.jpg", "cat-thumb.jpg"]
    photos = [photo_at(tmp_path, name) for name in names]
    labels = ["marked", 1920, 1280, 640, "thumb"]
    paths = [where(label) for photo in photos for label in labels for where in (photo.draft, photo.final)]
    assert len(set(paths)) == len(paths)
    assert photos[0].final(640) == tmp_path / "out" / "cat-640.jpg"
    assert photos[1].final(640) == tmp_path / "out" / "cat.png-640.jpg"
    assert photos[4].final(640) == tmp_path / "out" / "a" / "cat-640.jpg"


def test_a_name_depends_on_the_source_alone(tmp_path, monkeypatch):
    first = photo_at(tmp_path, "a/cat.jpg")
    monkeypatch.chdir(tmp_path)
    assert Photo.of(Path("a/../a/cat.jpg"), root=Path(), out=Path("out")) == first


def test_a_source_outside_its_root_and_an_out_that_is_the_root_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not in the subpath"):
        Photo.of(tmp_path / "a" / ".." / "cat.jpg", root=tmp_path / "a", out=tmp_path / "out")
    with pytest.raises(ValueError, match="two folders"):
        Photo.of(tmp_path / "cat.jpg", root=tmp_path, out=tmp_path)


def test_doing_everything_twice_leaves_the_same_files_with_the_same_bytes(tmp_path):
    root = tmp_path / "in"
    for name in ("a/cat.jpg", "b/cat.jpg"):
        save(root / name, (SAMPLES / "cat.jpg").read_bytes())
    photos = [photo_at(root, name, tmp_path / "out") for name in ("a/cat.jpg", "b/cat.jpg")]

    def work() -> dict[str, bytes]:
        for photo in photos:
            as_tasks_do(photo)
        return {name: (tmp_path / "out" / name).read_bytes() for name in files_below(tmp_path / "out")}

    first = work()
    labels = {"1920", "640", "thumb"}
    finished = {f"{folder}/cat-{label}.jpg" for folder in "ab" for label in labels}
    drafts = {f".work/{folder}/cat-{label}.jpg" for folder in "ab" for label in labels - {"thumb"} | {"marked"}}
    assert set(first) == finished | drafts
    assert work() == first


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_no_trace(tmp_path, monkeypatch):
    path = save(tmp_path / "deep" / "photo.jpg", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(path, b"new")
    assert path.read_bytes() == b"old"
    assert files_below(tmp_path) == {"deep/photo.jpg"}


def test_a_picture_that_cannot_be_encoded_leaves_no_trace(tmp_path):
    with pytest.raises(OSError, match="cannot write mode"):
        save(tmp_path / "photo.jpg", jpeg(Image.new("RGBA", (8, 8))))
    assert files_below(tmp_path) == set()


def test_photos_are_found_in_order_without_hidden_ones_and_without_what_was_made(tmp_path):
    for name in ("b/two.PNG", "one.jpg", "a/three.webp", "notes.txt", ".hidden.jpg", ".git/x.jpg", "out/one-640.jpg", "out/.work/one.jpg"):
        save(tmp_path / name, b"")
    found = [path.relative_to(tmp_path).as_posix() for path in photos_in(tmp_path, tmp_path / "out")]
    assert found == ["one.jpg", "a/three.webp", "b/two.PNG"]


# ---- the photos that come along


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.jpg")), ids=lambda path: path.stem)
def test_every_sample_is_listed_and_names_its_author(path):
    assert f"`{path.name}`" in (SAMPLES / "LICENSES.md").read_text(encoding="utf-8")
    if path.stem != "broken":
        notice, artist = credit(path)
        assert artist in notice
        assert "CC BY 4.0" in notice or "CC0 1.0" in notice


def test_the_samples_are_small_enough_for_a_package():
    assert sum(path.stat().st_size for path in SAMPLES.iterdir()) <= 3_000_000


def test_the_sample_that_lies_on_its_side_stands_upright_in_the_end(tmp_path):
    with Image.open(SAMPLES / "dogs.jpg") as lying:
        assert lying.width > lying.height
    for path in as_tasks_do(Photo.of(SAMPLES / "dogs.jpg", root=SAMPLES, out=tmp_path), widths=(640,))[:-1]:
        with Image.open(path) as upright:
            assert upright.size == (640, 961)
            assert upright.getexif()[ARTIST] == "Aitzol Berasategi"
