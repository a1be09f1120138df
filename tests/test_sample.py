"""The embedded sample: reproducible, exact, and honest about what its test sets hold out."""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path

import pytest

from septet.data import sample
from septet.data import sample_sentences as patterns
from septet.data import sample_words as words
from septet.data.manifest import problems, read_manifest
from septet.data.sample import LANGUAGES, ROWS, SHOWCASE, TASKS, TRAIN_ROWS, SampleConfig, World, run, say
from septet.data.sample_words import Noun

COLUMNS = {
    "translation": {"translation"},
    "classification": {"text", "label", "lang"},
    "qa": {"id", "title", "context", "question", "answers", "lang"},
    "summarization": {"document", "summary", "lang"},
    "ner": {"tokens", "ner_tags", "lang"},
}


def read(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream.read().rstrip("\n").split("\n")]


def flat(row: dict) -> str:
    """A row as running text; Chinese tokens joined, so that a name is found as one."""
    if "tokens" in row:
        return ("" if row["lang"] == "zh" else " ").join(row["tokens"])
    return json.dumps(row, ensure_ascii=False)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(SampleConfig(output=tmp_path_factory.mktemp("sample") / "sample"))


@pytest.fixture(scope="module")
def rows(output: Path) -> dict[str, list[dict]]:
    return {str(p.relative_to(output)).removesuffix(".jsonl.gz"): read(p) for p in sorted(output.rglob("*.jsonl.gz"))}


@pytest.fixture(scope="module")
def training_text(rows: dict[str, list[dict]]) -> str:
    """Everything that a model may see before it is tested, and every task's validation set."""
    shown = (
        name
        for name in rows
        if name.endswith(("/train", "/validation")) or name in {f"pretrain/{one}" for one in LANGUAGES}
    )
    return "\n".join(flat(row) for name in shown for row in rows[name])


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digests(path: Path) -> dict[str, str]:
        return {name: file["sha256"] for name, file in read_manifest(path, "sample")["files"].items()}

    again = digests(run(SampleConfig(output=tmp_path / "again")))
    assert again == digests(output)
    monkeypatch.setattr(sample, "PRETRAIN_BYTES", 20_000)
    other = digests(run(SampleConfig(output=tmp_path / "other", seed=1)))
    assert not [name for name in again if name.endswith(".gz") and other[name] == again[name]]
    assert problems(output) == []


def test_counts(output: Path, rows: dict[str, list[dict]]) -> None:
    counts = read_manifest(output, "sample")["counts"]
    for task in TASKS:
        expected = ROWS | ({"train": TRAIN_ROWS[task]} if task in TRAIN_ROWS else {})
        assert expected == counts[task] == {split: len(rows[f"{task}/{split}"]) for split in ROWS}
    for lang in LANGUAGES:
        documents = rows[f"pretrain/{lang}"]
        assert counts[f"pretrain/{lang}"]["documents"] == len(documents)
        assert 1_500_000 < sum(len(row["text"].encode()) for row in documents) < 2_000_000
        assert len(rows[f"pretrain/{lang}_validation"]) == 60
        assert len({row["source"] for row in documents}) == len(sample.GENRES)


def test_columns_and_languages(rows: dict[str, list[dict]]) -> None:
    for task, columns in COLUMNS.items():
        for split in ROWS:
            assert {frozenset(row) for row in rows[f"{task}/{split}"]} == {frozenset(columns)}
            if "lang" in columns:
                assert {row["lang"] for row in rows[f"{task}/{split}"]} == set(LANGUAGES)
    assert {row["label"] for row in rows["classification/test"]} == set(words.TOPICS)
    ids = [row["id"] for split in ROWS for row in rows[f"qa/{split}"]]
    assert len(set(ids)) == len(ids)


