"""De-duplication and decontamination, against brute force and planted truth in the three languages."""

import functools
import json
import random
import re
import unicodedata
from collections import Counter

import numpy as np
import pytest
from datatrove.data import Document

from septet.data import dedup, store
from septet.data.clean import Clean
from septet.data.decontaminate import Decontaminate, build_index, evaluation_files, report, texts_of
from septet.data.documents import write_jsonl
from septet.data.errors import UserError
from septet.data.words import words_of

LANGUAGES = ("en", "fr", "zh")


@functools.cache
def vocabulary(lang: str, size: int = 3000) -> list[str]:
    """Words that no two languages share; Chinese ones are of one to three characters."""
    rng = random.Random(lang)
    if lang == "zh":
        return [
            "".join(chr(rng.randrange(0x4E00, 0x9FA0)) for _ in range(rng.choice((1, 2, 2, 3)))) for _ in range(size)
        ]
    letters = "abcdefghijklmnopqrstuvwxyz" + ("éèàçêîôû" if lang == "fr" else "")
    return ["".join(rng.choices(letters, k=rng.randrange(2, 9))) for _ in range(size)]


def passage(lang: str, rng: random.Random, words: int) -> list[str]:
    """Words drawn by Zipf's law, as a text draws them."""
    known = vocabulary(lang)
    return rng.choices(known, weights=[1 / (k + 3) for k in range(len(known))], k=words)


def written(lang: str, words: list[str]) -> str:
    if lang == "zh":
        return "，".join("".join(words[i : i + 6]) for i in range(0, len(words), 6)) + "。"
    return " ".join(words).capitalize() + "."


def plain_words(text: str) -> list[str]:
    """The definition of `septet.data.words` again, by regular expressions and Python's strings."""
    return re.findall(
        r"[\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W_\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+",
        text.casefold(),
    )


def plain_shingles(text: str) -> set[tuple[str, ...]]:
    words = plain_words(text)
    size = 8 if 2 * sum(bool(re.fullmatch("[\u3041-\u9fff]", word)) for word in words) > len(words) else 5
    return {tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))}


def deduplicated(tmp_path, texts: list[str], threshold: float = 0.8, tasks: int = 3) -> dict[int, tuple[int, float]]:
    """What goes, because of which, and how alike they are, by the stages of the corpus."""
    folder = tmp_path / "documents"
    for task, numbers in enumerate(np.array_split(np.arange(len(texts)), tasks)):
        writer = store.Writer(folder, task)
        for number in numbers.tolist():
            values = dedup.shingles(words_of(texts[number]))
            row = {"id": str(number), "text": texts[number], "source": "test", "lang": "en"}
            digest = dedup.text_digest(texts[number])
            writer.add(row, "train", digest, dedup.signature(values), dedup.sketch(values))
        writer.close()
    list(dedup.Exact(folder, tmp_path / "exact")(None))
    for band in range(dedup.BANDS):
        list(dedup.Candidates(folder, tmp_path / "exact", tmp_path / "pairs")(None, band, dedup.BANDS))
    for task in range(tasks):
        list(dedup.Similar(folder, tmp_path / "pairs", tmp_path / "similar", threshold)(None, task, tasks))
    files = sorted((tmp_path / "similar").glob("*.npy"))
    goes, because = dedup.resolve(store.Store(folder), np.load(tmp_path / "exact" / "exact.npy"), files)
    assert np.flatnonzero(goes).tolist() == because["later"].tolist()
    return {later: (earlier, round(similarity, 6)) for earlier, later, similarity, _ in because.tolist()}


# --- words ------------------------------------------------------------------------------------------------------------


