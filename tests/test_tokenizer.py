"""The tokenizer: exact on any Unicode, deterministic, fair in bytes, and loaded by transformers alone as it was trained."""

import json
import random
import re
import shutil
from collections import Counter

import pytest

from septet.data import corpus, tokenizer
from septet.data.corpus import CorpusConfig
from septet.data.documents import write_jsonl
from septet.data.errors import UserError
from septet.data.manifest import read_manifest
from septet.data.tokenizer import SPECIAL_TOKENS, TokenizerConfig

SYLLABLES = {
    "en": "ba ker ston wil ing er th ed",
    "fr": "bé que eau tion l'é ment ou à",
    "zh": "人工 智能 北京 旅游 用Python写 的 了 。",
}


def text(lang: str, seed: int) -> str:
    choose = random.Random(f"{lang}{seed}")
    syllables = SYLLABLES[lang].split(" ")
    words = ["".join(choose.choices(syllables, k=choose.randint(1, 4))) for _ in range(60)]
    return ("" if lang == "zh" else " ").join(words)


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory):
    """A corpus with 80 English, 40 French and 10 Chinese documents."""
    folder = tmp_path_factory.mktemp("corpus")
    counts = {"en": 80, "fr": 40, "zh": 10}
    rows = [
        {"text": text(lang, i), "source": "test", "lang": lang} for lang, count in counts.items() for i in range(count)
    ]
    held_out = [{"text": text(lang, -1 - i), "source": "test", "lang": lang} for lang in counts for i in range(3)]
    write_jsonl(folder / "documents.jsonl", rows)
    write_jsonl(folder / "held_out.jsonl", held_out)
    config = CorpusConfig((str(folder / "documents.jsonl"),), folder / "corpus", (str(folder / "held_out.jsonl"),))
    with pytest.MonkeyPatch.context() as patch:  # two small files are not worth worker processes
        patch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
        return corpus.run(config)


@pytest.fixture(scope="module")
def trained(corpus_folder):
    return tokenizer.run(TokenizerConfig(corpus_folder, corpus_folder.parent / "tokenizer", vocab_size=512))


@pytest.fixture(scope="module")
def loaded(trained):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(trained)


def test_special_tokens_have_their_places(loaded):
    assert loaded.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(16))
    assert SPECIAL_TOKENS[:7] == ("<|pad|>", "<|bos|>", "<|eos|>", "<|sep|>", "<|mask|>", "<|source|>", "<|target|>")
    named = (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id, loaded.sep_token_id, loaded.mask_token_id)
    assert named == (0, 1, 2, 3, 4)
    assert loaded.cls_token_id == loaded.bos_token_id
    assert sorted(loaded.all_special_ids) == list(range(16))
    assert (loaded.padding_side, loaded.clean_up_tokenization_spaces) == ("right", False)
    assert len(loaded) == 512


def test_a_text_begins_with_bos_and_a_pair_has_a_separator(loaded, trained):
    from tokenizers import Tokenizer

    raw = Tokenizer.from_file(str(trained / "tokenizer.json"))
    a, b = text("en", 7), text("zh", 7)
    ids_a, ids_b = (raw.encode(part, add_special_tokens=False).ids for part in (a, b))
    assert loaded(a)["input_ids"] == [1, *ids_a]
    pair = loaded(a, b)
    assert pair["input_ids"] == [1, *ids_a, 3, *ids_b]
    assert set(pair) == {"input_ids", "attention_mask"}
    padded = loaded([a, "b"], padding=True)
    assert set(padded["input_ids"][1][2:]) == {0}


def random_texts() -> list[str]:
    choose = random.Random(0)
    everything = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    texts = ["".join(map(chr, choose.sample(everything, 40))) for _ in range(100)]
    likely = "aé \n\r\t\0\u0085\u2028\u00a0\u3000'’人，。0123👩\u200d🔬e\u0301\ufffd\ufeff<|>"
    texts += ["".join(choose.choices(likely, k=30)) for _ in range(300)]
    return [*texts, "", " ", "  leading", "trailing \n\n", "\x00", "don't l'été 2026年!", "Hello , world !"]


