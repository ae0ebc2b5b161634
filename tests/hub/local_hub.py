"""A hub on this machine: the endpoints of the Hugging Face hub that its client uses for models, in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_of_the_owner"


@dataclass
class Repository:
    """Files by commit, and the commit of each branch."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    stated_sizes: dict[str, int] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        digest = hashlib.sha1(repr((sorted(files), len(self.commits))).encode()).hexdigest()
        self.commits[digest] = files
        self.branches[branch] = digest
        return digest


class LocalHub:
    """The server. ``requests`` are the method and path of each request."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, name: str, files: dict[str, bytes], **options: Any) -> Repository:
        self.repositories[name] = Repository(**options)
        self.repositories[name].commit(files)
        return self.repositories[name]


class _RefusedError(Exception):
    def __init__(self, status: int, code: str = "", name: str = "") -> None:
        self.status, self.code, self.name = status, code, name


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(self._read)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(self._write)

    do_PUT = do_POST

    def _answer(self, handle: Any) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(self.path.partition("?")[0])
        self.hub.requests.append(f"{self.command} {path}")
        try:
            status, content, headers = 200, *handle(path)
        except _RefusedError as refused:
            status, headers = refused.status, {"X-Error-Code": refused.code}
            content = {"url": f"{self.hub.url}/{refused.name}"}
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json"} | headers
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _is_owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _files(self, name: str, revision: str, *, content: bool) -> tuple[Repository, str, dict[str, bytes]]:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._is_owner()):
            raise _RefusedError(401, "RepoNotFound")
        if content and repository.gated and not self._is_owner():
            raise _RefusedError(403, "GatedRepo")
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            raise _RefusedError(404, "RevisionNotFound")
        return repository, commit, repository.commits[commit]

    def _read(self, path: str) -> tuple[Any, dict[str, str]]:
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            repository, commit, files = self._files(match[1], match[2] or "main", content=False)
            siblings = [
                {"rfilename": name, "size": repository.stated_sizes.get(name, len(content))}
                for name, content in files.items()
            ]
            return {"id": match[1], "sha": commit, "siblings": siblings, "private": repository.private}, {}
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", path):
            _, _, files = self._files(match[1], match[2], content=False)
            return [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ], {}
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            _, commit, files = self._files(match[1], match[2], content=True)
            if match[3] not in files:
                raise _RefusedError(404, "EntryNotFound")
            content = files[match[3]]
            return content, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        if path == "/":
            return b"", {}
        raise _RefusedError(404)

    def _write(self, path: str) -> tuple[Any, dict[str, str]]:
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}, {}
        if match := re.fullmatch(r"/large/(\w+)", path):
            assert hashlib.sha256(self.body).hexdigest() == match[1]
            self.hub.large[match[1]] = self.body
            return {}, {}
        if not self._is_owner():
            raise _RefusedError(401)
        if path == "/api/repos/create":
            told = json.loads(self.body)
            name = f"{told['organization']}/{told['name']}" if told.get("organization") else told["name"]
            if name in self.hub.repositories:
                raise _RefusedError(409, name=name)
            self.hub.add(name, {}, private=bool(told.get("private")) or told.get("visibility") == "private")
            return {"url": f"{self.hub.url}/{name}"}, {}
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            repository = self.hub.repositories[match[1]]
            if match[2] in repository.branches:
                raise _RefusedError(409, name=match[1])
            repository.branches[match[2]] = repository.branches["main"]
            return {"url": f"{self.hub.url}/{match[1]}"}, {}
        if re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            told = json.loads(self.body)["files"]
            return {
                "files": [
                    {
                        "path": each["path"],
                        "uploadMode": "lfs" if each["path"].endswith((".safetensors", ".jpg")) else "regular",
                        "shouldIgnore": False,
                        "oid": None,
                    }
                    for each in told
                ]
            }, {}
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                each | {"actions": {"upload": {"href": f"{self.hub.url}/large/{each['oid']}"}}}
                for each in json.loads(self.body)["objects"]
            ]
            return {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"}
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            repository = self.hub.repositories[match[1]]
            files = dict(repository.commits[repository.branches[match[2]]])
            for line in self.body.splitlines():
                told = json.loads(line)
                value = told["value"]
                if told["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif told["key"] == "lfsFile":
                    files[value["path"]] = self.hub.large[value["oid"]]
                elif told["key"] == "deletedFile":
                    del files[value["path"]]
            commit = repository.commit(files, match[2])
            return {"commitOid": commit, "commitUrl": f"{self.hub.url}/{match[1]}/commit/{commit}"}, {}
        raise _RefusedError(404)
