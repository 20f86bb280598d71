"""Settings from plain data and from dotted keys, and the one line that an error becomes."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from qcrd.config.base import ConfigError, Settings
from qcrd.config.experiment import ExperimentConfig


def _allowed_keys(location: Sequence[int | str]) -> list[str]:
    """The keys that the group of settings at `location` has."""
    model: type[BaseModel] = ExperimentConfig
    for part in location:
        field = model.model_fields.get(str(part))
        kind = field.annotation if field is not None else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return []
        model = kind
    return list(model.model_fields)


def one_line(error: ValidationError) -> str:
    """The first of a validation's errors as one line: field, value, what is allowed."""
    first, rest = error.errors()[0], error.error_count() - 1
    more = f" (and {rest} more)" if rest else ""
    field = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("constrained-", "literal[")))
    value = "***" if "key" in field else first.get("input")  # somebody may have put the key itself there
    if first["type"] == "extra_forbidden":
        allowed = _allowed_keys(first["loc"][:-1])
        close = difflib.get_close_matches(str(first["loc"][-1]), allowed, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"{field}: unknown key (value {value!r}); allowed here: {', '.join(allowed)}{hint}{more}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return message + more
    return f"{field}: {value!r} is not allowed; {message[0].lower()}{message[1:]}{more}"


def validated(data: Mapping[str, Any]) -> ExperimentConfig:
    """An experiment from plain data. Raises `ConfigError`."""
    try:
        return ExperimentConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(one_line(error)) from None


def _plain(value: Any) -> Any:
    """A command-line value as plain data; numbers and booleans stay text, which pydantic reads by the field's type."""
    if not isinstance(value, str):
        return value
    if value in ("null", "None"):  # `none` is a value of some fields
        return None
    if value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _json_or_text(value: Any) -> Any:
    """A command-line value where no field says which type it has."""
    try:
        return json.loads(value)
    except (TypeError, ValueError):
        return value


def with_overrides(config: ExperimentConfig, overrides: Mapping[str, Any]) -> ExperimentConfig:
    """`config` with dotted keys replaced, for the command line and for sweeps alike.

    Example: `with_overrides(config, {"train.learning_rate": "1e-4"})`. Raises `ConfigError`.
    """
    data = config.model_dump()
    for key, value in overrides.items():
        group = data
        *parents, last = key.split(".")
        for depth, part in enumerate(parents):
            child = group.get(part)
            if not isinstance(child, dict):
                allowed = _allowed_keys(parents[:depth])
                raise ConfigError(f"{key}: unknown key (value {value!r}); allowed here: {', '.join(allowed)}")
            group = child
        group[last] = _json_or_text(value) if parents[-1:] == ["extra_body"] else _plain(value)
    return validated(data)


def flatten(config: Settings) -> dict[str, Any]:
    """Settings as one flat mapping with dotted keys."""
    flat: dict[str, Any] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, child in value.items():
                visit(f"{prefix}.{key}" if prefix else key, child)
        else:
            flat[prefix] = value

    visit("", config.model_dump())
    return flat