def test_decoding_gives_back_any_unicode(loaded):
    for original in random_texts():
        assert loaded.decode(loaded(original)["input_ids"], skip_special_tokens=True) == original
        assert loaded.decode(loaded.encode(original, add_special_tokens=False)) == original


def test_every_code_point_comes_back(loaded):
    everything = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    random.Random(1).shuffle(everything)
    for start in range(0, len(everything), 2000):
        original = "".join(everything[start : start + 2000])
        assert loaded.decode(loaded.encode(original, add_special_tokens=False)) == original


def test_text_that_spells_special_tokens_is_text_when_asked(loaded, trained):
    original = "a<|eos|>b <|target|> <|reserved_9|>"
    assert {2, 6, 9} < set(loaded.encode(original))  # prompts and chat templates need this
    outside = loaded(original, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert min(outside) >= 16
    assert loaded.decode(outside, skip_special_tokens=True) == original
    assert {2, 6, 9} < set(loaded.encode(original)), "the choice is the call's, not the tokenizer's"
    encode, size = tokenizer.known_tokenizer(str(trained))
    assert (list(encode(original)), size) == (outside, 512)


def test_no_token_mixes_chinese_with_latin_or_digits_beyond_three(loaded):
    tokens = [loaded.decode([i]) for i in range(16, len(loaded))]
    assert not [t for t in tokens if re.search("[\u4e00-\u9fa5]", t) and re.search("[A-Za-z]", t)]
    assert [t for t in tokens if len(re.findall("[\u4e00-\u9fa5]", t)) > 1]
    pieces = loaded.backend_tokenizer.pre_tokenizer.pre_tokenize_str("12345我用Python写")
    assert [piece for piece, _ in pieces[:2]] == ["123", "45"]
    assert [span for _, span in pieces] == [(0, 3), (3, 5), (5, 7), (7, 13), (13, 14)]


@pytest.mark.parametrize("parallel", ["true", "false"])
def test_training_twice_gives_the_same_bytes(corpus_folder, trained, tmp_path, monkeypatch, parallel):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
    again = tokenizer.run(TokenizerConfig(corpus_folder, tmp_path / "again", vocab_size=512))
    for name in ("tokenizer.json", "tokenizer_config.json", "report.json"):
        assert (trained / name).read_bytes() == (again / name).read_bytes()


def test_languages_give_equal_bytes(tmp_path):
    sizes = {"en": 300, "fr": 100, "zh": 10}
    rows = [{"text": "x" * 97, "lang": lang} for lang, count in sizes.items() for _ in range(count)]
    write_jsonl(tmp_path / "train/00000.jsonl.gz", rows)
    available = {lang: 97 * count for lang, count in sizes.items()}
    for limit, expected in [(10**9, {"en": 300, "fr": 300, "zh": 40}), (97 * 50, {"en": 50, "fr": 50, "zh": 40})]:
        goals = tokenizer.byte_goals(available, limit)
        taken = Counter()
        weights = dict.fromkeys(sizes, 1.0)
        texts = list(tokenizer.balanced_texts(tmp_path, available, goals, weights, taken, lambda _: None))
        assert taken == {lang: 97 * count for lang, count in expected.items()}
        assert len(texts) == sum(expected.values())


def test_the_sample_is_spread_over_the_whole_corpus(tmp_path):
    write_jsonl(tmp_path / "train/00000.jsonl.gz", [{"text": f"{i:02d}", "lang": "en"} for i in range(100)])
    texts = tokenizer.balanced_texts(tmp_path, {"en": 200}, {"en": 20}, {"en": 1.0}, Counter(), lambda _: None)
    assert list(texts) == [f"{i:02d}" for i in range(0, 100, 10)]


def test_a_weight_repeats_the_same_texts(tmp_path):
    write_jsonl(tmp_path / "train/00000.jsonl.gz", [{"text": f"{i:02d}", "lang": "en"} for i in range(100)])
    taken, read = Counter(), []
    given = list(tokenizer.balanced_texts(tmp_path, {"en": 200}, {"en": 20}, {"en": 2.5}, taken, read.append))
    assert sorted(set(given)) == [f"{i:02d}" for i in range(0, 100, 10)]
    assert set(Counter(given).values()) == {2, 3}
    assert (len(given), taken, sum(read)) == (25, {"en": 20}, 50)


def test_long_documents_are_given_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "_PART", 7)
    write_jsonl(tmp_path / "train/00000.jsonl.gz", [{"text": "0123456789" * 3, "lang": "en"}])
    texts = list(tokenizer.balanced_texts(tmp_path, {"en": 30}, {"en": 30}, {"en": 1.0}, Counter(), lambda _: None))
    assert "".join(texts) == "0123456789" * 3
    assert max(map(len, texts)) == 7


