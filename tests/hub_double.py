"""A stand-in of the Hub's HTTP API on loopback, for tests: create, commit, LFS, info, resolve, tree. Standard library."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class HubDouble(ThreadingHTTPServer):
    """Repositories in memory; `url` is what HF_ENDPOINT should be; `refuse` answers every call with that status, and
    `damage` comes after whatever is committed to a README.md."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, set[str]] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.damage = b""
        self.objects: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.tokens_seen: set[str] = set()
        self.refuse: int | None = None
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> HubDouble:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.server_close()

    def sha(self, repo: str) -> str:
        content = "".join(f"{name}{hashlib.sha1(data).hexdigest()}" for name, data in sorted(self.repos[repo].items()))
        return hashlib.sha1(content.encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: HubDouble
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, body: Any = b"", status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.get("Content_Length", str(len(data))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def refused(self) -> bool:
        self.server.tokens_seen.add(self.headers.get("authorization", ""))
        if self.server.refuse:
            self.body()
            self.answer({"error": "no"}, self.server.refuse)
        return bool(self.server.refuse)

    def do_POST(self) -> None:
        if self.refused():
            return
        path, data, hub = self.path.split("?")[0], self.body(), self.server
        if path == "/api/repos/create":
            given = json.loads(data)
            repo = f"{given.get('organization') or 'user'}/{given['name']}"
            known = repo in hub.repos
            hub.repos.setdefault(repo, {})
            hub.branches.setdefault(repo, {"main"})
            self.answer({"url": f"{hub.url}/{repo}", "name": repo}, 409 if known else 200)
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/(.+)/branch/(.+)", path):
            hub.branches[match.group(1)].add(match.group(2))
            self.answer({})
        elif match := re.fullmatch(r"/api/models/(.+)/tag/(.+)", path):
            hub.tags.setdefault(match.group(1), {})[json.loads(data)["tag"]] = match.group(2)
            self.answer({})
        elif (match := re.fullmatch(r"/api/models/(.+)/(?:preupload|commit)/(.+)", path)) and (
            match.group(2) not in hub.branches.get(match.group(1), ())
        ):
            self.answer({"error": "none"}, 404, X_Error_Code="RevisionNotFound")
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/(.+)", path):
            files = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(data)["files"]
            ]
            self.answer({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {"oid": o["oid"], "size": o["size"], "actions": {"upload": {"href": f"{hub.url}/lfs/{o['oid']}"}}}
                for o in json.loads(data)["objects"]
            ]
            self.answer({"objects": objects, "transfer": "basic"}, Content_Type="application/vnd.git-lfs+json")
        elif match := re.fullmatch(r"/api/models/(.+)/commit/(.+)", path):
            repo = match.group(1)
            staged = dict(hub.repos[repo])
            for line in filter(None, data.split(b"\n")):
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "file":
                    damage = hub.damage if value["path"] == "README.md" else b""
                    staged[value["path"]] = base64.b64decode(value["content"]) + damage
                elif item["key"] == "lfsFile":
                    staged[value["path"]] = hub.objects[value["oid"]]
            hub.repos[repo] = staged
            hub.commits.append(repo)
            sha = hub.sha(repo)
            self.answer({"commitOid": sha, "commitUrl": f"{hub.url}/{repo}/commit/{sha}", "success": True})
        else:
            self.answer({"error": path}, 404)

    def do_PUT(self) -> None:
        data = self.body()
        oid = self.path.rsplit("/", 1)[1]
        if hashlib.sha256(data).hexdigest() != oid:
            return self.answer({"error": "digest"}, 422)
        self.server.objects[oid] = data
        return self.answer()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.refused():
            return
        path, hub = self.path.split("?")[0], self.server
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/refs", path):
            refs = {
                "branches": hub.branches.get(match.group(1), ()),
                "tags": hub.tags.get(match.group(1), ()),
            }
            kinds = {
                kind: [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": ""} for n in names]
                for kind, names in refs.items()
            }
            return self.answer({**kinds, "converts": []})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+)?", path):
            repo = match.group(1)
            if repo not in hub.repos:
                return self.answer({"error": "none"}, 404, X_Error_Code="RepoNotFound")
            names = [{"rfilename": name} for name in sorted(hub.repos[repo])]
            return self.answer({"id": repo, "modelId": repo, "sha": hub.sha(repo), "siblings": names, "private": False, "tags": [], "downloads": 0, "likes": 0})  # fmt: skip
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/.+", path):
            files = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in sorted(hub.repos.get(match.group(1), {}).items())
            ]
            return self.answer(files)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            repo, name = match.groups()
            if repo not in hub.repos:
                return self.answer(b"", 404, X_Error_Code="RepoNotFound")
            if name not in hub.repos[repo]:
                return self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=hub.sha(repo))
            data = hub.repos[repo][name]
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            return self.answer(data, X_Repo_Commit=hub.sha(repo), ETag=etag, Content_Length=str(len(data)))
        return self.answer({"error": path}, 404)
