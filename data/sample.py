"""Writes a small synthetic world in English, French and Chinese: texts to pre-train on and a set for each of five tasks.

A sentence is a triple of patterns, one a language, whose slots hold words that know their articles and agreements:
`{o:un}` is « un livre » or « une clé », `{p:de}` « de Paul » or « d'Alice », `{p:he|she}` chooses by gender. The same
triples make stories, parallel texts, questions and entity tags, since every slot knows where its words came to stand.
Test sets use people, places, organisations and terms that no training or validation row of a task holds.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any

from septet.data import sample_sentences as patterns
from septet.data import sample_words as words
from septet.data.manifest import finished, writing
from septet.data.sample_words import Noun, Subject, Topic, Verb, starts_with_vowel

LANGUAGES = ("en", "fr", "zh")
ROWS = {"train": 4000, "validation": 200, "test": 300}
TRAIN_ROWS = {"translation": 6000, "classification": 3000}
PRETRAIN_BYTES = 1_700_000  # of UTF-8 text a language: half a million tokens or so, minutes of training on two cores
PRETRAIN_VALIDATION_DOCUMENTS = 60
SHOWCASE = {
    "translation": {"text": "I love programming"},
    "classification": {
        "text": "A programmer in our office wrote a small program for the telephone. It answers in less than a second, "
        "uses very little electricity, and thousands of users have already tried the new version."
    },
    "qa": {
        "question": "什么是人工智能？",
        "context": "人工智能是让机器学习和推理的技术。今天，许多工厂、医院和学校都在使用它。它能看懂图片，也能翻译文章。",
    },
    "summarization": {
        "text": "三年来，诺维公司的工程师们一直在努力。上周六，他们请许多人来到深圳，发布了一款翻译软件。"
        "它能听懂二十种语言，而且不需要网络。来宾们当场试用，提出了许多问题。"
    },
    "ner": {"text": "张三去北京旅游"},
}
FORBIDDEN = (SHOWCASE["translation"]["text"].lower(), SHOWCASE["ner"]["text"], SHOWCASE["qa"]["question"])


@dataclass(frozen=True)
class SampleConfig:
    """What to write and where."""

    output: Path = Path("build/sample")
    """Directory that receives pretrain/, translation/, classification/, qa/, summarization/, ner/ and showcase.json."""
    seed: int = 0
    """Seed of the generator: the same seed gives the same bytes."""
    overwrite: bool = False
    """Make it again even if the directory is already there."""


# ---------------------------------------------------------------------------------------------------------------------
# From patterns to text.


@dataclass(frozen=True)
class Span:
    """Where a slot's words stand in a text: from `article` (if any) or `start` to `end`, in characters."""

    slot: str
    kind: str
    article: int
    start: int
    end: int


@dataclass(frozen=True)
class Text:
    """A text and the places of its slots."""

    text: str
    spans: tuple[Span, ...] = ()

    def __add__(self, other: Text) -> Text:
        n = len(self.text)
        moved = (replace(s, article=s.article + n, start=s.start + n, end=s.end + n) for s in other.spans)
        return Text(self.text + other.text, (*self.spans, *moved))


def english(noun: Noun, form: str) -> str:
    """What stands before an English noun: `a` or `an`, `the`, or for `any` what fits whether it can be counted."""
    if noun.proper or not form or (form == "any" and noun.mass):
        return ""
    if form == "the":
        return "the "
    sounds_vowel = noun.en[0].lower() in "aeiou" and not noun.en.lower().startswith(("uni", "use", "eu", "one"))
    return "an " if sounds_vowel or noun.en.startswith("hour") else "a "


def french(noun: Noun, form: str) -> str:
    """What stands before a French noun; `le`, `un`, `du`, `au`... name it by its masculine."""
    vowel, gender = starts_with_vowel(noun.fr), noun.gender
    if form in ("de", "que") or (noun.proper and form == "du"):
        elided = {"que": "qu'", "de": "d'", "du": "d'"}[form]
        return elided if vowel else {"que": "que ", "de": "de ", "du": "de "}[form]
    if form == "en":  # in a country
        return "aux " if gender == "p" else "en " if vowel or gender == "f" else "au "
    if noun.proper:
        return "à " if form == "au" else ""
    if form == "any":
        return french(noun, "le" if noun.mass else "un")
    if form == "what":
        return "que " + french(noun, "le") if noun.mass else "qu'" + french(noun, "un")
    if form in ("d'un", "qu'un"):
        return form[:-2] + french(noun, "un")
    definite = "les " if gender == "p" else "l'" if vowel else "la " if gender == "f" else "le "
    if form == "du":
        return {"le ": "du ", "les ": "des "}.get(definite, "de " + definite)
    if form == "au":
        return {"le ": "au ", "les ": "aux "}.get(definite, "à " + definite)
    return {"": "", "le": definite, "un": "une " if gender == "f" else "un "}[form]


