"""Finding a recipe: a Python function, in a file, that returns an experiment's config."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from qcrd.config import ConfigError, ExperimentConfig

DEFAULT_FUNCTION = "recipe"


def project_root(path: Path) -> Path:
    """The nearest parent folder with a pyproject.toml, else the file's own folder."""
    for folder in path.resolve().parents:
        if (folder / "pyproject.toml").is_file():
            return folder
    return path.resolve().parent


def load_recipe(reference: str) -> ExperimentConfig:
    """The config of `file.py` (its function `recipe`) or `file.py:function`. Raises `ConfigError`."""
    file, _, function = reference.partition(":")
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"RECIPE: {file!r} does not exist; give a Python file, or file.py:function")
    root = str(project_root(path))
    if root not in sys.path:
        sys.path.insert(0, root)
    spec = importlib.util.spec_from_file_location(f"qcrd_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"RECIPE: {file!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    name = function or DEFAULT_FUNCTION
    found = vars(module).get(name)
    if not callable(found):
        functions = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise ConfigError(f"RECIPE: {file} has no function {name!r}; it has {', '.join(functions)}")
    config = found()
    if not isinstance(config, ExperimentConfig):
        raise ConfigError(f"RECIPE: {file}:{name} returns {type(config).__name__}, not an ExperimentConfig")
    return config
