"""beltline demo, as a process: it ends by itself, and whatever kills it, the next start finishes with nothing lost and nothing doubled."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from PIL import Image

from beltline.demo.photo import Photo
from beltline.demo.runner import SAMPLES, run_id
from tests.cli.conftest import until

PER_PHOTO = 4  # three widths and a thumbnail


@pytest.fixture
def photos(folder):
    """A folder with some pictures of the user's, large enough that the line takes a moment."""
    made = folder / "photos"
    made.mkdir()
    for number in range(12):
        Image.effect_noise((900, 700), 60 + number).convert("RGB").save(made / f"photo-{number}.jpg")
    return made


def pictures(out):
    return sorted(path.name for path in Path(out).glob("*.jpg"))


def database(out):
    return f"sqlite:///{Path(out) / 'beltline.db'}"


def wanted(photos):
    return sorted(f"{path.stem}-{label}.jpg" for path in photos.glob("*.jpg") for label in ("1920", "1280", "640", "thumb"))


def test_the_samples_end_well_but_for_the_broken_one_and_a_second_start_doubles_nothing(run, folder):
    said = run("demo", "--json", "--no-open")
    assert said.code == 0, said.err
    assert said.err == ""
    found = json.loads(said.out)
    samples = len(list(SAMPLES.glob("*.jpg")))
    assert (found["entered"], found["done"], found["dead"]) == (samples, samples - 1, 1)
    assert found["seconds"] > 0
    [dead] = found["dead_letters"]
    assert dead["photo"] == "broken.jpg"
    assert dead["reason"].startswith("UnidentifiedImageError: cannot identify image file")
    assert len(set(found["outputs"])) == PER_PHOTO * (samples - 1)
    assert all(Path(path).stat().st_size > 0 for path in found["outputs"])
    assert Path(found["code"]).name == "image_line.py"

    times = {path: Path(path).stat().st_mtime_ns for path in found["outputs"]}
    again = run("demo")
    assert again.code == 0
    assert "an earlier start had done them all" in again.out
    assert {path: Path(path).stat().st_mtime_ns for path in found["outputs"]} == times
    runs = json.loads(run("run", "ls", "--chain", "album", "--json", "--url", database("demo")).out)
    assert len(runs) == samples


def test_off_a_terminal_there_are_plain_lines_and_a_summary_that_names_the_code(run, photos):
    said = run("demo", photos, "--out", "out", "-q", "resize:3", "-q", "watermark:1..2")
    assert said.code == 0, said.err
    first, second = said.err.splitlines()[:2]
    assert first.startswith("Beltline 0.1 · sqlite out/beltline.db")
    assert "ctrl-c leaves everything resumable" in first
    assert second.startswith("watermark ")
    assert "\x1b" not in said.err
    assert "12 photos done, 0 dead" in said.out
    assert "image_line.py" in said.out
    assert pictures("out") == wanted(photos)


def test_a_killed_demo_goes_on_and_loses_and_doubles_no_photo(process, run, photos):
    child = process("demo", photos, "--out", "out", "--json")
    until(lambda: len(pictures("out")) >= PER_PHOTO)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert pictures("out") != wanted(photos), "it was over before it was killed"
    said = run("demo", photos, "--out", "out", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert (found["entered"], found["done"], found["dead"]) == (12, 12, 0)
    assert found["resumed"] > 0
    assert pictures("out") == wanted(photos)
    runs = json.loads(run("run", "ls", "--chain", "album", "--json", "--url", database("out")).out)
    assert [each["state"] for each in runs] == ["done"] * 12


def test_ctrl_c_says_that_the_same_command_goes_on_and_it_does(process, run, photos):
    child = process("demo", photos, "--out", "out")
    until(lambda: (Path("out") / ".work").exists())
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=40)
    assert child.returncode == 130
    assert "the same command goes on where this one stopped" in err
    assert out == ""
    said = run("demo", photos, "--out", "out", "--json")
    assert (said.code, json.loads(said.out)["done"]) == (0, 12)
    assert pictures("out") == wanted(photos)


def test_in_a_folder_of_the_users_a_dead_photo_is_partly_done(run, folder):
    photos = folder / "in"
    photos.mkdir()
    Image.new("RGB", (50, 40)).save(photos / "good.png")
    (photos / "bad.jpg").write_bytes(b"no picture")
    (photos / "notes.txt").write_text("skipped")
    (photos / ".hidden.jpg").write_bytes(b"skipped silently")
    said = run("demo", photos, "--json")
    found = json.loads(said.out)
    assert said.code == 8
    assert (found["entered"], found["done"], found["dead"], found["skipped"]) == (2, 1, 1, 1)
    (photos / "good.png").unlink()
    assert run("demo", photos, "--out", "other", "--json").code == 1


def test_pictures_that_were_deleted_are_made_again(run, folder):
    photos = folder / "in"
    photos.mkdir()
    Image.new("RGB", (50, 40)).save(photos / "a.jpg")
    Image.new("RGB", (50, 40)).save(photos / "b.jpg")
    assert run("demo", photos, "--json").code == 0
    Path("demo/a-thumb.jpg").unlink()
    found = json.loads(run("demo", photos, "--json").out)
    assert (found["entered"], found["done"], found["resumed"]) == (2, 2, 1)
    assert pictures("demo") == wanted(photos)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("empty",), "It is empty"),
        (("nothing-there",), "a folder with photos"),
        (("texts",), "1 other files are there"),
        (("photos", "--out", "photos"), "a folder apart from the photos"),
        (("photos", "--out", "a-file/out"), "a folder this user may write to"),
        (("photos", "-q", "nothing:3"), "watermark, resize or thumbnail"),
        (("photos", "-q", "resize:0"), "watermark, resize or thumbnail"),
        (("photos", "--url", "foo://x"), "foo"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(run, folder, words, part):
    (folder / "empty").mkdir()
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("x")
    (folder / "photos").mkdir()
    shutil.copy(SAMPLES / "cat.jpg", folder / "photos")
    (folder / "a-file").write_text("x")
    said = run("demo", *words)
    assert said.code == 2
    assert said.err.splitlines()[0].startswith(("error[BLT-1", "Beltline"))
    assert part in said.err
    assert "Traceback" not in said.err


def test_ids_are_the_same_at_every_start_and_others_for_other_content_places_and_repeats(folder):
    photo = Photo.of(folder / "a.jpg", root=folder, out=folder / "out")
    elsewhere = Photo.of(folder / "a.jpg", root=folder, out=folder / "out2")
    other = Photo.of(folder / "b.jpg", root=folder, out=folder / "out")
    assert run_id(photo, "10:1700000000000000000") == run_id(photo, "10:1700000000000000000")
    ids = {
        run_id(photo, "10:1700000000000000000"),
        run_id(photo, "11:1700000000000000000"),
        run_id(photo, "10:1700000000000000001"),
        run_id(photo, "10:1700000000000000000", 1),
        run_id(elsewhere, "10:1700000000000000000"),
        run_id(other, "10:1700000000000000000"),
    }
    assert len(ids) == 6
    assert all(len(id) == 32 for id in ids)


def test_without_pillow_it_says_what_to_install(run, folder):
    (folder / "hide").mkdir()
    (folder / "hide" / "sitecustomize.py").write_text("import sys\nsys.modules['PIL'] = None\n")
    said = run("demo", environ={"PYTHONPATH": f"{folder / 'hide'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"})
    assert said.code == 2
    assert "error[BLT-104]" in said.err
    assert "pip install 'beltline[demo]'" in said.err
