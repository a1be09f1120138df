"""What a corpus and a packed set show of themselves: the page a person reads (index.html) and data cards (README.md)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from septet.data.manifest import code_version, plain


def write_corpus_page(
    path: Path,
    config: Any,
    counts: dict[str, Any],
    kept: dict[str, Any],
    dropped: dict[str, list[dict[str, Any]]],
    meanings: dict[str, str],
) -> None:
    """Writes the page: counts by language, lengths, personal data, contamination, and what each reason dropped.

    Args:
        kept: lengths and examples of what stayed, as `steps.Resolve` writes them.
        dropped: examples by reason.
        meanings: what each reason means.
    """
    buckets = sorted({int(bucket) for lengths in kept["lengths"].values() for bucket in lengths})
    page = _template("corpus.html.j2", autoescape=True).render(
        config=config,
        languages=sorted(counts["read"]),
        counts=counts,
        buckets=range(buckets[0], buckets[-1] + 1),
        lengths=kept["lengths"],
        meanings=meanings,
        kept=kept["examples"],
        dropped=dropped,
    )
    path.write_text(page, encoding="utf-8")


def write_corpus_card(
    path: Path, config: Any, counts: dict[str, Any], digests: dict[str, dict[str, str]], meanings: dict[str, str]
) -> None:
    """Writes the data card, with the YAML by which `datasets.load_dataset` finds the two splits."""
    # A card is published: it names files, not where they lay.
    inputs = [(Path(digest["path"]).name, f"sha256 {digest['sha256']}") for digest in digests.values()]
    inputs += [(name, f"revision {revision}") for name, revision in counts["revisions"].items()]
    card = _template("corpus.md.j2", autoescape=False).render(
        config=plain(config),
        languages=sorted(counts["train"]),
        counts=counts,
        licenses=config.licenses,
        inputs=inputs,
        meanings=meanings,
        code_version=code_version(),
        size=size_category(sum(row["documents"] for row in counts["train"].values())),
    )
    path.write_text(card, encoding="utf-8")


def write_packed_card(path: Path, config: Any, counts: dict[str, Any], corpus: dict[str, Any], digests: Any) -> None:
    """Writes a packed set's data card, with the YAML by which `datasets.load_dataset` finds the two splits.

    Args:
        corpus: the corpus' manifest.
        digests: path and fingerprint of the corpus and the tokenizer.
    """
    card = _template("packed.md.j2", autoescape=False).render(
        config=plain(config),
        counts=counts,
        languages=sorted({name.split("/")[0] for name in counts["train"] if name != "total"}),
        licenses=corpus["config"].get("licenses", {}),
        inputs={name: digest["sha256"] for name, digest in digests.items()},
        code_version=code_version(),
        size=size_category(counts["train"]["total"]["sequences"]),
    )
    path.write_text(card, encoding="utf-8")


def licence_of(licenses: Mapping[str, str], name: str) -> str:
    """The licence stated for `language/source`: for the source itself, or for the folders that its name begins with."""
    source = name.split("/", 1)[-1]
    while source not in licenses and "/" in source:
        source = source.rpartition("/")[0]
    return licenses.get(source, "not stated")


def size_category(rows: int) -> str:
    """The Hub's `size_categories` for a number of rows: `10K<n<100K`, say."""
    marks = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    for k, mark in enumerate(marks):
        if rows < 10 ** (k + 3):
            return f"n<{mark}" if k == 0 else f"{marks[k - 1]}<n<{mark}"
    return "n>1T"


def _template(name: str, autoescape: bool) -> Any:
    import jinja2

    environment = jinja2.Environment(autoescape=autoescape, trim_blocks=True, lstrip_blocks=True)
    environment.filters["n"] = lambda number: f"{number:,}"
    environment.filters["mb"] = lambda number: f"{number / 1e6:,.2f}"
    environment.globals["licence_of"] = licence_of
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    return environment.from_string(Path(__file__).with_name(name).read_text(encoding="utf-8"))
