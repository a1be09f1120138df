"""Languages are told apart offline, and the step tags what is untagged and drops what is wrongly tagged."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
from datatrove.data import Document

from septet.data.errors import UserError
from septet.data.language import IdentifyLanguage, identify, known_codes

SENTENCES = {
    "en": "Most of the villagers had already gone home when the last ferry came into the harbour.",
    "fr": "La plupart des villageois étaient déjà rentrés chez eux quand le dernier bac entra au port.",
    "zh": "最后一班渡轮进港的时候，村里的人大多已经回家了，只有老船长还站在码头上等着。",
    "de": "Die meisten Dorfbewohner waren schon nach Hause gegangen, als die letzte Fähre einlief.",
    "es": "La mayoría de los vecinos ya se habían ido a casa cuando el último barco llegó al puerto.",
    "ca": "La majoria dels veïns ja havien tornat a casa quan l'últim vaixell va arribar al port.",
    "oc": "La màger part dels vesins èran ja tornats a l'ostal quand lo darrièr batèu arribèt al pòrt.",
    "it": "Quasi tutti gli abitanti erano già tornati a casa quando l'ultimo traghetto entrò nel porto.",
    "pt": "Quase todos os moradores já tinham ido para casa quando a última balsa chegou ao porto.",
    "ro": "Cei mai mulți săteni plecaseră deja acasă când ultimul vapor a intrat în port.",
    "nl": "De meeste dorpelingen waren al naar huis gegaan toen de laatste veerboot binnenkwam.",
    "sv": "De flesta byborna hade redan gått hem när den sista färjan kom in i hamnen.",
    "pl": "Większość mieszkańców poszła już do domu, kiedy ostatni prom wpłynął do portu.",
    "ru": "Почти все жители деревни уже разошлись по домам, когда последний паром вошёл в гавань.",
    "tr": "Son feribot limana girdiğinde köylülerin çoğu çoktan evlerine dönmüştü.",
    "vi": "Hầu hết dân làng đã về nhà khi chuyến phà cuối cùng cập bến.",
    "ar": "كان معظم أهل القرية قد عادوا إلى بيوتهم عندما دخلت العبارة الأخيرة إلى الميناء.",
    "ja": "最後の渡し船が港に入ってきたとき、村の人たちはもうほとんど家に帰っていた。",
    "ko": "마지막 배가 항구에 들어왔을 때 마을 사람들은 대부분 이미 집으로 돌아간 뒤였다.",
}
ENGLISH, FRENCH, CHINESE = (SENTENCES[lang] for lang in ("en", "fr", "zh"))
TRADITIONAL = "最後一班渡輪進港的時候，村裡的人大多已經回家了，只有老船長還站在碼頭上等著。"
CODE = "for (int i = 0; i < rows; ++i) {\n  total += cells[i][j] * weights[j];\n}\nreturn total / rows;\n"


@pytest.mark.parametrize("code", SENTENCES)
def test_sentences(code):
    found = identify(SENTENCES[code])
    assert found.code == code
    assert found.lang == (code if code in ("en", "fr", "zh") else "other")
    assert 0.3 < found.score <= 1


@pytest.mark.parametrize("lang", ["en", "fr"])
def test_capitals_are_read_like_any_letters(lang):
    assert identify(SENTENCES[lang].upper()) == identify(SENTENCES[lang])


@pytest.mark.parametrize(
    "text",
    [
        TRADITIONAL,
        "琴日落大雨，我哋冇出街，喺屋企睇咗成日書，啲細路就玩咗成日。",  # Cantonese
        "本产品支持USB 3.0和Wi-Fi连接，请下载最新的Android应用程序并重新启动路由器。",
        "他在书店里买了一本叫《となりのトトロ》的画册，又给妹妹挑了一本讲京都寺庙的旧书，两人高兴地回家了。",
    ],
)
def test_chinese_in_all_its_forms(text):
    found = identify(text)
    assert found.lang == "zh"
    assert found.score >= 0.65


@pytest.mark.parametrize("text", ["東京都内で新型感染者が増加、政府は緊急対策を決定", "国会審議は明日再開の予定です"])
def test_japanese_of_few_kana_is_not_chinese(text):
    assert identify(text)[::2] == ("other", "ja")


@pytest.mark.parametrize("text", ["", " \n\t", "1234 5678,90 (11)", "!?… — 。", "\x00\x85\u2028", "\ud800"])
def test_text_without_letters_is_undetermined(text):
    assert identify(text) == ("other", 0.0, "und")


def test_lone_surrogates_and_control_characters_do_no_harm():
    damaged = ENGLISH.replace("gone home", "gone\ud800 home\x00\r\n\x85")
    assert identify(damaged).lang == "en"


def test_mixed_text_scores_by_its_parts():
    long = {lang: (SENTENCES[lang] + "\n") * 50 for lang in ("en", "fr", "zh")}
    for one, other in (("en", "fr"), ("fr", "zh"), ("zh", "en")):
        assert identify(long[one]).score > 0.9
        assert identify(long[one][:1000] + long[other][:1000]).score < 0.65
    in_turn = "English: We drink a cup of tea at noon.\nFrançais : Nous buvons du thé à midi.\n" * 5
    assert identify(in_turn).score < 0.65 < identify(in_turn.replace("\n", " ")).score
    assert identify(f"{FRENCH} {CHINESE[:24]}").score < 0.65
    assert identify(CODE).lang == "en"  # its words are English


def test_the_whole_of_a_long_text_counts():
    text = ENGLISH + (" " + FRENCH) * 1000
    assert identify(text).lang == "fr"
    assert identify(text) == identify(text)  # the same each time


def step_on(text: str, tag: str | None, languages: tuple[str, ...] = ("en", "fr", "zh"), min_score: float = 0.65):
    doc = Document(text, "1", metadata={"lang": tag})
    verdict = IdentifyLanguage(languages, min_score).filter(doc)
    return verdict if verdict is True else verdict[1], doc.metadata


@pytest.mark.parametrize("tag", ["", None])
def test_untagged_documents_get_their_language(tag):
    for lang in ("en", "fr", "zh"):
        verdict, metadata = step_on(SENTENCES[lang], tag)
        assert verdict is True
        found = identify(SENTENCES[lang])
        assert metadata == {"lang": lang, "language": found.code, "language_score": found.score}
    assert step_on(SENTENCES["de"], tag)[0] == "unknown_language"
    assert step_on(ENGLISH, tag, languages=("fr", "zh"))[0] == "unknown_language"
    assert step_on("42", tag)[0] == "uncertain_language"
    assert step_on(ENGLISH, tag, min_score=1.01)[0] == "uncertain_language"


def test_a_document_without_the_field_is_untagged():
    doc = Document(FRENCH, "1")
    assert IdentifyLanguage(("fr",)).filter(doc) is True
    assert doc.metadata["lang"] == "fr"


def test_characters_that_this_unicode_does_not_know_are_no_letters():
    for text in ("\ufaff" * 40, "\U000323af" * 40, "\ud800" * 50):
        assert identify(text).score == 0.0
    assert identify("The old bridge was built of stone.\n" + "\ufaff" * 9).lang == "en"


def test_a_tag_stands_unless_the_text_is_surely_of_another_language():
    verdict, metadata = step_on(FRENCH, "fr")
    assert verdict is True
    assert metadata["language_score"] == identify(FRENCH).score
    assert step_on(FRENCH, "en")[0] == "wrong_language"
    assert step_on(SENTENCES["ca"], "fr")[0] == "wrong_language"
    assert step_on(SENTENCES["ja"], "zh")[0] == "wrong_language"
    assert step_on("42", "zh")[0] is True
    assert step_on("Paris, 14.07.1789", "fr")[0] is True
    assert step_on(FRENCH, "en", min_score=1.01)[0] is True
    assert step_on(ENGLISH, "de")[0] == "unknown_language"  # whatever the text is


def test_other_languages_go_by_their_codes():
    languages = ("en", "ca", "de")
    assert step_on(SENTENCES["ca"], "", languages)[1]["lang"] == "ca"
    assert step_on(SENTENCES["ca"], "ca", languages)[0] is True
    assert step_on(SENTENCES["de"], "ca", languages)[0] == "wrong_language"
    assert step_on(SENTENCES["it"], "", languages)[0] == "unknown_language"


def test_a_language_that_cannot_be_identified_is_refused():
    assert {"en", "fr", "zh", "ca", "ja"} < known_codes()
    for wrong in ("eng", "other", "zh-CN", "yue", ""):
        with pytest.raises(UserError, match="ISO 639-1"):
            IdentifyLanguage(("en", wrong))


def test_each_reason_has_its_meaning_and_the_step_travels():
    identify("loaded before it is pickled")
    step = pickle.loads(pickle.dumps(IdentifyLanguage(("en", "zh"), 0.7)))
    assert (step.languages, step.min_score) == (("en", "zh"), 0.7)
    texts = {ENGLISH: "", FRENCH: "", CHINESE: "en", TRADITIONAL: "zh", "42": ""}
    docs = [Document(text, str(i), metadata={"lang": lang}) for i, (text, lang) in enumerate(texts.items())]
    kept = list(step.run(iter(docs)))
    assert [doc.text for doc in kept] == [ENGLISH, TRADITIONAL]
    stats = step.stats.to_dict()["stats"]
    dropped = {name.removeprefix("dropped_") for name in stats if name.startswith("dropped_")}
    assert dropped == set(step.reasons) == {"unknown_language", "uncertain_language", "wrong_language"}


def test_nothing_is_fetched_or_written(tmp_path):
    """A process in which every connection, look-up of a host and file opened for writing fails."""
    script = """
import os, sys, tempfile
tempfile.gettempdir()  # Python tries once whether it can write there
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "os.mkdir"):
        raise SystemExit(f"{event}: {args}")
    if event == "open" and args[2] & WRITING and args[0] != os.devnull:
        raise SystemExit(f"{event}: {args}")
from septet.data.language import identify
sys.addaudithook(watch)
print(identify(sys.argv[1]).lang)
"""
    run = [sys.executable, "-B", "-c", script, FRENCH]
    result = subprocess.run(run, capture_output=True, text=True, env={"TMPDIR": str(tmp_path)}, check=False)
    assert (result.stdout, result.stderr, result.returncode) == ("fr\n", "", 0)
    assert not list(tmp_path.iterdir())
