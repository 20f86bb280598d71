"""What all groups of settings have in common, and the errors that name a field."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]


Share = Annotated[float, Field(ge=0, le=1)]


class ConfigError(ValueError):
    """Bad settings. The message is one line: field, value, what is allowed."""


class Settings(BaseModel):
    """Base of every group of settings: immutable, no unknown keys, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())
