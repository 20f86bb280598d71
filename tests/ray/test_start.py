"""A Ray of our own, as `start_ray` starts it."""

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_started")]


def test_it_listens_on_loopback_alone():
    here = psutil.Process()
    listening = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in (here, *here.children(recursive=True))
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
