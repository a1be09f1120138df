"""Masking of personal data: mail addresses, telephone numbers, IP addresses, national ids and credit cards.

One regex decides that a text holds no run of digits worth a look; only such runs are judged, each by its check digits
(python-stdnum), its numbering plan (phonenumbers) or the address registry (ipaddress), and by the words before it.

datatrove's `PIIFormatter` knows mail and IPv4. Taken from it: an address is masked only if it is public. Ours because
its `\\b` sees no border between a Han and a Latin letter, it masks version and section numbers (1.2.3.4) and parts of
longer ones (1.2.3.4.5), puts in addresses in turn, so that the output follows from the order of the documents, and
masks its own replacements again; and it neither counts nor knows the other kinds.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import phonenumbers
from datatrove.pipeline.base import PipelineStep
from stdnum import luhn
from stdnum.cn import ric
from stdnum.exceptions import ValidationError
from stdnum.fr import nir
from stdnum.us import ssn

if TYPE_CHECKING:
    from datatrove.data import DocumentsPipeline

Judge = Callable[[re.Match, str], int | None]
EMAIL, PHONE, IP, NATIONAL_ID, CARD = "email", "phone_number", "ip_address", "national_id", "credit_card"


class MaskPII(PipelineStep):
    """Masks personal data in each document and notes how much: `metadata["pii"] = {kind: count}`, if there was any."""

    type = "✂️ - FORMAT"
    name = "mask personal data"

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        for doc in data:
            with self.track_time():
                doc.text, counts = mask(doc.text, doc.metadata["lang"])
                if counts:
                    doc.metadata["pii"] = counts
                for kind, count in counts.items():
                    self.stat_update(kind, value=count)
            yield doc


def mask(text: str, lang: str) -> tuple[str, dict[str, int]]:
    """`text` with personal data replaced by `<EMAIL>`, `<PHONE_NUMBER>`, ... (as BigCode does), and the counts by kind.

    Masking the result again changes nothing. National telephone numbers are those of the regions where `lang` ("en",
    "fr", "zh") is spoken; in another language only international ones (+33 ...) are found. Private, loopback,
    link-local, multicast and documentation IP addresses stay, since they name no one, and so do mail addresses without
    a dotted domain (user@localhost) or written in words (name [at] host).
    """
    counts: Counter[str] = Counter()
    while True:  # what one pass masks may be the cue for the next, as in a list of numbers after "tel."
        found: Counter[str] = Counter()
        if "@" in text or "＠" in text:
            text = _mask_mail(text, found)
        text = _mask_numbers(text, lang, found)
        if not found:
            return text, dict(sorted(counts.items()))
        counts += found


# Full-width forms, no-break and thin spaces and the dashes, one character for one, so that offsets hold.
_PLAIN = {point: point - 0xFEE0 for point in range(0xFF01, 0xFF5F)}
_PLAIN |= dict.fromkeys(map(ord, "\t\u00a0\u2009\u202f\u3000"), " ") | dict.fromkeys(map(ord, "‐‑‒–—−"), "-")

_LATIN = "A-Za-z\u00c0-\u024fＡ-Ｚａ-ｚ"
_MAIL_DOMAIN = re.compile(
    rf"[@＠](?:[{_LATIN}0-9０-９－-]{{1,63}}[.．])+[{_LATIN}]{{2,24}}(?![{_LATIN}0-9]|_[{_LATIN}0-9]|\()"
)  # "W@x.reshape(3)" is code
_MAIL_NAME = re.compile(
    rf"[{_LATIN}0-9０-９_＿](?:[{_LATIN}0-9０-９._%+'．＿％＋－-]{{0,62}}[{_LATIN}0-9０-９_+＿＋－-])?\Z"
)
# logo@2x.png and getty@tty1.service are files and units. "git@host:path" names no person either.
_NO_DOMAIN = {"png", "jpg", "jpeg", "gif", "svg", "webp", "ico", "css", "js", "json", "html"}
_NO_DOMAIN |= {"service", "socket", "target", "timer", "mount", "slice"}


def _mask_mail(text: str, found: Counter[str]) -> str:
    pieces, done = [], 0
    for domain in _MAIL_DOMAIN.finditer(text):
        name = _MAIL_NAME.search(text, max(done, domain.start() - 64), domain.start())
        suffix = domain.group().translate(_PLAIN).rpartition(".")[2].lower()
        if name and suffix not in _NO_DOMAIN and not (name.group() == "git" and text[domain.end() :][:1] in (":", "/")):
            pieces += text[done : name.start()], f"<{EMAIL.upper()}>"
            done = domain.end()
            found[EMAIL] += 1
    return "".join(pieces) + text[done:]


_DIGIT, _BETWEEN = "0-9０-９", " \u00a0\u2009\u202f\u3000.．()（）/／\\-－‐‑‒–—−"
# At least seven digits with little between them (2A and 2B are Corsica's, in a NIR), or four numbers with dots between,
# or the beginning of a global IPv6 address. Bounded, since a table may be one long run.
_RUN = re.compile(
    rf"[{_DIGIT}](?:(?:[{_BETWEEN}]{{0,3}}[{_DIGIT}]|(?<=[2２])[AB]){{6,400}}"
    rf"|[{_DIGIT}]{{0,2}}(?:[.．][{_DIGIT}]{{1,3}}){{3}}"
    r"|[0-9A-Fa-f]{3}:[0-9A-Fa-f:]{3,34})"
)
_BEFORE, _AFTER = 40, 16  # characters of context that the rules look at


def _mask_numbers(text: str, lang: str, found: Counter[str]) -> str:
    pieces, done, before, at = [], 0, "", 0
    while run := _RUN.search(text, at):
        start = max(done, run.start() - _BEFORE)
        # What was masked just before is seen as such, while its digits are gone.
        known = before if start == done else ""
        window = known + text[start : run.end() + _AFTER]
        window_end = min(len(text), run.end() + _AFTER)
        first, after = len(known) + run.start() - start, window_end - run.end()
        rest = len(window)  # characters behind the last one that was masked
        # Again and again, since what is masked may be the cue for what follows, as in a list of numbers after "tel.".
        while hits := _hits(window.translate(_PLAIN), first, len(window) - after, lang, len(known)):
            rest = min(rest, len(window) - hits[-1][1])
            after = min(after, rest)
            for begin, end, kind in reversed(hits):
                window = f"{window[:begin]}<{kind.upper()}>{window[end:]}"
                found[kind] += 1
        at = run.end()
        if rest < len(window):
            end = len(window) - rest
            pieces += text[done:start], window[len(known) : end]
            done = at = window_end - rest
            before = window[max(0, end - _BEFORE) : end]
    return "".join(pieces) + text[done:]


def _hits(window: str, first: int, stop: int, lang: str, least: int) -> list[tuple[int, int, str]]:
    """What to mask among the characters `first` .. `stop` of `window`, from `least` on: (begin, end, kind), in order.

    What one rule takes is blanked for the next ones, which see by the NUL that something stood there.
    """
    hits = []
    for kind, pattern, judge in _rules(lang):
        at = max(least, first - 3)  # "(", "+" and the like stand before the first digit
        while (match := pattern.search(window, at)) and match.start() < stop:
            end = judge(match, lang) if match.end() > first else None
            if end:
                hits.append((match.start(), end, kind))
                window = window[: match.start()] + "\0" * (end - match.start()) + window[end:]
            at = end or match.start() + 1
    return sorted(hits)


@cache
def _rules(lang: str) -> tuple[tuple[str, re.Pattern, Judge], ...]:
    """(kind, pattern, judge) in the order of their certainty. A judge returns the end of what is to mask, or None."""
    telephones = [(_INTERNATIONAL, _international)]
    if lang in _TELEPHONES:
        telephones += [(_TELEPHONES[lang], _national), (_CUED_TELEPHONES[lang], _cued)]
    return (
        (IP, _IPV6, _ip),
        (IP, _IPV4, _ip),
        (NATIONAL_ID, _RIC, _ric),
        (NATIONAL_ID, _NIR, _nir),
        (CARD, _CARD, _card),
        (NATIONAL_ID, _SSN, _ssn),
        *((PHONE, pattern, judge) for pattern, judge in telephones),
    )


_WORD = "(?<![a-zà-ÿ])"  # what \\b says between Latin words; here a Han character may stand before one

# IP addresses. A version or section number looks the same: one is taken for an address if no word before it says
# otherwise, and, without a word for it, if some part is over 31 and neither middle part is 0, which versions rarely are.
# The limits are ours: of random addresses they leave out 0.8 %.
_IPV4 = re.compile(
    r"(?<![0-9A-Za-z_.,])(?<![0-9A-Za-z]-)(?<![0-9]:)(?<![A-Za-z]/)(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9A-Za-z_]|[.,-][0-9])"
)
_IPV6 = re.compile(
    r"(?<![0-9A-Za-z.])(?<![0-9A-Fa-f:]:)[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,34}[0-9A-Fa-f](?![0-9A-Za-z:_])"
)
_NO_ADDRESS = re.compile(
    rf"(?:{_WORD}(?:versions?|ver|rev|release|build|firmware|sections?|chapter|chapitre|article|paragraphe?|table|figure|fig"
    rf"|appendix|annexe|clause|rule|step|oid)|{_WORD}v|§|版本|版|第|章|节|節|条|條|款|图|圖|表)[ .:n°(]{{0,3}}\Z",
    re.IGNORECASE,
)
_ADDRESS = re.compile(
    rf"(?:{_WORD}(?:ip(?:v4)?|address(?:es)?|adresses?|server|serveur|host|hôte|dns|ping)(?![a-z])"
    rf"|地址|服务器|伺服器|主机)[^.;。]{{0,16}}\Z",
    re.IGNORECASE,
)


def _ip(match: re.Match, lang: str) -> int | None:
    try:
        address = ipaddress.ip_address(match.group())
    except ValueError:
        return None
    if not address.is_global or address.is_multicast:
        return None
    if address.version == 6:  # a[2000::2] is a slice
        return match.end() if len(match.group().replace("::", ":").split(":")) > 2 else None
    before = match.string[: match.start()]
    if _NO_ADDRESS.search(before[-16:]):
        return None
    parts = address.packed
    certain = max(parts) > 31 and parts[1] and parts[2]
    return match.end() if certain or _ADDRESS.search(before[-_BEFORE:]) else None


# Identity numbers stand alone: not in a word, a path, a query, or a longer row of numbers.
_ALONE, _ENDS = r"(?<![0-9A-Za-z_/=#&%.-])(?<![0-9][ :,])", r"(?![0-9A-Za-z_]|[-.:/][0-9])"
_RIC = re.compile(rf"{_ALONE}[1-9][0-9]{{5}}[ -]?(?:19|20)[0-9]{{2}}[ -]?[0-9]{{4}}[ -]?[0-9]{{3}}[0-9Xx]{_ENDS}")
_NIR = re.compile(
    rf"{_ALONE}[1278]([ .-]?)[0-9]{{2}}\1(?:0[1-9]|1[0-2]|[2-9][0-9])\1(?:[0-9]{{2}}|2[AB])\1[0-9]{{3}}\1[0-9]{{3}}"
    rf"(?:(?:\1| ?[-/(] ?|,? ?cl[ée] ?:? ?)(?P<key>[0-9]{{2}}))?{_ENDS}"
)
_NIR_CUE = re.compile(rf"{_WORD}(?:s[ée]cu(?:rit[ée] sociale)?|NIR|INSEE|SS)(?![a-z])[^0-9]{{0,12}}\Z", re.IGNORECASE)
_SSN = re.compile(rf"{_ALONE}[0-9]{{3}}-[0-9]{{2}}-[0-9]{{4}}{_ENDS}")
# The lengths and first digits of the networks (ISO/IEC 7812; Visa, Mastercard, Amex, Discover, JCB, Diners, UnionPay).
_CARD = re.compile(
    rf"{_ALONE}(?:[0-9]{{14,19}}|[0-9]{{4}}([ -])[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{4}}(?:\1[0-9]{{3}})?"
    rf"|[0-9]{{4}}([ -])[0-9]{{6}}\2[0-9]{{4,5}}|[0-9]{{6}}[ -][0-9]{{10,13}}){_ENDS}(?! [0-9]{{4}}(?![0-9]))"
)
_NETWORKS = re.compile(
    r"4[0-9]{15}|(?:5[1-5][0-9]{2}|222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}|3[47][0-9]{13}"
    r"|(?:6011|64[4-9][0-9]|65[0-9]{2}|352[89]|35[3-8][0-9])[0-9]{12}|3(?:0[0-5]|[68][0-9])[0-9]{11}|62[0-9]{14,17}"
)


def _digits(match: re.Match) -> str:
    return re.sub(r"[^0-9A-Za-z]", "", match.group())


def _ric(match: re.Match, lang: str) -> int | None:
    """Check digit and date of birth. The place is not looked up, lest a county missing from the table hide an id."""
    number = _digits(match).upper()
    try:
        ric.get_birth_date(number)
    except ValidationError:
        return None
    return match.end() if ric.calc_check_digit(number) == number[-1] else None


def _nir(match: re.Match, lang: str) -> int | None:
    """The two check digits; thirteen digits without them need a word that says what they are."""
    if match["key"]:
        number = re.sub(r"[^0-9AB]", "", match.group())
        return match.end() if nir.is_valid(number) else None
    return match.end() if _NIR_CUE.search(match.string[: match.start()][-_BEFORE:]) else None


def _ssn(match: re.Match, lang: str) -> int | None:
    return match.end() if ssn.is_valid(match.group()) else None


def _card(match: re.Match, lang: str) -> int | None:
    number = _digits(match)
    return match.end() if _NETWORKS.fullmatch(number) and luhn.is_valid(number) else None


# Telephone numbers. phonenumbers' own PhoneNumberMatcher finds neither 06/12/34/56/78, nor U+202F between the pairs,
# nor 010-62551234-801, takes "01.02.2024 12:30" for a number, and costs twice the time. So the forms are ours, by
# language, and the numbering plans its. A form that says little needs a word before it, and then no plan.
_REGIONS = {"en": ("US", "GB"), "fr": ("FR", "BE", "CH", "CA"), "zh": ("CN", "TW", "HK")}
_INTERNATIONAL = re.compile(
    r"(?:(?<![0-9A-Za-z_=.)-])|(?<=[Tt]el)|(?<=TEL)|(?<=[Ff]ax)|(?<=FAX))(?<!\d[ :,])"
    r"(?:\((?=\+[\d ]{1,5}\)))?(?:\+|00[ -]?|011 )\(?[1-9](?:[ .()/-]{0,3}\d){6,14}(?!\d)",
    re.ASCII,
)
_NORTH_AMERICAN = r"""
    (?:1[-. ])? (?: \([2-9]\d\d\)[ ]? | [2-9]\d\d(?P<s>[-.]) ) \d{3} [-. ] \d{4}
    | [2-9]\d\d [ ] [2-9]\d\d [- ] \d{4} (?![ ]\d)
