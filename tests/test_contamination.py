"""What a test set shares with the texts that a model was trained on is found and counted, and energy is what counters say."""

from __future__ import annotations

from pathlib import Path

import pytest

from septet.data.documents import write_jsonl
from septet.data.errors import UserError
from septet.modeling import energy
from septet.modeling.energy import EnergyMeter
from septet.tasks.harness.contamination import in_corpus, in_train
from septet.tasks.harness.task import Reading, get_task, read_examples

LEAKED = "The committee on the harbour met for nine hours before it voted to keep the old lighthouse as it was."
OTHER = "Seven gardeners from the valley counted every apple tree twice and wrote the sums upon a wooden door."
SHORT = "It rained."


def test_rows_that_the_corpus_holds_are_counted(tmp_path: Path) -> None:
    rows = [{"text": text, "label": "a", "lang": "en"} for text in (LEAKED, OTHER, SHORT, LEAKED.upper())]
    write_jsonl(tmp_path / "set" / "test.jsonl.gz", rows)
    documents = [{"text": f"Once upon a time. {LEAKED} And so on.", "lang": "en"}, {"text": "Nothing.", "lang": "en"}]
    write_jsonl(tmp_path / "corpus" / "train" / "00000.jsonl.gz", documents)
    test = tmp_path / "set" / "test.jsonl.gz"
    assert in_corpus(test, tmp_path / "corpus", 4) == {"rows_checked": 3, "rows_found": 2}
    assert in_corpus(test, tmp_path / "corpus", 2) == {"rows_checked": 2, "rows_found": 1}
    with pytest.raises(UserError, match=r"has no train/\*.jsonl.gz"):
        in_corpus(test, tmp_path, 4)


def test_rows_that_train_holds_are_counted(tmp_path: Path) -> None:
    rows = {"train": (LEAKED, SHORT), "test": (LEAKED, OTHER, SHORT, SHORT.lower())}
    for split, texts in rows.items():
        write_jsonl(tmp_path / f"{split}.jsonl.gz", [{"text": t, "label": split, "lang": "en"} for t in texts])
    task = get_task("classification")
    train, test = (read_examples(task, tmp_path, split, Reading({})) for split in rows)
    assert in_train(train, test) == 2


def test_energy_is_the_sum_of_the_counters_over_their_wraps(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(energy, "_devices", dict)

    def write(zone: str, microjoules: int) -> None:
        (tmp_path / zone).mkdir(exist_ok=True)
        (tmp_path / zone / "energy_uj").write_text(f"{microjoules}\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("50000000\n")

    assert EnergyMeter(tmp_path).joules() is None
    write("intel-rapl:0", 10_000_000)
    write("intel-rapl:1", 49_000_000)
    write("intel-rapl:0:0", 1)  # a part of the first, which must not count twice
    meter = EnergyMeter(tmp_path)
    write("intel-rapl:0", 12_000_000)
    write("intel-rapl:0:0", 40_000_000)
    assert meter.joules() == pytest.approx(2.0)
    write("intel-rapl:1", 3_000_000)
    assert meter.joules() == pytest.approx(2.0 + 4.0)
