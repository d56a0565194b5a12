"""A model hub on this machine: as much of the Hugging Face protocol as a download of a snapshot needs."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass
class Repo:
    """tags: name -> commit. gated: whether files are refused because terms were not accepted; their listing never is."""

    files: dict[str, bytes]
    commit: str = "c0ffee" + 34 * "0"
    tags: dict[str, str] = field(default_factory=dict)
    gated: bool = False


@contextmanager
def serve(repos: dict[str, Repo]) -> Iterator[str]:
    """Serves the repositories until the block ends. Gives the value for HF_ENDPOINT."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(repos))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(repos: dict[str, Repo]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = _answer(repos, self.path)
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Keeps the test's output clean."""

    return Handler


def _answer(repos: dict[str, Repo], url: str) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) for /api/models/OWNER/NAME/{revision,tree}/REV and /OWNER/NAME/resolve/REV/FILE."""
    parts = url.partition("?")[0].strip("/").split("/")
    is_api = parts[:2] == ["api", "models"]
    owner, name, kind, revision, *rest = parts[2:] if is_api else parts
    repo = repos.get(f"{owner}/{name}")
    if repo is None:
        return 404, {"X-Error-Code": "RepoNotFound"}, b""
    if repo.tags.get(revision, revision) != repo.commit:
        return 404, {"X-Error-Code": "RevisionNotFound"}, b""
    if kind == "revision":
        return _json({"id": f"{owner}/{name}", "sha": repo.commit, "siblings": [{"rfilename": file} for file in repo.files]})
    if kind == "tree":
        return _json(
            [{"type": "file", "path": path, "size": len(body), "oid": sha1(body).hexdigest()} for path, body in repo.files.items()]
        )
    if repo.gated:
        return 403, {"X-Error-Code": "GatedRepo"}, b""
    body = repo.files["/".join(rest)]
    return 200, {"ETag": f'"{sha1(body).hexdigest()}"', "X-Repo-Commit": repo.commit}, body


def _json(content: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()
