"""The tokenizer of a checkpoint: text to token ids and back, whole or token by token.

The `tokenizers` package does the encoding, from tokenizer.json; the side files say which tokens begin and end a text.
Decoding is ours: `decode` joins the pieces of the stream, so streamed and whole text are the same.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import tokenizers

from ..errors import CheckpointError, RequestError, is_exit
from .added_tokens import complete
from .lengths import Lengths
from .token_bytes import spelling_of

# Tokens that are decoded again with each new one, where a decoder looks at a token's neighbours.
_WINDOW = 8


class Tokenizer:
    """Text ↔ token ids.

    Attributes:
        bos_token_id: begins a text, if the checkpoint has such a token.
        eos_token_ids: any of these ends a text: the union of what the checkpoint's files name.
        added_tokens: the texts of the tokens that stand beside the vocabulary proper, special or not.
        special_tokens: name to text (`bos_token`, `eos_token`, …), as chat templates want them.
        special_ids: the tokens that are no text, such as the ones that begin and end it.
        spells_bytes: whether each token stands for the same bytes wherever it stands.
        vocab_size: one above the largest token id.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: dict[str, str] | None = None,
        eos_token_ids: Iterable[int] = (),
        bos_token_id: int | None = None,
        add_bos: bool = False,
        add_eos: bool = False,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        decoder = backend.decoder
        self._spelling = None if decoder is None else spelling_of(json.loads(decoder.__getstate__()))
        self.special_ids = frozenset(i for i, t in backend.get_added_tokens_decoder().items() if t.special)
        self.spells_bytes = self._spelling is not None
        self._bytes: dict[int, bytes] = {}
        self._lengths: Lengths | None = None  # made when a text is long enough to be asked about
        self._added = {token.content: i for i, token in backend.get_added_tokens_decoder().items()}
        self.special_tokens = dict(special_tokens or {})
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        eos = {*eos_token_ids, self._id_of("eos_token")} - {None}
        self.eos_token_ids: frozenset[int] = frozenset(i for i in eos if i is not None)
        self.bos_token_id = bos_token_id if bos_token_id is not None else self._id_of("bos_token")
        self._add_bos = add_bos
        self._last = self._id_of("eos_token") if add_eos else None

    @classmethod
    def from_directory(cls, path: str | Path) -> Tokenizer:
        """Read a checkpoint's tokenizer files.

        Raises:
            CheckpointError: tokenizer.json is missing or unusable, or a side file is not JSON.
        """
        path = Path(path)
        file = path / "tokenizer.json"
        if not file.is_file():
            raise CheckpointError(
                f"{path} has no tokenizer.json, the only tokenizer format that is read; make one with "
                f"transformers: AutoTokenizer.from_pretrained({str(path)!r}).save_pretrained({str(path)!r})."
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the package raises plain Exception
            raise CheckpointError(f"{file} cannot be read as a tokenizer: {error}.") from error
        settings = {**read_json(path / "special_tokens_map.json"), **read_json(path / "tokenizer_config.json")}
        backend = complete(backend, settings, read_json(path / "added_tokens.json"), path)
        generation, model = read_json(path / "generation_config.json"), read_json(path / "config.json")
        inner = model.get("text_config")
        model = {**(inner if isinstance(inner, dict) else {}), **model}
        bos = _ids(generation.get("bos_token_id")) or _ids(model.get("bos_token_id"))
        return cls(
            backend,
            special_tokens=_special_tokens(settings),
            eos_token_ids=_ids(generation.get("eos_token_id")) + _ids(model.get("eos_token_id")),
            bos_token_id=bos[0] if bos else None,
            add_bos=settings.get("add_bos_token") is True,
            add_eos=settings.get("add_eos_token") is True,
        )

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Lets other Python threads run meanwhile. RequestError for what is too much for it."""
        if not text.isascii():  # JSON can hold halves of surrogate pairs, which are no text
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        try:
            # Of the package's calls only the batched ones release the GIL.
            ids: list[int] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        except BaseException as error:  # its panics are no `Exception`
            if is_exit(error):
                raise
            raise RequestError(
                f"The tokenizer cannot take this text: {type(error).__name__}: {error!s:.200}."
            ) from error
        if add_special_tokens and self._add_bos and self.bos_token_id is not None and ids[:1] != [self.bos_token_id]:
            ids = [self.bos_token_id, *ids]
        if add_special_tokens and self._last is not None and ids[-1:] != [self._last]:
            ids = [*ids, self._last]
        return ids

    def least_tokens(self, text: str, enough: int) -> int:
        """What `encode` would give at least, as far as tells whether it is more than `enough`; without encoding."""
        if self._lengths is None:
            spelling = self._spelling
            vocabulary = self._backend.get_vocab(with_added_tokens=True)
            self._lengths = Lengths(self._backend, None if spelling is None else [*map(spelling.spell, vocabulary)])
        return self._lengths.least(text, enough)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`. Bytes that are not UTF-8 become U+FFFD; ids outside the vocabulary are nothing."""
        stream = self.stream(skip_special_tokens)
        return "".join([*map(stream.step, ids), stream.flush()])

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for, special tokens included."""
        known = self._bytes.get(token_id)
        if known is None:
            token = self._backend.id_to_token(token_id)
            if token is None:
                known = b""
            elif self._spelling is not None:
                known = self._spelling.spell(token)
            else:
                known = self._backend.decode([token_id], skip_special_tokens=False).encode()
            self._bytes[token_id] = known
        return known

    def token(self, token_id: int) -> str:
        """A token as the vocabulary writes it; empty for one that it does not have."""
        return self._backend.id_to_token(token_id) or ""

    def id_of(self, token: str) -> int | None:
        """The id of a token that the vocabulary writes like this."""
        found: int | None = self._backend.token_to_id(token)
        return found

    @property
    def added_tokens(self) -> Collection[str]:
        return self._added.keys()

    def special_among(self, texts: Iterable[str]) -> tuple[int, ...]:
        """The ids of those of the texts that are special tokens, and so are left out of what is decoded."""
        ids = (self._added.get(text, -1) for text in texts)
        return tuple(i for i in ids if i in self.special_ids)

    def stream(
        self, skip_special_tokens: bool = True, *, shown: Collection[int] = (), continues: bool = False
    ) -> TokenStream:
        """Decode token by token.

        Args:
            shown: special tokens that are not skipped all the same.
            continues: keep the leading space that some tokenizers drop at a text's start.
        """
        hidden = self.special_ids.difference(shown) if skip_special_tokens else frozenset()
        if self._spelling is None:
            return _WindowStream(self._backend, hidden)
        return _ByteStream(self, hidden, 0 if continues else self._spelling.strip)

    def _id_of(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        return None if text is None else self._backend.token_to_id(text)


class TokenStream:
    """Token ids in, one at a time; pieces of text out, each made of whole characters."""

    def step(self, token_id: int) -> str:
        """The text that is certain with this token; empty while a character is incomplete."""
        raise NotImplementedError

    def flush(self) -> str:
        """The text that was held back, at the end."""
        raise NotImplementedError


class _ByteStream(TokenStream):
    """For tokens whose bytes do not depend on their neighbours: constant work per token."""

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int], strip: int) -> None:
        self._tokenizer, self._hidden, self._strip = tokenizer, hidden, strip
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def step(self, token_id: int) -> str:
        if token_id in self._hidden:
            return ""
        text = self._utf8.decode(self._tokenizer.token_bytes(token_id))
        while self._strip and text:
            if text[0] != " ":
                self._strip = 0
                break
            text, self._strip = text[1:], self._strip - 1
        return text

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class _WindowStream(TokenStream):
    """For every other decoder: decode the last few tokens with and without the news, and give the difference."""

    def __init__(self, backend: tokenizers.Tokenizer, hidden: frozenset[int]) -> None:
        self._backend, self._hidden = backend, hidden
        self._ids: list[int] = []
        self._shown = 0  # how many of _ids have been given as text

    def step(self, token_id: int) -> str:
        if token_id in self._hidden:
            return ""
        self._ids.append(token_id)
        new = self._news()
        if new.endswith("\ufffd") and len(self._ids) - self._shown < _WINDOW:  # perhaps half a character
            return ""
        self._ids = self._ids[-_WINDOW:]
        self._shown = len(self._ids)
        return new

    def flush(self) -> str:
        new, self._shown = self._news(), len(self._ids)
        return new

    def _news(self) -> str:
        before: str = self._backend.decode(self._ids[: self._shown], skip_special_tokens=False)
        after: str = self._backend.decode(self._ids, skip_special_tokens=False)
        return after[len(before) :]


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint's file; empty if there is no such file."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} must hold a JSON object, not {type(value).__name__}.")
    return value


def _ids(value: object) -> list[int]:
    """Checkpoints write one id or a list of them."""
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int)]


def _special_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """The `*_token` entries; each is a string, or an object with the string as its content."""
    found = {}
    for name, value in settings.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found
