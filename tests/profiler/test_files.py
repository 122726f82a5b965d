"""A profile's file gives the same profile back, and says what is wrong with one that does not."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.profiler.ticking import by_hand

import penstock as ps
from penstock.errors import NotationError
from penstock.profiler.files import is_profile, profile_from_json, profile_to_json
from penstock.profiler.values import MessageCosts

PROFILE = by_hand(messages=MessageCosts(1, 2, 3, 4, 5, 6))


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    ps.save_profile(PROFILE, path)
    assert ps.load_profile(path) == PROFILE
    assert is_profile(path)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (("penstock.profile", "penstock.schedule"), "penstock.schedule"),
        (('"version": 1', '"version": 99'), "99"),
        (('"microbatch_size"', '"microbatches"'), 'unknown field "microbatches"'),
        (('"microbatch_size": 1', '"microbatch_size": "one"'), "microbatch_size"),
        (('"activation_bytes": 50', '"activation_bytes": -50'), "layers[0].activation_bytes is -50"),
        (('"kind"', '"sort"'), "kind"),
    ],
)
def test_a_faulty_file_is_told(changed: tuple[str, str], told: str) -> None:
    text = profile_to_json(PROFILE)
    assert changed[0] in text
    with pytest.raises(NotationError, match=told.replace("[", r"\[")):
        profile_from_json(text.replace(*changed, 1))


def test_no_layers() -> None:
    with pytest.raises(NotationError, match="layers is empty"):
        profile_from_json(profile_to_json(replace(PROFILE, layers=())))


def test_other_files_are_no_profiles(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"forward": [1]}')
    assert not is_profile(tmp_path / "a.json")
    assert not is_profile(tmp_path / "missing.json")
    with pytest.raises(NotationError, match="cannot read"):
        ps.load_profile(tmp_path / "missing.json")
