"""Figures with fewer pixels: drawing them is most of what these tests cost."""

import pytest

from qcrd.report import figures


@pytest.fixture(scope="session", autouse=True)
def small_figures() -> None:
    figures.DPI = 70