def test_words_are_those_of_the_plain_definition():
    texts = [
        "L'été, c'est l'ÉTÉ_ici: 3.14 et ½!",
        "北京ABC的東京タワー, ok?",
        "",
        " \u3000",
        "ǅ ß İ 𠀀𠀁 a\u0301",
        "Straße STRASSE",
    ]
    rng = random.Random(1)
    texts += [written(lang, passage(lang, rng, 50)) for lang in LANGUAGES]
    known: dict[str, int] = {}
    for text in texts:
        words, plain = words_of(text), plain_words(text.replace("𠀀", "北").replace("𠀁", "京"))
        assert len(plain) == len(words.hashes), text
        assert [len(word) for word in plain] == words.lengths.tolist()
        if "𠀀" not in text:
            for word, value in zip(plain, words.hashes.tolist(), strict=True):
                assert known.setdefault(word, value) == value
    assert len(set(known.values())) == len(known) > 100


@pytest.mark.parametrize("n", [1, 2, 5, 13])
def test_n_grams_are_equal_exactly_where_the_words_are(n):
    rng = random.Random(n)
    words = rng.choices(["a", "b", "ab", "ba"], k=300)
    grams = words_of(" ".join(words)).n_grams(n)
    plain = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    assert len(plain) == len(grams)
    seen = dict(zip(plain, grams.tolist(), strict=True))
    assert [seen[gram] for gram in plain] == grams.tolist()
    assert len(set(seen.values())) == len(seen)
    assert words_of("a b").n_grams(3).shape == (0,)


# --- signatures and sketches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", [0.5, 0.8, 0.95])
def test_signatures_estimate_jaccard(similarity):
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(200):
        values = rng.integers(0, 2**32, 800, dtype=np.uint32)
        shared = int(800 * similarity / (1 + similarity))
        one, other = values[:400], np.concatenate([values[:shared], values[400 : 800 - shared]])
        true = len(np.intersect1d(one, other)) / len(np.union1d(one, other))
        errors.append((dedup.signature(one) == dedup.signature(other)).mean() - true)
    expected = (similarity * (1 - similarity) / store.NUM_HASHES) ** 0.5
    assert abs(np.mean(errors)) < 4 * expected / 200**0.5
    assert 0.8 < np.std(errors) / expected < 1.2


def test_sketches_are_exact_when_small_and_close_when_large():
    rng = np.random.default_rng(1)
    for size, tolerance in ((1500, 0.0), (40_000, 0.04)):
        values = np.unique(rng.integers(0, 2**32, 2 * size, dtype=np.uint32))
        one, other = np.sort(values[::2]), np.sort(rng.choice(values, size, replace=False))
        true = len(np.intersect1d(one, other)) / len(np.union1d(one, other))
        sketches = dedup.sketch(one), dedup.sketch(other)
        assert abs(dedup.jaccard(*sketches) - true) <= tolerance
        assert all(len(values) <= 2048 for values, _ in sketches)


def test_sketches_of_different_scales_are_compared_at_the_coarser_one():
    rng = np.random.default_rng(2)
    values = np.unique(rng.integers(0, 2**32, 6000, dtype=np.uint32))
    for size, scale in ((1900, 0), (3000, 1)):
        part = np.sort(rng.choice(values, size, replace=False))
        small, large = dedup.sketch(part), dedup.sketch(values)
        assert (small[1], large[1]) == (scale, 2)
        assert abs(dedup.jaccard(small, large) - size / len(values)) < 0.05


