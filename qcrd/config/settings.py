"""Settings from plain data and from dotted keys, and the one line that an error becomes."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from qcrd.config.base import ConfigError, Settings
from qcrd.config.experiment import ExperimentConfig
from qcrd.config.kinds import Kinds, kinds_of, refuse_other_kinds_field, replaced_kind


def _group_at(location: Sequence[int | str]) -> tuple[list[str], type[BaseModel] | None]:
    """The names of the fields on the way to `location`, without the kinds that stand in it, and the group of settings
    there; None where there is none."""
    names: list[str] = []
    model: type[BaseModel] | None = ExperimentConfig
    kinds: Kinds = {}
    for part in map(str, location):
        if part in kinds:
            model, kinds = kinds[part], {}
            continue
        names.append(part)
        field = model.model_fields.get(part) if model is not None else None
        kinds = {} if field is None else kinds_of(field)
        annotation = None if field is None else field.annotation
        model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    return names, model


def one_line(error: ValidationError) -> str:
    """The first of a validation's errors as one line: field, value, what is allowed."""
    first, rest = error.errors()[0], error.error_count() - 1
    more = f" (and {rest} more)" if rest else ""
    names, _ = _group_at(first["loc"])
    field = ".".join(name for name in names if not name.startswith(("constrained-", "literal[")))
    value = "***" if "key" in field else first.get("input")  # somebody may have put the key itself there
    if first["type"] == "extra_forbidden":
        _, group = _group_at(first["loc"][:-1])
        allowed = list(group.model_fields) if group is not None else []
        close = difflib.get_close_matches(str(first["loc"][-1]), allowed, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"{field}: unknown key (value {value!r}); allowed here: {', '.join(allowed)}{hint}{more}"
    if first["type"] == "union_tag_invalid":
        kind = value.get("kind") if isinstance(value, Mapping) else value
        return f"{field}.kind: {kind!r} is not allowed; the kinds are {first.get('ctx', {}).get('expected_tags')}{more}"
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

    Kinds come first, whatever the order: `student.kind=scratch` keeps what all students have, drops what only the old
    kind had, and takes the defaults of what only the new one has (see kinds.py).

    Example: `with_overrides(config, {"train.learning_rate": "1e-4"})`. Raises `ConfigError`.
    """
    data = config.model_dump()
    for place, field in ExperimentConfig.model_fields.items():
        if kinds := kinds_of(field):
            given = {key.removeprefix(f"{place}."): value for key, value in overrides.items()
                     if key.startswith(f"{place}.")}  # fmt: skip
            data[place] = replaced_kind(kinds, data[place], given)
            for name in given:
                refuse_other_kinds_field(kinds, data[place]["kind"], place, name.partition(".")[0])
    for key, value in overrides.items():
        group = data
        *parents, last = key.split(".")
        for depth, part in enumerate(parents):
            child = group.get(part)
            if not isinstance(child, dict):
                allowed = _keys_of(data, parents[:depth])
                raise ConfigError(f"{key}: unknown key (value {value!r}); allowed here: {', '.join(allowed)}")
            group = child
        group[last] = _json_or_text(value) if parents[-1:] == ["extra_body"] else _plain(value)
    return validated(data)


def _keys_of(data: Mapping[str, Any], parents: Sequence[str]) -> list[str]:
    """The keys of a group in an experiment's plain data."""
    for part in parents:
        data = data[part]
    return list(data)


def flatten(config: Settings) -> dict[str, Any]:
    """Settings as one flat mapping with dotted keys, without what a paper printed, which is no setting."""
    flat: dict[str, Any] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, child in value.items():
                visit(f"{prefix}.{key}" if prefix else key, child)
        else:
            flat[prefix] = value

    visit("", config.model_dump(exclude={"paper"}))
    return flat
