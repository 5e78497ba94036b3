"""Texts that tokenizers disagree on, and the comparison of a GGUF file's tokenizer with the reference on them.

`disagreements` is what `make real` calls with the path of a real model's file. The reference is `transformers` with
`gguf_file=`; where its conversion differs from the tokenizer that the model was published with, `_as_published` says
how.
"""
# ruff: noqa: RUF001

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import tokenizers

from llmserve.weights.foreign.gguf.file import GGUFFile
from llmserve.weights.foreign.gguf.tokenizer import tokenizer_files

NASTY = (
    "",
    " ",
    "  ",
    " " * 7,
    # Gemma's longest. Of more, the reference's conversion makes halves, and the published tokenizer 31 and a rest.
    " " * 31,
    "\n",
    "\n\n\n\n",
    "\t",
    "\t\t\tx",
    "\r\n\r\n",
    "line\r\nline\rline\n",
    "\n \n\n \t \n",
    "a  b   c    d     e",
    "    def f(x):\n        return x  # four, eight\n",
    "trailing blanks   ",
    "   leading blanks",
    " x",
    "\u00a0no\u00a0break\u2003em\u3000wide",
    "zero\u200bwidth\u2060joiners\ufeff",
    "soft\u00adhyphen",
    "\u2028line\u2029paragraph\u0085next",
    "\x00\x01\x02\x7f",
    "bell\x07 escape\x1b[31m",
    "\ud7ff\ue000\uf8ff\U0010ffff",
    "\ufffd\ufffe\uffff",
    "0123456789",
    "1 12 123 1234 12345 1234567",
    "3.14159 1,000,000 -42 +7 1e-5 0xFF 2³ ½ Ⅻ ٣٤٥ ४५६",
    "v1.2.3-rc4 10:30 2026-12-01 192.168.0.1",
    "I'm you're he'll we've they'd it's DON'T I'LL WE'VE",
    "don\u2019t \u2018quoted\u2019 \u201cdouble\u201d",
    "'s 't 're at the start",
    "camelCase PascalCase snake_case SCREAMING_CASE kebab-case",
    "iPhone eBay ABCdefGHI",
    "Hello, world!",
    "????!!!!....,,,,;;;;::::",
    "#!/usr/bin/env python3 && echo $PATH | grep -v ^'",
    "<div class=\"a\">&amp;</div>\n",
    '{"key": [1, 2.5, null, true], "nested": {"": "\\u00e9"}}',
    "\\n \\t \\\\ %s {} ${x}",
    "naïve café Größe façade",
    "e\u0301 a\u0308o\u0308 n\u0303 Z\u0351\u036b\u0343",
    "A\u030a \u212b \u00c5 ﬁ ﬀ ① ™ ㎏",
    "Z̴̡̢͕̻a̸l̶g̷o̴",
    "привет, мир! ЁЖИК",
    "γειά σου Κόσμε",
    "שלום עולם",
    "مرحبا بالعالم \u200fABC\u200e",
    "नमस्ते दुनिया क्षत्रिय",
    "ภาษาไทยไม่มีวรรค",
    "កាន់តែពិសេសអាច",
    "你好，世界！这是一个测试。",
    "日本語のテキスト、カタカナとひらがな。",
    "한국어 텍스트와 ㄱㄴㄷ 자모",
    "mixedスクリプトтекст混合عربي",
    "𝕳𝖊𝖑𝖑𝖔 𝟙𝟚𝟛 𐍈 𠀀",
    "😀😃😄",
    "👨‍👩‍👧‍👦 👩🏽‍💻 🏳️‍🌈 🇩🇪🇯🇵 ☺️ 1️⃣",
    "text😀text 🦙🦙",
    "<|endoftext|>",
    "a<|im_start|>user\nhi<|im_end|>b",
    "<bos>a<eos> <pad><unk>",
    "<s> [INST] x [/INST] </s>",
    "<start_of_turn>user\nhi<end_of_turn>\n",
    "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>",
    "<|im_start |> < |im_end|> <|IM_END|>",
    "<0x0A> <0xFF> <0xGG>",
    "▁already ▁▁marked▁",
    "Ġbyte Ċlevel ĉ",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "the the the THE The tHe",
    "http://user:pw@example.com:8080/a/b?c=d&e=%20#f",
    "x" * 300,
    "-" * 80 + "\n" + "=" * 80,
    "ab " * 50,
    "\n".join(" " * i + "x" for i in range(1, 12)),
)  # fmt: skip

# llama.cpp's converter tells tokenizers apart by the hash of the ids of this text, with what the published tokenizer
# puts around it: the hash says more of the published one than any conversion does.
PROBE = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ "
    "(multiple emojis concatenated) ✅ 🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 "
    "3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======= нещо на Български "
    "''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, "
    "'D you like some tea? We'Ve a'lL"
)
PROBES = {
    "smollm": "855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249",
    "qwen2": "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea",
}


def tokenizer_of(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer that llmserve makes of a GGUF file."""
    files = tokenizer_files(GGUFFile.open(path).metadata, path)
    return tokenizers.Tokenizer.from_str(json.dumps(files["tokenizer.json"]))


def reference_of(path: Path) -> Any:
    """What `transformers` makes of it, put right where `_as_published` knows better."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    return _as_published(tokenizer, GGUFFile.open(path).metadata)


def _as_published(tokenizer: Any, metadata: dict[str, Any]) -> Any:
    pre = metadata.get("tokenizer.ggml.pre")
    if pre == "qwen2":  # as `Qwen2Tokenizer` has it
        tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.NFC()
    if pre == "smollm":  # each digit for itself, then GPT-2's pattern
        tokenizer.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
            [
                tokenizers.pre_tokenizers.Digits(individual_digits=True),
                tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    return tokenizer


def disagreements(path: Path) -> list[str]:
    """One line for each text whose ids, or whose text made of the ids, are not the reference's; empty if all agree."""
    ours, theirs = tokenizer_of(path), reference_of(path)
    found = []
    for text in NASTY:
        for special in (False, True):
            got, want = (
                ours.encode(text, add_special_tokens=special).ids,
                theirs.encode(text, add_special_tokens=special),
            )
            if got != want:
                found.append(f"{text!r:.60} (special {special}): {got[:20]} is not {want[:20]}")
        ids = theirs.encode(text, add_special_tokens=False)
        back, same = ours.decode(ids, skip_special_tokens=False), theirs.decode(ids, clean_up_tokenization_spaces=False)
        if back != same:
            found.append(f"{text!r:.60}: {ids[:20]} is {back!r:.60}, not {same!r:.60}")
    wanted = PROBES.get(GGUFFile.open(path).metadata.get("tokenizer.ggml.pre", ""))
    if wanted not in (None, hashlib.sha256(str(ours.encode(PROBE).ids).encode()).hexdigest()):
        found.append("the published tokenizer has other ids for llama.cpp's probe")
    return found