def chinese(noun: Noun, form: str) -> str:
    """What stands before a Chinese noun: numeral or demonstrative with the measure word."""
    return form + noun.measure if form else ""


BEFORE: dict[str, Callable[[Noun, str], str]] = {"en": english, "fr": french, "zh": chinese}


@cache
def parsed(pattern: str) -> tuple[tuple[str, str | None, str | None, str | None], ...]:
    """A pattern's literal pieces and slots."""
    return tuple(Formatter().parse(pattern))


def say(triple: tuple[str, str, str], lang: str, **slots: Noun | Verb) -> Text:
    """One sentence in one language: the pattern with its slots filled, articles and agreement right."""
    out, spans = "", []
    for literal, slot, form, _ in parsed(triple[LANGUAGES.index(lang)]):
        out += literal
        if slot is None:
            continue
        word = slots[slot]
        if isinstance(word, Verb):
            out += word.fr[form] if form in word.fr else getattr(word, form or "zh")
        elif "|" in form:
            out += form.split("|")[word.gender == "f"]
        else:
            article = len(out)
            out += BEFORE[lang](word, form)
            spans.append(Span(slot, word.kind, article, len(out), len(out) + len(getattr(word, lang))))
            out += getattr(word, lang)
    return Text(out if lang == "zh" else out[:1].upper() + out[1:], tuple(spans))


def joined(sentences: list[Text], lang: str) -> Text:
    """Sentences one after another, with a space between them where the language has one."""
    whole = Text("")
    for i, sentence in enumerate(sentences):
        whole += (Text(" ") if i and lang != "zh" else Text("")) + sentence
    return whole


# ---------------------------------------------------------------------------------------------------------------------
# The world: who and what can be spoken of in one split.

CITIES = tuple(city for cities in words.CITIES.values() for city in cities)


class World:
    """Draws people, places, things and dates; `held_out` draws names that training never shows."""

    def __init__(self, rng: random.Random, held_out: bool = False) -> None:
        self.rng, self.held_out = rng, held_out
        self.given = words.HELD_OUT_GIVEN if held_out else words.GIVEN
        self.surnames = words.HELD_OUT_SURNAMES if held_out else words.SURNAMES
        self.chinese_given = words.HELD_OUT_CHINESE_GIVEN if held_out else words.CHINESE_GIVEN
        self.cities = words.HELD_OUT_CITIES if held_out else CITIES
        self.stems = words.HELD_OUT_STEMS if held_out else words.STEMS
        self.definitions = words.HELD_OUT_DEFINITIONS if held_out else words.DEFINITIONS

    def pick(self, things: Any) -> Any:
        """One of a sequence."""
        return self.rng.choice(things)

    def person(self, lang: str, gender: str | None = None) -> Noun:
        """A named person; most bear names of the language's own region."""
        gender = gender or self.pick("fm")
        if self.rng.random() < (0.8 if lang == "zh" else 0.1):
            (surname, roman), (given, pinyin) = self.pick(words.CHINESE_SURNAMES), self.pick(self.chinese_given[gender])
            return Noun(f"{roman} {pinyin}", f"{roman} {pinyin}", surname + given, gender, proper=True, kind="PER")
        latin, zh = self.pick(self.given[gender])
        if self.rng.random() < 0.5:
            surname, surname_zh = self.pick(self.surnames)
            latin, zh = f"{latin} {surname}", f"{zh}·{surname_zh}"
        return Noun(latin, latin, zh, gender, proper=True, kind="PER")

    def people(self, lang: str, count: int) -> list[Noun]:
        """Different people."""
        found: dict[str, Noun] = {}
        while len(found) < count:
            person = self.person(lang)
            found.setdefault(person.en, person)
        return list(found.values())

    def city(self) -> Noun:
        """A city."""
        return self.pick(self.cities)

    def organisation(self, topic: Topic) -> Noun:
        """A company, club, school or institute of a topic's kind, with an invented name."""
        latin, zh = self.pick(self.stems)
        kind = self.pick(topic.organisations)
        return replace(kind, en=kind.en.format(latin), fr=kind.fr.format(latin), zh=kind.zh.format(zh))

    def date(self) -> Noun:
        """A day of the last decades; from the second on, since French says « 1er » for the first."""
        year, month, day = self.rng.randint(1995, 2024), self.rng.randrange(12), self.rng.randint(2, 28)
        en, fr = f"{day} {ENGLISH_MONTHS[month]} {year}", f"{day} {FRENCH_MONTHS[month]} {year}"
        return Noun(en, fr, f"{year}年{month + 1}月{day}日", proper=True, kind="DATE")

    def described(self, classes: tuple[str, ...] = ("book", "ware")) -> Noun:
        """A thing of one of the classes, two times in three with an adjective that suits it."""
        name = self.pick(classes)
        noun = self.pick(words.OBJECTS[name])
        return noun.but(words.ADJECTIVES[self.pick(words.SUITS[name].split(" "))]) if self.rng.random() < 0.67 else noun

    def job(self, pairs: tuple[tuple[Noun, Noun], ...], gender: str) -> Noun:
        """A profession, as a woman or a man has it."""
        return self.pick(pairs)[gender == "f"]

    def invention(self) -> tuple[Noun, Noun]:
        """A machine of an invented name and what it is; a fifth of the syllable pairs is kept for the test."""
        while True:
            i, j = self.rng.randrange(10), self.rng.randrange(10)
            if ((i + 2 * j) % 5 == 0) == self.held_out:
                (first, zh), (last, zh_last) = words.SYLLABLES[0][i], words.SYLLABLES[1][j]
                return Noun(first + last, first + last, zh + zh_last, proper=True), self.pick(words.PURPOSES)


