"""Cleaning equals ftfy and is quick; each filter drops what was planted for it, and keeps what only looks like it."""

import gzip
import itertools
import json
import pickle
import random
import re
import time
from pathlib import Path

import ftfy
import pytest
from datatrove.data import Document
from ftfy.badness import BADNESS_RE, MOJIBAKE_CATEGORIES

from septet.data.clean import FTFY, Clean, _suspicious, repaired
from septet.data.filters import LIGHT, WEB, FewRepeatedNGrams, Rules, quality_filters

REAL = Path(__file__).parents[2] / "shared/data/pretrain"

# --- cleaning ---------------------------------------------------------------------------------------------------------

SENTENCES = [
    "L'été, « là-bas », coûte 3 € ; le cœur d'Œdipe n'a pas changé… déjà !",
    "“Isn’t it?” she asked — naïvely, at 20° for £5, ½ of it.",
    "他说：“这本书很好……”——第２页，价格￥５０。",
    "Ses « à-côtés » : « Ô Élégie », À l’œuvre, ça va, Noël.",
    "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία; ναι·",
    "plain ASCII, nothing to see",
]
FRAGMENTS = [
    *(
        "&amp;",
        "&eacute;",
        "&#233;",
        "&lt;b&gt;",
        "&NTILDE;",
        "<b>",
        "\x1b[31mred",
        "\0",
        "\x07",
        "\ufeff",
        "\x85",
        "\x97",
    ),
    *(
        "\r\n",
        "\r",
        "\u2028",
        "\ufb01",
        "ĳ",
        "\ud83d\ude00",
        "\ud83d",
        "😀",
        "👩\u200d🔬",
        "e\u0301",
        "か\u3099",
        "\u212b",
    ),
    *(
        "\u00ad",
        "\u200b",
        "\u2060",
        "\ufffd",
        "   ",
        "\n\n\n\n",
        "œ ",
        "Ã ",
        "à²",
        "voilÃ le",
        "Â",
        "“é”a",
        "\u0300",
        "<",
        "&",
    ),
]
ENCODINGS = ["latin-1", "cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1257", "iso8859-2", "mac-roman", "cp437"]
ENCODINGS += [f"sloppy-windows-{page}" for page in (1250, 1251, 1252, 1253, 1254, 1257)]


def misread(text: str, rng: random.Random) -> str:
    for encoding in rng.sample(ENCODINGS, len(ENCODINGS)):
        try:
            return text.encode().decode(encoding)
        except UnicodeDecodeError:
            continue
    return text


def damaged(rng: random.Random) -> str:
    pieces = []
    for _ in range(rng.randint(1, 5)):
        sentence = rng.choice(SENTENCES)[: rng.choice((3, 8, 99))]
        for _ in range(rng.choice((0, 0, 1, 2))):
            sentence = misread(sentence, rng)
        pieces += [sentence, rng.choice(FRAGMENTS) if rng.random() < 0.6 else "", rng.choice(("", "\n", " ", " \n"))]
    return "".join(pieces)


def test_the_quick_path_equals_ftfy_and_cleaning_twice_changes_nothing():
    rng, clean, changed = random.Random(0), Clean(), 0
    for _ in range(6000):
        text = damaged(rng)
        expected = ftfy.fix_text(text, FTFY)
        changed += expected != text
        assert expected == repaired(text), repr(text)
        cleaned = clean.format(text)
        assert cleaned == clean.format(cleaned), repr(text)
    assert changed > 3000


def test_every_mark_of_damage_is_suspicious():
    """All pairs of the characters that ftfy's expression names, and random runs of them: none is bad to ftfy alone."""
    named = re.compile("[" + "".join(MOJIBAKE_CATEGORIES.values()) + "√≈‚Ђ‚ьў]")
    characters = [c for c in map(chr, range(0x80, 0x10000)) if named.match(c)]
    assert len(characters) > 400
    missed = []
    contexts = [("", ""), ("a", "a"), ("a ", "\n")]

    def look(text):
        if BADNESS_RE.search(text) and not _suspicious().search(text):
            missed.append(text)

    for (before, after), one, two in itertools.product(contexts, characters, [*characters, ""]):
        look(before + one + two + after)
    rng = random.Random(0)
    for _ in range(200_000):
        look("".join(rng.choice(characters) if rng.random() < 0.8 else rng.choice("aZ .,\n1") for _ in range(5)))
    assert not missed


def test_every_single_character_is_treated_as_ftfy_does():
    for point in (*range(0x10000), *range(0x1D000, 0x1FB00)):
        text = f"a{chr(point)}b"
        assert ftfy.fix_text(text, FTFY) == repaired(text), hex(point)


