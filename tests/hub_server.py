"""A Hub on loopback: what the real `huggingface_hub` client asks for, answered from memory.

Repositories with branches, private ones, tokens, regular and LFS uploads (in one part or several), commits as ndjson,
trees, and downloads with etags, redirects and ranges. What a hostile or broken server does is asked of it by `cut`,
`headers` and `served`. Written after the client's source, the public API and the git-lfs batch specification.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub

LFS_SUFFIXES = (".safetensors", ".png", ".bin")
TOKENS = {"hf_" + "a" * 34: "alice", "hf_" + "b" * 34: "bob"}
ALICE, BOB = TOKENS


@dataclass(frozen=True)
class Stored:
    """A file of a commit."""

    content: bytes
    lfs: bool

    @property
    def git_oid(self) -> str:
        held = self.content
        if self.lfs:
            held = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (
                self.sha256.encode(),
                len(self.content),
            )
        return hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass
class Repository:
    """Branches, commits and files."""

    private: bool = False
    commits: dict[str, dict[str, Stored]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, Stored]) -> str:
        told = json.dumps([len(self.commits), branch, sorted((name, file.git_oid) for name, file in files.items())])
        sha = hashlib.sha1(told.encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, Stored]] | None:
        sha = self.branches.get(revision, revision)
        return (sha, self.commits[sha]) if sha in self.commits else None


class HubServer:
    """The server; `with HubServer() as hub:` starts and ends it.

    Attributes:
        url (`str`): Its endpoint.
        repositories (`dict[str, Repository]`): By id.
        requests (`list[tuple[str, str]]`): Methods and paths, in order.
        uploads (`list[bytes]`): Bodies of everything that clients sent.
        part_size (`int`, *optional*): LFS files above are uploaded in parts of so many bytes.
        cut (`dict[str, list[int]]`): For a file's name, after how many bytes each next download of it is cut off.
        headers (`dict[str, dict[str, str]]`): For a file's name, headers in the place of the right ones.
        served (`dict[str, bytes]`): For a file's name, what is sent in the place of its content.
        ranges (`list[str]`): Ranges that downloads asked for.
        authorized_store (`list[bool]`): For each download of a large file, whether the token came along.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.uploads: list[bytes] = []
        self.lfs: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.part_size: int | None = None
        self.cut: dict[str, list[int]] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.served: dict[str, bytes] = {}
        self.ranges: list[str] = []
        self.authorized_store: list[bool] = []
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Return what a revision of a repository holds."""
        found = self.repositories[repo_id].at(revision)
        assert found is not None, f"no revision {revision}"
        return {name: file.content for name, file in found[1].items()}

    def everything(self) -> bytes:
        """Return all that clients ever sent: bodies as they came, and the files in them."""
        stored = [
            file.content
            for repository in self.repositories.values()
            for files in repository.commits.values()
            for file in files.values()
        ]
        return b"\n".join([*self.uploads, *stored, *self.lfs.values()])

    def put(self, repo_id: str, files: dict[str, bytes], *, private: bool = False, branch: str = "main") -> str:
        """Commit files without a client, as anybody with any other tool could have."""
        repository = self.repositories.setdefault(repo_id, Repository(private=private))
        sha = repository.branches.get(branch, repository.branches.get("main"))
        stored = dict(repository.commits[sha]) if sha is not None else {}
        stored |= {name: Stored(content, name.endswith(LFS_SUFFIXES)) for name, content in files.items()}
        return repository.commit(branch, stored)

    @contextmanager
    def connected(self, *, token: str | None = ALICE, cache: Path | None = None) -> Iterator[None]:
        """Have the client of this process talk to this server, and to nothing else."""
        constants = huggingface_hub.constants
        here = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_TOKEN_PATH": os.devnull,
            **({} if cache is None else {"HF_HUB_CACHE": str(cache)}),
        }
        with (
            patch.multiple(constants, **here),
            patch.dict(os.environ),
            patch.object(huggingface_hub.hf_api.api, "endpoint", self.url),
        ):
            for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
                os.environ.pop(name, None)
            if token is not None:
                os.environ["HF_TOKEN"] = token
            yield

    def environment(self, *, token: str | None = ALICE, home: Path) -> dict[str, str]:
        """Return the environment of another process that talks to this server."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        mine = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **({} if token is None else {"HF_TOKEN": token}),
        }
        return {**kept, **mine}


