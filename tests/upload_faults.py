"""Uploads to a stand-in of the Hub that fails in many ways; `python upload_faults.py` prints what came of each, a line each.

A process of its own, since HF_ENDPOINT is read when huggingface_hub is imported. Nobody waits: pauses are skipped.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

FILES = {
    "README.md": b"---\nlicense: apache-2.0\n---\n",
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 99,
}
FOR_EVER = 10_000
CREATE, UPLOAD, COMMIT = "/api/repos/create", "/lfs/", "/commit/"
# What happens: the faults of `HubDouble`, options of the upload, and what comes out: files there, commits, a piece of the
# message. A repository that "stands" already holds what is given.
SCENARIOS: dict[str, dict[str, Any]] = {
    "nothing goes wrong": {"faults": [], "ends": "sent"},
    "503 when the repository is made": {"faults": [["POST", CREATE, 503, 2]], "ends": "sent"},
    "500 when the files are announced": {"faults": [["POST", "/preupload/", 500, 2]], "ends": "sent"},
    "503 when the large files are announced": {"faults": [["POST", "/objects/batch", 503, 2]], "ends": "sent"},
    "500 while a large file is sent": {"faults": [["PUT", UPLOAD, 500, 2]], "ends": "sent"},
    "the connection is cut while a large file is sent": {"faults": [["PUT", UPLOAD, "cut", 2]], "ends": "sent"},
    "429, too many requests, at the commit": {"faults": [["POST", COMMIT, 429, 2]], "ends": "sent"},
    "502 at the commit": {"faults": [["POST", COMMIT, 502, 2]], "ends": "sent"},
    "the connection is cut at the commit": {"faults": [["POST", COMMIT, "cut", 2]], "ends": "sent"},
    "the commit is made and its answer lost": {"faults": [["POST", COMMIT, "lost", 1]], "ends": "sent"},
    "503 while it is downloaded again": {"faults": [["GET", "/resolve/", 503, 2]], "ends": "sent"},
    "the connection is cut while it is downloaded again": {"faults": [["GET", "/resolve/", "cut", 2]], "ends": "sent"},
    "500 at the tag": {"faults": [["POST", "/tag/", 500, 2]], "tag": "v1", "ends": "sent"},
    "the same again": {"stands": FILES, "ends": "sent", "commits": 0},
    "other files there, with --replace": {"stands": {"old.bin": b"x"}, "replace": True, "ends": "sent"},
    "a branch": {"revision": "dev", "ends": "sent"},
    "a data set": {"kind": "dataset", "ends": "sent"},
    "a Space": {"kind": "space", "ends": "sent"},
    "other files there": {"stands": {"old.bin": b"x"}, "ends": "holds 1 other files (old.bin)"},
    "503 at the commit for ever": {"faults": [["POST", COMMIT, 503, FOR_EVER]], "ends": "the upload failed"},
    "a large file arrives with another digest": {"faults": [["PUT", UPLOAD, "garbled", FOR_EVER]], "ends": "the upload failed"},
    "an expired token": {"faults": [["POST", CREATE, 401, FOR_EVER]], "ends": "missing, expired or unknown"},
    "a token that may not write": {"faults": [["POST", COMMIT, 403, FOR_EVER]], "ends": "may not do that"},
    "--private, a new repository": {"private": True, "ends": "sent"},
    "other files there, --replace, and the answer lost": {"stands": {"old.bin": b"x"}, "replace": True, "faults": [["POST", COMMIT, "lost", 1]], "ends": "sent"},
    "the tag is made and its answer lost": {"faults": [["POST", "/tag/", "lost", 1]], "tag": "v1", "ends": "sent"},
    "403 at the tag": {"faults": [["POST", "/tag/", 403, 9]], "tag": "v1", "ends": "everything is there, at", "commits": 1},
    "403 at the commit to a new branch": {"faults": [["POST", COMMIT, 403, 9]], "stands": {}, "revision": "dev", "ends": "may not do that", "leaves": "dev"},
    "other files there, and a branch to make": {"stands": {"old.bin": b"x"}, "revision": "dev", "ends": "holds 1 other files"},
    "--private, and the repository is public": {"stands": {}, "private": True, "ends": "exists and is public"},
    "a tag that exists": {"stands": {}, "tag": "v0", "ends": "has one of that name"},
    "a name that is none": {"repo_id": "a/b/c", "ends": "write owner/name"},
    "nobody listens": {"endpoint": "http://127.0.0.1:9", "ends": "the upload failed"},
    "what comes back has another byte": {"faults": [["GET", "/resolve/", "garbled", FOR_EVER]], "ends": "what comes back is not", "commits": 1},
}  # fmt: skip


def main() -> None:
    import time

    import hub_double

    server = hub_double.HubDouble().__enter__()
    home = tempfile.mkdtemp()
    os.environ |= {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_secret", "HF_HOME": home, "HF_HUB_OFFLINE": "0"}
    os.environ |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    time.sleep = lambda seconds: None
    for name, scenario in SCENARIOS.items():
        print(json.dumps({"name": name, **outcome(server, scenario)}), flush=True)


def outcome(server: Any, scenario: dict[str, Any]) -> dict[str, Any]:
    """Uploads once, in a world of its own; what was said, and what stands on the server."""
    import hashlib

    from huggingface_hub import constants, hf_api

    from septet.data.errors import UserError
    from septet.tasks.hub.upload import UploadConfig, check_target, tag, upload

    kind = scenario.get("kind", "model")
    repo = "org/name" if kind == "model" else f"{kind}s/org/name"
    before = scenario.get("stands")
    server.repos, server.branches, server.tags, server.other, server.snapshots = {}, {}, {repo: {"v0": "0"}}, {}, {}
    server.objects, server.commits, server.public, server.sent = {}, [], set(), []
    if before is not None:
        server.repos[repo], server.branches[repo], server.public = dict(before), {"main"}, {repo}
    server.faults = [list(fault) for fault in scenario.get("faults", ())]
    constants.ENDPOINT = hf_api.api.endpoint = scenario.get("endpoint", server.url)
    options = {key: scenario[key] for key in ("private", "replace", "tag", "repo_id", "revision") if key in scenario}
    config = UploadConfig(**{"repo_id": "org/name", "dry_run": False, **options})

    def check(folder: Path) -> list[dict[str, Any]]:
        same = all((folder / name).read_bytes() == content for name, content in FILES.items())
        return [{"check": "bytes", "ok": same, "detail": "" if same else "differ"}]

    printed, message = io.StringIO(), ""
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            check_target(config)
            tag(config, upload(config, FILES, "it", check, kind), kind)
        except UserError as error:
            message = str(error)
    there = server.files(repo, scenario.get("revision", "main")) if repo in server.repos else {}
    return {
        "message": message,
        "printed": printed.getvalue(),
        "there": {key: hashlib.sha256(value).hexdigest() for key, value in there.items()},
        "commits": len(server.commits),
        "main": sorted(server.repos.get(repo, {})),
        "public": repo in server.public,
        "branches": sorted(server.branches.get(repo, ())),
        "tags": sorted(server.tags.get(repo, {})),
        "sent": len(server.sent),
    }


if __name__ == "__main__":
    sys.exit(main())
