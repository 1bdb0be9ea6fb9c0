"""W&B as users have set it up: found where W&B's own client finds it."""

from pathlib import Path

import pytest

from cluster.doctor.wandb_reach import check_wandb
from cluster.io.errors import UserError
from cluster.wandb_env import (
    CLOUD,
    check_settings,
    drop_empty_variables,
    find_base_url,
    find_key,
    find_login,
    find_mode,
    find_setting,
)
from trainers.commands import run_training
from trainers.config import FinetuneConfig, TrackConfig
from trainers.run import rows
from trainers.tracking.where import describe_tracking, project_of, require_settings
from tuning.check import check
from tuning.config import TuningConfig

KEY = "0123456789" * 4
OURS = "https://wandb.example.com"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with nothing in it, and no variable of W&B's."""
    import os

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def log_in(file: Path, host: str = "api.wandb.ai") -> Path:
    file.write_text(f"machine {host}\n  login user\n  password {KEY}\n")
    file.chmod(0o600)
    return file


def write_settings(file: Path, **values: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{name} = {value}" for name, value in values.items()]
    file.write_text("\n".join(["[default]", *lines]))


@pytest.mark.parametrize(
    ("host", "environment", "found"),
    [
        ("api.wandb.ai", {}, True),
        ("api.wandb.ai", {"WANDB_BASE_URL": OURS}, False),
        ("wandb.example.com", {"WANDB_BASE_URL": OURS}, True),
        ("127.0.0.1", {"WANDB_BASE_URL": "http://127.0.0.1:8080/"}, True),
        ("127.0.0.1:8080", {"WANDB_BASE_URL": "http://127.0.0.1:8080/"}, True),
        ("127.0.0.1:8081", {"WANDB_BASE_URL": "http://127.0.0.1:8080/"}, False),
        ("other.example.com", {}, False),
    ],
)
@pytest.mark.parametrize("place", [".netrc", "_netrc", "NETRC"])
def test_a_login_counts(place, host, environment, found, home, monkeypatch):
    if place == "NETRC":
        monkeypatch.setenv("NETRC", str(log_in(home / "elsewhere", host)))
    else:
        log_in(home / place, host)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    key = find_key()
    assert (key is not None and key.value == KEY) == found
    assert find_login() == (KEY if found else None)
    assert find_mode().value == ("online" if found else "offline")
    assert rows.find_mode(TrackConfig()) == find_mode().value
    (result,) = check_wandb()
    assert result.text.startswith("offline") != found  # the doctor agrees


def test_no_key_says_where_it_was_looked_for(home, monkeypatch):
    assert describe_tracking(TrackConfig()) == (
        "offline (no key in WANDB_API_KEY, nor of api.wandb.ai in ~/.netrc), project thaw"
    )
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_DIR", "/x")
    line = describe_tracking(TrackConfig(project="cars"))
    assert line.startswith(f"online (key of WANDB_API_KEY) at {CLOUD}, project cars; WANDB_DIR not")
    assert KEY not in line


@pytest.mark.parametrize("content", ["", "machine", "machine api.wandb.ai\n login x\n", "\0\xff"])
def test_a_netrc_of_others_is_no_key(content, home):
    (home / ".netrc").write_text(content)
    assert find_key() is None or find_key().value == ""


@pytest.mark.parametrize(
    ("option", "variable", "file", "project"),
    [
        ("flag", "variable", "file", "flag"),
        (None, "variable", "file", "variable"),
        (None, None, "file", "file"),
        (None, None, None, "thaw"),
        ("flag", None, "file", "flag"),
    ],
)
def test_an_option_beats_a_variable_beats_a_file(
    option, variable, file, project, home, monkeypatch
):
    if variable:
        monkeypatch.setenv("WANDB_PROJECT", variable)
    if file:
        write_settings(home / ".config/wandb/settings", project=file, base_url=OURS)
    assert project_of(TrackConfig(project=option)) == project
    assert find_base_url() == (OURS if file else CLOUD)


def test_settings_of_the_folder_beat_those_of_the_user(home, monkeypatch):
    write_settings(home / ".config/wandb/settings", project="user", entity="me")
    write_settings(home / "wandb/settings", project="folder")
    assert find_setting("project").value == "folder" and find_setting("entity").value == "me"
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(home / "other"))
    write_settings(home / "other/settings", entity="us")
    assert find_setting("entity").value == "us"
    (home / "wandb/settings").write_text("no settings")
    assert find_setting("project") is None


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "off"),
        ({"WANDB_MODE": "online"}, "online"),
        ({"WANDB_DISABLED": "true", "WANDB_API_KEY": KEY}, "off"),
        ({"WANDB_IDENTITY_TOKEN_FILE": "/x"}, "online"),
        ({"WANDB_API_KEY": ""}, "offline"),
    ],
)
def test_the_mode_follows_the_variables(environment, mode, home, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert find_mode().value == mode
    assert rows.find_mode(TrackConfig(wandb="offline")) == "offline"


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("WANDB_PROJECT", "team/cars", "WANDB_PROJECT is 'team/cars': use 1 to 128 characters"),
        ("WANDB_PROJECT", " ", "WANDB_PROJECT is ' ': use 1 to 128"),
        ("WANDB_MODE", "ofline", "WANDB_MODE is 'ofline': use online, offline, disabled"),
        ("WANDB_BASE_URL", "wandb.example.com", "WANDB_BASE_URL is 'wandb.example.com': give"),
        ("WANDB_BASE_URL", "http://x:99999", "WANDB_BASE_URL is 'http://x:99999': give"),
        ("WANDB_TAGS", "a," + "x" * 65, "WANDB_TAGS is 'x"),
        ("WANDB_API_KEY", KEY + "\n", "WANDB_API_KEY begins or ends with white space"),
    ],
)
def test_what_wandb_refuses_is_a_sentence_before_anything_starts(
    variable, value, sentence, home, monkeypatch, easy_data
):
    """W&B's client refuses it as a run starts, in a thread of each run."""
    monkeypatch.setenv(variable, value)
    training = FinetuneConfig(data=easy_data, track=TrackConfig(wandb="offline", project="mine"))
    for start in (
        lambda: run_training(training),
        lambda: check(TuningConfig(base=training, out=str(home / "sweep"))),
    ):
        with pytest.raises(UserError) as refused:
            start()
        assert str(refused.value).startswith(sentence) and KEY not in str(refused.value)
    (result,) = check_wandb()
    assert result.level == "fail" and result.text.startswith(sentence)
    require_settings(TrackConfig(wandb="off"))