ENGLISH_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December",
)  # fmt: skip
FRENCH_MONTHS = (
    "janvier", "février", "mars", "avril", "mai", "juin", "juillet", "août", "septembre", "octobre", "novembre", "décembre",
)  # fmt: skip

# ---------------------------------------------------------------------------------------------------------------------
# Simple clauses with every person and tense, in all languages at once: the ground of the translation set.

# French auxiliaries by grammatical person: « je vais lire », « j'ai lu ».
FUTURE = {"je": "vais", "il": "va", "nous": "allons", "vous": "allez", "ils": "vont"}
HAVE = {"je": "ai", "il": "a", "nous": "avons", "vous": "avez", "ils": "ont"}


def clause(subject: Subject, verb: Verb, tense: str) -> tuple[str, str]:
    """Subject and verb in English and French: `she read`, « elle a lu »; « je » elides."""
    third = subject.person == "il"
    en = {"present": verb.third if third else verb.base, "past": verb.past, "future": f"will {verb.base}"}[tense]
    fr = {
        "present": verb.fr[subject.person],
        "past": f"{HAVE[subject.person]} {verb.participle}",
        "future": f"{FUTURE[subject.person]} {verb.infinitive}",
    }[tense]
    link = "'" if subject.fr == "je" and starts_with_vowel(fr) else " "
    return f"{subject.en} {en}", (subject.fr[:-1] if link == "'" else subject.fr) + link + fr


def someone(world: World, lang: str) -> Subject:
    """A pronoun or family member three times in four, else a person by name."""
    if world.rng.random() < 0.75:
        return world.pick(words.PRONOUNS)
    person = world.person(lang)
    return Subject(person.en, person.fr, person.zh, "il")


def deed(world: World, lang: str = "en") -> tuple[Noun, Noun, Noun]:
    """A clause's three parts: who does it, what to, where and when; as words for the patterns of `DEED`."""
    verb, subject = world.pick(words.VERBS), someone(world, lang)
    tense = "past" if verb.base in ("lose", "forget") else world.pick(("present", "present", "past", "past", "future"))
    thing = world.described(verb.objects)
    place = world.pick(words.OUTDOORS if verb.base in ("see", "admire") else words.PLACES)
    time = world.pick(words.TIMES[tense])
    shape = world.rng.random()  # a place, a time, or both
    where, when = [place] * (shape < 0.75), [time] * (shape > 0.5)
    en, fr = clause(subject, verb, tense)
    zh = [
        subject.zh,
        *(w.zh for w in when),
        "要" * (tense == "future"),
        *(w.zh for w in where),
        verb.zh,
        "了" * (tense == "past"),
    ]
    tail = Noun("".join(f" {w.en}" for w in where + when), "".join(f" {w.fr}" for w in where + when), "", proper=True)
    return Noun(en, fr, "".join(zh), proper=True), thing, tail


