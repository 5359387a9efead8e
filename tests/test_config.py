"""Configuration: who wins, where a value came from, and what a wrong one says."""

import math
from pathlib import Path

import pytest

from beltline import App, KillSwitch
from beltline.config import load, shown, unknown_variables
from beltline.core.capabilities import Durability
from beltline.core.config import DEFAULT_URL, KEYS, Config, Setting, Slots, merge, queue_slots, redact, slots
from beltline.core.errors import ConfigInvalid, NameInvalid
from beltline.core.limits import duration


def configured(folder: Path, flags: dict[str, object] | None = None, environ: dict[str, str] | None = None, **more: object) -> Config:
    return load(flags or {}, environ=environ or {}, folder=folder, **more)


def test_without_anything_every_value_is_the_default(tmp_path):
    config = configured(tmp_path)
    assert config.url == DEFAULT_URL
    assert config.durability is Durability.DISK
    assert {config.origin(key.name) for key in KEYS} == {"default"}


def test_a_flag_wins_over_the_environment_that_over_the_file_that_over_pyproject(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[tool.beltline]\nurl = "sqlite:///project.db"\nslots = 1\nlease_s = 11\ndrain_s = 1\n')
    (tmp_path / "beltline.toml").write_text('url = "sqlite:///file.db"\nslots = 2\nlease_s = 12\n')
    config = configured(tmp_path, {"url": "sqlite:///flag.db"}, {"BELTLINE_URL": "sqlite:///env.db", "BELTLINE_SLOTS": "3"})
    assert (config.url, config.slots, config.lease_s, config.drain_s) == ("sqlite:///flag.db", 3, 12.0, 1.0)
    assert config.origins == {"url": "--url", "slots": "BELTLINE_SLOTS", "lease_s": "beltline.toml:3", "drain_s": "pyproject.toml:5"}


def test_a_flag_that_was_not_given_and_an_empty_variable_say_nothing(tmp_path):
    config = configured(tmp_path, {"url": None, "queues": ()}, {"BELTLINE_URL": ""})
    assert config.origins == {}


def test_origins_in_a_file_name_the_line(tmp_path):
    (tmp_path / "beltline.toml").write_text(
        '# a comment\napp = "tasks:app"\n\nqueues.resize = { slots = "2..8", max_backlog = 10_000 }\n\n[queues."img.big"]\nslots = 3\n'
    )
    config = configured(tmp_path)
    assert config.origins == {
        "app": "beltline.toml:2",
        "queues.resize.slots": "beltline.toml:4",
        "queues.resize.max_backlog": "beltline.toml:4",
        "queues.img.big.slots": "beltline.toml:7",
    }
    assert config.served == {"resize": Slots(2, 8), "img.big": Slots(3, 3)}
    assert config.queues["resize"].max_backlog == 10_000.0


def test_slots_of_the_strongest_layer_replace_those_of_the_others_and_other_numbers_merge(tmp_path):
    (tmp_path / "beltline.toml").write_text("queues.resize = { slots = 2, max_backlog = 100 }\nqueues.mail = { slots = 1 }\n")
    config = configured(tmp_path, {"queues": ["resize:4..8"]})
    assert config.served == {"resize": Slots(4, 8)}
    assert config.queues["resize"].max_backlog == 100.0


def test_queues_in_the_environment_are_words(tmp_path):
    config = configured(tmp_path, environ={"BELTLINE_QUEUES": "watermark:4 resize:2..8,mail", "BELTLINE_SLOTS": "6"})
    assert config.served == {"watermark": Slots(4, 4), "resize": Slots(2, 8), "mail": Slots(6, 6)}


def test_a_secret_is_read_from_the_file_that_is_named(tmp_path):
    (tmp_path / "secret").write_text("postgresql://ann:pw@db/app\n")
    config = configured(tmp_path, environ={"BELTLINE_URL_FILE": str(tmp_path / "secret")})
    assert config.url == "postgresql://ann:pw@db/app"
    assert config.origin("url") == "BELTLINE_URL_FILE"
    assert shown(config, "url") == "postgresql://ann:***@db/app"


def test_a_secret_file_that_is_not_there_is_an_error_that_names_the_variable(tmp_path):
    with pytest.raises(ConfigInvalid) as caught:
        configured(tmp_path, environ={"BELTLINE_URL_FILE": str(tmp_path / "nothing")})
    assert (caught.value.key, caught.value.origin) == ("BELTLINE_URL_FILE", "BELTLINE_URL_FILE")


def test_dotenv_is_read_only_where_asked_and_loses_to_the_environment(tmp_path):
    (tmp_path / ".env").write_text("# local\nexport BELTLINE_URL='sqlite:///dot.db'\nBELTLINE_SLOTS=7 # seven\nOTHER=x\n")
    assert configured(tmp_path).slots == 4
    config = configured(tmp_path, environ={"BELTLINE_URL": "sqlite:///env.db"}, dotenv=True)
    assert (config.url, config.slots, config.origin("slots")) == ("sqlite:///env.db", 7, "BELTLINE_SLOTS in .env")


def test_a_line_of_dotenv_that_is_none_names_its_number(tmp_path):
    (tmp_path / ".env").write_text("A=1\nnonsense\n")
    with pytest.raises(ConfigInvalid, match=r"\.env:2"):
        configured(tmp_path, dotenv=True)


def test_another_file_can_be_named_and_replaces_both(tmp_path):
    (tmp_path / "beltline.toml").write_text("slots = 2\n")
    (tmp_path / "other.toml").write_text("[tool.beltline]\nslots = 9\n")
    assert configured(tmp_path, file=tmp_path / "other.toml").slots == 9
    assert configured(tmp_path, environ={"BELTLINE_CONFIG": str(tmp_path / "other.toml")}).slots == 9


def test_a_named_file_that_is_missing_or_broken_is_an_error(tmp_path):
    (tmp_path / "broken.toml").write_text("slots = = 2")
    for name in ("nothing.toml", "broken.toml"):
        with pytest.raises(ConfigInvalid) as caught:
            configured(tmp_path, file=tmp_path / name)
        assert caught.value.origin == "--config"


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("drain_s", "-1", "seconds 0..3600"),
        ("drain_s", "soon", "seconds 0..3600"),
        ("lease_s", "nan", "seconds 1.."),
        ("slots", "0", "a whole number 1..1000"),
        ("slots", "2.5", "a whole number 1..1000"),
        ("durability", "maybe", "disk, os or memory"),
        ("max_body", "0", "bytes 1.."),
        ("max_body", "99999999999", "bytes 1.."),
        ("app", ":app", "MODULE:NAME"),
        ("app", "tasks:not an app", "MODULE:NAME"),
        ("log", "yaml", "text or json"),
        ("log_level", "loud", "debug"),
    ],
)
def test_a_value_out_of_its_range_names_key_value_range_and_origin(tmp_path, key, value, part):
    variable = "BELTLINE_" + key.upper()
    with pytest.raises(ConfigInvalid) as caught:
        configured(tmp_path, environ={variable: value})
    error = caught.value
    assert (error.key, error.value, error.origin) == (key, value, variable)
    assert part in error.allowed


