"""A model stage that fails on another node: one line, or the error of a place that is full."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from qcrd.config import ResourcesConfig
from qcrd.runtime.remote import StageFailed, run_remotely
from qcrd.storage.atomic import is_full
from qcrd.storage.output import Storage

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_started")]


def work(*_: Any, emit: Any) -> None:
    raise ValueError("the discriminator needs\nat least two questions")


def full(*_: Any, emit: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_it_says_why_in_one_line(tmp_path: Path):
    given = ResourcesConfig(device="cpu"), Storage.of(tmp_path)
    with pytest.raises(StageFailed, match=r"^at least two questions$"):
        run_remotely(*given, work, {}, tmp_path, on_event=lambda _: None)
    with pytest.raises(OSError) as caught:
        run_remotely(*given, full, {}, tmp_path, on_event=lambda _: None)
    assert is_full(caught.value)
