"""Where the token is from, and that no message tells it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.service.tokens import Door, new_token, token_from

SIGNS = st.characters(min_codepoint=33, max_codepoint=126)


@given(st.text(SIGNS, min_size=16, max_size=64), st.text(max_size=64))
def test_only_the_token_opens(token: str, other: str) -> None:
    door = Door(token, 8000)
    assert door.admits(f"Bearer {token}", None)
    assert door.admits(None, door.secret)
    assert not door.admits(None, token)
    assert not door.admits(token, None)
    assert not door.admits(None, None)
    assert other.strip() == token or not door.admits(f"Bearer {other}", other)


def test_tokens_are_random_and_may_be_used() -> None:
    made = {new_token() for _ in range(20)}
    assert len(made) == 20
    assert all(token_from(None, {"RAYSSL_TOKEN": one}) == one for one in made)


@pytest.mark.parametrize("token", ["", "short", "x" * 257, "with spaces in the middle", "ümläutümläutümläut"])
@pytest.mark.parametrize("place", ["file", "environment"])
def test_what_is_no_token_is_refused_and_not_told(tmp_path: Path, token: str, place: str) -> None:
    file = tmp_path / "token"
    file.write_text(token)
    with pytest.raises(UserError, match="16 to 256") as told:
        token_from(file if place == "file" else None, {"RAYSSL_TOKEN": token})
    assert not token or token not in str(told.value)


def test_a_file_may_end_with_a_new_line(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abcdefghijklmnop\n")
    assert token_from(tmp_path / "token", {}) == "abcdefghijklmnop"
    assert token_from(None, {}) is None


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_file_that_is_none_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        token_from(tmp_path / name, {})
