"""Stands in for ``runpod.serverless.utils.rp_validator``, with runpod 1.12's rules and messages, including its quirks.

Two of those: a value of the same type as its ``default`` is checked no further, not even by ``constraints``; and ``constraints``
are also called for an optional input that is missing (None) or of the wrong type.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from runpod import _absent


def validate(raw_input: dict[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Validate ``raw_input``; return ``{"validated_input": …}``, a copy with defaults and with integers converted to floats where
    needed, or ``{"errors": [text, …]}``.

    ``schema`` maps each input to a dict, or JSON text of one: ``type``, ``required``, ``default`` (unless required),
    ``constraints`` (a function of the value, whose exceptions are propagated).
    """
    errors = [f"Unexpected input. {name} is not a valid input option." for name in raw_input if name not in schema]
    rules_of: dict[str, Any] = {}
    for name, rules in schema.items():
        rules_of[name] = rules if isinstance(rules, dict) else _parsed(name, rules, errors)
    checked = raw_input.copy()
    for name, rules in rules_of.items():
        errors.extend(_fill_in(name, rules, raw_input, checked))
    for name, rules in rules_of.items():
        errors.extend(_check(name, rules, checked))
    return {"errors": errors} if errors else {"validated_input": checked}


def _parsed(name: str, rules: Any, errors: list[str]) -> Any:
    try:
        return json.loads(rules)
    except json.JSONDecodeError:
        errors.append(f"Schema error, {name} is not a dictionary.")
        return {}


def _fill_in(name: str, rules: Any, raw_input: dict[str, Any], checked: dict[str, Any]) -> Iterator[str]:
    """Set a missing input to its default; yield errors about its absence."""
    if "type" not in rules:
        yield f"Schema error, missing type for {name}."
    if "required" not in rules:
        yield f"{name} is a required input."
    elif name in raw_input:
        return
    elif rules["required"]:
        yield f"{name} is a required input."
    elif "default" in rules:
        checked[name] = rules["default"]
    else:
        yield f"Schema error, missing default value for {name}."


def _check(name: str, rules: Any, checked: dict[str, Any]) -> Iterator[str]:
    """Yield errors about an input's type and value; convert an integer to a float where needed."""
    if name in checked and "type" in rules:
        wanted = rules["type"]
        if wanted is float and type(checked[name]) is int:
            checked[name] = float(checked[name])
        value = checked[name]
        if "default" in rules and isinstance(value, type(rules["default"])):
            return
        if not isinstance(value, wanted):
            yield f"{name} should be {wanted} type, not {type(value)}."
    if "constraints" in rules and not rules["constraints"](checked.get(name)):
        yield f"{name} does not meet the constraints."


__getattr__ = _absent.getter(__name__)