def train_on(folder, rows, **options):
    write_jsonl(folder / "train/00000.jsonl.gz", rows)
    available = Counter()
    for row in rows:
        available[row["lang"]] += len(row["text"].encode())
    return tokenizer.train(TokenizerConfig(folder, **options), available)[0]


@pytest.mark.parametrize("character", ["x", "好", "\n", "!"])
def test_training_cuts_long_pieces_and_encoding_does_not(tmp_path, character):
    made = train_on(tmp_path, [{"text": character * 3000, "lang": "en"}], vocab_size=400)
    longest = max((made.decode([i]) for i in range(16, made.get_vocab_size())), key=len)
    assert longest == character * 16
    pieces = made.pre_tokenizer.pre_tokenize_str(character * 100)
    assert len(pieces) == 1
    assert len(json.loads(made.to_str())["pre_tokenizer"]["pretokenizers"]) == 4


def test_the_report_measures_validation_text(trained, loaded):
    report = json.loads((trained / "report.json").read_text(encoding="utf-8"))
    assert report["vocab_size"] == 512
    for lang, row in report["languages"].items():
        texts = [text(lang, -1 - i) for i in range(3)]
        tokens = [token for t in texts for token in loaded.encode(t, add_special_tokens=False)]
        units = sum(len(t) if lang == "zh" else t.count(" ") + 1 for t in texts)
        assert row["documents"] == 3
        assert row["bytes_per_token"] == pytest.approx(sum(len(t.encode()) for t in texts) / len(tokens), abs=1e-4)
        unit = "character" if lang == "zh" else "word"
        assert row[f"tokens_per_{unit}"] == pytest.approx(len(tokens) / units, abs=1e-4)
        assert row["vocabulary_share"] == pytest.approx(len(set(tokens)) / 512, abs=1e-4)


def test_a_small_corpus_says_what_was_reached(corpus_folder, tmp_path, capsys):
    folder = tokenizer.run(TokenizerConfig(corpus_folder, tmp_path / "large", vocab_size=100_000))
    counts = read_manifest(folder, "tokenizer")["counts"]
    assert counts["vocab_size_asked"] == 100_000
    assert 512 < counts["vocab_size"] < 100_000
    assert f"{counts['vocab_size']:,} tokens of the 100,000 asked for" in capsys.readouterr().out


def test_bad_use_gives_one_message(corpus_folder, trained, tmp_path, capsys):
    with pytest.raises(UserError, match=r"--vocab-size 271: is too small; .* need 272; give 272 or more"):
        tokenizer.run(TokenizerConfig(corpus_folder, tmp_path / "t", vocab_size=271))
    with pytest.raises(UserError, match="holds no finished `corpus` stage"):
        tokenizer.run(TokenizerConfig(tmp_path, tmp_path / "t"))
    with pytest.raises(UserError, match="was made with vocab_size = 512, now 1024"):
        tokenizer.run(TokenizerConfig(corpus_folder, trained, vocab_size=1024))
    tokenizer.run(TokenizerConfig(corpus_folder, trained, vocab_size=512))
    assert "is up to date" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def parallel_rows(count: int = 40) -> list[dict]:
    """The same content: English and French of equal length, Chinese in characters that the corpus hardly has."""
    rows = [{"translation": {"en": text("en", 100 + i), "fr": text("fr", 100 + i)}} for i in range(count)]
    return rows + [{"translation": {"en": text("en", 200 + i), "zh": text("zh", 200 + i) * 2}} for i in range(count)]