@pytest.mark.parametrize(
    "text",
    [
        "&amp; one\n<b> &amp; two\n&amp; three",  # no entities after a tag
        "x" * 999_999 + "e\u0301",  # ftfy cuts a line of a million characters
        "x" * 999_999 + "Ã©\n" + "cafÃ© " * 10,
        "one\n" * 999 + "cafÃ©\n" + "two\n" * 999 + "thÃ©",
        "A\u030a ngstro\u0308m \u212b &amp; cafÃ©",
    ],
)
def test_lines_and_segments_are_ftfys(text):
    assert ftfy.fix_text(text, FTFY) == repaired(text)


@pytest.mark.parametrize(
    "raw, clean",
    [
        ("e\u0301te\u0301", "été"),  # NFC
        ("It’s “quoted” — «\u00a0oui\u00a0»", "It’s “quoted” — «\u00a0oui\u00a0»"),
        ("你好，世界！（全角）：ＡＢ？", "你好，世界！（全角）：ＡＢ？"),
        ("schÃ¶n, itâ€™s", "schön, it’s"),
        ("a\x00b\x07c\ufeff\u200bd", "abcd"),
        ("one  \r\ntwo\t\n\n\n\n  three\u2028four ", "one\ntwo\n\n  three\nfour"),
        ("one\u0085 two", "one… two"),  # ftfy: what a Windows ellipsis becomes if read as Latin-1
        ("👩\u200d🔬", "👩\u200d🔬"),
        ("e\u200b\u0301", "é"),  # an accent that meets its letter only when what stood between is gone
        (" Ã la mode", "à la mode"),  # mojibake only at the start of a line
    ],
)
def test_cleaning(raw, clean):
    assert clean == Clean().format(raw)
    assert clean == Clean().format(clean)


@pytest.mark.parametrize(
    "text",
    [
        "a" + " " * 2_000_000 + "b",
        "\n \t" * 700_000,
        "Les élèves étaient là. " * 200_000,
        "cafÃ© " * 100_000,
        "&amp;" * 400_000,
        "字" * 1_600_000,
        "a b " * 1_000_000,
        "{[(<" * 500_000,
    ],
    ids=lambda text: repr(text[:8]),
)
def test_long_documents_take_no_more_than_their_time(text):
    start = time.monotonic()
    text = Clean().format(text)
    for lang, quality in itertools.product(("en", "zh"), ("light", "web")):
        for step in quality_filters(quality, 1, 10_000_000):
            step.filter(Document(text, "0", metadata={"lang": lang}))
    assert time.monotonic() - start < 20  # 1 to 3 s; what grows with the square would take hours


@pytest.mark.skipif(not REAL.is_dir(), reason="reads the real text")
@pytest.mark.parametrize("lang", ["en", "fr", "zh"])
def test_real_text_comes_out_as_from_ftfy(lang):
    with gzip.open(REAL / f"{lang}_validation.jsonl.gz", "rt", encoding="utf-8") as file:
        for text in (json.loads(line)["text"] for line in file):
            assert ftfy.fix_text(text, FTFY) == repaired(text)


# --- filters ----------------------------------------------------------------------------------------------------------

VOCABULARY = {
    "en": "river stone morning letter garden winter harbour music silver window teacher market bridge forest evening",
    "fr": "rivière pierre matin lettre jardin hiver musique argent fenêtre marché château été pont forêt soir",
    "zh": "河流 石头 早晨 书信 花园 冬天 港口 音乐 窗户 老师 市场 城堡 大桥 森林 晚上",
}
GLUE = {"en": "the of and to with", "fr": "le la de et dans", "zh": "的 在 是 和 也"}


def sentence(lang: str, seed: object, words: int = 14) -> str:
    rng = random.Random(f"{lang} {seed}")
    chosen = [rng.choice((VOCABULARY if i % 2 else GLUE)[lang].split()) for i in range(words)]
    return ("" if lang == "zh" else " ").join(chosen) + ("。" if lang == "zh" else ".")


def prose(lang: str, seed: object, sentences: int = 12) -> str:
    return "\n".join(sentence(lang, f"{seed} {i}") for i in range(sentences))


def verdict(text: str, lang: str, quality: str = "web", min_bytes: int = 100, max_bytes: int = 100_000) -> str:
    for step in quality_filters(quality, min_bytes, max_bytes):
        kept = step.filter(Document(text, "0", metadata={"lang": lang}))
        if kept is not True:
            assert kept[1] in step.reasons
            return kept[1]
    return "kept"


