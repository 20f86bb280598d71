"""Nodes with folders of their own, and one bucket: a real S3 protocol on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qcrd.storage import lease
from qcrd.storage.output import Storage
from tests.s3 import S3, s3_server
from tests.storage.nodes import BUCKET, Node


@pytest.fixture(scope="package")
def s3() -> Iterator[S3]:
    with s3_server(BUCKET) as server:
        yield server


@pytest.fixture
def on_node(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """The test's output as the node of that name has it."""
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.02)
    place = f"s3://{BUCKET}/{tmp_path.name}"

    def enter(node: str) -> Storage:
        monkeypatch.setenv("QCRD_SCRATCH", str(tmp_path / node))
        return Storage.of(place)

    return enter