@pytest.fixture(scope="module")
def parallel(tmp_path_factory):
    file = tmp_path_factory.mktemp("parallel") / "rows.jsonl.gz"
    write_jsonl(file, parallel_rows())
    return file


def test_premiums_are_token_ratios_on_shared_rows(tmp_path):
    rows = [
        {"en": "ab", "fr": "été", "zh": "你好"},
        {"en": "abcdef", "zh": "好"},
        {"fr": "seul", "zh": "没有"},  # no English: not used
        {"en": "alone", "fr": " ", "zh": None},  # nothing beside English: not used
    ]
    write_jsonl(tmp_path / "rows.jsonl", [{"translation": row} for row in rows])
    found = tokenizer.measure_parity(str.encode, [tmp_path / "rows.jsonl"], {"en", "fr", "zh"})
    assert found == {
        "reference": "en",
        "premiums": {"en": 1.0, "fr": 5 / 2, "zh": (6 + 3) / (2 + 6)},
        "rows": {"fr": 1, "zh": 2},
        "spread": 2.5,
    }
    found = tokenizer.measure_parity(str.encode, [tmp_path / "rows.jsonl"] * 2, {"en", "fr", "zh"})
    assert (found["premiums"]["fr"], found["rows"]) == (2.5, {"fr": 2, "zh": 4})
    write_jsonl(tmp_path / "more.jsonl", [{"translation": {"en": "abcdef", "fr": "abc"}}])
    found = tokenizer.measure_parity(str.encode, [tmp_path / "more.jsonl"], ["en", "fr"])
    assert (found["premiums"], found["spread"]) == ({"en": 1.0, "fr": 0.5}, 2.0)
    write_jsonl(tmp_path / "other.jsonl", [{"translation": {"fr": "abc", "zh": "abcdef"}}])
    found = tokenizer.measure_parity(str.encode, [tmp_path / "other.jsonl"], ["zh", "fr"])
    assert (found["reference"], found["premiums"]) == ("fr", {"fr": 1.0, "zh": 2.0})


def test_parity_training_evens_out_the_cost(corpus_folder, parallel, tmp_path, capsys):
    config = TokenizerConfig(corpus_folder, tmp_path / "even", vocab_size=360, parallel=(parallel,), parity=True)
    report = json.loads((tokenizer.run(config) / "report.json").read_text(encoding="utf-8"))
    assert "spread" in capsys.readouterr().out
    rounds = report["parity_training"]
    kept = next(row for row in rounds if row["kept"])
    plain = tokenizer.run(TokenizerConfig(corpus_folder, tmp_path / "plain", vocab_size=360, parallel=(parallel,)))
    plain = json.loads((plain / "report.json").read_text(encoding="utf-8"))
    assert plain["parity"].items() <= rounds[0].items(), "the first round is plain training"
    assert set(rounds[0]["weights"].values()) == {1.0}
    assert kept["spread"] == report["parity"]["spread"] < plain["parity"]["spread"]
    assert kept["spread"] == min(row["spread"] for row in rounds if row["against_plain"] <= 0.03)
    tokens = [sum(row["tokens"] for row in r["languages"].values()) for r in (report, plain)]
    assert tokens[0] / tokens[1] - 1 == pytest.approx(kept["against_plain"], abs=1e-4)
    assert kept["against_plain"] <= 0.03
    for row in rounds[1:]:
        assert min(row["weights"].values()) == 1.0
        assert max(row["weights"].values()) <= 8.0
    costly = max(rounds[0]["premiums"], key=rounds[0]["premiums"].get)
    assert rounds[1]["weights"][costly] == max(rounds[1]["weights"].values())
    again = tokenizer.run(TokenizerConfig(corpus_folder, tmp_path / "again", 360, parallel=(parallel,), parity=True))
    assert (again / "tokenizer.json").read_bytes() == (config.output / "tokenizer.json").read_bytes()


