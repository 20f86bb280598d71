"""What a model's tokens cost.

Prices come from a file that anybody can edit (`teacher.prices`, else `prices.json` beside this module), each with its
date and source, and go by the exact name of the model. Discounts for cached prompts are left out, so no price here is
too low because of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from qcrd.config import ConfigError, PaidSettings, Settings, TeacherSettings

PRICES = Path(__file__).with_name("prices.json")

Usd = Annotated[float, Field(ge=0)]


class _Entry(Settings):
    """One model in a price file. `aliases` are further exact names; `batch_factor` is null without a batch mode."""

    model: str
    aliases: tuple[str, ...] = ()
    prompt_usd_per_million: Usd
    completion_usd_per_million: Usd
    batch_factor: Annotated[float, Field(gt=0, le=1)] | None
    as_of: date
    source: str
    note: str = ""


_ENTRIES = TypeAdapter(list[_Entry])


@dataclass(frozen=True)
class Price:
    """What a model's tokens cost, in US dollars a token. Batch mode costs `batch_factor` of that; None: there is none,
    or its price is not known."""

    prompt_usd: float
    completion_usd: float
    batch_factor: float | None
    as_of: str
    source: str
    note: str = ""


def price_file(config: PaidSettings) -> Path:
    """`teacher.prices`, else the packaged file."""
    return Path(config.prices) if config.prices else PRICES


def read_price(config: TeacherSettings) -> Price | None:
    """The price of `teacher.model`; None where it is unknown, or where nothing is paid for a token.

    Names match exactly, and dated snapshots only where the file lists them. Raises `ConfigError` for a bad file.
    """
    if not isinstance(config, PaidSettings):
        return None
    for entry in _read_entries(price_file(config)):
        if config.model in (entry.model, *entry.aliases):
            return Price(
                prompt_usd=entry.prompt_usd_per_million / 1e6,
                completion_usd=entry.completion_usd_per_million / 1e6,
                batch_factor=entry.batch_factor,
                as_of=entry.as_of.isoformat(),
                source=entry.source,
                note=entry.note,
            )
    return None


def _read_entries(path: Path) -> list[_Entry]:
    try:
        entries = _ENTRIES.validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"teacher.prices: '{path}' cannot be read ({error.strerror}); give a price file") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"teacher.prices: '{path}'{f', {place}' if place else ''}: {first['msg']}; "
            "a price file is a list like that of qcrd/teacher/prices.json"
        ) from None
    names = [name for entry in entries for name in (entry.model, *entry.aliases)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"teacher.prices: '{path}' has {name!r} more than once; one price a name is allowed")
    return entries


def check_budget(config: TeacherSettings) -> None:
    """Raise `ConfigError` where there is a budget and no price to hold it by."""
    if not isinstance(config, PaidSettings) or config.budget_usd is None:
        return
    price = read_price(config)
    if price is None or (config.mode == "batch" and price.batch_factor is None):
        lacking = "price" if price is None else "batch_factor"
        raise ConfigError(
            f"teacher.budget_usd: {config.budget_usd:g} cannot be held, for '{price_file(config)}' has no {lacking} "
            f"of model {config.model!r}; add it there, or name another file in teacher.prices"
        )


def spent_usd(price: Price, prompt_tokens: int, completion_tokens: int, batch: bool) -> float:
    """US dollars for these tokens. In batch mode without a batch price it is the full price, which is not too low."""
    usd = prompt_tokens * price.prompt_usd + completion_tokens * price.completion_usd
    return usd * price.batch_factor if batch and price.batch_factor is not None else usd
