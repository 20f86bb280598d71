"""Groups of settings of which there are several kinds, each a class with the fields that only it has.

A group is a union of classes that differ in `kind`. Plain data need not say which, where that can be told: from a field
that only one kind has, or from a value that only one kind allows. Knows no group by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from qcrd.config.base import ConfigError, Settings

Kinds = Mapping[str, type[Settings]]


def kinds_of(field: FieldInfo) -> Kinds:
    """The classes of a group by kind; none where the field is no such group."""
    classes = [found for found in get_args(field.annotation) if isinstance(found, type) and issubclass(found, Settings)]
    return {kind_of(found): found for found in classes if "kind" in found.model_fields}


def kind_of(group: type[Settings]) -> str:
    """The kind that a class is for."""
    return get_args(group.model_fields["kind"].annotation)[0]


def _allows(group: type[Settings], name: str, value: Any) -> bool:
    """Whether a class has a field that may have a value, as far as a list of values tells."""
    field = group.model_fields.get(name)
    if field is None:
        return False
    return get_origin(field.annotation) is not Literal or value in get_args(field.annotation)


def _lists(group: type[Settings], name: str, value: Any) -> bool:
    """Whether a class names a value as one that a field of it may have."""
    field = group.model_fields.get(name)
    return field is not None and get_origin(field.annotation) is Literal and value in get_args(field.annotation)


def told_kind(kinds: Kinds, default: str, given: Mapping[str, Any]) -> str:
    """The kind that settings have which do not say it: the default where that may have them all, else the only one that
    may; where none may, the default, whose error then says what is wrong."""
    fitting = [kind for kind, group in kinds.items() if all(_allows(group, name, given[name]) for name in given)]
    return default if default in fitting or len(fitting) != 1 else fitting[0]


def with_told_kind(default: str, *groups: type[Settings]) -> BeforeValidator:
    """Adds to plain data the kind that it does not say."""
    kinds = {kind_of(group): group for group in groups}

    def complete(value: Any) -> Any:
        if isinstance(value, Mapping) and "kind" not in value:
            return {"kind": told_kind(kinds, default, value), **value}
        return value

    return BeforeValidator(complete)


def replaced_kind(kinds: Kinds, group: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A group's plain data with the kind that new settings name or tell: fields that both kinds have stay, those that
    only the old one had are dropped, and those that only the new one has are left to their defaults.

    Of new settings that do not name a kind only a value that another kind lists as its own, or that the present kind
    does not allow, tells another kind: no misspelt or misplaced setting ever replaces, say, the teacher.
    """
    kind = given.get("kind", group["kind"])
    if "kind" not in given:
        own = {name: value for name, value in given.items() if name in kinds[kind].model_fields}
        listing = [other for other, found in kinds.items() if any(_lists(found, name, own[name]) for name in own)]
        refused = {name: value for name, value in own.items() if not _allows(kinds[kind], name, value)}
        kind = listing[0] if len(listing) == 1 else told_kind(kinds, kind, refused)
    if kind == group["kind"] or kind not in kinds:
        return {**group, "kind": kind}
    return {"kind": kind} | {
        name: value for name, value in group.items() if name != "kind" and _allows(kinds[kind], name, value)
    }


def refuse_other_kinds_field(kinds: Kinds, kind: str, place: str, name: str) -> None:
    """Raise `ConfigError` for a field that other kinds have, but not this one."""
    if kind not in kinds or name in kinds[kind].model_fields:
        return
    others = [other for other, group in kinds.items() if name in group.model_fields]
    if others:
        have = "has" if len(others) == 1 else "have"
        raise ConfigError(f"{place}.{name}: not a setting of {place}.kind = {kind}; {' and '.join(others)} {have} it")
