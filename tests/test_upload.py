"""An upload ends whole or not at all, whatever the Hub does meanwhile, and says so without a secret."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import upload_faults

SECRETS = ("hf_secret", "signature")  # the token; what signs the addresses of large files


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict]:
    command = [sys.executable, str(Path(upload_faults.__file__))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Retrying in 1s" in done.stderr  # huggingface_hub's own log
    assert not any(secret in done.stdout + done.stderr for secret in SECRETS)
    rows = map(json.loads, done.stdout.strip().split("\n"))
    return {row.pop("name"): row for row in rows}


@pytest.mark.parametrize("name", upload_faults.SCENARIOS)
def test_an_upload_ends_whole_or_not_at_all(name: str, outcomes: dict[str, dict]) -> None:
    wanted, got = upload_faults.SCENARIOS[name], outcomes[name]
    whole = {key: hashlib.sha256(value).hexdigest() for key, value in upload_faults.FILES.items()}
    before = {key: hashlib.sha256(value).hexdigest() for key, value in wanted.get("stands", {}).items()}
    if wanted["ends"] == "sent":
        assert got["message"] == "", got
        assert "it was downloaded again, and passes" in got["printed"]
        assert (got["there"], got["commits"]) == (whole, wanted.get("commits", 1))
        assert got["public"] == (not wanted.get("private"))
        if "revision" in wanted:
            assert got["main"] == sorted(wanted.get("stands", {}))  # as it was
        assert got["branches"] == sorted({"main", wanted.get("revision", "main")})
        assert got["tags"] == (["v0", "v1"] if "tag" in wanted else ["v0"])
    else:
        assert wanted["ends"] in got["message"], got
        assert got["there"] == (whole if wanted.get("commits") else before)
        assert got["commits"] == wanted.get("commits", 0)
        assert got["tags"] == ["v0"]
        # None was made for what was refused before the commit.
        assert got["branches"] in (([wanted["leaves"], "main"],) if "leaves" in wanted else (["main"], []))
    passing = [fault for fault in wanted.get("faults", ()) if fault[0] == "POST" and wanted["ends"] == "sent"]
    if any(fault[1] in ("/api/repos/create", "/commit/") for fault in passing):
        assert "again in 1 s" in got["printed"]  # the others are the client's own to repeat