def changed(lang: str, change) -> str:
    return "\n".join(change(line, i) for i, line in enumerate(prose(lang, "base").split("\n")))


PLANTED = {
    # Of both qualities.
    ("too_short", "en"): "Too short to say anything.",
    ("too_short", "zh"): "猫在桌子上。" * 5,
    ("too_long", "fr"): prose("fr", 0, 2000),
    ("too_many_replacement_characters", "en"): prose("en", 1) + "\ufffd\ufffd\ufffd",
    ("too_few_letters", "fr"): prose("fr", 1) + " 1 2 3 | = %" * 200,
    ("too_few_letters", "zh"): prose("zh", 1) + "12.50 | 3,141 | % ▪ " * 40,
    ("too_many_repeated_lines", "fr"): "\n".join([sentence("fr", i % 8) for i in range(12)]),
    ("too_many_repeated_lines", "zh"): "\n".join([sentence("zh", i % 8) for i in range(12)]),
    ("too_many_repeated_n_grams", "en"): " ".join(sentence("en", i % 5, 20) for i in range(9)),
    ("too_many_repeated_n_grams", "zh"): "".join(sentence("zh", i % 5, 20) for i in range(9)),
}
PLANTED_ON_THE_WEB = {
    ("placeholder_text", "fr"): prose("fr", 2) + "\nLorem ipsum dolor sit amet.",
    ("curly_brackets", "en"): prose("en", 2) + "\nfunction() { return 1; }",
    ("too_many_notices", "en"): changed("en", lambda line, i: f"This site uses cookies. {line}" if i % 2 else line),
    ("too_many_notices", "zh"): changed("zh", lambda line, i: f"版权所有：{line}" if i % 2 else line),
    ("too_many_short_lines", "en"): prose("en", 3) + "".join(f"\nHome {i}." for i in range(30)),
    ("too_many_short_lines", "zh"): prose("zh", 3) + "".join(f"\n首页{i}。" for i in range(50)),
    ("too_few_finished_lines", "en"): changed("en", lambda line, i: line[:-1]),
    ("too_few_finished_lines", "fr"): changed("fr", lambda line, i: line[:-1]),
    ("too_few_finished_lines", "zh"): changed("zh", lambda line, i: line[:-1]),
    ("too_many_bullet_lines", "en"): changed("en", lambda line, i: f"• {line}"),
    ("too_many_ellipsis_lines", "fr"): changed("fr", lambda line, i: line[:-1] + "..." if i % 2 else line),
    ("too_many_ellipsis_lines", "zh"): changed("zh", lambda line, i: line[:-1] + "……" if i % 2 else line),
    ("too_few_words", "en"): sentence("en", 4, 49),
    ("too_few_words", "zh"): sentence("zh", 4, 56),  # 28 times one character, 28 times two
    ("too_many_line_breaks", "fr"): "\n".join(sentence("fr", i, 4) for i in range(30)),
    ("too_many_symbols", "en"): prose("en", 5) + " #" * 30,
    ("too_many_symbols", "zh"): changed("zh", lambda line, i: line[:3] + "……" + line[3:] + "……。"),
    ("too_short_words", "en"): prose("en", 6, 4) + "\n" + " ".join(random.Random(6).choices("abcdefghij", k=99)) + ".",
    ("too_long_words", "fr"): prose("fr", 7, 4)
    + "\nanticonstitutionnellement" * 4
    + " extraordinairement" * 5
    + "".join(f" internationalisations{a}{b}" for a in "abcdefgh" for b in "abcdefgh")
    + ".",
    ("too_few_han", "zh"): prose("zh", 8, 3) + prose("en", 8, 6),
    ("too_few_words_with_letters", "en"): changed("en", lambda line, i: f"{i} {i + 20} {i + 40} 7 {i * 7} {line}"),
    ("too_few_stop_words", "en"): re.sub(r"\b(the|of|and|to|with)\b", "seldom", prose("en", 9)),
    ("too_few_stop_words", "zh"): re.sub("[的在是和也]", "很", prose("zh", 9)),
    ("too_frequent_n_gram", "en"): " ".join(f"silver window {sentence('en', i, 4)}" for i in range(12)),
    ("too_frequent_n_gram", "zh"): "".join(f"银色窗户{sentence('zh', i, 4)}" for i in range(12)),
}


@pytest.mark.parametrize("quality", ["light", "web"])
@pytest.mark.parametrize("reason, lang", PLANTED)
def test_damage_and_repetition_are_dropped(reason, lang, quality):
    assert reason == verdict(PLANTED[reason, lang], lang, quality)


