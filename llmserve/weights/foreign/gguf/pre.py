"""Pre-tokenizers of byte-level vocabularies, which split a text before BPE, by their names in `tokenizer.ggml.pre`.

A GGUF file has the name only; its meaning is in the tokenizer.json of the model that it was made from. The rows give it
as steps of the `tokenizers` package. Names and their groups are those of llama.cpp's converter; where its own patterns
come near an original that its sources quote, the original stands here.
"""
# ruff: noqa: RUF001

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Step = dict[str, Any]


@dataclass(frozen=True)
class PreTokenizer:
    """A row of the table.

    Attributes:
        steps: pre-tokenizers, one after the other.
        whole: a piece that is a token is taken whole, whatever the merges say.
        form: Unicode normal form that comes first, None for none.
        bos: whether a text gets a first token where the file does not say.
    """

    steps: tuple[Step, ...]
    whole: bool = False
    form: str | None = None
    bos: bool = False


def _split(pattern: str, behavior: str = "Isolated") -> Step:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


def _byte_level(use_regex: bool) -> Step:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": use_regex}


_BYTES = _byte_level(False)
_GPT2 = _byte_level(True)  # by GPT-2's pattern, which the package knows
_DIGITS = {"type": "Digits", "individual_digits": True}
_PUNCTUATION = {"type": "Punctuation", "behavior": "Contiguous"}

# Parts of the patterns that follow tiktoken's cl100k and o200k.
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGN_RUN = r" ?[^\s\p{L}\p{N}]+"
_SIGNS = rf"{_SIGN_RUN}[\r\n]*"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cl100k(digits: str) -> str:
    return "|".join((_SUFFIX, _WORD, digits, _SIGNS, _BLANKS))


def _o200k(
    suffix: str, digits: str, upper: str = _UPPER, lower: str = _LOWER, signs: str = rf"{_SIGN_RUN}[\r\n/]*"
) -> str:
    """Words end where their case changes from lower to upper."""
    first = r"[^\r\n\p{L}\p{N}]?"
    return "|".join((f"{first}{upper}*{lower}+{suffix}", f"{first}{upper}+{lower}*{suffix}", digits, signs, _BLANKS))


def _pieces(*patterns: str) -> tuple[Step, ...]:
    return (*map(_split, patterns), _BYTES)


_THREE = r"\p{N}{1,3}"
_LLAMA3 = _pieces(_cl100k(_THREE))
_QWEN2 = _pieces(_cl100k(r"\p{N}"))
_O200K = _pieces(_o200k(f"{_SUFFIX}?", _THREE))
_SINGLE_DIGITS = (_DIGITS, _GPT2)
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
# DeepSeek's: signs glued to Latin letters, words with their marks, and each script's runs for themselves.
_GLUED = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_DEEPSEEK3 = (_THREE, "[一-龥぀-ゟ゠-ヿ]+", rf"{_GLUED}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_BLANKS}")
_DEEPSEEK_CJK = "[一-龥ࠀ-一가-퟿]+"
_CASED_LETTERS = (
    "[A-Za-z"
    "\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    "\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-"
    "\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-"
    "\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102"
    "\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-"
    "\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-"
    "\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-"
    "\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-"
    "\U000118df\U0001e900-\U0001e943"
    "]+"
)
_NOT_HAN = "&&[^\\p{Han}]]"
_FAR_EAST = "[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+"
_JAIS_BLANKS = "|".join(
    (r"\s*[\r\n]+", *(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)), r"\s{1,2}(?!\S)", r"\s{1}")
)