class _Refusal(Exception):
    def __init__(self, status: int, code: str | None, message: str, body: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.body = status, code, message, body


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        parts = urlsplit(self.path)
        path, self.query = parts.path, parse_qs(parts.query)
        self.body = self._read()
        with self.hub.lock:
            self.hub.requests.append((method, path))
            if self.body:
                self.hub.uploads.append(self.body)
        try:
            for way, pattern, name in _ROUTES:
                match = re.fullmatch(pattern, path)
                if match and (way == method or (way == "GET" and method == "HEAD")):
                    with self.hub.lock:
                        reply = getattr(self, name)(*map(unquote, match.groups()))
                    if reply is not None:
                        self._json(200, reply)
                    return
            raise _Refusal(404, None, f"no route {method} {path}")
        except _Refusal as refusal:
            headers = {"X-Error-Message": refusal.message}
            if refusal.code is not None:
                headers["X-Error-Code"] = refusal.code
            self._json(refusal.status, refusal.body or {"error": refusal.message}, headers)
        except BrokenPipeError:
            self.close_connection = True

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _user(self) -> str | None:
        given = self.headers.get("Authorization", "")
        if not given:
            return None
        user = TOKENS.get(given.removeprefix("Bearer "))
        if user is None:
            raise _Refusal(401, None, "Invalid credentials in Authorization header")
        return user

    def _repository(self, repo_id: str, *, write: bool = False) -> Repository:
        user = self._user()
        repository = self.hub.repositories.get(repo_id)
        mine = repo_id.partition("/")[0] == user
        if repository is None or (repository.private and not mine):
            raise _Refusal(401 if user is None else 404, "RepoNotFound", "Repository not found")
        if write and not mine:
            raise _Refusal(401 if user is None else 403, None, "You do not have write access to this repository")
        return repository

    def _at(self, repo_id: str, revision: str) -> tuple[str, dict[str, Stored]]:
        found = self._repository(repo_id).at(revision)
        if found is None:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def whoami(self) -> Any:
        user = self._user()
        if user is None:
            raise _Refusal(401, None, "Invalid username or password.")
        return {"type": "user", "name": user, "orgs": []}

    def create(self) -> Any:
        user = self._user()
        if user is None:
            raise _Refusal(401, None, "Invalid username or password.")
        asked = json.loads(self.body)
        owner = asked.get("organization") or user
        repo_id = f"{owner}/{asked['name']}"
        if owner != user:
            raise _Refusal(403, None, f"You don't have the rights to create a model under the namespace {owner!r}")
        url = f"{self.hub.url}/{repo_id}"
        if repo_id in self.hub.repositories:
            raise _Refusal(409, None, "You already created this model repo", {"url": url, "error": "exists"})
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.repositories[repo_id] = Repository(private=private)
        self.hub.repositories[repo_id].commit("main", {".gitattributes": Stored(b"*.safetensors filter=lfs\n", False)})
        return {"url": url, "name": repo_id, "id": repo_id}

    def branch(self, repo_id: str, branch: str) -> Any:
        repository = self._repository(repo_id, write=True)
        if branch in repository.branches:
            raise _Refusal(409, None, f"Reference already exists: {branch}")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        repository.branches[branch] = repository.branches.get(start, start)
        return {}

    def validate_yaml(self) -> Any:
        return {"errors": [], "warnings": []}

    def preupload(self, repo_id: str, revision: str) -> Any:
        held = self._at(repo_id, revision)[1]
        self._repository(repo_id, write=True)
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) or file["size"] > 10_000_000 else "regular",
                "shouldIgnore": False,
                "oid": (held[file["path"]].sha256 if held[file["path"]].lfs else held[file["path"]].git_oid)
                if file["path"] in held
                else None,
            }
            for file in json.loads(self.body)["files"]
        ]
        return {"files": files, "commitOid": self._at(repo_id, revision)[0]}

    def lfs_batch(self, repo_id: str) -> Any:
        self._repository(repo_id, write=True)
        objects = []
        for one in json.loads(self.body)["objects"]:
            oid, size = one["oid"], one["size"]
            told: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.hub.lfs:
                upload: dict[str, Any] = {"href": f"{self.hub.url}/lfs/{oid}"}
                if self.hub.part_size is not None and size > self.hub.part_size:
                    count = -(-size // self.hub.part_size)
                    upload["header"] = {
                        "chunk_size": str(self.hub.part_size),
                        **{str(n + 1): f"{self.hub.url}/lfs/{oid}/{n + 1}" for n in range(count)},
                    }
                told["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs-verify"}}
            objects.append(told)
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refusal(400, None, "content does not have this oid")
        self.hub.lfs[oid] = self.body
        return {}

    def lfs_part(self, oid: str, number: str) -> None:
        self.hub.parts.setdefault(oid, {})[int(number)] = self.body
        self.send_response(200)
        self.send_header("ETag", f'"{number}"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def lfs_complete(self, oid: str) -> Any:
        listed = [part["partNumber"] for part in json.loads(self.body)["parts"]]
        self.body = b"".join(self.hub.parts[oid][number] for number in listed)
        return self.lfs_put(oid)

    def lfs_verify(self) -> Any:
        asked = json.loads(self.body)
        if len(self.hub.lfs.get(asked["oid"], b"")) != asked["size"]:
            raise _Refusal(404, None, "no such object of that size")
        return {}

    def commit(self, repo_id: str, revision: str) -> Any:
        repository = self._repository(repo_id, write=True)
        parent, held = self._at(repo_id, revision)
        files = dict(held)
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = Stored(base64.b64decode(value["content"]), False)
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    raise _Refusal(400, None, f"LFS pointer to an object that was not uploaded: {value['oid']}")
                files[value["path"]] = Stored(self.hub.lfs[value["oid"]], True)
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        branch = revision
        opened = "create_pr" in self.query
        if opened:
            branch = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in repository.branches)}"
        sha = repository.commit(branch, files)
        assert sha != parent
        reply = {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}"}
        if opened:
            reply["pullRequestUrl"] = f"{self.hub.url}/{repo_id}/discussions/{branch.rpartition('/')[2]}"
        return reply

    def info(self, repo_id: str, revision: str = "main") -> Any:
        sha, files = self._at(repo_id, revision)
        return {
            "_id": "0",
            "id": repo_id,
            "modelId": repo_id,
            "sha": sha,
            "private": self._repository(repo_id).private,
            "siblings": [{"rfilename": name} for name in sorted(files)],
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }

    def tree(self, repo_id: str, revision: str, folder: str = "") -> Any:
        _, files = self._at(repo_id, revision)
        return [self._entry(name, file) for name, file in sorted(files.items()) if name.startswith(folder)]

    def paths_info(self, repo_id: str, revision: str) -> Any:
        _, files = self._at(repo_id, revision)
        if self.body.startswith(b"{"):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode()).get("paths", [])
        return [self._entry(name, files[name]) for name in paths if name in files]

    def _entry(self, name: str, file: Stored) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(file.content), "oid": file.git_oid}
        if file.lfs:
            entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 130}
        return entry

    def resolve(self, repo_id: str, revision: str, name: str) -> None:
        sha, files = self._at(repo_id, revision)
        if name not in files:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        file = files[name]
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if not file.lfs:
            headers["ETag"] = f'"{file.git_oid}"'
            self._send(name, file.content, {**headers, **self.hub.headers.get(name, {})})
            return
        headers |= {
            "X-Linked-Etag": f'"{file.sha256}"',
            "X-Linked-Size": str(len(file.content)),
            # Another host by name: of what is on its own, the client takes the metadata again.
            "Location": f"{self.hub.url.replace('127.0.0.1', 'localhost')}/cdn/{name}?oid={file.sha256}",
            **self.hub.headers.get(name, {}),
        }
        self.hub.lfs[file.sha256] = file.content
        self.send_response(302)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def cdn(self, name: str) -> None:
        content = self.hub.lfs[self.query["oid"][0]]
        self.hub.authorized_store.append("Authorization" in self.headers)
        self._send(name, content, {"ETag": '"of-the-store"', "Accept-Ranges": "bytes"})

    def _send(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        """Send a file or the range of it that is asked for, cut off where the test wants it."""
        content = self.hub.served.get(name, content)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        status, start = 200, 0
        if wanted and self.command == "GET":
            self.hub.ranges.append(self.headers["Range"])
            start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
            if start >= len(content):
                raise _Refusal(416, None, "Range not satisfiable")
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            status, content = 206, content[start : end + 1]
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts = self.hub.cut.get(name, [])
        if cuts and cuts[0] < len(content):
            self.wfile.write(content[: cuts.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(content)


_ID, _REV = r"([\w.-]+/[\w.-]+)", r"([^/]+)"
_ROUTES = [
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("POST", f"/api/models/{_ID}/branch/{_REV}", "branch"),
    ("POST", f"/api/models/{_ID}/preupload/{_REV}", "preupload"),
    ("POST", f"/api/models/{_ID}/commit/{_REV}", "commit"),
    ("POST", f"/api/models/{_ID}/paths-info/{_REV}", "paths_info"),
    ("POST", f"/{_ID}\\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(\w+)", "lfs_put"),
    ("PUT", r"/lfs/(\w+)/(\d+)", "lfs_part"),
    ("POST", r"/lfs/(\w+)", "lfs_complete"),
    ("POST", "/lfs-verify", "lfs_verify"),
    ("GET", f"/api/models/{_ID}", "info"),
    ("GET", f"/api/models/{_ID}/revision/{_REV}", "info"),
    ("GET", f"/api/models/{_ID}/tree/{_REV}", "tree"),
    ("GET", f"/api/models/{_ID}/tree/{_REV}/(.+)", "tree"),
    ("GET", f"/{_ID}/resolve/{_REV}/(.+)", "resolve"),
    ("GET", "/cdn/(.+)", "cdn"),
]
