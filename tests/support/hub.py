"""A Hugging Face hub on this machine: the part of its HTTP interface that reading, globbing and pushing use.

Repositories are folders, `<root>/models/ORG/NAME/REVISION/...` and `<root>/datasets/...`. Whoever writes needs TOKEN.
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_this_test"
COMMIT = "0" * 40


@dataclass
class Hub:
    """A running hub."""

    root: Path
    address: str = ""
    requests: list[str] = field(default_factory=list)  # "GET /api/..."
    created: list[dict[str, Any]] = field(default_factory=list)  # what create_repo sent


@contextlib.contextmanager
def running(root: Path) -> Iterator[Hub]:
    """A hub over a folder, until the block ends."""
    hub = Hub(root)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, hub)) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Missing(Exception):
    """What is not there, by the hub's own word for it."""


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, hub: Hub, *arguments: Any) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def log_message(self, *arguments: Any) -> None:  # tests print their own lines
        pass

    def do_GET(self) -> None:  # noqa: N802
        self._answer()

    def do_HEAD(self) -> None:  # noqa: N802
        self._answer()

    def do_POST(self) -> None:  # noqa: N802
        self._answer()

    def _answer(self) -> None:
        address = urlsplit(self.path)
        self.hub.requests.append(f"{self.command} {unquote(address.path)}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        words = [unquote(word) for word in address.path.strip("/").split("/")]
        try:
            if words[0] == "api":
                self._json(self._interface(words[1:], parse_qs(address.query), body))
            else:
                self._file(words)
        except _Missing as error:
            self._json({"error": str(error)}, 404, {"X-Error-Code": str(error)})
        except PermissionError:
            self._json({"error": "Invalid username or password."}, 401)

    def _json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _interface(self, words: list[str], query: dict[str, list[str]], body: bytes) -> Any:
        """The answer of /api/..."""
        writing = words in (["repos", "create"],) or words[3:4] in (["preupload"], ["commit"])
        if writing and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise PermissionError
        if words == ["repos", "create"]:
            return self._create(json.loads(body))
        if words == ["validate-yaml"]:
            return {"errors": [], "warnings": []}
        kind, organisation, name, *rest = words
        what, revision, *below = [*rest, "revision", "main"][: max(2, len(rest))]
        folder = self._folder(kind, organisation, name, revision)
        if what == "revision":
            return {"id": f"{organisation}/{name}", "sha": COMMIT, "private": False, "tags": [], "siblings": []}
        if what == "tree":
            start = folder.joinpath(*below)
            if not start.is_dir():
                raise _Missing("EntryNotFound")
            deep = query.get("recursive", ["false"])[0].lower() == "true"
            return [_entry(path, folder) for path in sorted(start.rglob("*") if deep else start.iterdir())]
        if what == "paths-info":
            paths = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            return [_entry(folder / path, folder) for path in paths if (folder / path).exists()]
        if what == "preupload":
            files = json.loads(body)["files"]
            return {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]}
        if what == "commit":
            return self._commit(folder, body, f"{organisation}/{name}")
        raise _Missing("EntryNotFound")

    def _create(self, asked: dict[str, Any]) -> dict[str, str]:
        self.hub.created.append(asked)
        name = f"{asked['organization']}/{asked['name']}"
        (self.hub.root / "models" / name / "main").mkdir(parents=True, exist_ok=True)
        return {"url": f"{self.hub.address}/{name}", "id": name}

    def _commit(self, folder: Path, body: bytes, name: str) -> dict[str, Any]:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                target = folder / line["value"]["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(base64.b64decode(line["value"]["content"]))
        return {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.hub.address}/{name}/commit/{COMMIT}"}

    def _folder(self, kind: str, organisation: str, name: str, revision: str) -> Path:
        repository = self.hub.root / kind / organisation / name
        if not repository.is_dir():
            raise _Missing("RepoNotFound")
        if not (repository / revision).is_dir():
            raise _Missing("RevisionNotFound")
        return repository / revision

    def _file(self, words: list[str]) -> None:
        """A file, or the range of it that is asked for."""
        kind, words = ("datasets", words[1:]) if words[0] == "datasets" else ("models", words)
        organisation, name, _, revision, *below = words
        path = self._folder(kind, organisation, name, revision).joinpath(*below)
        if not path.is_file():
            raise _Missing("EntryNotFound")
        data, status = path.read_bytes(), 200
        headers = {"ETag": f'"{_oid(path)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            end = min(int(last or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{end}/{len(data)}"
            data, status = data[int(first) : end + 1], 206
        self._send(data, status, headers)


def _entry(path: Path, folder: Path) -> dict[str, Any]:
    """A file or folder as the hub lists it."""
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": COMMIT}
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": _oid(path)}


def _oid(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_mtime_ns:020x}{stat.st_size:020x}"
