"""A local Hugging Face hub for tests with the real client.

It answers the requests of huggingface_hub for a model, and can simulate failures of the hub or the
connection.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants, file_download

ROOT = Path(__file__).resolve().parents[1]
Files = dict[str, bytes]
Headers = dict[str, str]


@dataclass
class HubServer:
    """A hub at ``url`` while its ``with`` block runs.

    Attributes:
        repos: model -> commit -> files; the last commit is the newest.
        branches: branch or tag -> commit, besides main.
        gated: models whose files are not accessible.
        token: required access token; "" for none.
        broken: path or file -> simulated failure: an HTTP status and a body, or the number of bytes
            after which the connection stalls.
        fetched: the downloaded files, in order; tests may clear it.
        stalled: is set when a connection stalls.
        go_on: set it to continue a stalled connection.
    """

    repos: dict[str, dict[str, Files]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = ""
    broken: dict[str, tuple[int, bytes] | int] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def __enter__(self) -> HubServer:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the server."""
        self.go_on.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add(self, name: str, files: Files) -> str:
        """Add ``files`` as the newest commit of a model; return the commit, 40 digits."""
        commit = hashlib.sha1(repr((name, sorted(files.items()))).encode()).hexdigest()
        self.repos.setdefault(name, {})[commit] = files
        return commit


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # tests kill clients
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise each body waits for the acknowledgement of its head

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api = re.fullmatch(r"/api/models/(.+?)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path)
        name, revision = (file[1], file[2]) if file else (api[1], api[3]) if api else ("", "")
        commits = self.hub.repos.get(name, {})
        commit = self.hub.branches.get(revision) or (
            next(reversed(commits), "") if revision in (None, "main") else revision
        )
        broken = self.hub.broken.get(file[3] if file else path)
        is_known = not self.hub.token or f"Bearer {self.hub.token}" == self.headers["Authorization"]
        if isinstance(broken, tuple):
            self.send(broken[0], {}, broken[1])
        elif not commits or not is_known:
            # 401, not 404: the hub hides which private models exist.
            self.send(401, {"X-Error-Code": "RepoNotFound"})
        elif commit not in commits:
            self.send(404, {"X-Error-Code": "RevisionNotFound"})
        elif file and name in self.hub.gated:
            self.send(403, {"X-Error-Code": "GatedRepo"})
        elif file:
            self.send_content(file[3], commits[commit][file[3]], commit, broken)
        else:
            is_tree = api is not None and api[2] == "tree"
            listing = _tree(commits[commit]) if is_tree else _info(name, commit, commits[commit])
            self.send(200, {"Content-Type": "application/json"}, json.dumps(listing).encode())

    do_HEAD = do_GET

    def send_content(self, file: str, content: bytes, commit: str, stall_at: int | None) -> None:
        headers = {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": commit}
        if self.command == "GET":
            self.hub.fetched.append(file)
        self.send(200, headers, content, stall_at)

    def send(
        self, status: int, headers: Headers, body: bytes = b"", stall_at: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[:stall_at])
        if stall_at is not None:
            self.wfile.flush()
            self.hub.stalled.set()
            self.hub.go_on.wait(60)
            self.wfile.write(body[stall_at:])


def _info(name: str, commit: str, files: Files) -> Any:
    return {"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]}


def _tree(files: Files) -> Any:
    return [
        {"type": "file", "path": path, "size": len(content), "oid": _digest(content)}
        for path, content in files.items()
    ]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def hub_environment(url: str, home: Path) -> dict[str, str]:
    """Return the environment of a process with the hub at ``url`` and a cache in ``home``."""
    ours = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {k: v for k, v in os.environ.items() if not _configures_client(k)}
    return kept | ours | {"PYTHONPATH": os.pathsep.join(path)}


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, home: Path) -> None:
    """Configure the client in this process, which read the environment when it was imported."""
    for variable in filter(_configures_client, list(os.environ)):
        monkeypatch.delenv(variable)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_DISABLE_TELEMETRY": True,
    }.items():  # fmt: skip
        monkeypatch.setattr(constants, name, value)
    # Older clients have their own copy of it.
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


def _configures_client(variable: str) -> bool:
    return variable.startswith(("HF_", "HUGGING")) or variable.lower().endswith("_proxy")