"""
_BRITISH = r"(?: \(0\d{2,4}\)[ ]? | 0\d{2,4}[ -] ) \d{3,4} [ -]? \d{3,4} (?![ ]\d{3})"
_FRENCH = r"""
    (?: \(33\)[ ]?0? | 33[ ]?\(0\)[ ]? | \(0\)[ ]? | 0 ) [1-9] (?P<p>[ ]{1,2}|[ ]?[./-][ ]?) \d\d (?: (?P=p) \d\d ){3}
        (?![ ]\d\d(?![0-9hH/]))
    | 0[1-9]\d{8}
    | 0[1-9] [ ] (?: \d{4}[ ]\d{4} | \d{3}[ ]\d{3}[ ]\d\d ) (?![ ]\d)
    | 0[ ]?[1-9]\d\d [ ] (?: \d{3}[ ]\d{3} | \d\d[ ]\d\d[ ]\d\d ) (?![ ]\d\d)
    | 0\d{1,3} [ /] \d{2,3} (?P<q>[ .]) \d\d (?P=q) \d\d (?![ ]\d\d)
"""  # the last is Belgian and Swiss
_CHINESE = r"""
    (?: \(86\)[ -]? | 86[ -]? )? 1[3-9]\d (?: \d{8} | (?P<m>[ .-])\d{4}(?P=m)\d{4} | [ -]\d{3}[ -]\d{5} ) (?<!00000)
    | (?: \(0\d{1,3}\)[ ]? | 0\d{1,3}[-. ] ) \d{3,4} [- ]? \d{3,4} (?: -\d{1,5} )?
    | (?: 86[- ] | \(86\)[- ]? ) (?: 10 | [2-9]\d{1,2} ) [- ] \d{7,8}
    | [48]00 (?: [- ]\d{3}[- ]?\d{4} | [- ]\d{4}-\d{3} | \d-\d{3}-\d{3} )
    | 09\d\d [- ] \d{3} [- ]? \d{3}
