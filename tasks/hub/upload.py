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
        if value is not None and not re.fullmatch(r"\w[\w-]*(?:[./]\w[\w-]*)*", value):
            raise UserError(f"--{name} {value!r}: is no name of a git reference; write one such as v1.0")


def upload(
    config: UploadConfig,
    files: Mapping[str, Path | bytes],
    title: str,
    check: Callable[[Path], list[dict[str, Any]]],
    repo_type: Literal["model", "dataset", "space"] = "model",
) -> str | None:
    """Uploads `files` (path in the repository -> file or content) and returns the commit, which `tag` may then name; in a dry
    run, says what it would upload.

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
        return None
    from huggingface_hub import HfApi, snapshot_download

    api = HfApi()
    kind: dict[str, Any] = {"repo_type": repo_type}
    failed = f"{config.repo_id}: the upload failed"

    def ask(call: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
        return asked(failed, config.retries, call, *arguments, **named)

    space = {"space_sdk": "gradio"} if repo_type == "space" else {}
    private = config.private or None  # None: as the owner's settings have it
    repo_id = ask(api.create_repo, config.repo_id, private=private, exist_ok=True, **kind, **space).repo_id
    if config.private and not ask(api.repo_info, repo_id, **kind).private:
        raise UserError(
            f"--private: {repo_id} exists and is public; make it private in its settings, or give another --repo-id"
        )
    refs = ask(api.list_repo_refs, repo_id, **kind)
    for tag in refs.tags:
        if tag.name == config.tag:
            raise UserError(
                f"--tag {config.tag}: {repo_id} has one of that name, at {tag.target_commit}; a release stays what it "
                f"was: look at it with `septet verify {repo_id} --revision {config.tag}`, or name another"
            )
    is_new = config.revision is not None and config.revision not in {branch.name for branch in refs.branches}

    def others() -> list[str]:
        """What the branch, or main, which a new branch begins with, holds besides."""
        there = api.list_repo_files(repo_id, revision=None if is_new else config.revision, **kind)
        return sorted(set(there) - set(files) - set(GITS_OWN))

    strange = ask(others)
    if strange and not config.replace:
        raise UserError(
            f"{repo_id}: holds {len(strange)} other files ({', '.join(strange[:3])}); a release is the whole "
            "repository; pass --replace to delete them in the same commit, or give another --repo-id"
        )
    if is_new:
        ask(api.create_branch, repo_id, branch=config.revision, exist_ok=True, **kind)
        is_new = False

    def commit() -> Any:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations = [CommitOperationDelete(name) for name in others()]  # anew: an attempt may have been carried out
        operations += [CommitOperationAdd(name, file) for name, file in sorted(files.items())]
        message = f"Publish {title} with Septet"
        return api.create_commit(repo_id, operations, commit_message=message, revision=config.revision, **kind)

    sent = ask(commit)
    print(f"publish: {what}, are at {sent.commit_url}", flush=True)
    failed = f"{repo_id}: everything is there, at {sent.oid}, but what should follow failed"
    with tempfile.TemporaryDirectory() as place:
        again = ask(snapshot_download, repo_id, revision=sent.oid, local_dir=Path(place) / "repo", **kind)
        wrong = [result for result in check(Path(again)) if not result["ok"]]
    if wrong:
        raise UserError(
            f"{repo_id}: what comes back is not what was sent ({wrong[0]['check']}: {wrong[0]['detail']}); "
            "run the same command again, and tell nobody of this revision until it passes"
        )
    print(f"publish: it was downloaded again, and passes; load it with revision={sent.oid!r}", flush=True)
    return str(sent.oid)


def tag(config: UploadConfig, commit: str | None, repo_type: Literal["model", "dataset", "space"] = "model") -> None:
    """Names a commit that `upload` made by --tag, if there is one: last of all, so that what was cut short can go on.

    Raises:
        UserError: the Hub refuses or does not answer.
    """
    from huggingface_hub import HfApi

    if not commit or not config.tag:
        return
    api, kind = HfApi(), {"repo_type": repo_type}

    def tag_it() -> None:
        found = {tag.name: tag.target_commit for tag in api.list_repo_refs(config.repo_id, **kind).tags}
        if found.get(config.tag) != commit:  # an attempt may have been carried out
            api.create_tag(config.repo_id, tag=config.tag, revision=commit, **kind)

    asked(f"{config.repo_id}: everything is there, at {commit}, but the tag failed", config.retries, tag_it)


def asked(failed: str, retries: int, call: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
    """What a call to the Hub returns, made again `retries` times while it fails in passing.

    Raises:
        UserError: it fails for good; the message begins with `failed`, says what it was and what to do, and holds no token.
    """
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_without_secrets)

    def announce(state: Any) -> None:
        problem = reason(state.outcome.exception())
        print(f"Hub: {problem}; again in {state.next_action.sleep:.0f} s", flush=True)

    retrying = Retrying(
        retry=retry_if_exception(fails_in_passing),
        stop=stop_after_attempt(retries + 1),
        wait=wait_exponential(max=60),
        before_sleep=announce,
        reraise=True,
    )
    try:
        return retrying(call, *arguments, **named)
    except Exception as error:
        ways_out = {
            401: "the token is missing, expired or unknown: log in again with `hf auth login`, or set HF_TOKEN",
            403: "the token may not do that: take one with the right to, or give another name",
        }
        way_out = ways_out.get(status_of(error) or 0, "check the name, the network and your login (`hf auth login`)")
        raise UserError(f"{failed} ({reason(error)}); {way_out}, and run the same command again") from error


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error, or what it came of, is about."""
    while True:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None or error.__cause__ is None:
            return status
        error = error.__cause__


def fails_in_passing(error: BaseException) -> bool:
    """Whether the same call may succeed a little later: the server or the connection failed, not the request."""
    status = status_of(error)
    if status is not None:
        return status in IN_PASSING
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    return any(
        type(cause).__module__.split(".")[0] in HTTP_LIBRARIES or isinstance(cause, ConnectionError | TimeoutError)
        for cause in causes
    )


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