@pytest.mark.parametrize("reason, lang", PLANTED_ON_THE_WEB)
def test_what_is_no_prose_is_dropped_from_the_web_alone(reason, lang):
    assert reason == verdict(PLANTED_ON_THE_WEB[reason, lang], lang)
    assert verdict(PLANTED_ON_THE_WEB[reason, lang], lang, "light") == "kept"


def test_every_reason_is_planted():
    reasons = {
        reason for quality in ("light", "web") for step in quality_filters(quality, 1, 2) for reason in step.reasons
    }
    assert reasons == {reason for reason, _ in PLANTED | PLANTED_ON_THE_WEB} | {"too_many_words"}
    assert verdict("the of " + " ".join(map(str, range(100_001))), "en", max_bytes=10**9) == "too_few_letters"
    words = " ".join(map("".join, itertools.islice(itertools.product("abcdefghij", repeat=6), 99_999)))
    assert verdict(f"the of {words}.", "en", max_bytes=10**9) == "too_many_words"  # 100,001
    assert verdict(f"the {words}.", "en", max_bytes=10**9) == "too_few_stop_words"  # 100,000


POEM = """\
The river goes to find the sea,
and all its silver stones are slow;
it sings of what it used to be
before it learnt the way to go.

The winter holds it by the hand,
and nothing moves but in a dream;
the garden and the market stand
as white and quiet as the stream.

But when the morning turns to gold
the harbour opens like a door,
and boats go out that were too old,
and come with letters back to shore."""
PLAY = "\n".join(f"{'LOUISE' if i % 2 else 'LAURE'}.\n{sentence('fr', i, 20)}" for i in range(12))
CODE = "\n".join(
    f"def {a}_{b}(value, other):\n    if value > {i}:\n        return other[{i}] + value  # the {b} of a {a}"
    for i, (a, b) in enumerate(itertools.combinations(VOCABULARY["en"].split()[:6], 2))
)
NEAR_MISSES = {
    **{(f"prose in {lang}", lang, quality): prose(lang, "kept") for lang in WEB for quality in ("light", "web")},
    ("French quotation marks", "fr", "web"): changed("fr", lambda line, i: f"«\u00a0{line}\u00a0»"),
    ("French dialogue", "fr", "web"): changed("fr", lambda line, i: f"—\u00a0{line[:-1]}\u00a0{'?!'[i % 2]}"),
    ("French dialogue, typed", "fr", "web"): changed("fr", lambda line, i: f"-- {line}"),
    ("Chinese dialogue", "zh", "web"): changed("zh", lambda line, i: f"老师说：“{line}”"),
    ("Chinese corner quotes", "zh", "web"): changed("zh", lambda line, i: f"「{line}」"),
    ("Chinese ellipses, two characters each", "zh", "web"): changed("zh", lambda line, i: f"{line[:9]}……{line[9:]}"),
    ("Chinese with product names", "zh", "web"): changed("zh", lambda line, i: f"OpenAI GPT {i}：{line}"),
    ("Traditional Chinese", "zh", "web"): "他於是與老師為了書信而來，後來在花園裡被人看見。\n那年冬天特別冷，港口結了冰，船隻都停在岸邊。\n"
    "市場上的人說，音樂是從城堡的窗戶裡傳出來的。\n誰也不知道彈琴的是什麼人，只覺得好聽。\n過了大橋就是森林，晚上沒有人敢走進去。",
    ("a list with a word before it", "en", "web"): changed("en", lambda line, i: f"- {line}" if i > 1 else line),
    ("a poem", "en", "web"): POEM,
    ("a short poem", "zh", "light"): "床前明月光，\n疑是地上霜。\n举头望明月，\n低头思故乡。\n" * 1 + "——李白《静夜思》，唐代",
    ("a play", "fr", "light"): PLAY,
    ("code", "en", "light"): CODE,
    ("scene breaks", "en", "light"): prose("en", 20).replace("\n", "\n* * *\n"),
    ("two sentences", "en", "light"): "The teacher opened the window. In the garden stood a stone, and on the stone lay a letter nobody had read.",
    ("one notice", "fr", "web"): prose("fr", 21) + "\nCe site utilise des cookies.",
    ("an unknown language", "xx", "web"): "\n".join(["wort"] * 40),
}  # fmt: skip


@pytest.mark.parametrize("name, lang, quality", NEAR_MISSES)
def test_what_only_looks_like_it_is_kept(name, lang, quality):
    assert verdict(NEAR_MISSES[name, lang, quality], lang, quality, min_bytes=60) == "kept"