DEED = ("{v} {o:a}{w}.", "{v} {o:un}{w}.", "{v}{o:一}。")


def liking(world: World, subject: Subject, feelings: Any = words.FEELINGS) -> tuple[str, str, str]:
    """`I love music`, « j'aime la musique », 我热爱音乐; a quarter of them name two things. No full stop yet."""
    verb, form = world.pick(feelings)
    tense = "present" if world.rng.random() < 0.75 else "past"
    first, second = world.rng.sample(words.ACTIVITIES, 2)
    en, fr = clause(subject, verb, tense)
    zh = subject.zh + ("以前" if tense == "past" else "") + verb.zh
    clauses = f"{en} {first.en}", f"{fr} {french(first, form)}{first.fr}", zh + first.zh
    if world.rng.random() > 0.25:
        return clauses
    return (
        f"{clauses[0]} and {second.en}",
        f"{clauses[1]} et {french(second, form)}{second.fr}",
        f"{clauses[2]}和{second.zh}",
    )


def simple_sentence(world: World, lang: str = "en") -> tuple[str, str, str]:
    """A short sentence in all three languages: something done, or something liked, taught, talked about."""
    if world.rng.random() < 0.55:
        verb, thing, tail = deed(world, lang)
        return tuple(say(DEED, one, v=verb, o=thing, w=tail).text for one in LANGUAGES)
    subject, other = someone(world, lang), someone(world, lang)
    if world.rng.random() < 0.15:  # `I love` with every activity, since it is a sentence that people try first
        en, fr, zh = liking(world, words.PRONOUNS[0], words.FEELINGS[:1])
    else:
        en, fr, zh = liking(world, subject)
    if subject != other and world.rng.random() < 0.2:
        more_en, more_fr, more_zh = liking(world, other)
        en, fr, zh = f"{en}, but {more_en}", f"{fr}, mais {more_fr}", f"{zh}，可是{more_zh}"
    stop = world.rng.random() < 0.7
    return sentence_case(en) + "." * stop, sentence_case(fr) + "." * stop, zh + "。" * stop