def test_a_wrong_setting_of_a_file_is_named(home):
    write_settings(home / "wandb/settings", project="team/cars")
    with pytest.raises(UserError, match=r"^project of wandb/settings is 'team/cars': use 1"):
        check_settings()


@pytest.mark.parametrize("tag", ["", " ", "x" * 65])
def test_a_tag_that_wandb_refuses_is_refused_before_anything_starts(tag, home, easy_data):
    training = FinetuneConfig(data=easy_data, track=TrackConfig(tags=("mine", tag)))
    for start in (
        lambda: run_training(training),
        lambda: check(TuningConfig(base=training, out=str(home / "sweep"))),
    ):
        with pytest.raises(UserError, match=f"^track.tags is '{tag[:9]}.*use 1 to 64 characters"):
            start()


def test_empty_variables_and_tags_count_as_not_set(home, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_TAGS", "WANDB_PROJECT", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.setenv(name, "")
    check_settings()
    environment = {"WANDB_TAGS": "a, ,b,", "WANDB_MODE": "", "WANDB_NAME": "c", "OTHER": ""}
    drop_empty_variables(environment)
    assert environment == {"WANDB_TAGS": "a,b", "WANDB_NAME": "c", "OTHER": ""}


def test_a_sweep_takes_the_group_of_the_variable(home, monkeypatch):
    config = TuningConfig(base=FinetuneConfig(data="x"), out="runs/mine")
    assert config.group == "mine"
    monkeypatch.setenv("WANDB_RUN_GROUP", "ours")
    assert config.group == "ours"