@pytest.mark.parametrize(
    "reason, lang, at, beyond",
    [
        ("too_short", "en", prose("en", 30)[:100], prose("en", 30)[:99]),
        ("too_short", "zh", "字" * 33 + "a", "字" * 33),  # bytes, not characters
        ("too_long", "zh", "字" * 33_333 + "a", "字" * 33_334),
        ("too_many_replacement_characters", "en", "a" * 999 + "\ufffd", "a" * 998 + "\ufffd"),
        ("too_few_letters", "en", "abc 12" * 99, "abc 123" * 99),  # 60 %, 50 %
        ("too_many_repeated_lines", "en", f"{'a' * 200}\n" * 2 + "b" * 598, f"{'a' * 200}\n" * 2 + "b" * 597),
    ],
)  # fmt: skip
def test_thresholds_at_their_edges(reason, lang, at, beyond):
    assert verdict(at, lang, "light") != reason
    assert verdict(beyond, lang, "light") == reason


def test_edges_of_the_web_thresholds():
    def word_count(n):
        return " ".join(sentence("en", 31, 99).split()[:n]) + "."

    assert (verdict(word_count(49), "en"), verdict(word_count(50), "en")) == ("too_few_words", "kept")
    lines = prose("en", 32, 100).split("\n")  # 12 % must end a sentence
    for finished, expected in ((11, "too_few_finished_lines"), (12, "kept")):
        text = "\n".join(line if i < finished else line[:-1] for i, line in enumerate(lines))
        assert verdict(text, "en") == expected
    for bulleted, expected in ((90, "kept"), (91, "too_many_bullet_lines")):
        assert verdict("\n".join("- " * (i < bulleted) + line for i, line in enumerate(lines)), "en") == expected
    for broken_off, expected in ((30, "kept"), (31, "too_many_ellipsis_lines")):
        text = "\n".join(line[:-1] + "…" if i < broken_off else line for i, line in enumerate(lines))
        assert verdict(text, "en") == expected


# --- repetition against a reference -----------------------------------------------------------------------------------


def reference(words: list[str], size: int, rules: Rules, space: int) -> str:
    """Gopher's two measures, as plain as they can be written."""
    for n, share in rules.frequent_n_grams:
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        most = max((grams.count(gram) for gram in grams), default=0)
        if most < 2:
            continue
        gram = next(gram for gram in grams if grams.count(gram) == most)
        if most * (len("".join(gram)) + space * (n - 1)) > share * size:
            return "too_frequent_n_gram"
    for n, share in rules.repeated_n_grams:
        seen, covered = set(), set()
        for i in range(len(words) - n + 1):
            gram = tuple(words[i : i + n])
            covered |= set(range(i, i + n)) if gram in seen else set()
            seen.add(gram)
        if sum(len(words[i]) for i in covered) > share * size:
            return "too_many_repeated_n_grams"
    return "kept"


@pytest.mark.parametrize("rules", [LIGHT, WEB], ids=["light", "web"])
@pytest.mark.parametrize("lang", ["en", "fr", "zh"])
def test_repeated_n_grams_equal_the_plain_definition(lang, rules):
    rng, step, verdicts = random.Random(lang), FewRepeatedNGrams(rules), []
    for trial in range(150):
        sentences = []
        for i in range(rng.randint(2, 12)):
            again = sentences and rng.random() < trial / 200
            sentences.append(rng.choice(sentences) if again else sentence(lang, (trial, i), rng.randint(3, 12)))
        text = " ".join(sentences)
        words = re.findall(r"[\u4e00-\u9fff]" if lang == "zh" else r"\w+", text)
        expected = reference(words, len(text), rules[lang], space=int(lang != "zh"))
        kept = step.filter(Document(text, "0", metadata={"lang": lang}))
        assert expected == ("kept" if kept is True else kept[1]), text
        verdicts.append(expected)
    assert 20 < verdicts.count("kept") < 130
    assert verdicts.count("too_many_repeated_n_grams") > 5


def test_the_filters_travel_to_workers_and_stay_the_same():
    for quality in ("light", "web"):
        steps = pickle.loads(pickle.dumps([Clean(), *quality_filters(quality, 100, 5_000_000)]))
        assert [type(step) for step in steps[1:]] == [type(step) for step in quality_filters(quality, 100, 5_000_000)]
        assert all(step.filter(Document(prose("fr", 40), "0", metadata={"lang": "fr"})) is True for step in steps[1:])