# --- exact and near duplicates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lang", LANGUAGES)
def test_near_duplicates_are_those_of_brute_force(tmp_path, lang):
    """Copies with edits of every strength: what goes agrees with all pairs compared in full, in order."""
    rng = random.Random(lang)
    originals = [passage(lang, rng, rng.randrange(40, 400)) for _ in range(250)]
    texts = [written(lang, words) for words in originals]
    for words in originals:
        for _ in range(rng.randrange(4)):
            edited = list(words)
            for _ in range(int(len(words) * rng.choice((0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)))):
                place = rng.randrange(len(edited))
                edited[place : place + rng.randrange(2)] = passage(lang, rng, 1)
            texts.append(written(lang, edited))
    rng.shuffle(texts)

    sets = [plain_shingles(text) for text in texts]
    holders: dict[tuple[str, ...], list[int]] = {}
    truth: dict[int, float] = {}
    for number, mine in enumerate(sets):
        shared: dict[int, int] = {}
        for shingle in mine:
            for other in holders.get(shingle, ()):
                shared[other] = shared.get(other, 0) + 1
        similar = [count / (len(mine) + len(sets[other]) - count) for other, count in shared.items()]
        if max(similar, default=0) >= 0.8:
            truth[number] = max(similar)
        else:
            for shingle in mine:
                holders.setdefault(shingle, []).append(number)

    found = deduplicated(tmp_path, texts)
    right = len(truth.keys() & found.keys())
    assert len(truth) > 100
    assert right / len(truth) >= 0.98
    assert right / len(found) >= 0.98
    for later, (earlier, similarity) in found.items():
        assert earlier < later
        assert earlier not in found
        true = len(sets[earlier] & sets[later]) / len(sets[earlier] | sets[later])
        assert true >= 0.8
        assert abs(true - similarity) < 0.12


def test_differences_that_do_not_add_up_to_a_copy(tmp_path):
    """A chain in which each is like the next, but the last not like the first: every second link stays."""
    words = [f"w{i}" for i in range(400)]
    step = 22  # shifts of 22 words: 0.89 alike; of 44: 0.80 and less
    texts = [" ".join(words[k * step : k * step + 200]) for k in range(6)]
    found = deduplicated(tmp_path, texts, threshold=0.79, tasks=2)
    sets = [plain_shingles(text) for text in texts]
    for later, (earlier, _) in found.items():
        assert len(sets[earlier] & sets[later]) / len(sets[earlier] | sets[later]) >= 0.79
    assert 0 < len(found) < len(texts) - 1


def test_exact_copies_differ_in_case_space_and_punctuation_alone(tmp_path):
    texts = ["A cat, on a mat.", "a CAT on a mat!", "acatonamat", "A cat on a hat.", "猫在，桌子上。", "猫在桌子上"]
    assert deduplicated(tmp_path, texts) == {1: (0, 1.0), 2: (0, 1.0), 5: (4, 1.0)}


def test_a_copy_of_a_near_duplicate_names_the_one_that_stays(tmp_path):
    words = [f"w{i}" for i in range(300)]
    near = " ".join([*words[:150], "other", *words[151:]])
    found = deduplicated(tmp_path, [" ".join(words), near, near.upper()], tasks=1)
    assert {later: earlier for later, (earlier, _) in found.items()} == {1: 0, 2: 0}


def test_large_groups_and_many_parts(tmp_path, monkeypatch):
    """A thousand copies of one page cost a thousand pairs a band, not half a million; parts of the key space change nothing."""
    rng = random.Random(5)
    page = passage("en", rng, 200)
    texts = [written("en", passage("en", rng, 60)) for _ in range(50)]
    texts += [written("en", [*page, f"visitor{k}"]) for k in range(1000)]
    whole = deduplicated(tmp_path / "whole", texts)
    assert set(range(51, 1050)) == whole.keys()
    assert {50} == {earlier for earlier, _ in whole.values()}
    for file in (tmp_path / "whole" / "pairs").iterdir():
        assert len(np.load(file)) <= 1000
    monkeypatch.setattr(dedup, "_DOCUMENTS_AT_ONCE", 100)
    assert whole == deduplicated(tmp_path / "parts", texts)


# --- decontamination ----------------------------------------------------------------------------------------------------


