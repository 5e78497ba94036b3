"""Fill in the middle: a prompt for the text between a prefix and a suffix, where the tokenizer has tokens for that.

The tokens that a vocabulary has tell which of the known formats is the model's (Bavarian et al. 2022 has the idea, and
both orders).
"""

from __future__ import annotations

from ..errors import RequestError
from .tokenizer import Tokenizer

_PREFIX, _SUFFIX = "{prefix}", "{suffix}"
_FORMATS = (
    ("<|fim_prefix|>", _PREFIX, "<|fim_suffix|>", _SUFFIX, "<|fim_middle|>"),  # Qwen Coder, CodeGemma
    ("<fim_prefix>", _PREFIX, "<fim_suffix>", _SUFFIX, "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", _PREFIX, "<fim-suffix>", _SUFFIX, "<fim-middle>"),  # SantaCoder
    ("\u2581<PRE>", _PREFIX, "\u2581<SUF>", _SUFFIX, "\u2581<MID>"),  # Code Llama
    ("<PRE>", _PREFIX, "<SUF>", _SUFFIX, "<MID>"),
    # DeepSeek
    ("<\uff5cfim\u2581begin\uff5c>", _PREFIX, "<\uff5cfim\u2581hole\uff5c>", _SUFFIX, "<\uff5cfim\u2581end\uff5c>"),
    ("[SUFFIX]", _SUFFIX, "[PREFIX]", _PREFIX),  # Codestral
)
# What such models write where the middle is whole.
_ENDS = ("<|endoftext|>", "<|fim_pad|>", "<|file_sep|>", "<|file_separator|>", "\u2581<EOT>", "<EOT>", "<|EOT|>")


def infill(
    tokenizer: Tokenizer, prefix: str | list[int], suffix: str, *, add_special_tokens: bool = True
) -> tuple[list[int], tuple[int, ...]]:
    """The prompt's tokens, and those that end the answer beside the model's own. `prefix` may be token ids.

    Raises RequestError if the tokenizer has no tokens for it.
    """
    for layout in _FORMATS:
        markers = {word: tokenizer.id_of(word) for word in layout if word not in (_PREFIX, _SUFFIX)}
        if None not in markers.values():
            break
    else:
        raise RequestError("suffix needs tokens for filling in the middle, and this model has none.", param="suffix")
    before = prefix if isinstance(prefix, list) else tokenizer.encode(prefix, add_special_tokens=False)
    after = tokenizer.encode(suffix, add_special_tokens=False)
    ids = list(_begin(tokenizer) if add_special_tokens else ())
    for word in layout:
        marker = markers.get(word)
        ids += before if word == _PREFIX else after if word == _SUFFIX else [] if marker is None else [marker]
    ends = (tokenizer.id_of(word) for word in _ENDS)
    return ids, tuple(i for i in ends if i is not None)


def _begin(tokenizer: Tokenizer) -> list[int]:
    """The token that begins a text, if the tokenizer puts one there."""
    return [i for i in tokenizer.encode("")[:1] if i == tokenizer.bos_token_id]
