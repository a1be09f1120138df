"""Whether `septet verify` finds what is wrong with a published folder, and nothing where nothing is.

    python benchmarks/verify_truth.py --base build/demo/hub/base --tuned build/demo/hub/classification --sound build/demo/hub/*

Each defect of `tests/hub_defects.py` is planted into a copy and, but for those that only a digest shows, the digests are
renewed, as by somebody who covers it up. Then the classifier's card, predictions, labels and rows are changed at random,
one change a trial: `septet verify --card` must find each by the digests, and, digests renewed, by computing it again.
Seeds are the numbers of the trials. TUNED is a classifier with one report.
"""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))


@dataclass(frozen=True)
class Config:
    base: Path
    """a published base model with all heads"""
    tuned: Path
    """a published classifier with its report"""
    sound: tuple[Path, ...] = ()
    """published folders with which nothing is wrong"""
    trials: int = 500
    """changes of a card, a prediction, a label or a row"""


@contextlib.contextmanager
def copied(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        yield Path(shutil.copytree(folder, Path(place) / "folder"))


def quietly(folder: Path) -> list[dict]:
    """What `septet verify` says of a folder, kept off the terminal."""
    from septet.tasks.hub.verify import check_folder

    with contextlib.redirect_stdout(io.StringIO()):
        return check_folder(folder)


def defects(config: Config) -> None:
    from hub_defects import OF_BASE, OF_TUNED, renew_digests

    found = 0
    print("| defect | found by | what it says |\n|---|---|---|", flush=True)
    for source, listed in ((config.tuned, OF_TUNED), (config.base, OF_BASE)):
        for name, defect in listed.items():
            with copied(source) as folder:
                defect.plant(folder)
                if not defect.digests:
                    renew_digests(folder)
                failed = [check for check in quietly(folder) if not check["ok"]]
            named = [check for check in failed if defect.message in check["detail"]]
            found += bool(named)
            check = (named or failed or [{"check": "**nothing**", "detail": ""}])[0]
            print(f"| {name} | {check['check']} | {check['detail'][:110]} |", flush=True)
    print(f"\n{found} of {len(OF_TUNED) + len(OF_BASE)} defects found, by the check that is meant for each", flush=True)


def sound(config: Config) -> None:
    alarms = 0
    for folder in config.sound:
        started = time.time()
        checks = quietly(folder)
        failed = [check for check in checks if not check["ok"]]
        alarms += bool(failed)
        print(
            f"{folder.name}: {len(checks)} checks, {time.time() - started:.1f} s{', ' + str(failed) if failed else ''}"
        )
    print(f"{alarms} false alarms on {len(config.sound)} sound folders", flush=True)


def tampering(config: Config) -> None:
    import json

    from hub_defects import TAMPERED, renew_digests

    from septet.tasks.hub import claims, stranger

    kinds, found = list(TAMPERED), {name: [0, 0, 0] for name in TAMPERED}
    with copied(config.tuned) as folder:
        kept = {
            p: p.read_bytes()
            for p in (*folder.glob("README.md"), *folder.glob("evidence/*/*"), *folder.glob("evidence/*.json"))
        }
        for trial in tqdm(range(config.trials), mininterval=10):
            kind = kinds[trial % len(kinds)]
            TAMPERED[kind](folder, random.Random(trial))
            conformance = json.loads((folder / "evidence" / "conformance.json").read_text())
            counts = found[kind]
            counts[0] += 1
            try:
                stranger.digests_are_as_published(folder, conformance)
            except ValueError:
                counts[1] += 1
            renew_digests(folder)
            counts[2] += any(claim["status"] != "supported" for claim in claims.claims(folder))
            for path, content in kept.items():
                path.write_bytes(content)
    print("\n| changed | trials | found by its digest | found by computing it again |\n|---|---:|---:|---:|")
    for kind, counts in found.items():
        print(f"| {kind} | " + " | ".join(map(str, counts)) + " |")


def main(config: Config) -> None:
    sound(config)
    defects(config)
    tampering(config)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
