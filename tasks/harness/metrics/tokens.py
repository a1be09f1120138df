"""Words and sentences of English, French and Chinese, as the metrics count them."""

from __future__ import annotations

import re
import unicodedata

HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{HAN}]|[^\W_{HAN}]+")
# A sentence ends at a full-width mark, at . ! ? ; after a Chinese character (half-width typing), or at . ! ? … before white
# space; closing quotes and brackets belong to it.
_SENTENCE = re.compile(
    rf".+?(?:[。！？；][」』”’）]*|(?<=[{HAN}])[.!?;]+|(?<![.!?…])[.!?…]+(?:[\"'”’)\]]|\s?»)*(?=\s)|\Z)", re.DOTALL
)


def words(text: str) -> list[str]:
    """Lower-case words for ROUGE: runs of letters and digits of any script, each Chinese character by itself.

    The text is normalised by NFKC first. On ASCII this is what rouge_score's own tokenizer gives, which keeps nothing but
    a-z and 0-9, so that it cuts French words at their accents and leaves nothing of Chinese.
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def sentences(text: str) -> list[str]:
    """The sentences of English, French or Chinese text, without white space around them."""
    return [sentence for found in _SENTENCE.findall(text) if (sentence := found.strip())]
