"""What a model is known by: its folder's content, its hub name with a revision, or the sizes of one from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from qcrd.config import ConfigError, DiscriminatorConfig, ExperimentConfig, ScratchSizes, StudentConfig
from qcrd.models.tokenizer import load_tokenizer
from qcrd.storage.fingerprints import folder_digest

Part = Literal["student", "discriminator"]


def named_model(name: str, revision: str | None) -> dict[str, str | None]:
    """What a model's name stands for: a folder's content, or a hub name with its revision."""
    if Path(name).is_dir():
        return {"content": folder_digest(Path(name))}
    return {"hub": name, "revision": revision}


def model_identity(model: StudentConfig | DiscriminatorConfig) -> dict[str, Any]:
    """What decides the weights that a model starts with, but for the seed."""
    if not isinstance(model, ScratchSizes):
        return {"kind": model.kind, **named_model(model.model, model.revision)}
    return {
        "kind": "scratch",
        "d_model": model.d_model,
        "d_kv": model.d_kv,
        "d_ff": model.d_ff,
        "num_layers": model.num_layers,
        "num_decoder_layers": model.num_decoder_layers,
        "num_heads": model.num_heads,
        "dropout": model.dropout or 0.0,
        "initializer_factor": model.initializer_factor,
        "vocab_size": model.vocab_size,
        "tokenizer": named_model(model.tokenizer, None) if model.tokenizer else None,
    }


def _source(config: ExperimentConfig, part: Part) -> tuple[str, str | None, str | None]:
    """The field that names where a part's tokenizer comes from, its value, and the revision."""
    model = config.student if part == "student" else config.discriminator
    if isinstance(model, ScratchSizes):
        return f"{part}.tokenizer", model.tokenizer, None
    return f"{part}.model", model.model, model.revision


def check_folder(field: str, name: str | None) -> None:
    """Raise `ConfigError` where what looks like the path of a model's folder is none."""
    looks_like_path = name is not None and (name.startswith((".", "/", "~")) or name.count("/") > 1)
    if looks_like_path and not Path(str(name)).is_dir():
        raise ConfigError(f"{field}: {name!r} does not exist; give a model folder or a hub name")


def check_model(config: ExperimentConfig, part: Part) -> None:
    """Raise `ConfigError` where the folder of a model, or of the tokenizer of one from scratch, is not there."""
    field, name, _ = _source(config, part)
    check_folder(field, name)


def given_tokenizer(config: ExperimentConfig, part: Part) -> Any:
    """The tokenizer of a model that is there; None where it is trained on the task. Raises `ConfigError`."""
    field, name, revision = _source(config, part)
    try:
        return None if name is None else load_tokenizer(name, revision)
    except ValueError as error:
        raise ConfigError(f"{field}: {error}; give a model folder or a hub name") from error


def tokenizer_identity(config: ExperimentConfig, part: Part) -> dict[str, Any]:
    """What decides a part's tokenizer: an existing one, or the size of one that is trained."""
    _, name, revision = _source(config, part)
    if name is None:
        model = config.student if part == "student" else config.discriminator
        assert isinstance(model, ScratchSizes)
        return {"vocab_size": model.vocab_size}
    return {"tokenizer": named_model(name, revision)}
