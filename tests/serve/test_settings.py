"""The settings of the server, and its key: where it comes from, and that nothing shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from skillweave.config import read_config
from skillweave.errors import UserError
from skillweave.serve.settings import KEY_VARIABLE, ServeConfig, read_key

KEY = "sw-0123456789abcdef"


def test_the_defaults_serve_this_machine_alone() -> None:
    settings = ServeConfig()
    assert (settings.host, settings.port, settings.cors_origins) == ("127.0.0.1", 8000, ())
    assert (settings.allow_pack_management, settings.log_prompts) == (False, False)
    assert read_key(settings, {}) is None


def test_bytes_are_written_with_units() -> None:
    settings = read_config(ServeConfig, {"pack_memory": "256MiB", "max_body": "1MB"})
    assert (settings.pack_memory, settings.max_body) == (256 * 2**20, 10**6)


def test_the_key_comes_from_the_option_the_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    other = {KEY_VARIABLE: "other-key"}
    assert read_key(ServeConfig(api_key=KEY), other) == KEY
    assert read_key(ServeConfig(api_key_file=file), other) == KEY
    assert read_key(ServeConfig(), {KEY_VARIABLE: KEY}) == KEY


def test_the_key_is_in_no_text_of_the_settings() -> None:
    settings = ServeConfig(api_key=KEY)
    for text in (repr(settings), str(settings), settings.model_dump_json(), repr(settings.model_dump())):
        assert KEY not in text


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "is empty"),
        ("two words are no key", "a space"),
        ("a\nb", "a line break"),
        ("schlüssel-0815", "beyond ASCII"),
    ],
)
def test_a_key_that_no_header_holds_is_refused_and_not_shown(key: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_key(ServeConfig(), {KEY_VARIABLE: key})
    assert not key or key not in str(caught.value)


def test_a_key_file_that_others_can_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "key"
    file.write_text(f"\ufeff{KEY}\r\n")
    for mode, told in ((0o600, False), (0o640, False), (0o644, True)):
        file.chmod(mode)
        assert read_key(ServeConfig(api_key_file=file), {}) == KEY
        said = " ".join(capsys.readouterr().err.split())
        assert (f"read the key: chmod o-r {file}" in said) == told
        assert KEY not in said


@pytest.mark.parametrize("wrong", [f"api_key: [{KEY}]", f"api_key: {{{KEY}: 1}}", "api_key: 4242424242"])
def test_a_mistake_does_not_show_the_key(tmp_path: Path, wrong: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(wrong)
    for source, overrides in ((file, []), ({}, [wrong.replace(": ", "=", 1)])):
        with pytest.raises(UserError, match=r"api_key.*valid string") as caught:
            read_config(ServeConfig, source, overrides)
        assert KEY not in str(caught.value)
        assert "4242" not in str(caught.value)


@pytest.mark.parametrize("value", [f"'{KEY}", f"[{KEY}", f"@{KEY}", f"*{KEY}", f"!{KEY}", f"%{KEY}"])
def test_a_key_that_is_no_yaml_is_not_shown(tmp_path: Path, value: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(f"api_key: {value}")
    given = [(file, []), *(({}, [f"api_key{sign}{value}"]) for sign in ("=", ":", " "))]
    for source, overrides in given:
        with pytest.raises(UserError) as caught:
            read_config(ServeConfig, source, overrides)
        assert KEY not in str(caught.value)


def test_two_keys_are_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two keys"):
        read_key(ServeConfig(api_key=KEY, api_key_file=tmp_path / "key"))


@pytest.mark.parametrize(
    "wrong", [{"port": 65536}, {"max_streams": 0}, {"max_body": "many"}, {"grace": -1}, {"hots": "127.0.0.1"}]
)
def test_mistakes_are_told(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        read_config(ServeConfig, wrong)