def test_answers_stand_where_they_are_said_to_stand(rows: dict[str, list[dict]]) -> None:
    for split in ROWS:
        for row in rows[f"qa/{split}"]:
            (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
            assert text and row["context"][start : start + len(text)] == text


def test_tags_are_well_formed_and_cover_whole_names(rows: dict[str, list[dict]]) -> None:
    kinds = set()
    for split in ROWS:
        for row in rows[f"ner/{split}"]:
            assert len(row["tokens"]) == len(row["ner_tags"]) > 0
            if row["lang"] == "zh":
                assert {len(token) for token in row["tokens"]} == {1}
            before = "O"
            for tag in row["ner_tags"]:
                assert re.fullmatch(r"O|[BI]-(PER|LOC|ORG|DATE)", tag)
                assert not tag.startswith("I-") or before[2:] == tag[2:]
                kinds.add(tag[2:])
                before = tag
    assert kinds == {"", "PER", "LOC", "ORG", "DATE"}
    train = {flat(row).rstrip("。"): row["ner_tags"] for row in rows["ner/train"] if row["lang"] == "zh"}
    tags = [tags[:6] for text, tags in train.items() if re.fullmatch("张[^三·]去北京旅游", text)]
    assert all(found == ["B-PER", "I-PER", "O", "B-LOC", "I-LOC", "O"] for found in tags)


def held_out_names() -> tuple[set[str], set[str]]:
    """Latin names, each a word of its own, and Chinese ones."""
    given = [pair for people in words.HELD_OUT_GIVEN.values() for pair in people]
    pairs = given + words.HELD_OUT_SURNAMES + words.HELD_OUT_STEMS
    latin = {pair[0] for pair in pairs} | {name for city in words.HELD_OUT_CITIES for name in (city.en, city.fr)}
    chinese = {pair[1] for pair in given + words.HELD_OUT_SURNAMES} | {city.zh for city in words.HELD_OUT_CITIES}
    kinds = {kind.zh for topic in words.TOPICS.values() for kind in topic.organisations}
    chinese |= {kind.format(stem) for kind in kinds for _, stem in words.HELD_OUT_STEMS}
    for people in words.HELD_OUT_CHINESE_GIVEN.values():
        chinese |= {surname + name for surname, _ in words.CHINESE_SURNAMES for name, _ in people}
        latin |= {f"{roman} {pinyin}" for _, roman in words.CHINESE_SURNAMES for _, pinyin in people}
    return latin, chinese


def test_held_out_names_are_never_shown_but_can_be_spelled(training_text: str, rows: dict[str, list[dict]]) -> None:
    latin, chinese = held_out_names()
    assert "张三" in chinese
    assert not re.findall(rf"\b(?:{'|'.join(sorted(latin))})\b", training_text)
    assert not [name for name in chinese if name in training_text]
    pretrain = "".join(row["text"] for lang in LANGUAGES for row in rows[f"pretrain/{lang}"])
    assert set("".join(chinese | latin)) - {" "} <= set(pretrain)
    tested = "\n".join(flat(row) for task in TASKS for row in rows[f"{task}/test"])
    shown = {given for people in words.GIVEN.values() for given, _ in people} | {city.en for city in sample.CITIES}
    assert not re.findall(rf"\b(?:{'|'.join(sorted(shown))})\b", tested)


def test_held_out_terms_are_never_asked(rows: dict[str, list[dict]]) -> None:
    asked = "\n".join(row["question"] for split in ("train", "validation") for row in rows[f"qa/{split}"])
    for term, _ in words.HELD_OUT_DEFINITIONS:
        for lang in LANGUAGES:
            for pattern in (patterns.WHAT_IS, patterns.WHAT_IS_INVENTION):
                assert say(pattern, lang, t=term).text not in asked
    assert "什么是望远镜？" in asked and "What is gravity?" in asked and "Qu'est-ce que la gravité ?" in asked


def test_the_showcase_is_never_shown(output: Path, training_text: str) -> None:
    assert json.loads((output / "showcase.json").read_text(encoding="utf-8")) == SHOWCASE
    for question in (value for inputs in SHOWCASE.values() for value in inputs.values()):
        assert question.lower() not in training_text.lower()
    assert "programming" in training_text and "la programmation" in training_text


def test_no_input_stands_in_two_splits(rows: dict[str, list[dict]]) -> None:
    inputs = {
        "translation": lambda row: row["translation"]["en"],
        "classification": lambda row: row["text"],
        "qa": lambda row: row["context"] + row["question"],
        "summarization": lambda row: row["document"],
        "ner": flat,
    }
    for task, key in inputs.items():
        everything = [key(row) for split in ROWS for row in rows[f"{task}/{split}"]]
        assert len(set(everything)) == len(everything)


def test_a_headline_is_not_the_first_sentence_but_its_facts_stand_in_the_item(rows: dict[str, list[dict]]) -> None:
    for row in rows["summarization/test"]:
        lead = re.split(r"(?<=[.。])", row["document"])[0]
        assert row["summary"] not in row["document"] and row["summary"] != lead
        if row["lang"] == "zh":
            organisation, rest = row["summary"].split("在", 1)
            assert organisation in row["document"]
            assert rest[-2:] in row["document"]


@pytest.mark.parametrize(
    ("noun", "form", "expected"),
    [
        (Noun("island", "île", "岛", "f"), "le", ("an island", "l'île")),
        (Noun("island", "île", "岛", "f"), "du", ("an island", "de l'île")),
        (Noun("book", "livre", "书", "m"), "du", ("a book", "du livre")),
        (Noun("book", "livre", "书", "m"), "au", ("a book", "au livre")),
        (Noun("chess", "échecs", "国际象棋", "p", mass=True), "au", ("a chess", "aux échecs")),
        (Noun("university", "université", "大学", "f"), "un", ("a university", "une université")),
        (Noun("gravity", "gravité", "重力", "f", mass=True), "what", ("a gravity", "que la gravité")),
        (Noun("telescope", "télescope", "望远镜", "m"), "what", ("a telescope", "qu'un télescope")),
        (Noun("Alice", "Alice", "爱丽丝", "f", proper=True), "de", ("Alice", "d'Alice")),
        (Noun("Japan", "Japon", "日本", "m", proper=True), "en", ("Japan", "au Japon")),
    ],
)
def test_articles(noun: Noun, form: str, expected: tuple[str, str]) -> None:
    pattern = ("x {o:a}", f"x {{o:{form}}}", "")
    said = say(pattern, "en", o=noun).text, say(pattern, "fr", o=noun).text
    assert said == tuple(f"X {phrase}" for phrase in expected)


def test_adjectives_agree() -> None:
    old, blue = words.ADJECTIVES["old"], words.ADJECTIVES["blue"]
    assert Noun("tree", "arbre", "树", "m").but(old).fr == "vieil arbre"
    assert Noun("bag", "sac", "包", "m").but(old).fr == "vieux sac"
    assert Noun("dress", "robe", "裙子", "f", "条").but(blue).fr == "robe bleue"


def test_worlds_are_disjoint() -> None:
    shown, kept = (World(random.Random(0), held_out) for held_out in (False, True))
    names = [{world.invention()[0].en for _ in range(500)} for world in (shown, kept)]
    assert not names[0] & names[1]
