"""Items, of which every family of tasks is made: the rule that holds some out of training, and turns of phrase."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

Message = dict[str, Any]

HELD_OUT_SHARE = 10  # one in so many keys


@dataclass(frozen=True)
class Item:
    """One exercise.

    Attributes:
        key: what the split goes by. Items of one key are all in training or all held out, whatever their wording.
        messages: the conversation; every assistant message is an answer to be learned, the last one is scored.
        tools: OpenAI's tool definitions, where the exercise has some.
        short: the answer's bare value, for instructions that ask for less than a sentence.
        chains: may stand behind and before other items in one conversation.
    """

    key: str
    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    short: str = ""
    chains: bool = True

    @property
    def answer(self) -> Message:
        return self.messages[-1]


@dataclass(frozen=True)
class TaskFamily:
    """A kind of task. `make` draws an item, `held_out` says what is kept out.

    `shares` are its weights in the two parts of the training: once the forms are known, what needs letters and digits
    gets most of the time.
    """

    name: str
    make: Callable[[Random], Item]
    shares: tuple[float, float]
    held_out: str


def is_held_out(family: str, key: str) -> bool:
    """Whether items with this key never occur in training: one in ten, by a hash, so that it never changes."""
    digest = hashlib.sha256(f"{family}::{key}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_SHARE == 0


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def ask(question: str, answer: str, *, key: str, short: str = "", chains: bool = True) -> Item:
    return Item(key, (user(question), assistant(answer)), short=short, chains=chains)


def phrase(random: Random, *forms: str, **values: object) -> str:
    """One of the forms, filled in, with the small liberties that people take when they type."""
    return loosely(random, random.choice(forms).format(**values))


def loosely(random: Random, text: str) -> str:
    """A sentence as people type it: perhaps without its last mark, perhaps without a capital, perhaps with a please."""
    roll = random.random()
    if roll < 0.15 and text[-1] in "?.":
        text = text[:-1]
    elif roll < 0.22 and text[-1] == ".":
        text = text[:-1] + ", please."
    elif roll < 0.28:
        text = "Please " + lowered(text) if text[-1] != "?" else text
    return lowered(text) if random.random() < 0.15 else text


def carelessly(random: Random, text: str) -> str:
    """As `loosely`, and now and then without any capital: for what can be answered all the same."""
    text = loosely(random, text)
    return text.lower() if random.random() < 0.12 else text


def lowered(text: str) -> str:
    """The first letter small, unless the first word is a name or an abbreviation."""
    return text[:1].lower() + text[1:] if text[:2][-1:].islower() or text[1:2] == " " else text


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]
