"""For tests of weights: a server like a model hub, and a process like an actor."""

from __future__ import annotations

import contextlib
import functools
import http.server
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

from iqa_ray.weights import files


class _Handler(http.server.BaseHTTPRequestHandler):
    """Gives any file of a folder by the last part of the path, as model hubs' addresses have it."""

    def __init__(self, *arguments, folder: Path, asked: list[str]) -> None:
        self.folder, self.asked = folder, asked
        super().__init__(*arguments)

    def do_GET(self) -> None:
        name = files.name_file(f"http://host{self.path}")
        self.asked.append(name)
        path = self.folder / name
        if not path.is_file():
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(path.stat().st_size))
        self.end_headers()
        self.wfile.write(path.read_bytes())

    def log_message(self, *arguments) -> None:
        pass


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A model hub with the files of `folder`: its address, and the names asked for so far."""
    asked: list[str] = []
    handler = functools.partial(_Handler, folder=folder, asked=asked)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


@contextlib.contextmanager
def answer(data: bytes) -> Iterator[str]:
    """A server that answers every request with `data`, whatever that is, and hangs up."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1 << 16)
            self.request.sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def copy_in_a_process(folder: str, entry: files.WeightFile) -> str:
    """Where this node's copy is; here, since importing this module takes no PyTorch."""
    return str(files.open_node_copy(entry, folder))
