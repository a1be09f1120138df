"""What is uploaded of a corpus or packed set trains as before, is checked first, and says nothing of this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from septet.data.errors import UserError
from septet.data.manifest import fingerprint
from septet.data.packed import PackedDataset
from septet.tasks.hub import publish_data
from septet.tasks.hub.upload import UploadConfig


def downloaded(folder: Path, place: Path) -> Path:
    """What a stranger gets of an upload."""
    for name, content in publish_data.files_of(folder).items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return place


def test_a_set_that_was_uploaded_is_the_same_set(packed: Path, tmp_path: Path) -> None:
    again = downloaded(packed, tmp_path / "packed")
    assert all(result["ok"] for result in publish_data.check_data(again))
    assert fingerprint(again) == fingerprint(packed)
    rows = [0, 1, 2]
    assert (
        PackedDataset(again, "train").batch(rows).input_ids == PackedDataset(packed, "train").batch(rows).input_ids
    ).all()
    corpus = packed.parent / "corpus"
    again = downloaded(corpus, tmp_path / "corpus")
    assert all(result["ok"] for result in publish_data.check_data(again))
    assert {path.name for path in again.iterdir()} == {"README.md", "manifest.json", "train", "validation"}
    for folder in (tmp_path / "packed", again):
        manifest = (folder / "manifest.json").read_text()
        assert str(packed.parent) not in manifest
        assert "train.jsonl.gz" in manifest or '"tokenizer"' in manifest


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


SPOILED = {
    "a changed shard": (lambda d: (d / "train/00000.jsonl.gz").write_bytes(b"x"), "train/00000.jsonl.gz has changed"),
    "a missing card": (lambda d: (d / "README.md").unlink(), "README.md is missing"),
    "a link": (lambda d: link(d / "README.md"), "README.md is a link"),
    "another stage": (lambda d: (d / "manifest.json").write_text('{"stage": "pretrain"}'), "neither a corpus nor a packed set"),
}  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILED)
def test_a_set_that_is_not_sound_stays_here(spoil: str, packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed.parent / "corpus", tmp_path / "corpus")
    action, message = SPOILED[spoil]
    action(tmp_path / "corpus")
    with pytest.raises(UserError, match=message):
        publish_data.run(publish_data.PublishDataConfig(tmp_path / "corpus"))


def test_a_card_that_reads_nothing_is_found(packed: Path, tmp_path: Path) -> None:
    """The files are the stage's own, but the card points elsewhere."""
    shutil.copytree(packed.parent / "corpus", tmp_path / "corpus")
    card = tmp_path / "corpus" / "README.md"
    card.write_text(card.read_text().replace("path: train/", "path: trains/"))
    manifest = json.loads((tmp_path / "corpus" / "manifest.json").read_text())
    assert "reads no row of train" in next(publish_data.unreadable(tmp_path / "corpus", manifest))


def test_a_dry_run_names_what_would_go_up(packed: Path, capsys) -> None:
    publish_data.run(publish_data.PublishDataConfig(packed, UploadConfig("org/name")))
    printed = capsys.readouterr().out
    assert "would upload" in printed and "tokenizer/tokenizer.json" in printed
    assert "the licence of" in printed