def test_another_tokenizer_is_counted_alike(corpus_folder, trained, parallel, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "same")
    bytewise = tokenizer.run(TokenizerConfig(corpus_folder, tmp_path / "bytes", vocab_size=272))
    names = (str(tmp_path / "same"), str(bytewise))
    folder = tokenizer.run(
        TokenizerConfig(corpus_folder, tmp_path / "t", vocab_size=512, parallel=(parallel,), compare=names)
    )
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    same, small = (report["compared"][name] for name in names)
    assert same == {key: report[key] for key in ("vocab_size", "languages", "parity")}
    assert small["vocab_size"] == 272
    assert {row["bytes_per_token"] for row in small["languages"].values()} == {1.0}
    assert f"beside it {names[1]}, 272 tokens; bytes a token: en 1.00" in capsys.readouterr().out


def test_bad_parallel_text_and_names_give_one_message(corpus_folder, tmp_path):
    good = {"en": "one", "fr": "un", "zh": "一"}
    cases = [
        ([{"de": "eins", "en": "one"}], False, r"row 1: language 'de' is not in the corpus; .*known: en, fr, zh; name"),
        ([good, {"en": "one", "fr": 1}], False, r"row 2: its translation is .* it must be .* mend or remove the row"),
        ([good, ["one", "un"]], False, r"row 2: its translation is"),
        ([{"fr": "un", "zh": "一"}], False, r"no row has both en and any other language"),
        ([{"en": "one", "fr": "un"}], True, r"no row has both en and zh; parity needs some; give more"),
    ]
    for number, (rows, parity, message) in enumerate(cases):
        file = tmp_path / f"{number}.jsonl"
        write_jsonl(file, [{"translation": row} for row in rows])
        with pytest.raises(UserError, match=message):
            tokenizer.run(TokenizerConfig(corpus_folder, tmp_path / "t", 512, parallel=(file,), parity=parity))
    write_jsonl(tmp_path / "flat.jsonl", [good])
    with pytest.raises(UserError, match="has no column 'translation'"):
        tokenizer.run(TokenizerConfig(corpus_folder, tmp_path / "t", 512, parallel=(tmp_path / "flat.jsonl",)))
    with pytest.raises(UserError, match="(?i)no such file"):
        tokenizer.run(TokenizerConfig(corpus_folder, tmp_path / "t", 512, parallel=(tmp_path / "none.jsonl",)))
    with pytest.raises(UserError, match="--parity: .*; give one with --parallel"):
        tokenizer.run(TokenizerConfig(corpus_folder, tmp_path / "t", 512, parity=True))
    with pytest.raises(UserError, match=r"--compare tekkn: .* did you mean 'tekken'\? known: qwen, tekken"):
        tokenizer.run(TokenizerConfig(corpus_folder, tmp_path / "t", 512, compare=("tekkn",)))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"broken/tokenizer.json: is not a tokenizer"):
        tokenizer.known_tokenizer(str(tmp_path / "broken"))
    assert not (tmp_path / "t").exists()


def test_a_missing_package_is_named_before_training(corpus_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, package in tokenizer.KNOWN.items():
        with pytest.raises(UserError, match=f"--compare {name}: .*not installed.*; pip install {package}"):
            tokenizer.run(TokenizerConfig(corpus_folder, tmp_path / "t", 512, compare=(name,)))


@pytest.mark.parametrize(("name", "size"), [("tekken", 131_072), ("qwen", 151_851)])
def test_known_tokenizers_count_plain_text(name, size):
    pytest.importorskip(tokenizer.KNOWN[name].replace("-", "_"))
    encode, vocab_size = tokenizer.known_tokenizer(name)
    assert vocab_size == size
    assert len(encode("2026")) == 4  # both split digits one by one
    assert len(encode("</s><|endoftext|>")) > 4  # spelt out, not special
    assert len(encode(" the")) == 1


def test_bytes_alone_are_a_vocabulary(corpus_folder, tmp_path):
    from transformers import AutoTokenizer

    bytewise = AutoTokenizer.from_pretrained(
        tokenizer.run(TokenizerConfig(corpus_folder, tmp_path / "bytes", vocab_size=272))
    )
    assert len(bytewise.encode("été", add_special_tokens=False)) == 5