def sentence_case(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


# ---------------------------------------------------------------------------------------------------------------------
# Documents to pre-train on: each function writes one.


def cast(world: World, lang: str) -> dict[str, Noun]:
    """Words for every slot of a document, so that its sentences speak of the same people and things."""
    p, f, r = world.people(lang, 3)
    topic = words.TOPICS[world.pick(tuple(words.TOPICS))]
    a, b = world.rng.sample(words.ACTIVITIES, 2)
    c, e = world.rng.sample(world.cities, 2)
    o, q = world.described(("book", "ware")), world.described(("book", "ware", "food"))
    return {
        "p": p, "f": f, "r": r, "j": world.job(words.PROFESSIONS, p.gender), "o": o, "q": q, "w": world.pick(words.PLACES),
        "c": c, "e": e, "a": a, "b": b, "n": world.described(("animal",)), "g": world.organisation(topic), "d": world.date(),
    }  # fmt: skip


def some(world: World, triples: Any, least: int, most: int) -> list[tuple[str, str, str]]:
    """Between `least` and `most` different sentences, in the order in which they stand."""
    chosen = sorted(world.rng.sample(range(len(triples)), world.rng.randint(least, min(most, len(triples)))))
    return [triples[i] for i in chosen]


def story(world: World, lang: str) -> str:
    """Beginning, acquaintance, trouble, help, end."""
    slots = cast(world, lang)
    beginning, *stages = patterns.STORY
    chosen = [world.pick(beginning), *(triple for stage in stages for triple in some(world, stage, 1, 3))]
    return joined([say(triple, lang, **slots) for triple in chosen], lang).text


def dialogue(world: World, lang: str) -> str:
    """Questions and answers of two people, a line each."""
    slots = cast(world, lang)
    mark = "：" if lang == "zh" else " : " if lang == "fr" else ": "
    turns = some(world, tuple(zip(patterns.DIALOGUE[::2], patterns.DIALOGUE[1::2], strict=True)), 2, 6)
    speakers = (getattr(slots["f"], lang), getattr(slots["p"], lang))
    return "\n".join(
        speaker + mark + say(line, lang, **slots).text
        for turn in turns
        for speaker, line in zip(speakers, turn, strict=True)
    )


def everyday(world: World, lang: str) -> str:
    """Simple sentences, one after another."""
    sentences = [simple_sentence(world, lang)[LANGUAGES.index(lang)] for _ in range(world.rng.randint(4, 10))]
    return ("" if lang == "zh" else " ").join(
        s if s[-1] in ".。" else s + ("。" if lang == "zh" else ".") for s in sentences
    )


def parallel(world: World, lang: str) -> str:
    """A sentence in this language and in another one, so that a model can link the two; some pairs a document."""
    names = {"en": "English: ", "fr": "Français : ", "zh": "中文："}
    other = world.pick([one for one in LANGUAGES if one != lang])
    lines = []
    for _ in range(world.rng.randint(2, 5)):
        sentence = dict(zip(LANGUAGES, simple_sentence(world, lang), strict=True))
        lines += [names[one] + sentence[one] for one in (lang, other)]
    return "\n".join(lines)


def encyclopedia(world: World, lang: str) -> str:
    """What a term means, or what is known of a city."""
    slots = cast(world, lang)
    if world.rng.random() < 0.25 and not world.held_out:
        country = world.pick(words.COUNTRIES)
        slots |= {"k": country, "c": world.pick(words.CITIES[country.en])}
        return joined(
            [say(t, lang, **slots) for t in (patterns.CITY[0], *some(world, patterns.CITY[1:], 2, 5))], lang
        ).text
    term, meaning = world.invention() if world.rng.random() < 0.4 else world.pick(world.definitions)
    first = patterns.INVENTION if term.proper else patterns.DEFINITION
    chosen = (first, *some(world, patterns.ABOUT_TERM, 2, 5))
    return joined([say(triple, lang, t=term, m=meaning, **slots) for triple in chosen], lang).text


def topical(world: World, lang: str, topic: Topic, count: int, sentences: Any) -> list[Text]:
    """Sentences on one topic; each speaks of a thing and a person of its own."""
    texts = []
    for triple in world.rng.sample(sentences, min(count, len(sentences))):
        p = world.person(lang)
        j, o = world.job(topic.jobs, world.pick("fm")), world.pick(topic.things)
        texts.append(say(triple, lang, p=p, j=j, o=o, c=world.city(), g=world.organisation(topic)))
    return texts


def paragraph(world: World, lang: str) -> str:
    """Several sentences on one topic, technology most often."""
    topic = words.TOPICS[world.pick((*words.TOPICS, "technology"))]
    return joined(topical(world, lang, topic, world.rng.randint(4, 8), topic.sentences), lang).text


def news(world: World, lang: str, name: str) -> tuple[str, str]:
    """A news item on a topic and its headline; who, what and where stand in different places from item to item."""
    topic = words.TOPICS[name]
    verb, objects = world.pick(topic.news)
    slots = cast(world, lang) | {"v": verb, "o": world.pick(objects), "g": world.organisation(topic)}
    slots["j"] = world.job(words.PROFESSIONS, slots["f"].gender)
    plan = world.pick(patterns.NEWS_PLANS)
    fillers = world.rng.sample(patterns.NEWS_FILLERS, 3)
    item = [fillers.pop() if triple[0] == "{h}" else triple for triple in plan]
    item += fillers[: world.rng.randint(3 - min(len(item), 3), 1 if len(item) > 3 else 2)]  # 3 to 5 sentences
    return joined([say(triple, lang, **slots) for triple in item], lang).text, say(
        patterns.HEADLINE, lang, **slots
    ).text


def headlined(world: World, lang: str) -> str:
    """A news item below its headline."""
    item, headline = news(world, lang, world.pick(tuple(words.TOPICS)))
    return f"{headline}\n{item}"


GENRES = (story, dialogue, everyday, encyclopedia, paragraph, headlined, parallel)
WEIGHTS = (5, 2, 4, 4, 4, 4, 3)


def documents(rng: random.Random, lang: str, seen: set[str], held_out: bool = False) -> Iterator[dict[str, str]]:
    """New documents of mixed genres without end."""
    world = World(rng, held_out)
    while True:
        genre = rng.choices(GENRES, WEIGHTS)[0]
        text = genre(world, lang)
        if text not in seen and allowed(text):
            seen.add(text)
            yield {"text": text, "source": f"septet-sample/{genre.__name__}", "lang": lang}


def allowed(text: str) -> bool:
    """Whether a text holds none of the questions that the showcase asks."""
    return not any(asked in text.lower() for asked in FORBIDDEN)


# ---------------------------------------------------------------------------------------------------------------------
# The five tasks: each function makes one row and the input by which rows are told apart.

Row = tuple[str, dict[str, Any]]


def translation(world: World, lang: str) -> Row:
    """A simple sentence in English and French."""
    en, fr, _ = simple_sentence(world)
    return en, {"translation": {"en": en, "fr": fr}}


def classification(world: World, lang: str) -> Row:
    """One or two sentences on a topic and, two times in three, one that names another topic's things."""
    label, other = world.rng.sample(tuple(words.TOPICS), 2)
    topic, away = words.TOPICS[label], words.TOPICS[other]
    count = world.rng.randint(1, 2)
    sentences = topical(world, lang, topic, count, topic.sentences if world.held_out else topic.sentences[:-2])
    if count == 1 or world.rng.random() < 0.5:
        p = world.person(lang)
        j = world.job(away.jobs, p.gender)
        aside = say(world.pick(patterns.DISTRACTORS), lang, p=p, j=j, o=world.pick(away.things))
        sentences.insert(world.rng.randrange(len(sentences) + 1), aside)
    text = joined(sentences, lang).text
    return text, {"text": text, "label": label, "lang": lang}


def fact(world: World, lang: str) -> tuple[tuple[str, str, str], dict[str, tuple[str, str, str]], dict[str, Any]]:
    """A fact, the questions that it answers, and the words for its slots."""
    triple, questions = world.pick(patterns.FACTS)
    verb = world.pick(
        [verb for verb in words.VERBS if verb.base in ("buy", "find", "lose", "sell", "choose", "repair")]
    )
    return triple, questions, cast(world, lang) | {"v": verb, "o": world.described(verb.objects)}


def qa(world: World, lang: str) -> Row:
    """A question whose answer stands in the context; the other sentences of the context tempt to a wrong one."""
    if world.rng.random() < 0.35:
        term, meaning = world.invention() if world.rng.random() < 0.6 else world.pick(world.definitions)
        slots: dict[str, Any] = cast(world, lang) | {"t": term, "m": meaning}
        invented = term.proper
        triple, asked = (
            (patterns.INVENTION, patterns.WHAT_IS_INVENTION) if invented else (patterns.DEFINITION, patterns.WHAT_IS)
        )
        others = [say(t, lang, **slots) for t in some(world, patterns.ABOUT_TERM, 1, 2)]
        if world.rng.random() < 0.5:
            while (second := world.pick(world.definitions))[0] == term:
                pass
            others.append(say(patterns.DEFINITION, lang, t=second[0], m=second[1]))
        answer = "m"
    else:
        triple, questions, slots = fact(world, lang)
        answer = world.pick(tuple(questions))
        asked, others = questions[answer], []
        while len(others) < world.rng.randint(1, 3):
            other, _, different = fact(world, lang)
            if not {slots[k].en for k in "pfcogj"} & {different[k].en for k in "pfcogj"}:
                others.append(say(other, lang, **different))
    at = world.rng.randrange(len(others) + 1)
    told = say(triple, lang, **slots)
    before = joined([*others[:at], Text("")], lang) if at else Text("")
    context = joined([*others[:at], told, *others[at:]], lang).text
    span = next(s for s in told.spans if s.slot == answer)
    start = len(before.text) + (span.start if span.kind else span.article)
    text = context[start : len(before.text) + span.end]
    expected = told.text[span.start if span.kind else span.article : span.end]
    assert text == expected, (context, text, expected)
    question = say(asked, lang, **slots).text
    title = getattr(slots["t" if answer == "m" else "p"], lang)
    answers = {"text": [text], "answer_start": [start]}
    return f"{context}\n{question}", {
        "title": title,
        "context": context,
        "question": question,
        "answers": answers,
        "lang": lang,
    }


def summarization(world: World, lang: str) -> Row:
    """A news item and its headline; technology in two items of six."""
    item, headline = news(world, lang, world.pick((*words.TOPICS, "technology")))
    return item, {"document": item, "summary": headline, "lang": lang}


TOKENS = {"en": r"\w+(?:[-'’]\w+)*|[^\w\s]", "fr": r"\w+['’](?=\w)|\w+(?:-\w+)*|[^\w\s]", "zh": r"\S"}


def ner(world: World, lang: str) -> Row:
    """A sentence's tokens (characters in Chinese) with the tags of the names that stand in it."""
    slots = cast(world, lang)
    first, second = (world.organisation(words.TOPICS[name]) for name in world.rng.sample(tuple(words.TOPICS), 2))
    sentence = say(world.pick(patterns.NAMED), lang, **slots | {"g": first, "h": second})
    if world.rng.random() < 0.75 and sentence.text[-1] not in "”»":
        sentence += Text("。" if lang == "zh" else ".")
    tokens, tags = [], []
    for match in re.finditer(TOKENS[lang], sentence.text):
        entity = next((s for s in sentence.spans if s.kind and s.start <= match.start() < s.end), None)
        tokens.append(match.group())
        tags.append("O" if entity is None else ("B-" if match.start() == entity.start else "I-") + entity.kind)
    return sentence.text, {"tokens": tokens, "ner_tags": tags, "lang": lang}


TASKS: dict[str, Callable[[World, str], Row]] = {
    task.__name__: task for task in (translation, classification, qa, summarization, ner)
}


def task_rows(task: str, split: str, rng: random.Random, seen: set[str]) -> list[dict[str, Any]]:
    """The rows of one split, the three languages in turn; no input stands twice in the whole set."""
    world = World(rng, held_out=split == "test")
    count = TRAIN_ROWS.get(task, ROWS["train"]) if split == "train" else ROWS[split]
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        lang = LANGUAGES[len(rows) % 3]
        key, row = TASKS[task](world, lang)
        if key not in seen and allowed(key):
            seen.add(key)
            rows.append({"id": f"{task}-{split}-{len(rows):05d}"} | row if task == "qa" else row)
    return rows


# ---------------------------------------------------------------------------------------------------------------------


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines, compressed without a time stamp or a name, so that the same rows are the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as stream:
        stream.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


SOURCE = """# Where this data comes from

Everything in this folder is **synthetic**. `septet sample --seed {seed}` wrote it from the word tables and sentence
patterns of `data/sample_words.py`, which were made for this project. No text was taken from any other data set. People,
organisations and events are invented; cities and countries exist, but nothing that is said to happen in them did.
Scores on these sets say that the route works, not how good a model is.

Licence: Apache-2.0, as the program itself.
"""


def run(config: SampleConfig) -> Path:
    """Writes the sample below `config.output` and returns that path.

    Raises:
        UserError: `output` holds something else, or cannot be written.
    """
    if finished(config.output, "sample", config, {}, config.overwrite):
        return config.output
    with writing(config.output, "sample", config, {}) as out:
        for lang in LANGUAGES:
            rng, seen, rows, size = random.Random(f"{config.seed}/pretrain/{lang}"), set(), [], 0
            for row in documents(rng, lang, seen):
                rows.append(row)
                size += len(row["text"].encode())
                if size >= PRETRAIN_BYTES:
                    break
            write_rows(out.path / f"pretrain/{lang}.jsonl.gz", rows)
            unseen = documents(rng, lang, seen, held_out=True)
            held_out = [next(unseen) for _ in range(PRETRAIN_VALIDATION_DOCUMENTS)]
            write_rows(out.path / f"pretrain/{lang}_validation.jsonl.gz", held_out)
            out.counts[f"pretrain/{lang}"] = {
                "documents": len(rows),
                "utf8_bytes": size,
                "validation_documents": len(held_out),
            }
        for task in TASKS:
            rng, seen = random.Random(f"{config.seed}/{task}"), set()
            for split in ROWS:
                rows = task_rows(task, split, rng, seen)
                write_rows(out.path / f"{task}/{split}.jsonl.gz", rows)
                out.counts.setdefault(task, {})[split] = len(rows)
        showcase = json.dumps(SHOWCASE, ensure_ascii=False, indent=2)
        (out.path / "showcase.json").write_text(showcase + "\n", encoding="utf-8")
        (out.path / "SOURCE.md").write_text(SOURCE.format(seed=config.seed), encoding="utf-8")
    total = sum(out.counts[f"pretrain/{lang}"]["documents"] for lang in LANGUAGES)
    print(f"sample: {config.output} holds {total:,} documents and {len(TASKS)} task sets, all synthetic", flush=True)
    return config.output


if __name__ == "__main__":
    from septet.data.errors import run_cli

    run_cli(run, SampleConfig)
