"""Finding a finished student: in a model folder, in an artifact, or in an output that has just one."""

from __future__ import annotations

from pathlib import Path

from qcrd.config import ConfigError
from qcrd.evaluate.inference import SETTINGS, STUDENTS
from qcrd.storage.artifacts import MARKER
from qcrd.storage.output import Storage, is_url


def student_folder(place: str) -> Path:
    """The model folder that `place` names: a model folder, a student's artifact, or an output folder with exactly one.

    The latter two may be URLs. Raises `ConfigError`, which lists the students where there are several.
    """
    run = _fetched(place) if is_url(place) else Path(place)
    for folder in (run, run / "best"):
        if (folder / SETTINGS).is_file():
            return folder
    finished = sorted(marker.parent for marker in run.glob(f"{STUDENTS}/*/{MARKER}"))
    found = [folder / "best" for folder in finished if (folder / "best" / SETTINGS).is_file()]
    if len(found) > 1:
        listed = ", ".join(str(folder.parent) for folder in found)
        raise ConfigError(f"RUN: '{run}' has {len(found)} students; give one of {listed}")
    if not found:
        raise ConfigError(
            f"RUN: '{run}' has no finished student; give a run's output folder, a folder student/… in it, or a model "
            f"folder with {SETTINGS}"
        )
    return found[0]


def _fetched(url: str) -> Path:
    """The student behind a URL, on this node; the output's folder where there is not exactly one."""
    place, _, name = url.rstrip("/").partition(f"/{STUDENTS}/")
    storage = Storage.of(place)
    try:
        names = [name.partition("/")[0]] if name else sorted({one.split("/")[1] for one in storage.published(STUDENTS)})
        if len(names) > 1:
            listed = ", ".join(f"{place}/{STUDENTS}/{one}" for one in names)
            raise ConfigError(f"RUN: '{url}' has {len(names)} students; give one of {listed}")
        return storage.fetch(f"{STUDENTS}/{names[0]}") if names else storage.folder
    except (FileNotFoundError, PermissionError) as error:
        raise ConfigError(f"RUN: '{url}' cannot be read: {error}") from None