"""  # the last is a Taiwanese mobile
_FORMS = {"en": f"{_NORTH_AMERICAN}|{_BRITISH}", "fr": f"{_FRENCH}|{_NORTH_AMERICAN}", "zh": _CHINESE}
_CUED_FORMS = {
    "en": r"1?[2-9]\d{9} | 0\d{9,10} | [2-9]\d\d[-. ]\d{4}",
    "fr": r"[2-9]\d{9} | 0\d{8,9} | 33[ ]?[1-9](?:[ .-]?\d\d){4}",
    "zh": r"""0\d{9,11} | [48]00\d{7} | 1[3-9](?:[ -]?\d){9} | (?:852|853|886)[- ]\d{4}[- ]?\d{4}
              | (?!(?:19|20)\d\d[- ]) [2-9]\d{2,3}[- ]?\d{4}""",
}


def _telephones(forms: str) -> re.Pattern:
    """Not in a word, a path, a sum of money or a longer number; after "/" only if another number stands before it."""
    before = r"(?: (?<![0-9A-Za-z_=#&%.+-]) | (?<=[Tt]el) | (?<=TEL) | (?<=[Tt]el\.) | (?<=[Tt]él\.) | (?<=TEL\.) | (?<=hone\.) ) (?<![^ >\0]/) (?<!\d[ :,]) (?<![€$£¥][ ]) (?<![€$£¥])"
    return re.compile(rf"{before} (?: {forms} ) (?! [0-9A-Za-z_] | [-.:]\d | [ ]?[€$£¥%元年] )", re.ASCII | re.VERBOSE)


_TELEPHONES = {lang: _telephones(forms) for lang, forms in _FORMS.items()}
_CUED_TELEPHONES = {lang: _telephones(f"{forms} | {_CUED_FORMS[lang]}") for lang, forms in _FORMS.items()}
# A word for a telephone, and few others between it and the number; or another number just before.
_CUE = re.compile(
    rf"""(?: {_WORD} (?: t[ée]l(?:[ée]phone)?s? | (?:tele|cell|i)?phones? | ph | mobile | cell | fax | t[ée]l[ée]copie
            | portable | gsm | sms | whatsapp | call(?:ing)? | dial | hotline | appel(?:er|ez) | joindre | joignable
            | contact(?:er|ez)? | compose[rz] ) (?![a-z])
        | 电话 | 電話 | 手机 | 手機 | 热线 | 熱線 | 传真 | 傳真 | 联系方式 | 聯絡方式 | 致电 | 致電 | 拨打 | 撥打 | 来电 | 短信 )
        (?: [\s:：.#)(=/-] | 号码? | 號碼? | [是为為] | 分别 | 分別
            | {_WORD} (?: us | me | him | her | them | now | today | numbers? | num[ée]ro | no | n° | at | au | le | on | is
            | are | est | line | toll | free | direct | and | or | to ) (?![a-z]) ){{0,8}} \Z
    | (?: <PHONE_NUMBER> | \0 ) (?: [\s,;/、，；] | {_WORD} (?: or | and | ou | et ) (?![a-z]) | 或 | 和 | 及 ){{1,4}} \Z""",
    re.IGNORECASE | re.VERBOSE,
)
_COUNTRY = {"en": re.compile(r"(?!)"), "fr": re.compile(r"\(33\)|33(?= ?\()"), "zh": re.compile(r"\(86\)|86")}
_EXTENSION = re.compile(r"(?<=\d{7})-\d{1,5}\Z")


def _valid(number: str, region: str | None, check: Callable = phonenumbers.is_valid_number) -> bool:
    try:
        return check(phonenumbers.parse(number, region))
    except phonenumbers.NumberParseException:
        return False


def _international(match: re.Match, lang: str) -> int | None:
    """The longest beginning, by whole groups, that is a valid number: another number may follow after a space.

    Failing that, a number in groups of a possible length, as of older plans (London's +44 171 ...), but no thousands.
    """
    number = full = re.sub(r"\A\(?(?:\+|00[ -]?|011 )", "+", match.group())
    before = match.end() - len(full)
    while len(number) > 7:
        if _valid(number, None):
            return before + len(number)
        number = re.sub(r"[^0-9]*[0-9]+\Z", "", number)
    in_groups = len(re.findall("[0-9]+", full)) > 2 and not re.fullmatch(r"\+\d{1,3}(?:[ .]\d{3})+", full)
    return match.end() if in_groups and _valid(full, None, phonenumbers.is_possible_number) else None


def _national(match: re.Match, lang: str) -> int | None:
    number = match.group()
    if country := _COUNTRY[lang].match(number):
        number = f"+{country.group()}{number[country.end() :]}"
    number = _EXTENSION.sub("", number)
    return match.end() if any(_valid(number, region) for region in _REGIONS[lang]) else None


def _cued(match: re.Match, lang: str) -> int | None:
    return match.end() if _CUE.search(match.string[: match.start()][-_BEFORE:]) else None
