"""A real S3 protocol on loopback (moto), for tests."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import fsspec
import pytest


class S3:
    """A server that can be stopped and started again on its port."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self._make = lambda: ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server = self._make()

    def start(self) -> None:
        self._server = self._make()
        self._server.start()

    def stop(self) -> None:
        self._server.stop()


@contextlib.contextmanager
def s3_server(bucket: str) -> Iterator[S3]:
    """A server with an empty bucket, which S3 clients of this process and of its children use."""
    s3fs = pytest.importorskip("s3fs")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        server = S3()
        server.start()
        patch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.port}")
        s3fs.S3FileSystem.clear_instance_cache()  # a client keeps the server of an earlier test
        fsspec.filesystem("s3").mkdir(bucket)
        yield server
        server.stop()
