"""Load a published folder or repository as a stranger would, and check everything that it promises.

    septet verify build/demo/hub/base

A process of its own (`python -I`, an empty directory, empty caches) loads every Auto class, compares weights, outputs and
generations with what was published, and looks for what must not be there. Nothing is written into the folder. With --card
every number is computed again from the predictions (`septet.tasks.hub.claims`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from septet.data.errors import UserError, run_cli

STATUSES = ("supported", "drifted", "unsupported")


@dataclass(frozen=True)
class VerifyConfig:
    path: Annotated[str, tyro.conf.Positional]
    """a folder that `septet publish` built, or owner/name of a repository on the Hub"""
    revision: str | None = None
    """of a repository: branch, tag or commit"""
    card: bool = False
    """compute every number of the card and its reports again from the predictions in evidence/"""
    base: Path | None = None
    """of an adapter: a folder with the model that it adapts; default: where its configuration says, on the Hub"""
    timeout_seconds: int = 600
    """give up after so long"""


def run(config: VerifyConfig) -> list[dict[str, Any]]:
    """Prints one line a check and returns them.

    Raises:
        UserError: no such folder or repository, or a check failed.
    """
    if Path(config.path).is_dir():
        checks = all_checks(Path(config.path), config)
    else:
        with tempfile.TemporaryDirectory() as place:
            checks = all_checks(download(config.path, config.revision, Path(place)), config)
    failed = [check for check in checks if not check["ok"]]
    if failed:
        raise UserError(
            f"{config.path}: {len(failed)} of {len(checks)} checks failed ({failed[0]['check']}: {failed[0]['detail']}); "
            "mend that and publish again"
        )
    print(f"verify: {config.path} passes all {len(checks)} checks", flush=True)
    return checks


def all_checks(folder: Path, config: VerifyConfig) -> list[dict[str, Any]]:
    """Those of `check_folder`, and with --card, of a folder that is what was published, what `claims` found."""
    with tempfile.TemporaryDirectory() as place:
        base = config.base or adapted(folder, Path(place))
        checks = check_folder(folder, config.timeout_seconds, base)
    if config.card and all(check["ok"] for check in checks):
        from septet.tasks.hub.claims import claims

        found = claims(folder)
        for claim in (claim for claim in found if claim["status"] != "supported"):
            print(f"  {claim['status']:<12} {claim['claim']}: {claim['detail']}", flush=True)
        counts = {status: sum(claim["status"] == status for claim in found) for status in STATUSES}
        detail = ", ".join(f"{count:,} {status}" for status, count in counts.items())
        checks.append({"check": "claims", "ok": counts["supported"] == len(found), "detail": detail})
        show(checks[-1])
    return checks


def adapted(folder: Path, place: Path) -> Path | None:
    """The model that an adapter adapts, downloaded into `place`; None for other folders, and for those that are not sound
    enough to be asked."""
    from septet.tasks.hub import stranger

    try:
        stranger.files_are_plain(folder)
        conformance = json.loads((folder / "evidence" / "conformance.json").read_text(encoding="utf-8"))
        if conformance["kind"] != "adapter":
            return None
        name = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # `check_folder` says what is wrong with it
    return download(str(name), None, place)


def check_folder(folder: Path, timeout_seconds: int = 600, base: Path | None = None) -> list[dict[str, Any]]:
    """Runs `stranger.py` on a folder; one dict a check: "check", "ok", "detail".

    Args:
        base: the folder of the model that an adapter adapts, in place of the name that its configuration has.
    """
    script = Path(__file__).with_name("stranger.py")
    with tempfile.TemporaryDirectory() as empty:
        kept = ("PATH", "LANG", "LC_ALL", "SYSTEMROOT", "OMP_NUM_THREADS", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        environment |= {
            "HOME": empty,
            "HF_HOME": f"{empty}/hf",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        command = [sys.executable, "-I", str(script), str(Path(folder).resolve())]
        command += [str(Path(base).resolve())] if base else []
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                cwd=empty,
                env=environment,
                capture_output=True,
                text=True,
                timeout=timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise UserError(f"{folder}: no answer in {timeout_seconds} s; raise --timeout-seconds") from error
    checks, ended = [], False
    for line in done.stdout.split("\n"):
        if line.startswith('{"check"'):
            check = json.loads(line)
            ended |= check["check"] == "end"
            if check["check"] != "end":
                checks.append(check)
                show(check)
    if (done.returncode or not ended) and all(check["ok"] for check in checks):
        reason = (done.stderr.strip().split("\n") or ["no reason given"])[-1]
        checks.append({"check": "process", "ok": False, "detail": f"ended with status {done.returncode}: {reason}"})
        show(checks[-1])
    return checks


def show(check: dict[str, Any]) -> None:
    """One line of what a check found."""
    print(f"  {'ok    ' if check['ok'] else 'FAILED'} {check['check']:<36} {check['detail']}", flush=True)


def download(repo_id: str, revision: str | None, place: Path) -> Path:
    """A repository's files in `place`.

    Raises:
        UserError: the name is invalid, or the Hub does not have it or does not answer.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    from septet.tasks.hub.upload import asked

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id}: is neither a folder here nor a valid repository name (owner/name)") from error
    found = asked(
        f"{repo_id}: cannot be downloaded", 2, snapshot_download, repo_id, revision=revision, local_dir=place / "repo"
    )
    return Path(found)


if __name__ == "__main__":
    run_cli(run, VerifyConfig)
