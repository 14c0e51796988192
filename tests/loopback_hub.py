"""A small Hugging Face Hub on 127.0.0.1 that tests talk to with the real clients.

It keeps models, datasets and Spaces in memory, with users, private repositories, branches, tags and
commits, and answers the requests of `huggingface_hub` and of the libraries above it. Clients run
with `HF_HUB_DISABLE_XET=1`.
"""

import functools
import socket
import sys
import threading
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from loopback_repositories import GITATTRIBUTES, Repository, User
from loopback_requests import Handler


@dataclass
class Fault:
    """Befalls the next `times` requests that match: an answer with `status`, or a cut after
    `after_bytes`."""

    method: str
    path_contains: str
    times: int | None
    status: int | None = None
    message: str = ""
    after_bytes: int = 0
    abort: bool = False


class LoopbackHub:
    """`with LoopbackHub() as hub:` serves at `hub.url`.

    `log` lists the requests as "METHOD path", `unknown` those that the hub does not understand.
    """

    def __init__(self):
        self.lock = threading.RLock()
        self.server: _Server | None = None
        self.url = ""
        self.reset()

    def start(self) -> None:
        """Serves in a thread, after `stop` at the same address again."""
        self.server = _Server(
            ("127.0.0.1", urlsplit(self.url).port or 0), functools.partial(Handler, self)
        )
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Closes all connections and refuses new ones. The repositories stay."""
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def __enter__(self) -> "LoopbackHub":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def reset(self) -> None:
        """Forgets repositories, faults and logs, and has the default users again."""
        with self.lock:
            self.tokens = {
                "hf_user": User("user"),
                "hf_reader": User("reader", "read"),
                "hf_stranger": User("stranger"),
            }
            self.repositories: dict[tuple[str, str], Repository] = {}
            self.blobs: dict[str, bytes] = {}
            self.faults: list[Fault] = []
            self.log: list[str] = []
            self.unknown: list[str] = []

    def files(
        self, repo_id: str, revision: str = "main", repo_type: str = "model"
    ) -> dict[str, bytes]:
        """Files of a revision, `.gitattributes` among them."""
        with self.lock:
            return dict(self.repositories[repo_type, repo_id].find(revision).files)

    def add(
        self,
        repo_id: str,
        files: dict[str, bytes],
        repo_type: str = "model",
        private: bool = False,
        revision: str = "main",
    ) -> str:
        """Commits files, in a new repository or branch if there is none, and returns the sha."""
        with self.lock:
            repository = self.repositories.get((repo_type, repo_id)) or self.create(
                repo_type, repo_id, private
            )
            before = repository.branches.setdefault(revision, repository.branches["main"])
            return repository.push(revision, before.files | files, "Add files").sha

    def create(self, repo_type: str, repo_id: str, private: bool) -> Repository:
        repository = self.repositories[repo_type, repo_id] = Repository(repo_type, repo_id, private)
        repository.push("main", {".gitattributes": GITATTRIBUTES}, "initial commit")
        return repository

    def break_connection(
        self,
        method: str = "GET",
        path_contains: str = "",
        after_bytes: int = 0,
        times: int | None = 1,
        abort: bool = False,
    ) -> None:
        """Cuts the next `times` matching requests (None: all).

        Of a download `after_bytes` of the body are sent; of an upload so many are read, and nothing
        is answered. The connection is closed, or with `abort` reset, after which the client does
        not retry a download. Large files are uploaded to "/lfs/<sha256>", whatever their names.
        """
        self.faults.append(
            Fault(method, path_contains, times, after_bytes=after_bytes, abort=abort)
        )

    def fail(
        self,
        method: str,
        path_contains: str,
        status: int,
        times: int | None = 1,
        message: str = "The Hub fails",
    ) -> None:
        """Answers the next `times` matching requests (None: all) with `status`."""
        self.faults.append(Fault(method, path_contains, times, status=status, message=message))

    def take_fault(self, method: str, path: str) -> Fault | None:
        """Logs a request and tells what befalls it."""
        with self.lock:
            self.log.append(f"{method} {path}")
            for fault in self.faults:
                if fault.method == method and fault.path_contains in path and fault.times != 0:
                    fault.times = fault.times and fault.times - 1
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *arguments: Any):
        self.connections: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self.connections):
            super().shutdown_request(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that has gone is no error
            super().handle_error(request, client_address)
