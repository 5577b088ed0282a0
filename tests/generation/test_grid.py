"""Prompts of a template with their groups, and prompts that look alike."""

import pytest

from hf_mote.errors import ConfigError, DataError, UnknownNameError
from hf_mote.generation.grid import prompt_grid
from hf_mote.generation.likeness import near_duplicates


def test_grid_holds_every_combination_with_its_values():
    grid = prompt_grid("{when} {where}, {{so}}?", when=["a", "b"], where=["x", "y", "z"])
    assert grid.prompts == ["a x, {so}?", "a y, {so}?", "a z, {so}?", "b x, {so}?", "b y, {so}?", "b z, {so}?"]
    assert grid.groups("where") == ["x", "y", "z"] * 2
    assert grid.groups("when", "where")[3] == ("b", "x")
    with pytest.raises(UnknownNameError, match="place"):
        grid.groups("place")
    with pytest.raises(ConfigError, match="needs a name"):
        grid.groups()


@pytest.mark.parametrize(
    ("template", "values", "error"),
    [
        ("a {b}", {}, ConfigError),
        ("a", {}, ConfigError),
        ("a {b}", {"b": ["x"], "c": ["y"]}, ConfigError),
        ("a {b.__class__}", {"b": ["x"]}, ConfigError),
        ("a {b!r}", {"b": ["x"]}, ConfigError),
        ("a {", {"b": ["x"]}, ConfigError),
        (3, {"b": ["x"]}, ConfigError),
        ("a {b}", {"b": []}, DataError),
        ("a {b}", {"b": "xy"}, DataError),
        ("a {b}", {"b": ["x", 3]}, DataError),
        ("a {b}", {"b": ["x", "x"]}, DataError),
    ],
)
def test_grid_refuses_what_makes_no_prompts(template, values, error):
    with pytest.raises(error, match="prompt_grid"):
        prompt_grid(template, **values)


def test_fillings_of_a_template_look_alike_and_other_prompts_do_not():
    grid = prompt_grid("What happened {time} {place}?", time=["in 1911", "in 1912"], place=["in Vienna", "in Rome"])
    others = ["Name three rivers of Africa.", "Why is the sky blue?", ""]
    found = near_duplicates([*grid.prompts, *others])
    assert found.alike == 4
    assert set(found.example) <= set(grid.prompts)
    assert near_duplicates(others).alike == 0
    assert near_duplicates([]).alike == 0
