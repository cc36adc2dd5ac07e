import pytest

from backdoor_audit.structure import brief, misfit

COUNT = {"type": "integer", "minimum": 0}
SCHEMA = {
    "type": "object",
    "properties": {
        "version": {"const": 1},
        "verdict": {"enum": ["pass", "fail"]},
        "rate": {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "null"}]},
        "shape": {"type": "array", "items": COUNT, "minItems": 3, "maxItems": 3},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}},
        "either": {"anyOf": [{"type": "object", "maxProperties": 0}, {"$ref": "#/$defs/part"}]},
        "texts": {"type": "object", "additionalProperties": {"type": "string"}},
        "anything": {},
    },
    "required": ["version"],
    "additionalProperties": False,
    "$defs": {
        "part": {
            "type": "object",
            "properties": {"target": COUNT, "name": {"type": "string"}, "known": {"type": "boolean"}},
            "required": ["target"],
        }
    },
}


def test_what_fits_is_nothing_to_tell() -> None:
    value = {
        "version": 1,
        "verdict": "pass",
        "rate": None,
        "shape": [1, 2, 3],
        "parts": [{"target": 0, "name": "x", "known": True, "more": []}],
        "either": {},
        "texts": {"a b": "c"},
        "anything": [{"x": None}],
    }
    assert misfit(value, SCHEMA) == ""


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([], "the whole: a list of 0 where an object belongs"),
        ({}, "a key is missing: version"),
        ({"version": True}, "version: True where 1 belongs"),
        ({"verdict": "clean"}, "verdict: 'clean' where pass or fail belongs"),
        ({"verdict": ["pass"]}, "verdict: a list of 1 where pass or fail belongs"),
        ({"rate": 97}, "rate: 97 where a number in [0, 1] or null belongs"),
        ({"rate": True}, "rate: True where a number in [0, 1] or null belongs"),
        ({"rate": "0.5"}, "rate: '0.5' where a number in [0, 1] or null belongs"),
        ({"shape": [1, 2]}, "shape: a list of 2 where a list of 3 belongs"),
        ({"shape": [1, -2, 3]}, "shape[1]: -2 where a whole number of at least 0 belongs"),
        ({"shape": [1, 2.0, 3]}, "shape[1]: 2.0 where a whole number of at least 0 belongs"),
        (
            {"parts": [{"target": 2**63}]},
            "parts[0].target: 9223372036854775808 where a whole number of at least 0 belongs",
        ),
        ({"parts": [{"target": 1}, 3]}, "parts[1]: 3 where an object belongs"),
        ({"parts": [{}]}, "a key is missing: parts[0].target"),
        ({"parts": [{"target": 1, "known": 0}]}, "parts[0].known: 0 where true or false belongs"),
        ({"either": {"target": "x"}}, "either.target: 'x' where a whole number of at least 0 belongs"),
        ({"texts": {"a b": 1}}, "texts['a b']: 1 where a text belongs"),
        ({"colour": 1}, "colour: a key that is not known"),
    ],
)
def test_the_first_thing_that_does_not_fit_is_named_with_its_place(value: object, told: str) -> None:
    whole = {"version": 1, **value} if isinstance(value, dict) and value else value
    assert misfit(whole, SCHEMA) == told


def test_the_reader_says_which_keys_it_needs() -> None:
    assert misfit({"parts": [{}]}, SCHEMA, needed=lambda name, _: []) == ""
    assert misfit({}, SCHEMA, needed=lambda name, _: ["rate"] * (not name)) == "a key is missing: rate"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("x" * 10**6, f"'{'x' * 57}'... (1000000 characters)"),
        (10**4000, "a number of 13288 bits"),
        ([[0] * 9] * 9, "a list of 9"),
        ({"a": 1}, "an object of 1"),
        (-1.5, "-1.5"),
        (object(), "a object"),
    ],
)
def test_any_value_is_told_in_a_few_words(value: object, told: str) -> None:
    assert brief(value) == told
