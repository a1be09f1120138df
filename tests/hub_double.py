"""A stand-in of the Hub's HTTP API on loopback, for tests: create, commit, LFS, info, resolve, tree. Standard library.

Data sets and Spaces are kept under "datasets/owner/name" and "spaces/owner/name".
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class HubDouble(ThreadingHTTPServer):
    """Repositories in memory; `url` is what HF_ENDPOINT should be. `repos` has the files of each main branch, `other` those
    of (repository, branch), `commits` the repositories in the order of their commits.

    `faults` are [method, part of the path, what, how often]: a status in place of an answer, "cut" (the connection ends
    before the request is carried out), "lost" (it is carried out, and the connection ends before the answer) or "garbled"
    (a byte of the file that is sent or received is another).
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, set[str]] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.other: dict[tuple[str, str], dict[str, bytes]] = {}
        self.snapshots: dict[str, dict[str, bytes]] = {}
        self.faults: list[list[Any]] = []
        self.public: set[str] = set()
        self.sent: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.tokens_seen: set[str] = set()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> HubDouble:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.server_close()

    def sha(self, repo: str, revision: str = "main") -> str:
        """The commit that a branch is at, and that it stays at."""
        files = self.files(repo, revision)
        content = "".join(f"{name}{hashlib.sha1(data).hexdigest()}" for name, data in sorted(files.items()))
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.snapshots[sha] = files
        return sha

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        revision = self.tags.get(repo, {}).get(revision, revision)
        if revision in self.snapshots:
            return self.snapshots[revision]
        return self.other.get((repo, revision), self.repos[repo])

    def commit(self, repo: str, revision: str, files: dict[str, bytes]) -> str:
        if revision == "main":
            self.repos[repo] = files
        else:
            self.other[repo, revision] = files
        self.commits.append(repo)
        return self.sha(repo, revision)


