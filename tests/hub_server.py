"""A server on this machine that answers what huggingface_hub asks of the Hugging Face Hub."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_right"
NOT_YOURS = "hf_reader"  # a token that may only read


@dataclass
class Repository:
    """Commits, the last one last: files by name; and who can see it."""

    commits: list[dict[str, bytes]]
    private: bool = False
    gated: bool = False

    @property
    def sha(self) -> str:
        return f"{len(self.commits):040x}"


@dataclass
class Hub:
    """What the server knows.

    Attributes
    ----------
    storage
        The address of large files. As for the Hub, it is another host.
    large
        Whether it wants files of weights by Git LFS, as the Hub does, or within the commit.
    broken
        Whether it answers 500 to everything.
    """

    address: str = ""
    storage: str = ""
    large: bool = True
    broken: bool = False
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve an empty Hub as long as the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_Answers,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    hub.storage = hub.address.replace("127.0.0.1", "localhost")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self._read()
        if self.hub.broken:
            self._send(500, {"error": "broken"})
            return
        for pattern, method in ROUTES.items():
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                method(self, *found.groups())
                return
        self._send(404, {"error": f"the test server does not know {self.command} {path}"})

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, status: int, content: object = None, **headers: object) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _may_write(self) -> bool:
        if self.token == TOKEN:
            return True
        if self.token == NOT_YOURS:
            self._send(403, {"error": "this token is for reading"})
        else:
            message = "Invalid credentials in Authorization header" if self.token else "Invalid username"
            self._send(401, {"error": message}, X_Error_Message=message)
        return False

    def _found(self, repo_id: str) -> Repository | None:
        """Return a repository, or answer as the Hub does: those that one may not see do not exist."""
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and self.token not in (TOKEN, NOT_YOURS)):
            self._send(404 if self.token else 401, {"error": "not found"}, X_Error_Code="RepoNotFound")
            return None
        return repository

    def create(self) -> None:
        if not self._may_write():
            return
        wanted = json.loads(self.body)
        name = f"{wanted['organization'] or 'me'}/{wanted['name']}"
        there = name in self.hub.repositories
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.repositories.setdefault(name, Repository([{".gitattributes": b""}], private))
        self._send(409 if there else 200, {"url": f"{self.hub.address}/{name}"})

    def check_card(self) -> None:
        content = json.loads(self.body)["content"]
        fine = content.startswith("---\n")
        errors = [] if fine else [{"message": "no metadata"}]
        self._send(200 if fine else 400, {"errors": errors, "warnings": []})

    def describe(self, repo_id: str) -> None:
        if repository := self._found(repo_id):
            about = {"id": repo_id, "private": repository.private, "sha": repository.sha, "tags": []}
            self._send(200, {**about, "siblings": [{"rfilename": name} for name in repository.commits[-1]]})

    def list_files(self, repo_id: str) -> None:
        if repository := self._found(repo_id):
            files = repository.commits[-1].items()
            listed = [{"type": "file", "path": n, "size": len(c), "oid": _digest(c)} for n, c in files]
            self._send(200, listed)

    def preupload(self, repo_id: str) -> None:
        if self._may_write() and self._found(repo_id):
            names = [file["path"] for file in json.loads(self.body)["files"]]
            modes = {n: "lfs" if self.hub.large and n.endswith(".safetensors") else "regular" for n in names}
            self._send(
                200,
                {"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]},
            )

    def batch(self, repo_id: str) -> None:
        if self._may_write() and self._found(repo_id):
            objects = json.loads(self.body)["objects"]
            for wanted in objects:
                wanted["actions"] = {"upload": {"href": f"{self.hub.storage}/objects/{wanted['oid']}"}}
            self._send(200, {"transfer": "basic", "objects": objects})

    def store(self, digest: str) -> None:
        fine = _digest(self.body) == digest
        if fine:
            self.hub.objects[digest] = self.body
        self._send(200 if fine else 400, {})

    def commit(self, repo_id: str) -> None:
        repository = self._found(repo_id) if self._may_write() else None
        if repository is None:
            return
        files = dict(repository.commits[-1])
        for line in self.body.splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif step["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif step["key"] == "deletedFile":
                del files[value["path"]]
        repository.commits.append(files)
        address = f"{self.hub.address}/{repo_id}/commit/{repository.sha}"
        self._send(200, {"success": True, "commitOid": repository.sha, "commitUrl": address})

    def resolve(self, repo_id: str, revision: str, name: str) -> None:
        repository = self._found(repo_id)
        if repository is None:
            return
        if repository.gated:
            self._send(403, {"error": "ask for access"}, X_Error_Code="GatedRepo")
            return
        shas = {f"{i + 1:040x}": files for i, files in enumerate(repository.commits)}
        sha = repository.sha if revision == "main" else revision
        if sha not in shas:
            self._send(404, {"error": "no such revision"}, X_Error_Code="RevisionNotFound")
        elif name not in shas[sha]:
            self._send(404, {"error": "no such file"}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        else:
            content = shas[sha][name]
            digest = _digest(content)
            headers = {"X_Repo_Commit": sha, "ETag": f'"{digest}"'}
            if digest in self.hub.objects:
                where = f"{self.hub.storage}/objects/{digest}"
                headers |= {"Location": where, "X_Linked_ETag": digest, "X_Linked_Size": len(content)}
            self._send(302 if "Location" in headers else 200, content, **headers)

    def fetch(self, digest: str) -> None:
        self._send(200, self.hub.objects[digest], ETag=f'"{digest}"')


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = {
    r"POST /api/repos/create": _Answers.create,
    r"POST /api/validate-yaml": _Answers.check_card,
    rf"GET /api/models/{NAME}(?:/revision/main)?": _Answers.describe,
    rf"GET /api/models/{NAME}/tree/main": _Answers.list_files,
    rf"POST /api/models/{NAME}/preupload/main": _Answers.preupload,
    rf"POST /{NAME}\.git/info/lfs/objects/batch": _Answers.batch,
    r"PUT /objects/(\w+)": _Answers.store,
    rf"POST /api/models/{NAME}/commit/main": _Answers.commit,
    rf"(?:GET|HEAD) /{NAME}/resolve/(\w+)/(.+)": _Answers.resolve,
    r"(?:GET|HEAD) /objects/(\w+)": _Answers.fetch,
}
