"""Exercises with the letters of words: spelling, reversing, upper and lower case."""

from __future__ import annotations

from random import Random

from .facts import ANIMALS, CITIES, COLOUR_WORDS, FRUITS, NAMES, WORDS
from .items import Item, ask, capital, phrase

_VOWELS, _CONSONANTS = "aeiou", "bcdfghjklmnprstvwz"
_KNOWN = sorted({word.lower() for word in (*WORDS, *FRUITS, *ANIMALS, *COLOUR_WORDS, *NAMES, *CITIES)})


def word(random: Random) -> str:
    """A word of three to eight letters, half of the time one that does not exist: not to be learned by heart."""
    if random.random() < 0.5:
        return random.choice(_KNOWN)
    parts = []
    for _ in range(random.randint(1, 3)):
        parts.append(random.choice(_CONSONANTS) + random.choice(_VOWELS))
        if random.random() < 0.35:
            parts.append(random.choice(_CONSONANTS))
    made = "".join(parts)[:8]
    return made if len(made) > 2 else made + random.choice(_CONSONANTS)


def spelling(random: Random) -> Item:
    chosen = word(random)
    shown = capital(chosen) if random.random() < 0.15 else chosen
    dashed = "-".join(shown)
    if random.random() < 0.6:
        text = phrase(
            random,
            "Spell {word}.",
            "How do you spell {word}?",
            "Spell the word {word}.",
            "Spell the word '{word}'.",
            "Which letters are in {word}?",
            word=shown,
        )
        return ask(text, dashed, key=chosen)
    text = phrase(
        random,
        "How many letters does {word} have?",
        "How many letters are in the word {word}?",
        "Count the letters of {word}.",
        "How long is the word {word}?",
        word=shown,
    )
    steps = ", ".join(f"{i} {letter}" for i, letter in enumerate(shown, 1))
    return ask(text, f"{steps}. It has {len(shown)} letters.", key=chosen, short=str(len(shown)))


def reversing(random: Random) -> Item:
    chosen = word(random)
    text = phrase(
        random,
        "Reverse the word {word}.",
        "Reverse {word}.",
        "Spell {word} backwards.",
        "Write {word} backwards.",
        "What is {word} backwards?",
        "Reverse the letters of '{word}'.",
        word=chosen,
    )
    back = chosen[::-1]
    return ask(text, f"{'-'.join(chosen)}, backwards {'-'.join(back)}: {back}", key=chosen, short=back)


def letter_case(random: Random) -> Item:
    chosen = " ".join(word(random) for _ in range(random.choice((1, 1, 2, 3))))
    if random.random() < 0.55:
        text = phrase(
            random,
            "Write {text} in upper case.",
            "Write {text} in capital letters.",
            "Put this in upper case: {text}",
            "Make this upper case: {text}",
            "{text} in capitals",
            text=chosen,
        )
        return ask(text, chosen.upper(), key=chosen)
    shown = chosen.upper() if random.random() < 0.7 else chosen.title()
    text = phrase(
        random,
        "Write {text} in lower case.",
        "Write {text} in small letters.",
        "Put this in lower case: {text}",
        "Make this lower case: {text}",
        text=shown,
    )
    return ask(text, chosen, key=chosen)
