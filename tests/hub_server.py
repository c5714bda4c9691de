"""A Hugging Face Hub on loopback: it serves folders over the routes that `huggingface_hub` and `datasets` call.

It also stands in as the proxy of the processes that use it, so that nothing they might ask for leaves the machine.
"""

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

MOVED = {"gpt2": "openai-community/gpt2"}  # the Hub answers for the former name with a redirect


class HubServer(ThreadingHTTPServer):
    """Serves ``root/models/NAMESPACE/NAME`` and ``root/datasets/NAMESPACE/NAME``; each has one revision.

    ``faults`` maps what a path contains to a function that answers such a request in another way, given the
    `HubHandler`; ``requests`` keeps what was asked for.
    """

    daemon_threads = True

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.root = root
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.faults: dict[str, Callable[[HubHandler], None]] = {}
        self.requests: list[str] = []

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # a client that has ended is no error of the server's
            super().handle_error(request, client_address)

    def environment(self, home: Path) -> dict[str, str]:
        """Return the variables by which a process takes this Hub, with its cache in ``home``."""
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), self.endpoint)
        return proxies | {
            "no_proxy": "127.0.0.1", "HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip


@contextmanager
def serve(root: Path) -> Iterator[HubServer]:
    """Serve ``root`` until the block ends; then connections are refused."""
    with HubServer(root) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class HubHandler(BaseHTTPRequestHandler):
    """Answers one request; a method of `ROUTES` gets the folder of the repository and what follows it in the path."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_GET(self):
        self.server.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = next((fault for part, fault in self.server.faults.items() if part in self.path), None)
        fault(self) if fault else self.answer()

    do_HEAD = do_POST = do_CONNECT = do_GET

    def log_message(self, *args):
        """Nothing on stderr."""

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        for pattern, route in ROUTES.items():
            if found := re.fullmatch(pattern.format(repo=r"(?P<repo>[^/]+(?:/[^/]+)?)"), path):
                return self.find(route, found.groupdict())
        return self.refuse(404, "EntryNotFound")

    def find(self, route: Callable, parts: dict[str, str | None]) -> None:
        repo = parts.get("repo") or ""
        if repo in MOVED:
            return self.send(307, headers={"Location": self.path.replace(repo, MOVED[repo], 1)})
        folder = self.server.root / (parts.get("kind") or "models").strip("/") / repo
        return route(self, folder, parts.get("rest") or "") if folder.is_dir() else self.refuse(404, "RepoNotFound")

    def send(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, data) -> None:
        self.send(200, json.dumps(data).encode(), headers={"Content-Type": "application/json"})

    def refuse(self, status: int, code: str = "", **headers: str) -> None:
        self.send(status, headers={"X-Error-Code": code} | headers)

    def info(self, folder: Path, rest: str) -> None:
        siblings = [{"rfilename": name} for name in _files(folder)]
        name = folder.relative_to(folder.parent.parent).as_posix()
        self.send_json({"id": name, "sha": _revision(folder), "private": False, "tags": [], "siblings": siblings})

    def tree(self, folder: Path, rest: str) -> None:
        """List a folder; all that lies in it with ``recursive``."""
        recursive = "recursive=true" in self.path.lower()
        paths = _inside(folder, rest).glob("**/*" if recursive else "*")
        self.send_json([_entry(folder, path) for path in sorted(paths)])

    def paths_info(self, folder: Path, rest: str) -> None:
        form = self.headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded")
        names = (parse_qs(self.body.decode()) if form else json.loads(self.body)).get("paths", [])
        paths = [_inside(folder, name) for name in names]
        self.send_json([_entry(folder, path) for path in paths if path.exists()])

    def resolve(self, folder: Path, rest: str) -> None:
        """Send a file, or the range of it that is asked for."""
        path = _inside(folder, rest)
        headers = {"X-Repo-Commit": _revision(folder)}
        if not path.is_file():
            return self.refuse(404, "EntryNotFound", **headers)
        content = path.read_bytes()
        headers |= {"ETag": f'"{_sha256(path)}"', "Accept-Ranges": "bytes"}
        if self.command == "HEAD" or "Range" not in self.headers:
            return self.send(200, content, headers=headers)
        start, end = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"]).groups()
        part = content[int(start) : int(end) + 1 if end else None]
        headers["Content-Range"] = f"bytes {start}-{int(start) + len(part) - 1}/{len(content)}"
        return self.send(206, part, headers=headers)

    def who_am_i(self, folder: Path, rest: str) -> None:
        self.send_json({"type": "user", "name": "reader", "orgs": [], "auth": {"type": "access_token"}})

    def create(self, folder: Path, rest: str) -> None:
        wanted = json.loads(self.body)
        name = f"{wanted.get('organization') or 'reader'}/{wanted['name']}"
        (self.server.root / f"{wanted.get('type') or 'model'}s" / name).mkdir(parents=True, exist_ok=True)
        self.send_json({"url": f"{self.server.endpoint}/{name}"})

    def validate(self, folder: Path, rest: str) -> None:
        self.send_json({"errors": [], "warnings": []})

    def preupload(self, folder: Path, rest: str) -> None:
        files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                 for file in json.loads(self.body)["files"]]  # fmt: skip
        self.send_json({"files": files})

    def commit(self, folder: Path, rest: str) -> None:
        """Write the files of a commit, each a line of JSON."""
        for line in map(json.loads, self.body.splitlines()):
            if line["key"] == "file":
                path = _inside(folder, line["value"]["path"])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(line["value"]["content"]))
        name, revision = folder.relative_to(folder.parent.parent).as_posix(), _revision(folder)
        self.send_json({"commitOid": revision, "commitUrl": f"{self.server.endpoint}/{name}/commit/{revision}"})


_API = "/api/(?P<kind>models|datasets)/{repo}"
ROUTES = {
    "/api/whoami-v2": HubHandler.who_am_i,
    "/api/repos/create": HubHandler.create,
    "/api/validate-yaml": HubHandler.validate,
    _API + "/tree/[^/]+(?:/(?P<rest>.*))?": HubHandler.tree,
    _API + "/paths-info/[^/]+": HubHandler.paths_info,
    _API + "/preupload/[^/]+": HubHandler.preupload,
    _API + "/commit/[^/]+": HubHandler.commit,
    _API + "(?:/revision/[^/]+)?": HubHandler.info,
    "/(?P<kind>datasets/)?{repo}/resolve/[^/]+/(?P<rest>.+)": HubHandler.resolve,
}


def _inside(folder: Path, name: str) -> Path:
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise PermissionError(f"{name} is outside of {folder}.")
    return folder / name


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _entry(folder: Path, path: Path) -> dict:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40}
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": _sha256(path)[:40]}


def _sha256(path: Path) -> str:
    return _hash(path, path.stat().st_mtime_ns)


@lru_cache
def _hash(path: Path, changed: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _revision(folder: Path) -> str:
    """Return a commit that changes with the files."""
    state = "".join(f"{name} {_sha256(folder / name)}\n" for name in _files(folder))
    return hashlib.sha1(state.encode()).hexdigest()