@pytest.fixture
def evaluation(tmp_path):
    """Texts of 8 to 60 words (12 to 90 characters), as rows of three sets, and their index."""
    rng = random.Random(9)
    texts = {lang: [written(lang, passage(lang, rng, rng.randrange(12, 60))) for _ in range(150)] for lang in LANGUAGES}
    write_jsonl(tmp_path / "news/test.jsonl.gz", [{"text": text, "label": 1} for text in texts["en"]])
    rows = [{"question": text, "answers": {"text": ["oui"]}, "id": "7"} for text in texts["fr"]]
    write_jsonl(tmp_path / "qa/validation.jsonl", rows)
    write_jsonl(
        tmp_path / "qa/train.jsonl", [{"question": "Cette partie sert à apprendre et ne compte donc pas du tout."}]
    )
    write_jsonl(
        tmp_path / "ner/test.jsonl", [{"tokens": list(text), "ner_tags": ["O"] * len(text)} for text in texts["zh"]]
    )
    build_index(evaluation_files([str(tmp_path / name) for name in ("news", "qa", "ner")]), tmp_path / "index")
    return texts, tmp_path / "index"


def piece_of(lang: str, text: str, rng: random.Random) -> str:
    """Some 14 words, or 21 characters, of a text, or the whole if it is shorter; with other case and punctuation."""
    if lang == "zh":
        characters = text.replace("，", "").replace("。", "")
        start = rng.randrange(max(1, len(characters) - 20))
        return "、".join(characters[start : start + 21])
    words = text.rstrip(".").split(" ")
    start = rng.randrange(max(1, len(words) - 13))
    return ", ".join(words[start : start + 14]).upper()


def test_all_planted_contaminations_are_found_and_no_clean_text(evaluation):
    texts, index = evaluation
    rng, step = random.Random(3), Decontaminate(index)
    for lang in LANGUAGES:
        for text in texts[lang]:
            around = [written(lang, passage(lang, rng, 80)) for _ in range(2)]
            piece = piece_of(lang, text, rng)
            doc = Document((piece if lang == "zh" else f" {piece} ").join(around), "d", metadata={})
            assert step.filter(doc) == (False, "contaminated"), text
            assert step.filter(Document("\n".join(around), "d")) is True
    assert doc.metadata["contaminated_by"] == ["ner/test:150:tokens"]


def test_pieces_one_word_short_do_not_count(tmp_path):
    words = [f"w{i}" for i in range(30)]
    write_jsonl(
        tmp_path / "set/test.jsonl", [{"text": " ".join(words)}, {"text": "eight words are the least that counts here"}]
    )
    build_index(evaluation_files([str(tmp_path / "set")]), tmp_path / "index")
    step = Decontaminate(tmp_path / "index")
    held = [step.filter(Document(" ".join(["x", *words[5 : 5 + n], "y"]), "d")) is not True for n in (12, 13, 14)]
    assert held == [False, True, True]
    assert step.filter(Document("Eight words are the least that counts, here!", "d")) is not True
    assert step.filter(Document("seven words are the least that counts", "d")) is True


FRENCH = "Le maître d'école préféra récolter ses pommes à la fin de l'été avant de fermer la maison"


@pytest.mark.parametrize(
    "written_as",
    [
        unicodedata.normalize("NFD", FRENCH),
        FRENCH.replace("'", "&#39;"),
        FRENCH.encode().decode("cp1252"),
        FRENCH.replace("pommes", "pom\u00admes"),
    ],
    ids=["decomposed", "entities", "mojibake", "soft hyphen"],
)
def test_evaluation_texts_are_cleaned_as_documents_are(written_as, tmp_path):
    write_jsonl(tmp_path / "set/test.jsonl", [{"text": written_as}])
    build_index(evaluation_files([str(tmp_path / "set")]), tmp_path / "index")
    step = Decontaminate(tmp_path / "index")
    assert step.filter(Document(Clean().format(written_as), "d", metadata={})) == (False, "contaminated")
    assert step.filter(Document(FRENCH, "d", metadata={})) == (False, "contaminated")


