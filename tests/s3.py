"""A real S3 protocol on loopback (moto), for tests."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
import tenacity.nap


class S3:
    """A server that can be stopped and started again on its port. While `refuses`, it answers 503 to everything."""

    def __init__(self) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self.refuses, self.refused = False, 0

    def start(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.WARNING)  # not a line for each request
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", self.port, self._answer, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        reset = urllib.request.Request(f"http://127.0.0.1:{self.port}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset, timeout=30).close()  # moto keeps the content of an earlier server of this process

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: Any, start_response: Any) -> Any:
        if not self.refuses:
            return self._app(environ, start_response)
        self.refused += 1
        start_response("503 Slow Down", [("Content-Length", "0")])
        return [b""]


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
        shorter = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 20))  # between two tries
        patch.setattr(tenacity.nap, "time", shorter)
        server = S3()
        server.start()
        patch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.port}")
        s3fs.S3FileSystem.clear_instance_cache()  # a client keeps the server of an earlier test
        fsspec.filesystem("s3").mkdir(bucket)
        yield server
        server.stop()
