"""Finding a recipe: a Python function, in a file, that returns an experiment's config, a grid of them or a sweep."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path

from qcrd.config.base import ConfigError
from qcrd.config.experiment import ExperimentConfig
from qcrd.config.grid import Grid
from qcrd.config.sweep import Sweep

DEFAULT_FUNCTION = "recipe"


def project_root(path: Path) -> Path:
    """The nearest parent folder with a pyproject.toml, else the file's own folder."""
    for folder in path.resolve().parents:
        if (folder / "pyproject.toml").is_file():
            return folder
    return path.resolve().parent


def recipe_file(reference: str) -> Path:
    """The file of a recipe, seen from the working folder. Raises `ConfigError` where it does not exist."""
    file = reference.partition(":")[0]
    if not Path(file).is_file():
        raise ConfigError(f"RECIPE: {file!r} does not exist; give a Python file, or file.py:function")
    return Path(file)


def load_recipe(reference: str, preset: str | None = None) -> ExperimentConfig | Grid | Sweep:
    """What `file.py` (its function `recipe`) or `file.py:function` returns, called with `preset` where one is given.

    Raises `ConfigError`, also for a preset where the function has none, or not that one.
    """
    path, function = recipe_file(reference), reference.partition(":")[2]
    root = str(project_root(path))
    if root not in sys.path:
        sys.path.insert(0, root)
    spec = importlib.util.spec_from_file_location(f"qcrd_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"RECIPE: '{path}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    name = function or DEFAULT_FUNCTION
    found = vars(module).get(name)
    if not callable(found):
        functions = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise ConfigError(f"RECIPE: {path} has no function {name!r}; it has {', '.join(functions)}")
    if preset is not None and "preset" not in inspect.signature(found).parameters:
        raise ConfigError(f"--preset: {preset!r} is not allowed; {path}:{name} has no presets")
    made = found() if preset is None else found(preset=preset)
    if not isinstance(made, ExperimentConfig | Grid | Sweep):
        kind = type(made).__name__
        raise ConfigError(f"RECIPE: {path}:{name} returns {kind}, not an ExperimentConfig, a Grid or a Sweep")
    return made
