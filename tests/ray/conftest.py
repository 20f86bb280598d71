"""One Ray for all Ray tests, started as the pipeline starts it."""

from collections.abc import Iterator

import pytest
import ray

from qcrd.runtime.session import start_ray


@pytest.fixture(scope="session")
def ray_started() -> Iterator[None]:
    start_ray()
    yield
    ray.shutdown()