def test_each_text_of_a_list_counts_by_itself_and_its_words_do_not(tmp_path):
    short = [
        "one two three four five six seven eight nine ten",
        "ten nine eight seven six five four three two one zero",
    ]
    write_jsonl(
        tmp_path / "set/test.jsonl", [{"refs": short}, {"tokens": ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]}]
    )
    build_index(evaluation_files([str(tmp_path / "set")]), tmp_path / "index")
    step = Decontaminate(tmp_path / "index")
    for text in short:
        assert step.filter(Document(f"It begins. {text}. It ends.", "d", metadata={})) == (False, "contaminated")
    assert json.loads((tmp_path / "index" / "sets.json").read_text())[0]["texts_too_short"] == 0


def test_a_folder_s_held_out_files_are_found_whatever_their_kind(tmp_path):
    for name in (
        "train.jsonl",
        "test.json",
        "validation.json.gz",
        "more.csv.gz",
        "old.jsonl.zst",
        "README.md",
        "manifest.json",
    ):
        (tmp_path / name).touch()
    found = [file.name for file in evaluation_files([str(tmp_path)])]
    assert found == ["more.csv.gz", "old.jsonl.zst", "test.json", "validation.json.gz"]


def test_the_report_counts_rows_and_columns(evaluation):
    _, index = evaluation
    items = [tuple(item) for item in json.loads((index / "items.json").read_text())]
    of = [items.index(item) for item in ((0, 1, "text"), (0, 9, "text"), (1, 2, "question"))]
    news, qa, ner = report(index, Counter({str(of[0]): 3, str(of[1]): 1, str(of[2]): 1}), Counter({"0": 4, "1": 1}))
    assert (news["rows"], news["rows_found"], news["documents_dropped"], news["found_by_column"]) == (
        150,
        2,
        4,
        {"text": 2},
    )
    assert (qa["name"], qa["rows_found"], qa["texts_too_short"]) == ("qa/validation", 1, 300)  # "oui" and the id
    assert (ner["rows_found"], ner["rows_checked"] <= 150) == (0, True)


def test_sets_with_one_stem_and_columns_with_a_colon_are_told_apart(tmp_path):
    texts = {"fr": "un deux trois quatre cinq six sept huit neuf", "en": "one two three four five six seven eight nine"}
    for lang, text in texts.items():
        write_jsonl(tmp_path / f"set/test.{lang}.jsonl", [{"a:b": text}])
    write_jsonl(tmp_path / "set/test.en.json", [{"c": "ten nine eight seven six five four three two one"}])
    build_index(
        [tmp_path / f"set/{name}" for name in ("test.en.json", "test.en.jsonl", "test.fr.jsonl")], tmp_path / "index"
    )
    step = Decontaminate(tmp_path / "index")
    doc = Document(texts["fr"], "d", metadata={})
    assert step.filter(doc) == (False, "contaminated")
    assert doc.metadata["contaminated_by"] == ["set/test.fr:1:a:b"]
    found = Counter(map(str, doc.metadata["contaminated_items"]))
    rows = report(tmp_path / "index", found, Counter(map(str, doc.metadata["contaminated_sets"])))
    assert [(row["name"], row["rows_found"], row["documents_dropped"], row["found_by_column"]) for row in rows] == [
        ("set/test.en", 0, 0, {}),
        ("set/test.en (2)", 0, 0, {}),
        ("set/test.fr", 1, 1, {"a:b": 1}),
    ]


def test_texts_of_rows():
    row = {
        "id": "1",
        "translation": {"en": "a", "fr": "b"},
        "tokens": ["x", "y"],
        "n": 3,
        "turns": [{"text": "c"}],
        "none": None,
    }
    expected = [("id", "1"), ("translation.en", "a"), ("translation.fr", "b"), ("tokens", "x y"), ("turns.text", "c")]
    assert expected == list(texts_of(row))


def test_evaluation_sets_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"--decontaminate .*nowhere: no file of rows there"):
        evaluation_files([str(tmp_path / "nowhere")])