def test_a_wrong_value_is_an_error_even_where_a_stronger_layer_hides_it(tmp_path):
    (tmp_path / "beltline.toml").write_text("slots = -1\n")
    with pytest.raises(ConfigInvalid, match=r"beltline\.toml:1"):
        configured(tmp_path, {"slots": 3})


def test_a_password_never_shows_in_an_error(tmp_path):
    with pytest.raises(ConfigInvalid) as caught:
        merge([[Setting("url", "postgresql://ann:secret@db/\x00", "test")]])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["urll = 'x'", "queues.resize.slotz = 3", "[notifications]\non = 1"])
def test_a_key_nobody_knows_is_an_error(tmp_path, text):
    (tmp_path / "beltline.toml").write_text(text)
    with pytest.raises(ConfigInvalid):
        configured(tmp_path)


def test_a_mistyped_key_is_answered_with_the_near_one(tmp_path):
    (tmp_path / "beltline.toml").write_text("drian_s = 3")
    with pytest.raises(ConfigInvalid, match="Did you mean 'drain_s'"):
        configured(tmp_path)


def test_a_queue_with_an_impossible_name_is_refused(tmp_path):
    with pytest.raises(ConfigInvalid):
        configured(tmp_path, {"queues": ["../etc:3"]})
    (tmp_path / "beltline.toml").write_text('queues."a b".slots = 3')
    with pytest.raises(ConfigInvalid, match="a valid queue name"):
        configured(tmp_path)


def test_low_water_above_high_water_is_refused(tmp_path):
    (tmp_path / "beltline.toml").write_text("queues.resize = { low_water = 20, high_water = 10 }")
    with pytest.raises(ConfigInvalid, match="low_water"):
        configured(tmp_path)


def test_pyproject_without_our_table_and_no_file_at_all_are_fine(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n')
    assert configured(tmp_path).origins == {}


def test_variables_that_nothing_reads_are_listed_with_the_near_one():
    found = unknown_variables({"BELTLINE_DRIAN_S": "1", "BELTLINE_URL_FILE": "x", "BELTLINE_CONFIG": "y", "BELTLINE_QUEUES": "a:1", "HOME": "/"})
    assert found == {"BELTLINE_DRIAN_S": "BELTLINE_DRAIN_S"}


@pytest.mark.parametrize(("text", "seconds"), [("30", 30), ("1.5s", 1.5), ("250ms", 0.25), ("2m", 120), ("1 h", 3600), ("7d", 604800), (3, 3)])
def test_durations(text, seconds):
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "-1", "m", "1w", "1e9", True, None, math.nan])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError):
        duration(text)


@pytest.mark.parametrize(("text", "least", "most"), [("4", 4, 4), ("2..8", 2, 8), ("0..3", 0, 3), (5, 5, 5)])
def test_slots(text, least, most):
    assert slots(text) == Slots(least, most)


