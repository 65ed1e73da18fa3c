"""docs/configuration.md: complete and up to date."""

from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from helpers import ROOT

from brain_dist.config import Config, reference
from brain_dist.config.checks import Range, range_of

SECTIONS = get_type_hints(Config)


def choices(annotation: Any) -> set[str]:
    """The values that an annotation allows, if it lists them."""
    if get_origin(annotation) is Literal:
        return set(map(str, get_args(annotation)))
    return set().union(*map(choices, get_args(annotation)))


def test_the_configuration_reference_is_up_to_date() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    assert text == reference.reference(), "run `make docs`"


@pytest.mark.parametrize("name", SECTIONS)
def test_every_setting_is_described_with_its_choices(name: str) -> None:
    settings, meanings = get_type_hints(SECTIONS[name]), reference.meanings(SECTIONS[name])
    assert list(settings) == list(meanings)
    for setting, annotation in settings.items():
        missing = {choice for choice in choices(annotation) if choice not in meanings[setting]}
        assert not missing, f"{name}.{setting}: {missing}"


@pytest.mark.parametrize("name", SECTIONS)
def test_every_range_is_described(name: str) -> None:
    meanings = reference.meanings(SECTIONS[name])
    for setting, annotation in get_type_hints(SECTIONS[name], include_extras=True).items():
        limits = range_of(annotation)
        assert limits == Range() or str(limits) in meanings[setting], f"{name}.{setting}: {limits}"
