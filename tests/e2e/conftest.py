"""One undisturbed run for the tests of a module."""

from pathlib import Path

import pytest

from tests.e2e.whole_runs import WHOLE, run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The output folder of a run, and what it printed."""
    output = tmp_path_factory.mktemp("whole") / "runs"
    return output, run(output, *WHOLE)
