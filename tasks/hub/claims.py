"""Whether a card's numbers follow from the predictions beside it: each is computed again.

    septet verify build/demo/hub/classification --card

Every number of every report in `evidence/` comes again from its `predictions.jsonl`, intervals, baselines and tables
included; the card is then written again from those, and compared line by line. A number is *supported* if it comes out the
same, *drifted* if another one does, *unsupported* if nothing in `evidence/` gives it.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from septet.data.errors import UserError
from septet.data.manifest import read_json, sha256_of_file

TOLERANCE = 1e-6  # relative: libraries of other versions may add in another order


def claims(folder: Path) -> list[dict[str, str]]:
    """One dict a number or line of the card: "claim" (where it stands), "status", "detail" (empty if supported).

    Raises:
        UserError: a report or its predictions are damaged, or the task is unknown.
    """
    from septet.tasks.harness.predict import scores
    from septet.tasks.harness.report import read_predictions, read_report, task_markdown
    from septet.tasks.harness.task import get_task
    from septet.tasks.hub.card import FACTS, card_text, template_of

    found, again = [], []
    for path in sorted((folder / "evidence").glob("*/report.json")):
        stated, rows = read_report(path.parent), read_predictions(path.parent)
        try:
            computed = scores(get_task(stated["task"]), rows, stated["seed"])
        except UserError:
            raise
        except Exception as error:  # whatever a metric says to predictions that are none
            raise UserError(f"{path.parent}: the predictions cannot be scored ({error}); evaluate again") from error
        computed |= {"data": {"test": {"rows": len(rows)}}, "languages": sorted({row["lang"] for row in rows})}
        written = (path.parent / "report.md").read_text(encoding="utf-8")
        restated = {**stated, **computed, "data": stated["data"]}
        is_its_own = written == task_markdown(restated, rows)
        found.append(
            {
                "claim": f"{path.parent.name}: report.md",
                "status": "supported" if is_its_own else "drifted",
                "detail": "" if is_its_own else "another text comes out of report.json and the predictions",
            }
        )
        found += list(compared(path.parent.name, stated, json.loads(json.dumps(computed))))
        again.append(restated)
    facts = read_json(folder / "evidence" / FACTS)
    if facts.get("template_sha256") != sha256_of_file(template_of(facts["kind"])):
        detail = "the card was written by another version of Septet; compare with that one"
        return [*found, {"claim": "card", "status": "unsupported", "detail": detail}]
    return [*found, *lines((folder / "README.md").read_text(encoding="utf-8"), card_text(folder, again))]


def compared(name: str, stated: Mapping[str, Any], computed: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """A claim for every value that was stated or computed under the keys of `computed`."""
    before, now = dict(leaves(stated)), dict(leaves(computed))
    parts = {path[0] for path in now} - {"data"}
    for path in {**before, **now}:
        if path not in now and path[0] not in parts:
            continue  # no result: settings, curves, times
        claim = {"claim": f"{name}: {'.'.join(map(str, path))}"}
        if path not in now:
            yield {**claim, "status": "unsupported", "detail": f"{before[path]!r} is stated, nothing gives it"}
        elif path not in before:
            yield {**claim, "status": "drifted", "detail": f"{now[path]!r} is not stated"}
        elif not same(before[path], now[path]):
            yield {**claim, "status": "drifted", "detail": f"{before[path]!r} is stated, {now[path]!r} comes out"}
        else:
            yield {**claim, "status": "supported", "detail": ""}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(path, value) of everything in nested dicts and lists that is neither."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, (*path, key))
    else:
        yield path, value


def same(stated: Any, computed: Any) -> bool:
    """Equal, numbers within the tolerance."""
    if isinstance(stated, int | float) and isinstance(computed, int | float):
        return math.isclose(stated, computed, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(stated == computed)


def lines(card: str, expected: str) -> Iterator[dict[str, str]]:
    """A claim for every line of the card, in its place, and for every line that should be there and is not."""
    there, should = card.split("\n"), expected.split("\n")
    strange, places, met = [], set(), set()
    for found in difflib.SequenceMatcher(None, there, should, autojunk=False).get_matching_blocks():
        places.update(range(found.a, found.a + found.size))
        met.update(range(found.b, found.b + found.size))
    absent = [line for number, line in enumerate(should) if number not in met]
    for number, line in enumerate(there):
        if number in places:
            yield {"claim": f"README.md, line {number + 1}", "status": "supported", "detail": ""}
        else:
            strange.append((number + 1, line))
    for number, line in strange:
        near = difflib.get_close_matches(line, absent, 1, 0.6)
        detail = f"{line!r:.160}" + (f"; {near[0]!r:.160} comes out" if near else "; nothing gives it here")
        if near:
            absent.remove(near[0])
        yield {
            "claim": f"README.md, line {number}",
            "status": "drifted" if near else "unsupported",
            "detail": detail,
        }
    for line in absent:
        yield {"claim": "README.md", "status": "drifted", "detail": f"{line!r:.160} comes out, and is not there"}
