"""For tests of object stores: moto's S3 server on loopback, with a front that fails on demand."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from moto.s3.models import s3_backends
from werkzeug.serving import make_server

_STATUSES = {
    "SlowDown": "503 Slow Down",
    "InternalError": "500 Internal Server Error",
    "TooManyRequests": "429 Too Many Requests",
    "AccessDenied": "403 Forbidden",
}


@dataclass(frozen=True)
class Request:
    """A request: how many came before it, its method, `bucket/key`, and its query."""

    number: int
    method: str
    path: str
    query: str


# What becomes of a request: None lets it through; a code of S3's errors is the answer; `drop` ends
# the connection, `hang` leaves the client waiting; `cut` does what is asked and ends the connection
# in the middle of the answer.
Rule = Callable[[Request], str | None]


@dataclass
class Server:
    """A running server with a bucket of its own; `rule` may be set at any time."""

    bucket: str
    address: str = ""
    rule: Rule | None = None
    requests: list[Request] = field(default_factory=list)
    faults: list[Request] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def uri(self, path: str = "") -> str:
        """The URI of a path in the bucket."""
        return f"s3://{self.bucket}/{path}?endpoint_override={self.address}&scheme=http"

    def put(self, key: str, data: bytes) -> None:
        """Put an object without a request."""
        _store().put_object(self.bucket, key, data)

    def put_folder(self, folder: Path, prefix: str) -> str:
        """Put the files of a folder; returns the URI."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.put(f"{prefix}/{file.relative_to(folder).as_posix()}", file.read_bytes())
        return self.uri(prefix)

    def delete(self, key: str) -> None:
        _store().delete_object(self.bucket, key)

    def keys(self, prefix: str = "") -> list[str]:
        """The keys of objects, without the markers of folders."""
        names = list(_store().get_bucket(self.bucket).keys)
        return sorted(n for n in names if n.startswith(prefix) and not n.endswith("/"))

    def mend(self) -> None:
        """Let requests through from now on, and forget those before."""
        self.rule = None
        self.requests.clear()
        self.faults.clear()


class _Front:
    """A WSGI application before moto's."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        request, fault = self._note(environ)
        connection = environ["werkzeug.socket"]
        if fault is None:
            return self._moto(environ, start_response)
        # all of it, or the end of the connection would come before the answer
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if fault == "hang":
            self._server.released.wait()
        if fault in {"hang", "drop"}:
            _drop(connection)
        if fault == "cut":
            return _cut(b"".join(self._moto(environ, start_response)), connection)
        body = f"<Error><Code>{fault}</Code><Message>made by a test</Message></Error>".encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        start_response(_STATUSES[fault], headers)
        return [] if request.method == "HEAD" else [body]

    def _note(self, environ: dict[str, Any]) -> tuple[Request, str | None]:
        server = self._server
        with self._lock:
            request = Request(
                len(server.requests),
                environ["REQUEST_METHOD"],
                environ["PATH_INFO"].lstrip("/"),
                environ["QUERY_STRING"],
            )
            server.requests.append(request)
            fault = server.rule(request) if server.rule else None
            if fault:
                server.faults.append(request)
        return request, fault


def _drop(connection: socket.socket) -> NoReturn:
    with contextlib.suppress(OSError):  # the client has gone already, at a time-out or killed
        connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError  # werkzeug takes it for the client's and says nothing


def _cut(data: bytes, connection: socket.socket) -> Iterator[bytes]:
    if data:  # else not even the headers are sent
        yield data[: len(data) // 2]
    _drop(connection)


class _Handler(MotoRequestHandler):
    def log(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serve(bucket: str) -> Iterator[Server]:
    """An S3 server on loopback. Buckets belong to the process: a server more has the same ones."""
    server = Server(bucket)
    _store().create_bucket(bucket, "us-east-1")
    listener = make_server("127.0.0.1", 0, _Front(server), threaded=True, request_handler=_Handler)
    listener.daemon_threads = True
    server.address = f"127.0.0.1:{listener.server_port}"
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    yield server
    server.released.set()
    listener.shutdown()
    thread.join()
    _store().reset()  # so that the next one can have a bucket of this name


def _store() -> Any:
    return s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
