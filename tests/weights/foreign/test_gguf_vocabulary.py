"""Vocabularies of GGUF files: what of them becomes tokenizer.json, and what begins and ends a text.

Real models' tokenizers are compared with the reference by `tests/text/nasty.py`, which `make real` calls.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from llmserve.errors import CheckpointError, UnsupportedError
from llmserve.text.chat_template import ChatTemplate
from llmserve.text.tokenizer import Tokenizer
from llmserve.weights.foreign.gguf.pre import PRE
from llmserve.weights.foreign.gguf.tokenizer import tokenizer_files

from ...skips import package

BYTES = [f"<0x{b:02X}>" for b in range(256)]
PIECES = ["<unk>", "<s>", "</s>", *BYTES, "▁", *"abcdelho wrt", "he", "ll", "llo", "hello", "▁he", "▁hello", "wo", "or"]
PIECES += ["ld", "wor", "▁w", "▁wor", "ed", "ab", "bc", "abc", "cab", "lo", "el", "tt"]
MERGES = {
    "tokens": ["a", "b", "ab", "<|end|>", "Ġ", "<|im_end|>", "<x>"],
    "merges": ["a b"],
    "token_type": [1, 1, 1, 3, 1, 1, 4],
}


def metadata(**keys: Any) -> dict[str, Any]:
    return {key if "." in key else f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def sentencepiece(**changes: Any) -> dict[str, Any]:
    scores = [0.0] * 259 + [-float(i) for i in range(len(PIECES) - 259)]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(PIECES) - 259)
    keys = {"model": "llama", "tokens": PIECES, "scores": scores, "token_type": types, "bos_token_id": 1}
    return metadata(**(keys | {"eos_token_id": 2, "unknown_token_id": 0} | changes))


def byte_level(**changes: Any) -> dict[str, Any]:
    return metadata(**({"model": "gpt2", "pre": "gpt-2"} | MERGES | changes))


def files(keys: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return tokenizer_files(keys, Path("model.gguf"))


def backend(keys: dict[str, Any]) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(files(keys)["tokenizer.json"]))


def merged(text: str) -> list[str]:
    """llama.cpp's way: of all neighbours that make a piece, join the one of the highest score, leftmost first."""
    scores = {piece: -i for i, piece in enumerate(PIECES)}
    parts = list(text)
    while True:
        pairs = [(scores[a + b], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
        if not pairs:
            break
        at = -max(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    known = (([p] if p in scores else [f"<0x{b:02X}>" for b in p.encode()]) for p in parts)
    return [piece for pieces in known for piece in pieces]


# --- sentencepiece


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_joins_by_score(tmp_path: Path, prefix: bool) -> None:
    for name, content in files(sentencepiece(add_space_prefix=prefix)).items():
        (tmp_path / name).write_text(json.dumps(content), "utf-8")
    (tmp_path / "config.json").write_text("{}")
    ours, own = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")), Tokenizer.from_directory(tmp_path)
    rng = np.random.default_rng(0)
    alphabet = [*"abcdelhowrt ", "ü", "\n", "hello", " wor"]
    for _ in range(300):
        text = "".join(rng.choice(alphabet, rng.integers(1, 12)))
        spelled = ("▁" if prefix else "") + text.replace(" ", "▁")
        assert ours.encode(text, add_special_tokens=False).tokens == merged(spelled), text
        assert own.encode(text)[0] == 1 and own.decode(own.encode(text)) == text
    assert own.special_tokens["eos_token"] == "</s>" and 2 in own.eos_token_ids


def test_runs_of_the_users_own_are_as_long_as_they_can_be() -> None:
    """Gemma's runs of blanks and newlines: llama.cpp's converter writes them with real spaces and the score −1000, and
    sentencepiece matches the longest first."""
    runs = [char * n for char in (" ", "\n") for n in range(2, 6)]
    tokens = ["<unk>", "▁", "\n", "a", "▁a", *runs]
    types = [2, 1, 1, 1, 1] + [4] * len(runs)
    scores = [0.0, -9.0, -9.0, -9.0, -1.0] + [-1000.0] * len(runs)
    ours = backend(
        metadata(
            model="llama", tokens=tokens, token_type=types, scores=scores, add_space_prefix=False, add_bos_token=False
        )
    )
    assert [len(token) for token in ours.encode(" " * 13).tokens] == [5, 5, 3]
    assert ours.encode("a   a\n\n\n").tokens == ["a", "▁▁▁", "a", "\n\n\n"]
    assert ours.decode(ours.encode("a     a\n\n").ids) == "a     a\n\n"
    assert ours.encode("   ").ids == [tokens.index("   ")]


def test_merges_that_are_written_out_need_no_scores() -> None:
    tokens = ["<unk>", *BYTES, "▁", "a", "b", "ab", "▁ab", "\n", "\n\n"]
    types = [2] + [6] * 256 + [1] * 7
    keys = metadata(
        model="gemma4", tokens=tokens, token_type=types, merges=["a b", "▁ ab", "\n \n"], add_space_prefix=False
    )
    assert backend(keys).encode("ab ab\n\né", add_special_tokens=False).tokens == [
        "ab",
        "▁ab",
        "\n\n",
        "<0xC3>",
        "<0xA9>",
    ]


def test_phi_3s_tokens_take_the_blanks_after_them() -> None:
    tokens = [*PIECES[:-1], "<|user|>"]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(PIECES) - 260) + [4]
    for name, blanks in (("Llama 2", 3), ("Phi-3 Mini 4k", 1)):
        ours = backend(sentencepiece(tokens=tokens, token_type=types, **{"general.name": name}))
        ids = ours.encode("<|user|>  he", add_special_tokens=False).ids
        assert [tokens[i] for i in ids] == ["<|user|>", *["▁"] * (blanks - 1), "▁he"]
        assert ours.encode("<s>  he").tokens == ["<s>", "<s>", "▁", "▁", "▁he"]  # which takes none, in either


# --- unigram


def viterbi(text: str, scores: dict[str, float], unknown: float) -> list[str]:
    """The cut of the highest sum of scores, one character at a time (Kudo 2018)."""
    best: list[tuple[float, list[str]]] = [(0.0, [])] + [(-1e9, [])] * len(text)
    for end in range(1, len(text) + 1):
        for start in range(end):
            piece = text[start:end]
            score = scores.get(piece, unknown if end - start == 1 else None)
            if score is not None and best[start][0] + score > best[end][0]:
                best[end] = (best[start][0] + score, [*best[start][1], piece])
    return best[-1][1]


@pytest.mark.parametrize("squeeze", [True, False])
def test_unigram_is_the_likeliest_cut(squeeze: bool) -> None:
    rng = np.random.default_rng(1)
    pieces = ["▁", *"abc", "ab", "bc", "abc", "▁a", "▁ab", "ca", "cab", "▁c"]
    scores = {piece: float(-rng.uniform(1, 5)) for piece in pieces}
    tokens = ["<pad>", "</s>", "<unk>", *pieces]
    keys = {"model": "t5", "tokens": tokens, "scores": [0.0, 0.0, 0.0, *scores.values()], "eos_token_id": 1}
    keys |= {"token_type": [3, 3, 2] + [1] * len(pieces), "unknown_token_id": 2, "remove_extra_whitespaces": squeeze}
    ours = backend(metadata(**keys))
    for _ in range(200):
        text = "".join(rng.choice([*"abc ", "  "], rng.integers(1, 10)))
        plain = " ".join(text.split()) if squeeze else text
        expected = viterbi("▁" + plain.replace(" ", "▁"), scores, -99.0) if plain else []
        assert ours.encode(text, add_special_tokens=False).tokens == expected, text
    assert ours.encode("ab").tokens[-1] == "</s>"  # which this kind of vocabulary adds
    assert ours.decode(ours.encode("ab c", add_special_tokens=False).ids) == "ab c"


# --- how texts are cut

TEXT = "It'S 1234567 HTTPServer's\n\n  x.y!!\n好a\u093c $b"
CUTS = {
    "gpt-2 phi-2 exaone4 olmo mpt default": "It|'|S| 1234567| HTTPServer|'s|\n\n | x|.|y|!!|\n|好a|\u093c| $|b",
    "smollm starcoder command-r exaone": "It|'|S| |1|2|3|4|5|6|7| HTTPServer|'s|\n\n | x|.|y|!!|\n|好a|\u093c| $|b",
    "llama-bpe dbrx glm4 minicpm5 jais-2": "It|'S| |123|456|7| HTTPServer|'s|\n\n| | x|.y|!!\n|好a|\u093c| $|b",
    "qwen2 stablelm2 hunyuan bailingmoe": "It|'S| |1|2|3|4|5|6|7| HTTPServer|'s|\n\n| | x|.y|!!\n|好a|\u093c| $|b",
    "qwen35 exaone-moe tekken": "It|'S| |1|2|3|4|5|6|7| HTTPServer|'s|\n\n| | x|.y|!!\n|好a\u093c| $|b",
    "seed-coder laguna": "It|'S| |1|2|3|4|5|6|7| HTTPServer|'s|\n\n| | x|.y|!!|\n|好a|\u093c| $|b",
    "gpt-4o llama4 minimax-m2": "It'S| |123|456|7| HTTPServer's|\n\n| | x|.y|!!\n|好a\u093c| $|b",
    "tiny_aya": "It'S| |1|234|567| HTTPServer's|\n\n| | x|.y|!!\n|好a\u093c| $|b",
    "youtu": "It'S| |1|2|3|4|5|6|7| HTTPServer's|\n\n| | x|.y|!!\n|好|a\u093c| $|b",
    "kimi-k2": "It'S| |123|456|7| HTTPServer's|\n\n| | x|.y|!!\n|好|a\u093c| $|b",
    "deepseek-v3 hunyuan-dense": "It|'S| |123|456|7| HTTPServer|'s|\n\n| | x|.y|!!\n|好|a\u093c| $|b",
    "spark2_5": "It|'S| |1|2|3|4|5|6|7| HTTPServer|'s|\n|\n| | x|.y|!!|\n|好|a\u093c| $|b",
    "deepseek-llm deepseek-coder": "It|'|S| |1|2|3|4|5|6|7| HTTPServer|'|s|\n|\n| | x|.|y|!!|\n|好|a|\u093c| $|b",
    "bloom poro-chat": "It'S| 1234567| HTTPServer's|\n\n | x|.|y|!!\n|好a\u093c| $b",
    "viking": "It'S| |1|2|3|4|5|6|7| HTTPServer's|\n\n | x|.|y|!!\n|好a\u093c| $b",
    "superbpe": "It'S |1|234|567| HTTPServer's\n\n  x.y!!\n好a\u093c $b",
    "afmoe": "It|'S| |1|234|567| HTTPServer|'s|\n\n| | x|.y|!!\n|好|a\u093c| $|b",
    "chameleon": "It|'|S| |1|2|3|4|5|6|7| HTTPServer|'|s|\n|\n|  |x|.|y|!|!|\n|好a|\u093c| |$|b",
}


def cut(name: str, text: str) -> list[str]:
    pieces = backend(byte_level(pre=name)).pre_tokenizer.pre_tokenize_str(text)
    return [text[start:stop] for _, (start, stop) in pieces]


@pytest.mark.parametrize("names", CUTS)
def test_each_name_cuts_in_its_way(names: str) -> None:
    for name in names.split():
        assert "|".join(cut(name, TEXT)) == CUTS[names], name


def test_falcon_cuts_numbers_after_bytes_became_letters() -> None:
    """м is the bytes D0 BC, and BC is written as ¼, which is a number."""
    pieces = [piece for piece, _ in backend(byte_level(pre="falcon")).pre_tokenizer.pre_tokenize_str("x 12345 м")]
    assert pieces == ["x", "Ġ", "123", "45", "ĠÐ", "¼"]


def test_all_names_can_be_built_and_equal_the_references_where_it_has_them() -> None:
    for name in PRE:
        backend(byte_level(pre=name))
    reference = package("transformers.integrations.gguf.gguf_tokenizer_mapping", "GGUF files by other readers")
    for name, pattern in reference.GGUF_PRE_TOKENIZER_SPLITS.items():
        assert PRE[name].steps[0]["pattern"] == {"Regex": pattern}, name
    assert len(PRE) >= 80


def test_a_normal_form_comes_first() -> None:
    keys = {"tokens": ["Ã", "©", "Ã©", "e"], "merges": ["Ã ©"], "token_type": [1] * 4}
    assert backend(byte_level(**keys, pre="qwen2")).encode("e\u0301").ids == [2]
    assert backend(byte_level(**keys, pre="hunyuan")).encode("e\u0301").tokens == ["e"]


def test_a_piece_that_is_a_token_is_taken_whole_where_the_model_does() -> None:
    keys = {"tokens": ["a", "b", "c", "abc", "bc"], "merges": ["b c"], "token_type": [1] * 5}
    assert backend(byte_level(**keys, pre="llama-bpe")).encode("abc", add_special_tokens=False).tokens == ["abc"]
    assert backend(byte_level(**keys, pre="dbrx")).encode("abc").tokens == ["a", "bc"]


# --- what begins and ends a text


@pytest.mark.parametrize(
    ("keys", "tokens"),
    [
        (sentencepiece(), ["<s>", "▁he"]),
        (sentencepiece(add_bos_token=False), ["▁he"]),
        (sentencepiece(add_eos_token=True), ["<s>", "▁he", "</s>"]),
        (byte_level(bos_token_id=3), ["ab"]),
        (byte_level(bos_token_id=3, pre="llama-bpe"), ["<|end|>", "ab"]),
        (byte_level(bos_token_id=3, pre="tekken", add_bos_token=False), ["ab"]),
        (byte_level(eos_token_id=3, add_eos_token=True), ["ab", "<|end|>"]),
        (byte_level(bos_token_id=99, add_bos_token=True), ["ab"]),  # no such token
    ],
)
def test_first_and_last_tokens(tmp_path: Path, keys: dict[str, Any], tokens: list[str]) -> None:
    text = "he" if keys["tokenizer.ggml.model"] == "llama" else "ab"
    assert backend(keys).encode(text).tokens == tokens
    for name, content in files(keys).items():
        (tmp_path / name).write_text(json.dumps(content), "utf-8")
    own = Tokenizer.from_directory(tmp_path)
    assert [own.token(i) for i in own.encode(text)] == tokens


def test_a_text_may_end_in_many_ways() -> None:
    names = ["a", "<|im_end|>", "<|endoftext|>", "<|end|>", "<|eom_id|>", "</s>", "<|eot_id|>", "x"]
    types = [1, 3, 3, 3, 3, 4, 1, 1]

    def ends(**keys: Any) -> list[int]:
        return files(byte_level(**({"tokens": names, "token_type": types, "merges": ["a a"]} | keys)))[
            "generation_config.json"
        ]["eos_token_id"]

    assert ends(eos_token_id=7, eot_token_id=0, eom_token_id=4) == [7, 0, 4, 1, 2, 3, 6]
    assert ends(eos_token_id=2) == [2, 1, 3, 4, 6]
    # In gpt-oss's format <|end|> ends a message.
    assert 3 not in ends(eos_token_id=2, tokens=[*names[:-2], "<|return|>", "<|call|>"])
    special = files(byte_level(tokens=names, token_type=types))["tokenizer.json"]["added_tokens"]
    assert {entry["content"]: entry["special"] for entry in special} == dict.fromkeys(
        ("<|im_end|>", "<|endoftext|>", "<|end|>", "<|eom_id|>", "<|eot_id|>"), True
    ) | {"</s>": False}


def test_recommended_sampling_is_handed_on() -> None:
    keys = {
        "general.sampling.temp": 0.6000000238418579,
        "general.sampling.top_k": 20,
        "general.sampling.penalty_repeat": 1.05,
    }
    made = files(byte_level() | keys)["generation_config.json"]
    assert made["temperature"] == 0.6 and made["top_k"] == 20 and made["repetition_penalty"] == 1.05


# --- chat templates


def test_several_templates(tmp_path: Path) -> None:
    keys = {
        "tokenizer.chat_template.tool_use": "tools {{ tools }}",
        "tokenizer.chat_template": "plain {{ messages[0].content }}",
    }
    settings = files(byte_level() | keys | {"tokenizer.chat_templates": ["tool_use"]})["tokenizer_config.json"]
    assert [entry["name"] for entry in settings["chat_template"]] == ["default", "tool_use"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    template = ChatTemplate.from_directory(tmp_path)
    messages = [{"role": "user", "content": "hi"}]
    assert template.render(messages) == "plain hi"
    assert template.render(messages, tools=[{"type": "function"}]).startswith("tools [")
    only = files(byte_level() | {"tokenizer.chat_template.rag": "{{ x }}"})["tokenizer_config.json"]["chat_template"]
    assert only == [{"name": "rag", "template": "{{ x }}"}]
    # The name of one of llama.cpp's own templates is none.
    assert (
        "chat_template"
        not in files(byte_level() | {"tokenizer.chat_template": "mistral-v7-tekken"})["tokenizer_config.json"]
    )


@pytest.mark.parametrize(
    ("keys", "error", "words"),
    [
        (
            sentencepiece(model="bert"),
            UnsupportedError,
            r"kind 'bert' are not read; 'gpt2', 'llama', 'gemma4', 't5' are",
        ),
        (sentencepiece(scores=[1.0]), CheckpointError, r"scores must hold a number for each of"),
        (sentencepiece(tokens=[]), CheckpointError, r"no tokenizer\.ggml\.tokens"),
        (sentencepiece(token_type=None), CheckpointError, r"token_type must hold a number"),
        (sentencepiece(add_bos_token=1), CheckpointError, r"add_bos_token must be true or false, not 1"),
        (sentencepiece(remove_extra_whitespaces=True), UnsupportedError, r"remove_extra_whitespaces is not read"),
        (byte_level(pre="poro"), UnsupportedError, r"only named, 'poro'.*gpt-2.*llama-bpe"),
        (byte_level(merges=None), CheckpointError, r"no tokenizer\.ggml\.merges"),
        (byte_level(merges=["ab"]), CheckpointError, r"pairs with a space"),
        (
            byte_level(suppress_tokens=[1]),
            UnsupportedError,
            r"tokenizer\.ggml\.suppress_tokens \(\[1\]\) is not known here",
        ),
        (byte_level(add_sep_token=True), UnsupportedError, r"add_sep_token"),
    ],
)
def test_vocabularies_that_are_not_read(keys: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        files(keys)


def test_keys_that_change_nothing() -> None:
    files(byte_level(add_sep_token=False, mask_token_id=1, fim_pre_token_id=2, token_type_count=2))
