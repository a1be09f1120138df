"""Sets of the Hugging Face Hub, streamed at a fixed commit, going on where the connection breaks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from septet.data.documents import HUB_PREFIX, Part
from septet.data.errors import UserError

HUB_WAITS_SECONDS = (1, 2, 4, 8, 16)  # before each new try when the Hub does not answer; ours


def resolve(name: str) -> str:
    """A Hub set's name with the commit it stands for now, `hub:owner/name[:config][:split]@commit`: the same rows for ever.

    Raises:
        UserError: there is no such set within reach.
    """
    from huggingface_hub import HfApi

    repository, _, _, revision = _parse(name)
    commit = retried(name, lambda: HfApi().dataset_info(repository, revision=revision).sha)
    return f"{name.partition('@')[0]}@{commit}"


def _parse(name: str) -> tuple[str, str | None, str, str | None]:
    """(repository, config, split, revision) of `hub:owner/name[:config][:split][@revision]`; empty is the default."""
    name, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
    repository, config, split = [*name.split(":"), "", ""][:3]
    return repository, config or None, split or "train", revision or None


def load(name: str) -> Any:
    import datasets

    repository, config, split, revision = _parse(name)
    return datasets.load_dataset(repository, config, split=split, revision=revision, streaming=True)


def rows_of(name: str, part: Part) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a part of the set's data files. If the Hub breaks off, goes on at the row where it did."""
    k, n = part
    number, shard, rows_of_shard, tries = 0, None, 0, iter(HUB_WAITS_SECONDS)
    while True:
        try:
            dataset = load(name)
            count = dataset.num_shards
            shard = count * k // n if shard is None else shard
            while shard < count * (k + 1) // n:
                for row in dataset.shard(count, shard).skip(rows_of_shard):
                    number, rows_of_shard, tries = number + 1, rows_of_shard + 1, iter(HUB_WAITS_SECONDS)
                    yield number, row
                shard, rows_of_shard = shard + 1, 0
            return
        except Exception as error:  # every layer of the Hub's client raises its own kind
            _wait_or_give_up(name, error, tries, f"broke off after row {number:,}" if number else "did not answer")


def retried(name: str, action: Callable[[], Any]) -> Any:
    tries = iter(HUB_WAITS_SECONDS)
    while True:
        try:
            return action()
        except Exception as error:
            _wait_or_give_up(name, error, tries, "did not answer")


def _wait_or_give_up(name: str, error: Exception, tries: Iterator[float], what: str) -> None:
    """Waits before the next try, or raises a `UserError` if there are no more or none could help."""
    from huggingface_hub import constants

    reason = f"{type(error).__name__}: {error}".split("\n")[0]
    status = getattr(getattr(error, "response", None), "status_code", None)
    refused = status is not None and 400 <= status < 500 and status not in (408, 429)
    if (
        constants.HF_HUB_OFFLINE
        or refused
        or isinstance(error, (FileNotFoundError, ValueError, TypeError, ImportError))
    ):
        raise UserError(
            f"{name}: cannot be read ({reason}); it must be {HUB_PREFIX}owner/name[:config][:split] of a set within reach; "
            "check the name and the network, or give files"
        ) from error
    wait = next(tries, None)
    if wait is None:
        raise UserError(
            f"{name}: the Hub {what}, {len(HUB_WAITS_SECONDS)} more tries did not help ({reason}); it must be within reach; "
            "what was finished is kept: run the same command again later"
        ) from error
    print(f"{name}: the Hub {what} ({reason}); trying again in {wait} s", file=sys.stderr, flush=True)
    time.sleep(wait)
