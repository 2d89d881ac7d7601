"""A small Hugging Face hub on this machine, for the tests: the real client talks to it.

It answers the requests that huggingface_hub makes for a public model, and on demand it fails as
the hub, or the way to it, can fail.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants, file_download

ROOT = Path(__file__).resolve().parents[1]
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@dataclass
class _Repo:
    commit: str
    files: dict[str, bytes]
    gated: bool = False


@dataclass
class _Failure:
    """What to do instead of the answer to a request, and how many times more."""

    status: int | None = None
    body: bytes = b""
    after: int = 0  # without a status: send so many bytes of the content, then break off
    stall: bool = False  # ... or send the rest when told to
    times: int | None = 1  # None: always


@dataclass
class HubServer:
    """A hub at `url` while its `with` block runs.

    `requests` has (method, path) of each request, `fetched` the files whose content was asked
    for, `ranges` the Range header of each request that had one: all in order, and yours to clear.
    `xet_storage`, if set, is where it says that the content of large files is to be had by hf_xet.
    """

    requests: list[tuple[str, str]] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    url: str = ""
    xet_storage: str = ""
    stalled: threading.Event = field(default_factory=threading.Event)
    _repos: dict[str, _Repo] = field(default_factory=dict)
    _renamed: dict[str, str] = field(default_factory=dict)
    _failures: dict[tuple[str, str], _Failure] = field(default_factory=dict)
    _released: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> HubServer:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add_repo(self, name: str, files: dict[str, bytes], *, gated: bool = False) -> str:
        """Serve `files` as model `name`, in place of what it had; return the commit, 40 digits.

        A gated model shows its listing to all and its files to nobody.
        """
        digest = hashlib.sha1(name.encode())
        for path, content in sorted(files.items()):
            digest.update(path.encode() + b"\0" + content)
        self._repos[name] = _Repo(digest.hexdigest(), files, gated)
        return digest.hexdigest()

    def redirect(self, old: str, new: str) -> None:
        """Answer requests for model `old` as the hub does for a renamed one: look under `new`."""
        self._renamed[old] = new

    def fail_listing(self, name: str, status: int, body: bytes = b"") -> None:
        """Answer each request for the listing of `name` with `status` and `body`."""
        self._failures["GET", f"/api/models/{name}"] = _Failure(status, body=body, times=None)

    def fail_file(self, file: str, status: int, *, method: str = "GET") -> None:
        """Answer each request for `file`, of any model, with `status`."""
        self._failures[method, file] = _Failure(status, times=None)

    def break_off(self, file: str, after: int, *, times: int | None = 1) -> None:
        """Cut the connection after `after` bytes of the content of `file`; None: each time."""
        self._failures["GET", file] = _Failure(after=after, times=times)

    def stall(self, what: str, after: int = 0) -> None:
        """Once, send `after` bytes of `what`, a file or an API path; the rest after `release`.

        `stalled` is set when the bytes are out.
        """
        self._failures["GET", what] = _Failure(after=after, stall=True)

    def release(self) -> None:
        """Let the stalled request go on."""
        self._released.set()

    def heal(self) -> None:
        """Forget all failures asked for."""
        self._failures.clear()

    def take_failure(self, method: str, what: str) -> _Failure | None:
        """Return the failure that is due for a request; used by the handler."""
        failure = self._failures.get((method, what))
        if failure is None or failure.times == 0:
            return None
        if failure.times is not None:
            failure.times -= 1
        return failure


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # tests kill clients
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits for the acknowledgement of its head

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        if "Range" in self.headers:
            self.hub.ranges.append(self.headers["Range"])
        if "/xet-read-token/" in path:
            self._send(HTTPStatus.OK, self._xet_token())
        elif found := re.fullmatch(r"/api/models/(.+?)(/revision/[^/]+|/tree/[^/]+)?", path):
            self._answer_api(found[1], found[2] or "")
        elif found := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            self._answer_file(found[1], found[2], found[3])
        else:
            self._send(HTTPStatus.NOT_FOUND)

    def _answer_api(self, name: str, rest: str) -> None:
        repo = self._find(name, f"/api/models/%s{rest}")
        if repo is None or self._fail(f"/api/models/{name}"):
            return
        if rest.startswith("/tree/"):
            listing: Any = [
                {"type": "file", "path": path, "size": len(content), "oid": _etag(content)}
                for path, content in repo.files.items()
            ]
        else:
            siblings = [{"rfilename": path} for path in repo.files]
            gated = "manual" if repo.gated else False
            listing = {"id": name, "sha": repo.commit, "siblings": siblings, "gated": gated}
        body = json.dumps(listing).encode()
        self._send(HTTPStatus.OK, {"Content-Type": "application/json"}, body)

    def _answer_file(self, name: str, revision: str, file: str) -> None:
        repo = self._find(name, f"/%s/resolve/{revision}/{file}")
        if repo is None:
            return
        if repo.gated:
            self._send(HTTPStatus.FORBIDDEN, {"X-Error-Code": "GatedRepo"})
        elif revision not in ("main", repo.commit):
            self._send(HTTPStatus.NOT_FOUND, {"X-Error-Code": "RevisionNotFound"})
        elif file not in repo.files:
            self._send(HTTPStatus.NOT_FOUND, {"X-Error-Code": "EntryNotFound"})
        else:
            self._send_file(repo, file)

    def _send_file(self, repo: _Repo, file: str) -> None:
        content = repo.files[file]
        headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": repo.commit}
        if self.hub.xet_storage and file.endswith(".safetensors"):
            headers["X-Xet-Hash"] = _etag(content)
            headers["X-Xet-Refresh-Route"] = f"{self.hub.url}/api/models/any/xet-read-token/any"
        status = HTTPStatus.OK
        if self.command == "GET":
            self.hub.fetched.append(file)
            if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
                start = int(found[1])
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                content, status = content[start:], HTTPStatus.PARTIAL_CONTENT
        if not self._fail(file, headers, content, status):
            self._send(status, headers, content)

    def _find(self, name: str, path: str) -> _Repo | None:
        """Return the model; without one, answer the request: redirect to `path`, or not found."""
        if name in self.hub._renamed:
            # The hub's redirects are relative; the client follows them with its credentials.
            location = path % self.hub._renamed[name]
            self._send(HTTPStatus.TEMPORARY_REDIRECT, {"Location": location})
            return None
        if name not in self.hub._repos:
            # 401 and not 404: so the hub hides which private models there are.
            self._send(HTTPStatus.UNAUTHORIZED, {"X-Error-Code": "RepoNotFound"})
            return None
        return self.hub._repos[name]

    def _fail(
        self,
        what: str,
        headers: dict[str, str] | None = None,
        content: bytes = b"",
        status: HTTPStatus = HTTPStatus.OK,
    ) -> bool:
        """Do the failure that is due for `what`; return whether there was one."""
        failure = self.hub.take_failure(self.command, what)
        if failure is None:
            return False
        if failure.status is not None:
            self._send(HTTPStatus(failure.status), body=failure.body)
            return True
        if failure.after:
            self._send(status, headers or {}, content, sent=failure.after)
        if failure.stall:
            self.hub.stalled.set()
            self.hub._released.wait(60)  # not for ever, lest a client without a timeout hang
            if not failure.after:
                return False
            self.wfile.write(content[failure.after :])
            return True
        self.close_connection = True
        return True

    def _xet_token(self) -> dict[str, str]:
        return {
            "X-Xet-Cas-Url": self.hub.xet_storage,
            "X-Xet-Access-Token": "token",
            "X-Xet-Token-Expiration": str(int(time.time()) + 3600),
        }

    def _send(
        self,
        status: HTTPStatus,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        sent: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
        self.wfile.flush()


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, home: Path) -> None:
    """Point the client in this process at the hub at `url`, with its own folder at `home`.

    The client reads its settings from the environment when it is imported, which is long past.
    """
    for variable in PROXY_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(home))  # for hf_xet, which reads it when it is imported
    settings = {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_OFFLINE": False,
        # Without it the client looks for news of its own and writes them into its folder.
        "HF_HUB_DISABLE_TELEMETRY": True,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    # Older clients have their own copy of this one.
    template = settings["HUGGINGFACE_CO_URL_TEMPLATE"]
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


def hub_environment(url: str, home: Path) -> dict[str, str]:
    """Return the environment for a Python process whose client shall use the hub at `url`.

    Its own folder is at `home`; the package is importable from any working directory.
    """
    proxies = {variable.lower() for variable in PROXY_VARIABLES}
    environment = {
        key: value
        for key, value in os.environ.items()
        if key.lower() not in proxies and not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
    }
    path = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return environment | {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": os.pathsep.join(path),
    }
