"""Keys of a run file that are declared in Python are read from there, all of them."""

import inspect
from dataclasses import MISSING, fields

import pytest

import dynchoice as dc
from dynchoice.membership.history import BROKEN, ENTRIES
from dynchoice.membership.read_panel import read_panel
from dynchoice.run import schema

NOT_IN_TOML = {"utility", "transitions", "available", "model"}
"""Arrays, laws and models: a scenario of a run file cannot say them."""


def keyword_options(function):
    found = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY}


def test_a_scenario_has_every_field_of_scenario():
    declared = {f.name: f.default for f in fields(dc.Scenario)}
    keys = schema.ScenarioPart.model_fields
    assert set(keys) == set(declared) - NOT_IN_TOML | {"scale"}
    for name in set(keys) & set(declared):
        empty = keys[name].default in ({}, [])
        required = declared[name] is MISSING
        assert keys[name].is_required() == required
        assert required or empty or keys[name].default == declared[name], name


@pytest.mark.parametrize(
    ("function", "keys"), [(dc.Panel, schema.PANEL), (read_panel, schema.HISTORY)]
)
def test_data_has_the_options_of_the_panel(function, keys):
    options = keyword_options(function)
    assert set(keys) <= set(options) & set(schema.Data.model_fields)
    for name in keys:
        default = schema.Data.model_fields[name].default
        same = default == options[name] or (default == {} and options[name] is None)
        assert same or schema.Data.model_fields[name].is_required(), name
    left_out = set(options) - {*keys, *schema.NOT_SAID, "member", "time", "plan", "region"}
    assert not left_out


def test_words_of_a_history_are_those_that_it_knows():
    for name, words in (("entry", ENTRIES), ("broken", BROKEN)):
        assert schema.Data.model_fields[name].annotation.__args__ == words


def test_a_new_field_is_a_new_key():
    """What the section is made of is the annotation: float, mapping, sequence, period, function."""
    import ast

    from dynchoice.run.derived import in_toml, toml_type

    def kind(text):
        return str(toml_type(ast.parse(text, mode="eval").body))

    assert "dict" in kind("Mapping[str, float | Callable[[float], float]] | None")
    assert "list" in kind("Plan | Sequence[Plan]")
    assert toml_type(ast.parse("DDC | None", mode="eval").body) is None
    parts = ("Mapping[str, float] | None", "None")
    assert in_toml(*(ast.parse(x, mode="eval").body for x in parts))[1] == {}