@pytest.mark.parametrize("text", ["0", "8..2", "-1", "x", "1..", "1001", True, 2.0])
def test_what_is_no_number_of_slots(text):
    with pytest.raises(ValueError):
        slots(text)


def test_queue_and_slots_in_one_word():
    assert queue_slots("resize:2..8") == ("resize", "2..8")
    assert queue_slots("resize") == ("resize", "")
    with pytest.raises(NameInvalid):
        queue_slots(":3")


@pytest.mark.parametrize(
    ("url", "fit"),
    [
        ("sqlite:///beltline.db", "sqlite:///beltline.db"),
        ("postgresql://ann:p@ss@db:5432/app?x=1", "postgresql://ann:***@db:5432/app?x=1"),
        ("redis://:secret@host", "redis://:***@host"),
    ],
)
def test_urls_are_shown_without_their_password(url, fit):
    assert redact(url) == fit


def test_a_queue_is_given_limits_and_a_kill_switch(tmp_path):
    (tmp_path / "beltline.toml").write_text(
        'queues.mail = { limits = ["api", "disk"], kill_switch = true }\n[queues.push]\nlimits = "api"\nkill_switch = { share = 0.2, pause = "5m", window_s = 30 }\n'
    )
    config = configured(tmp_path)
    assert (config.queues["mail"].limits, config.queues["mail"].kill_switch) == (("api", "disk"), KillSwitch())
    assert (config.queues["push"].limits, config.queues["push"].kill_switch) == (("api",), KillSwitch(share=0.2, pause_s=300.0, window_s=30.0))
    assert config.origin("queues.push.kill_switch") == "beltline.toml:4"


@pytest.mark.parametrize(
    "line",
    [
        'limits = ["no name"]',
        "limits = 5",
        "kill_switch = 1",
        'kill_switch = "no"',
        "kill_switch = { shares = 0.5 }",
        "kill_switch = { share = 2.0 }",
        'kill_switch = { pause = "soon" }',
        "kill_switch = { least = 1.5 }",
    ],
)
def test_limits_and_kill_switches_that_cannot_be_are_refused(tmp_path, line):
    (tmp_path / "beltline.toml").write_text(f"[queues.mail]\n{line}\n")
    with pytest.raises(ConfigInvalid) as caught:
        configured(tmp_path)
    assert caught.value.origin == "beltline.toml:2"


def test_what_the_configuration_says_of_limits_is_laid_over_the_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beltline.toml").write_text("queues.mail = { limits = 'api', kill_switch = { least = 5 } }\n")
    app = App("memory://")
    app.limit("api", rate=5)
    app.limit("disk", rate=5)
    app.queue("mail", limits=["disk"])
    [spec] = app.specs()
    assert (spec.limits, spec.kill_switch) == (("api",), KillSwitch(least=5))


@pytest.mark.parametrize("said", ["false", '"false"'])
def test_the_configuration_takes_away_what_the_code_says(tmp_path, monkeypatch, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beltline.toml").write_text(f"[queues.mail]\nkill_switch = {said}\nlimits = []\ntarget_s = inf\nmax_backlog = inf\n")
    app = App("memory://")
    app.limit("disk", rate=5)
    app.queue("mail", limits=["disk"], kill_switch=True, target=5, max_backlog=10)
    [spec] = app.specs()
    assert (spec.limits, spec.kill_switch, spec.target_s, spec.max_backlog) == ((), None, math.inf, math.inf)
    assert app.config.origin("queues.mail.kill_switch") == "beltline.toml:2"


def test_a_kill_switch_that_is_taken_away_and_a_queue_about_which_nothing_is_said_are_two_things(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beltline.toml").write_text("[tool.beltline]\nqueues.mail = { max_backlog = 5 }\n")
    app = App("memory://")
    app.queue("mail", kill_switch=True)
    [spec] = app.specs()
    assert spec.kill_switch == KillSwitch()


def test_numbers_of_a_queue_may_be_said_as_in_code(tmp_path):
    (tmp_path / "beltline.toml").write_text('[queues.mail]\ntarget = "2m"\nageing = 5\n')
    config = configured(tmp_path)
    assert (config.queues["mail"].target_s, config.queues["mail"].ageing_s) == (120.0, 5.0)
    assert config.origin("queues.mail.target_s") == "beltline.toml:2"


def test_a_queue_that_is_named_twice_with_other_slots_is_refused(tmp_path):
    assert configured(tmp_path, {"queues": ["resize:2", "resize:2"]}).served == {"resize": Slots(2, 2)}
    with pytest.raises(ConfigInvalid, match=r"'resize:3' is not allowed \(from -q\)") as told:
        configured(tmp_path, {"queues": ["resize:2", "resize:3"]})
    assert "each queue once" in str(told.value)


def test_a_flag_is_called_as_it_is_typed(tmp_path):
    with pytest.raises(ConfigInvalid, match=r"\(from --lease\)"):
        configured(tmp_path, {"lease_s": "5 parsecs"})
