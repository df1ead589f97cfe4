"""Keys: who is let in, and what happens to the file they come from while the service runs."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from tests.service.key_file import LONG_AGO, Clock, KeyFile, knows

from viq_serving.errors import SettingsError, Unauthenticated
from viq_serving.keys import Keys, warn_if_plaintext
from viq_serving.settings import Settings
from viq_serving.types import ANYBODY


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path)


def test_without_keys_everybody_may_ask() -> None:
    keys = Keys(Settings.load())
    assert not keys.on
    assert keys.check(None) is keys.check("Bearer whatever") is ANYBODY
    assert (ANYBODY.name, ANYBODY.patches, ANYBODY.requests) == ("", None, None)


def test_each_key_of_the_environment_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIQ_API_KEYS", "first-key, second#key")
    keys = Keys(Settings.load())
    assert keys.on
    assert [knows(keys, key) for key in ("first-key", "second#key", "first-key,", "third")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("header", ["Bearer sesame", "bearer sesame", "BEARER  sesame ", " Bearer sesame"])
def test_the_scheme_is_read_in_any_case(header: str) -> None:
    Keys(Settings.load({"api_keys": "sesame"})).check(header)


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "sesame", "Basic sesame", "Bearersesame", "Bearer sesame open"]
)
def test_anything_but_a_bearer_key_is_refused(header: str | None) -> None:
    with pytest.raises(Unauthenticated):
        Keys(Settings.load({"api_keys": "sesame"})).check(header)


@pytest.mark.parametrize("shown", ["s3cret-but-wrong", "s3cret\udcff", "s3crét"])
def test_a_refusal_never_repeats_the_key(shown: str) -> None:
    with pytest.raises(Unauthenticated) as refusal:
        Keys(Settings.load({"api_keys": "s3cret"})).check(f"Bearer {shown}")
    assert "s3cr" not in str(refusal.value)


def test_the_settings_never_show_a_key(file: KeyFile) -> None:
    settings = Settings.load({"api_keys": "s3cret,another-s3cret"})
    assert "s3cret" not in json.dumps(settings.masked())
    assert "s3cret" not in repr(settings)


@pytest.mark.parametrize("key", ["s3cret\x07", "s3crét", "s3cret open"])
def test_a_key_that_no_header_can_carry_is_refused_at_start_without_showing_it(key: str) -> None:
    with pytest.raises(SettingsError, match="VIQ_API_KEYS") as refusal:
        Keys(Settings.load({"api_keys": key}))
    assert "s3cr" not in str(refusal.value)


def test_a_file_holds_a_key_a_line_with_comments_and_blank_lines(file: KeyFile) -> None:
    file.write("\ufeff# who may ask\r\n\r\nalpha\r\n  beta  # the lab\n#gamma\ndel#ta")
    keys = file.keys()
    known = [knows(keys, key) for key in ("alpha", "beta", "del#ta", "gamma", "#gamma", "the", "#")]
    assert known == [True, True, True, False, False, False, False]


def test_keys_of_environment_and_file_are_both_known(file: KeyFile) -> None:
    file.write("of-file")
    keys = Keys(Settings.load({"api_keys": "of-settings", "api_keys_file": str(file.path)}))
    assert knows(keys, "of-file")
    assert knows(keys, "of-settings")


def test_a_file_put_in_the_place_of_another_is_read_within_a_second(file: KeyFile) -> None:
    clock = Clock()
    file.write("old-key")
    keys = file.keys(clock)
    file.replace("new-key")
    assert [knows(keys, "old-key"), knows(keys, "new-key")] == [True, False]  # not looked at for every request
    clock.pass_a_second()
    assert [knows(keys, "old-key"), knows(keys, "new-key")] == [False, True]


def test_the_swap_of_a_kubernetes_secret_is_noticed(tmp_path: Path) -> None:
    """The file is a link through a link to a folder, and the kubelet exchanges the one in the middle."""
    for name, key in (("..2024", "old-key"), ("..2025", "new-key")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys").write_text(key)
        os.utime(tmp_path / name / "keys", (LONG_AGO, LONG_AGO))
    (tmp_path / "..data").symlink_to("..2024")
    (tmp_path / "keys").symlink_to("..data/keys")
    clock = Clock()
    keys = Keys(Settings.load({"api_keys_file": str(tmp_path / "keys")}), clock)
    (tmp_path / "..data_tmp").symlink_to("..2025")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    clock.pass_a_second()
    assert [knows(keys, "old-key"), knows(keys, "new-key")] == [False, True]


def test_a_file_written_twice_in_one_moment_is_read_twice(file: KeyFile) -> None:
    """Neither its size nor, on a coarse clock, its time tells the second version from the first."""
    clock = Clock()
    file.path.write_text("key-one")
    moment = file.path.stat().st_mtime_ns
    keys = file.keys(clock)
    file.path.write_text("key-two")
    os.utime(file.path, ns=(moment, moment))
    clock.pass_a_second()
    assert [knows(keys, "key-one"), knows(keys, "key-two")] == [False, True]


@pytest.mark.parametrize("spoil", ["emptied", "deleted", "garbled", "comments only", "a folder"])
def test_a_file_that_cannot_be_used_later_leaves_the_last_good_keys_and_one_error(
    file: KeyFile, caplog: pytest.LogCaptureFixture, spoil: str
) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    file.write("s3cret")
    keys = file.keys(clock)
    if spoil == "deleted":
        file.path.unlink()
    elif spoil == "a folder":
        file.path.unlink()
        file.path.mkdir()
    else:
        file.write({"emptied": b"", "garbled": b"\xff\xfes3cr\xff", "comments only": b"# s3cr"}[spoil])
    for _ in range(3):
        clock.pass_a_second()
        assert knows(keys, "s3cret")
    (error,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert str(file.path) in error.getMessage()
    if spoil == "a folder":
        file.path.rmdir()
    file.replace("new-key")
    clock.pass_a_second()
    assert [knows(keys, "s3cret"), knows(keys, "new-key")] == [False, True]
    assert "s3cr" not in caplog.text
    assert "new-key" not in caplog.text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no key"),
        (b"# nothing but words\n\n", "no key"),
        (b"s3cret open", "line 1: after the key come only lanes="),
        (b"fine\n\ns3cr\x00et", "line 3: it holds a character"),
        (b"\xff\xfes3cret", "UTF-8"),
        (b"s3cret\n" * 200_000, "1048576"),
    ],
)
def test_a_file_that_cannot_be_used_at_start_is_named_and_not_shown(file: KeyFile, content: bytes, words: str) -> None:
    file.write(content)
    with pytest.raises(SettingsError, match=words) as refusal:
        file.keys()
    assert str(file.path) in str(refusal.value)
    assert "s3cr" not in str(refusal.value)


def test_a_file_that_is_not_there_at_start_is_named(file: KeyFile) -> None:
    with pytest.raises(SettingsError, match="No such file") as refusal:
        file.keys()
    assert str(file.path) in str(refusal.value)


@pytest.mark.timeout(20)
def test_a_pipe_is_read_once_and_never_waited_for_again() -> None:
    """As the shell's <(…) gives one: a second reading would wait for ever."""
    reading, writing = os.pipe()
    os.write(writing, b"of-pipe\n")
    os.close(writing)
    clock = Clock()
    keys = Keys(Settings.load({"api_keys_file": f"/dev/fd/{reading}"}), clock)
    clock.pass_a_second()
    assert knows(keys, "of-pipe")
    os.close(reading)
    clock.pass_a_second()
    assert knows(keys, "of-pipe")


@pytest.mark.parametrize(
    ("host", "warned"),
    [
        ("127.0.0.1", False),
        ("127.1.2.3", False),
        ("::1", False),
        ("localhost", False),
        ("0.0.0.0", True),  # noqa: S104
        ("::", True),
        ("10.0.0.7", True),
        ("example.org", True),
    ],
)
def test_keys_on_a_port_that_others_can_reach_are_warned_of(
    caplog: pytest.LogCaptureFixture, host: str, warned: bool
) -> None:
    keys = Keys(Settings.load({"api_keys": "s3cret"}))
    warn_if_plaintext(keys, host, encrypted=True)
    assert not caplog.records
    warn_if_plaintext(keys, host)
    assert bool(caplog.records) is warned
    assert "s3cret" not in caplog.text


def test_without_keys_there_is_nothing_to_warn_of(caplog: pytest.LogCaptureFixture) -> None:
    warn_if_plaintext(Keys(Settings.load()), "0.0.0.0")  # noqa: S104
    assert not caplog.records
