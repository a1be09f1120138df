"""A set of files becomes one commit on the Hub: sent until it arrives, downloaded again, checked, and only then tagged.

Nothing is visible before the commit, and the commit holds every file or none. The same command again sends what is not
there yet and nothing else.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from septet.data.errors import UserError

Result = TypeVar("Result")
IN_PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses that another attempt may not meet
HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "requests")  # huggingface_hub has changed them
GITS_OWN = (".gitattributes",)


@dataclass(frozen=True)
class UploadConfig:
    repo_id: str | None = None
    """owner/name to upload to"""
    revision: str | None = None
    """branch to upload to; default: main"""
    tag: str | None = None
    """name of this release, as v1.0, by which --revision finds it for ever"""
    private: bool = False
    """make a new repository private; one that is public is refused"""
    replace: bool = False
    """delete the repository's other files in the same commit; otherwise they are named, and nothing is sent"""
    dry_run: bool = True
    """with --no-dry-run and --repo-id the verified files are uploaded; otherwise they are only built and verified"""
    retries: int = 4
    """how often a call that fails in passing is made again, after 1, 2, 4 ... seconds"""


def check_target(config: UploadConfig) -> None:
    """Raises a `UserError` for names that no Hub takes, before anything is built for them."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if config.repo_id is None:
        if not config.dry_run:
            raise UserError("--no-dry-run: nowhere to upload to; give --repo-id owner/name, or leave the dry run on")
        return
    try:
        validate_repo_id(config.repo_id)
    except HFValidationError as error:
        raise UserError(f"--repo-id {config.repo_id!r}: {str(error).split('. ')[0]}; write owner/name") from error
    for name, value in (("tag", config.tag), ("revision", config.revision)):
        if value is not None and not re.fullmatch(r"\w[\w./-]*", value):
            raise UserError(f"--{name} {value!r}: is no name of a git reference; write one such as v1.0")


def upload(
    config: UploadConfig,
    files: Mapping[str, Path | bytes],
    title: str,
    check: Callable[[Path], list[dict[str, Any]]],
    repo_type: Literal["model", "dataset", "space"] = "model",
) -> None:
    """Uploads `files` (path in the repository -> file or content); in a dry run, says what it would upload.

    Args:
        check: gets the folder that was downloaded again; one dict a check, with "check", "ok" and "detail".

    Raises:
        UserError: the Hub refuses, does not answer, or gives back something else; the repository is not what was asked
            for (public, or with other files); the tag exists. What is in the repository stays as it was, but for the last
            of all: what comes back is not what was sent.
    """
    megabytes = sum(len(f) if isinstance(f, bytes) else f.stat().st_size for f in files.values()) / 1e6
    what = f"{len(files)} files, {megabytes:.1f} MB"
    if config.dry_run:
        print(f"publish: dry run; would upload {what}, to the {repo_type} {config.repo_id}:")
        print("\n".join(f"  {name}" for name in sorted(files)), flush=True)
        return
    from huggingface_hub import HfApi, snapshot_download

    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_without_secrets)
    api = HfApi()
    kind: dict[str, Any] = {"repo_type": repo_type}
    space = {"space_sdk": "gradio"} if repo_type == "space" else {}
    created = asked(config, api.create_repo, config.repo_id, private=config.private, exist_ok=True, **kind, **space)
    repo_id = created.repo_id
    if config.private and not asked(config, api.repo_info, repo_id, **kind).private:
        raise UserError(
            f"--private: {repo_id} exists and is public; make it private in its settings, or give another --repo-id"
        )
    refs = asked(config, api.list_repo_refs, repo_id, **kind)
    if config.tag and any(tag.name == config.tag for tag in refs.tags):
        raise UserError(
            f"--tag {config.tag}: {repo_id} has one of that name; a release stays what it was, name another"
        )
    if config.revision and not config.revision.startswith("refs/"):
        asked(config, api.create_branch, repo_id, branch=config.revision, exist_ok=True, **kind)
    there = asked(config, api.list_repo_files, repo_id, revision=config.revision, **kind)
    others = sorted(set(there) - set(files) - set(GITS_OWN))
    if others and not config.replace:
        raise UserError(
            f"{repo_id}: holds {len(others)} other files ({', '.join(others[:3])}); a release is the whole repository; "
            "pass --replace to delete them in the same commit, or give another --repo-id"
        )

    def commit() -> Any:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations = [CommitOperationDelete(name) for name in others]
        operations += [CommitOperationAdd(name, file) for name, file in sorted(files.items())]
        message = f"Publish {title} with Septet"
        return api.create_commit(repo_id, operations, commit_message=message, revision=config.revision, **kind)

    sent = asked(config, commit)
    print(f"publish: {what}, are at {sent.commit_url}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        again = asked(config, snapshot_download, repo_id, revision=sent.oid, local_dir=Path(place) / "repo", **kind)
        failed = [result for result in check(Path(again)) if not result["ok"]]
    if failed:
        raise UserError(
            f"{repo_id}: what comes back is not what was sent ({failed[0]['check']}: {failed[0]['detail']}); "
            "run the same command again, and tell nobody of this revision until it passes"
        )
    if config.tag:
        asked(config, api.create_tag, repo_id, tag=config.tag, revision=sent.oid, **kind)
    print(f"publish: it was downloaded again, and passes; load it with revision={sent.oid!r}", flush=True)


def asked(config: UploadConfig, call: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
    """What a call to the Hub returns, made again while it fails in passing.

    Raises:
        UserError: it fails for good; the message says what it was and what to do, and holds no token.
    """
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

    def announce(state: Any) -> None:
        problem = reason(state.outcome.exception())
        print(f"publish: {problem}; again in {state.next_action.sleep:.0f} s", flush=True)

    retrying = Retrying(
        retry=retry_if_exception(fails_in_passing),
        stop=stop_after_attempt(config.retries + 1),
        wait=wait_exponential(max=60),
        before_sleep=announce,
        reraise=True,
    )
    try:
        return retrying(call, *arguments, **named)
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        ways_out = {
            401: "the token is missing, expired or unknown: log in again with `hf auth login`, or set HF_TOKEN",
            403: "the token may not write there: take one with write access, or give another --repo-id",
        }
        way_out = ways_out.get(status, "check the name, the network and your login (HF_TOKEN or `hf auth login`)")
        raise UserError(
            f"{config.repo_id}: the upload failed ({reason(error)}); {way_out}, and run the same command again; "
            "what was built here is untouched"
        ) from error


def fails_in_passing(error: BaseException) -> bool:
    """Whether the same call may succeed a little later: the server or the connection failed, not the request."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status in IN_PASSING
    return type(error).__module__.split(".")[0] in HTTP_LIBRARIES or isinstance(error, ConnectionError | TimeoutError)


def reason(error: BaseException | None) -> str:
    """An error's first line, without what may be secret in it."""
    return discreet(str(error).split("\n", maxsplit=1)[0]) or type(error).__name__


def discreet(text: str) -> str:
    """A text without the queries of addresses, which hold signatures, and without the user's token."""
    from huggingface_hub import get_token

    text, token = re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text), get_token()
    return text.replace(token, "(token)") if token else text


def _without_secrets(record: logging.LogRecord) -> bool:
    """A log filter: huggingface_hub names the signed addresses that it sends large files to."""
    record.msg, record.args = discreet(record.getMessage()), ()
    return True
