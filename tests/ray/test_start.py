"""A Ray of our own, as `start_ray` starts it."""

import contextlib

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_started")]


def listening(process: psutil.Process) -> set[str]:
    """The addresses at which a process listens; none where it has just ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        found = process.net_connections("tcp")
        return {one.laddr.ip.removeprefix("::ffff:") for one in found if one.status == psutil.CONN_LISTEN}
    return set()


def test_it_listens_on_loopback_alone():
    here = psutil.Process()
    processes = (here, *here.children(recursive=True))
    assert set().union(*map(listening, processes)) == {"127.0.0.1"}