def oid(data: bytes, lfs: bool) -> str:
    """As git knows a file, or LFS."""
    return (hashlib.sha256(data) if lfs else hashlib.sha1(b"blob %d\0" % len(data) + data)).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: HubDouble
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def parse_request(self) -> bool:
        """Faults come before everything else."""
        self.lost = self.garbled = False
        if not super().parse_request():
            return False
        self.server.tokens_seen.add(self.headers.get("authorization", ""))
        for fault in self.server.faults:
            method, part, what, left = fault
            if left and method == self.command and part in self.path:
                fault[3] -= 1
                if what in ("lost", "garbled"):
                    self.lost, self.garbled = what == "lost", what == "garbled"
                    return True
                self.body()
                if what == "cut":
                    self.connection.shutdown(2)
                    self.close_connection = True
                else:
                    self.answer({"error": "no"}, what)
                return False
        return True

    def answer(self, body: Any = b"", status: int = 200, **headers: str) -> None:
        if self.lost:
            self.connection.shutdown(2)
            self.close_connection = True
            return
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.get("Content_Length", str(len(data))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def passed(self, data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1]) if self.garbled else data

    @staticmethod
    def repo(match: re.Match[str]) -> str:
        kind, name = match.groups()[:2]
        return name if kind == "models" else f"{kind}/{name}"

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        path, data, hub = self.path.split("?")[0], self.body(), self.server
        if path == "/api/repos/create":
            given = json.loads(data)
            name = f"{given.get('organization') or 'user'}/{given['name']}"
            kind = given.get("type", "model")
            repo = name if kind == "model" else f"{kind}s/{name}"
            known = repo in hub.repos
            hub.repos.setdefault(repo, {})
            hub.branches.setdefault(repo, {"main"})
            if not known and given.get("visibility") != "private":
                hub.public.add(repo)
            self.answer({"url": f"{hub.url}/{repo}", "name": name}, 409 if known else 200)
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/branch/(.+)", path):
            hub.branches[self.repo(match)].add(match.group(3))
            hub.other[self.repo(match), match.group(3)] = dict(hub.repos[self.repo(match)])
            self.answer({})
        elif match := re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/tag/(.+)", path):
            hub.tags.setdefault(self.repo(match), {})[json.loads(data)["tag"]] = match.group(3)
            self.answer({})
        elif (
            match := re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/(?:preupload|commit)/(.+)", path)
        ) and (match.group(3) not in hub.branches.get(self.repo(match), ())):
            self.answer({"error": "none"}, 404, X_Error_Code="RevisionNotFound")
        elif match := re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/preupload/(.+)", path):
            there = hub.files(self.repo(match), match.group(3))
            files = []
            for name in (f["path"] for f in json.loads(data)["files"]):
                lfs = name.endswith((".safetensors", ".arrow", ".gz", ".gguf", ".onnx"))
                mode = {"path": name, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
                files.append({**mode, **({"oid": oid(there[name], lfs)} if name in there else {})})
            self.answer({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{hub.url}/lfs/{o['oid']}?signature=hidden"}}}
                if o["oid"] not in hub.objects
                else o
                for o in json.loads(data)["objects"]
            ]
            self.answer({"objects": objects, "transfer": "basic"}, Content_Type="application/vnd.git-lfs+json")
        elif match := re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/commit/(.+)", path):
            repo = self.repo(match)
            staged = dict(hub.files(repo, match.group(3)))
            for line in filter(None, data.split(b"\n")):
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "file":
                    staged[value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    staged[value["path"]] = hub.objects[value["oid"]]
                elif item["key"] == "deletedFile":
                    if value["path"] not in staged:
                        self.answer({"error": "A file with this name doesn't exist"}, 404, X_Error_Code="EntryNotFound")
                        return
                    del staged[value["path"]]
            sha = hub.commit(repo, match.group(3), staged)
            self.answer({"commitOid": sha, "commitUrl": f"{hub.url}/{repo}/commit/{sha}", "success": True})
        else:
            self.answer({"error": path}, 404)

    def do_PUT(self) -> None:
        data, digest = self.body(), self.path.split("?")[0].rsplit("/", 1)[1]
        self.server.sent.append(digest)
        if hashlib.sha256(self.passed(data)).hexdigest() != digest:
            return self.answer({"error": "digest"}, 422)
        self.server.objects[digest] = data
        return self.answer()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, hub = self.path.split("?")[0], self.server
        if match := re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/refs", path):
            repo = self.repo(match)
            refs = {
                "branches": {name: hub.sha(repo, name) for name in hub.branches.get(repo, ())},
                "tags": hub.tags.get(repo, {}),
            }
            kinds = {
                kind: [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": sha} for n, sha in names.items()]
                for kind, names in refs.items()
            }
            return self.answer({**kinds, "converts": []})
        if match := re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(/revision/.+)?", path):
            repo = self.repo(match)
            if repo not in hub.repos:
                return self.answer({"error": "none"}, 404, X_Error_Code="RepoNotFound")
            revision = (match.group(3) or "/revision/main").removeprefix("/revision/")
            names = [{"rfilename": name} for name in sorted(hub.files(repo, revision))]
            sha = revision if revision in hub.snapshots else hub.sha(repo, revision)
            name, private = match.group(2), repo not in hub.public
            return self.answer({"id": name, "modelId": name, "sha": sha, "siblings": names, "private": private, "tags": [], "downloads": 0, "likes": 0})  # fmt: skip
        if match := re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/tree/(.+)", path):
            files = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in sorted(hub.files(self.repo(match), match.group(3)).items())
            ]
            return self.answer(files)
        if match := re.fullmatch(r"/((?:datasets/|spaces/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo, revision, name = match.groups()
            if repo not in hub.repos:
                return self.answer(b"", 404, X_Error_Code="RepoNotFound")
            files = hub.files(repo, revision)
            sha = revision if revision in hub.snapshots else hub.sha(repo, revision)
            if name not in files:
                return self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
            data = self.passed(files[name])
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            return self.answer(data, X_Repo_Commit=sha, ETag=etag, Content_Length=str(len(data)))
        return self.answer({"error": path}, 404)
