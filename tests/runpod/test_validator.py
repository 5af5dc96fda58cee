"""``rp_validator.validate``: the stand-in's rules are the real package's, and are compared with it where it is installed."""

from __future__ import annotations

import json

import pytest

VALIDATE = """
import json, sys
from runpod.serverless.utils.rp_validator import validate
for value, schema in json.loads(sys.argv[1]):
    try:
        print(json.dumps(validate(eval(value), eval(schema))))
    except Exception as error:
        print(json.dumps(type(error).__name__))
"""

OPTIONAL = "{'n': {'type': int, 'required': False, 'default': 7, 'constraints': lambda n: n > 0}}"
NULLABLE = "{'n': {'type': int, 'required': False, 'default': None, 'constraints': lambda n: n is None or n > 0}}"

#: (input, schema): what comes of it, or the name of what is raised.
CASES: dict[tuple[str, str], object] = {
    ("{}", "{}"): {"validated_input": {}},
    ("{'a': 1}", "{}"): {"errors": ["Unexpected input. a is not a valid input option."]},
    ("{}", "{'a': {'type': str, 'required': True}}"): {"errors": ["a is a required input."]},
    ("{'a': 'x'}", "{'a': {'type': str, 'required': True}}"): {"validated_input": {"a": "x"}},
    ("{'a': None}", "{'a': {'type': str, 'required': True}}"): {
        "errors": ["a should be <class 'str'> type, not <class 'NoneType'>."]
    },
    ("{}", "{'a': {'type': str}}"): {"errors": ["a is a required input."]},
    ("{'a': 'x'}", "{'a': {'type': str}}"): {"errors": ["a is a required input."]},
    ("{}", "{'a': {'required': False}}"): {
        "errors": ["Schema error, missing type for a.", "Schema error, missing default value for a."]
    },
    ("{}", "{'a': {'type': int, 'required': False}}"): {"errors": ["Schema error, missing default value for a."]},
    # Defaults, and what they hide.
    ("{}", OPTIONAL): {"validated_input": {"n": 7}},
    ("{'n': -1}", OPTIONAL): {"validated_input": {"n": -1}},
    ("{'n': True}", OPTIONAL): {"validated_input": {"n": True}},
    ("{'n': 2.5}", OPTIONAL): {"errors": ["n should be <class 'int'> type, not <class 'float'>."]},
    ("{'n': -2.5}", OPTIONAL): {
        "errors": ["n should be <class 'int'> type, not <class 'float'>.", "n does not meet the constraints."]
    },
    ("{'n': 'x'}", OPTIONAL): "TypeError",
    ("{}", NULLABLE): {"validated_input": {"n": None}},
    ("{'n': 0}", NULLABLE): {"errors": ["n does not meet the constraints."]},
    ("{}", "{'n': {'type': int, 'required': True, 'constraints': lambda n: n is not None}}"): {
        "errors": ["n is a required input.", "n does not meet the constraints."]
    },
    # Floats.
    ("{'f': 2}", "{'f': {'type': float, 'required': True}}"): {"validated_input": {"f": 2.0}},
    ("{'f': 2}", "{'f': {'type': float, 'required': False, 'default': 1.0}}"): {"validated_input": {"f": 2.0}},
    ("{'f': 2}", "{'f': {'type': (int, float), 'required': True}}"): {"validated_input": {"f": 2}},
    ("{'f': True}", "{'f': {'type': float, 'required': True}}"): {
        "errors": ["f should be <class 'float'> type, not <class 'bool'>."]
    },
    # Nested values are not looked into.
    ("{'l': [{'a': [1]}, []]}", "{'l': {'type': list, 'required': True, 'constraints': lambda l: len(l) == 2}}"): {
        "validated_input": {"l": [{"a": [1]}, []]}
    },
    ("{'d': {'x': 1}}", "{'d': {'type': dict, 'required': False, 'default': {}}}"): {
        "validated_input": {"d": {"x": 1}}
    },
    # Rules that are no dict.
    ("{}", """{'a': '{"type": "int", "required": false, "default": 3}'}"""): {"validated_input": {"a": 3}},
    ("{'a': 'x'}", """{'a': '{"type": "int", "required": true}'}"""): "TypeError",
    ("{}", "{'a': 'no JSON'}"): {
        "errors": [
            "Schema error, a is not a dictionary.",
            "Schema error, missing type for a.",
            "a is a required input.",
        ]
    },
    ("{}", "{'a': '[]'}"): {"errors": ["Schema error, missing type for a.", "a is a required input."]},
    ("{}", "{'a': 3}"): "TypeError",
    ("{}", "{'a': {'type': int, 'required': False, 'default': 1}, 'b': 'no'}"): {
        "errors": [
            "Schema error, b is not a dictionary.",
            "Schema error, missing type for b.",
            "b is a required input.",
        ]
    },
}

RANDOM = """
import json, random, sys
from runpod.serverless.utils.rp_validator import validate
source = random.Random(7)
values = [None, True, 0, 3, -2, 1.5, "", "x", [], [1, [2]], {}, {"k": 1}, float("inf")]
types = [int, float, str, bool, list, dict, (int, str), type(None)]
constraints = [lambda x: bool(x), lambda x: x is None, lambda x: x > 0, lambda x: len(x) < 2]
def rules():
    made = {}
    for key, choices in {"type": types, "required": [True, False], "default": values, "constraints": constraints}.items():
        if source.random() < (0.5 if key in ("default", "constraints") else 0.95):
            made[key] = source.choice(choices)
    return source.choice([made] * 20 + ["{", '{"required": true}'])
def attempt():
    schema = {name: rules() for name in source.sample("abcd", source.randint(0, 3))}
    given = {name: source.choice(values) for name in source.sample("abcde", source.randint(0, 3))}
    before = repr(given)
    try:
        outcome = repr(validate(given, schema))
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    assert repr(given) == before
    return outcome
print(json.dumps([attempt() for _ in range(20000)]))
"""


def outcomes(text: str) -> list[object]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_rules(run_python) -> None:
    found = outcomes(run_python("-S", "-c", VALIDATE, json.dumps(list(CASES))).stdout)
    assert dict(zip(CASES, found, strict=True)) == CASES


def test_a_schema_without_a_type_is_an_error(run_python) -> None:
    """The real one raises a KeyError when the value is there."""
    case = ("{'a': 1}", "{'a': {'required': True}}")
    assert outcomes(run_python("-S", "-c", VALIDATE, json.dumps([case])).stdout) == [
        {"errors": ["Schema error, missing type for a."]}
    ]


def test_the_real_one_has_the_same_rules(run_python, installed: str | None) -> None:
    if installed is None:
        pytest.skip("the package runpod is not installed")
    code = VALIDATE + "\nprint('random'); " + f"exec({RANDOM!r}, {{}})"
    real = run_python("-c", code, json.dumps(list(CASES)), path=[]).stdout
    ours = run_python("-S", "-c", code, json.dumps(list(CASES))).stdout
    table, random = real.split("random\n")
    assert outcomes(table) == list(CASES.values())
    pairs = set(zip(json.loads(random), json.loads(ours.split("random\n")[1]), strict=True))
    assert len(pairs) > 1000
    assert not [(real, ours) for real, ours in pairs if real not in (ours, "KeyError: 'type'")]
