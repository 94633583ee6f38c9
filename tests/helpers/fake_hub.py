"""A local server that answers as the Hugging Face hub does when ``huggingface_hub`` downloads a snapshot."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def fake_hub(name: str, folder: Path, revisions: tuple[str, ...] = ("main",)) -> Iterator[tuple[str, list[str]]]:
    """Serve ``folder`` as the repository ``name``; yield (address, files that were downloaded so far)."""
    downloaded: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = unquote(urlparse(self.path).path)
            if path == f"/api/models/{name}" or path.startswith(f"/api/models/{name}/revision/"):
                if (revision := path.rpartition("/revision/")[2]) in (path, COMMIT, *revisions):
                    files = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file()]
                    info = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
                    return self._send(200, json.dumps(info).encode(), body)
                return self._refuse("RevisionNotFound", f"no revision {revision}")
            if path.startswith(f"/api/models/{name}/tree/"):
                files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
                tree = [
                    {
                        "type": "file",
                        "oid": _oid(file),
                        "size": file.stat().st_size,
                        "path": str(file.relative_to(folder)),
                    }
                    for file in files
                ]
                return self._send(200, json.dumps(tree).encode(), body)
            if path.startswith(f"/{name}/resolve/"):
                file = folder / path.removeprefix(f"/{name}/resolve/").partition("/")[2]
                if not file.is_file():
                    return self._refuse("EntryNotFound", "no such file")
                if body:
                    downloaded.append(str(file.relative_to(folder)))
                return self._send(200, file.read_bytes(), body, {"ETag": f'"{_oid(file)}"', "X-Repo-Commit": COMMIT})
            return self._refuse("RepoNotFound", "no such repository")

        def _refuse(self, code: str, message: str) -> None:
            self._send(404, b"{}", True, {"X-Error-Code": code, "X-Error-Message": message})

        def _send(self, status: int, content: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", downloaded
    finally:
        server.shutdown()
        server.server_close()


def _oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def turn_hub_to(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``huggingface_hub`` take an address for the hub, with an empty cache."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