_ROWS: dict[str, PreTokenizer] = {
    "gpt-2 phi-2 jais trillion granite-docling gigachat mellum exaone4 modern-bert roberta-bpe jina-v1-en jina-v2-en "
    "jina-v2-es jina-v2-de jina-v2-code jina-es jina-de default": PreTokenizer((_GPT2,)),
    "mpt olmo": PreTokenizer((_GPT2,), form="NFC"),  # GPT-NeoX's vocabulary
    "a.x-4.0": PreTokenizer((_GPT2,), form="NFC"),
    "starcoder refact codeshell smollm exaone minerva-7b mellum2": PreTokenizer(_SINGLE_DIGITS),
    "command-r": PreTokenizer(_SINGLE_DIGITS, form="NFC"),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": PreTokenizer(
        _LLAMA3, True, bos=True
    ),
    "dbrx smaug-bpe chatglm-bpe": PreTokenizer(_LLAMA3),
    "glm4 glm5": PreTokenizer(_LLAMA3, True),
    "minicpm5": PreTokenizer(_pieces(_THREE, _cl100k(r"\p{N}+")), True),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2": PreTokenizer(_QWEN2, form="NFC"),
    "hunyuan solar-open grok-2": PreTokenizer(_QWEN2),
    "qwen35": PreTokenizer(
        _pieces(
            rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BLANKS}"
        ),
        form="NFC",
    ),
    "ufakzeka": PreTokenizer(_pieces("|".join((_WORD, r"\p{N}", _SIGNS, _BLANKS)))),
    "seed-coder": PreTokenizer(_pieces("|".join((_SUFFIX, _WORD, r"\p{N}{1}", r" ?[^\s\p{L}\p{N}\r\n]+", _BLANKS)))),
    "bailingmoe bailingmoe2 llada-moe": PreTokenizer(
        _pieces(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
        )
    ),
    "exaone-moe": PreTokenizer(
        _pieces(
            rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
        )
    ),
    "laguna": PreTokenizer((_split(r"(?:\r?\n)+(?!\r?\n)", "MergedWithNext"), *_QWEN2)),
    "jais-2": PreTokenizer(_pieces("|".join((_SUFFIX, _WORD, _THREE, _SIGNS, _JAIS_BLANKS)))),
    "tekken": PreTokenizer(_pieces(_o200k("", r"\p{N}")), True, bos=True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": PreTokenizer(_O200K),
    "granite-embed-multi-97m": PreTokenizer(_O200K, True),
    "tiny_aya cohere2moe": PreTokenizer((_split(r"\d{1,3}(?=(?:\d{3})*\b)"), *_O200K)),
    "youtu": PreTokenizer(
        _pieces("[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+", _o200k(f"{_SUFFIX}?", r"\p{N}")),
        True,
    ),
    "kimi-k2": PreTokenizer(
        _pieces(
            r"[\p{Han}]+|" + _o200k(f"{_SUFFIX}?", _THREE, _UPPER[:-1] + _NOT_HAN, _LOWER[:-1] + _NOT_HAN, signs=_SIGNS)
        )
    ),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": PreTokenizer(_pieces(*_DEEPSEEK3)),
    "spark2_5": PreTokenizer(_pieces(*_DEEPSEEK3[:2], rf"{_GLUED}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+", r"\p{N}")),
    "deepseek-llm": PreTokenizer(
        (
            *map(
                _split, ("[\r\n]", rf"\s?{_CASED_LETTERS}", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _DEEPSEEK_CJK)
            ),
            *(_DIGITS, _BYTES),
        )
    ),
    "deepseek-coder": PreTokenizer(
        (*map(_split, ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK)), _DIGITS, _BYTES)
    ),
    # The last two steps see bytes, written as letters, of which some are numbers to Unicode.
    "falcon": PreTokenizer((_PUNCTUATION, _GPT2, _DIGITS | {"individual_digits": False}, _split("[0-9][0-9][0-9]"))),
    "bloom poro-chat gpt3-finnish": PreTokenizer(_pieces(_BLOOM)),
    "viking": PreTokenizer((_split(_BLOOM), _DIGITS, _BYTES)),
    "superbpe": PreTokenizer(_pieces(r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    "afmoe": PreTokenizer(
        _pieces(
            *(r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", _FAR_EAST),
            rf"{_GLUED}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_BLANKS}",
        )
    ),
    "chameleon": PreTokenizer(
        (
            *map(_split, ("<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )")),
            *(_DIGITS, _PUNCTUATION | {"behavior": "Isolated"}, _GPT2),
        ),
        bos=True,
    ),
}
PRE: dict[str, PreTokenizer] = {name: row for names, row in _ROWS.items() for name in names.split()}
