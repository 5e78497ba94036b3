"""Exercises in conversation: facts, itself, what it does not know, what was said before, what a system prompt wants."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from . import numbers
from .facts import (
    ANIMALS,
    CAPITALS,
    CITIES,
    COLOURS,
    CONTINENTS,
    FRUITS,
    LANGUAGES,
    LEGS,
    NAMES,
    OPPOSITES,
    PLAIN,
    PLURALS,
    SOUNDS,
    SYMBOLS,
    YOUNG,
)
from .items import Item, Message, ask, assistant, capital, carelessly, is_held_out, loosely, lowered, user
from .sayings import BEYOND, GREETINGS, SAID, SELF, TOPICS
from .words import word

UNKNOWN = "I do not know that. I am a small model and know only a few things."


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


# Table, ways to ask, the answer, its short form: a row's thing is {k}, what is known of it {v}.
_TABLES: tuple[tuple[dict[str, str], tuple[str, ...], str], ...] = (
    (
        CAPITALS,
        (
            "What is the capital of {k}?",
            "Which city is the capital of {k}?",
            "What is {k}'s capital?",
            "Name the capital of {k}.",
            "Tell me the capital of {k}.",
            "capital of {k}",
            "Do you know the capital of {k}?",
        ),
        "The capital of {k} is {v}.",
    ),
    (
        {city: country for country, city in CAPITALS.items()},
        (
            "{k} is the capital of which country?",
            "Which country has the capital {k}?",
            "Of which country is {k} the capital?",
            "What country is {k} the capital of?",
        ),
        "{k} is the capital of {v}.",
    ),
    (
        CONTINENTS,
        ("On which continent is {k}?", "Where is {k}?", "Which continent is {k} on?", "What continent is {k} in?"),
        "{k} is in {v}.",
    ),
    (
        LANGUAGES,
        (
            "Which language do people speak in {k}?",
            "What language is spoken in {k}?",
            "What do people speak in {k}?",
            "Name the language of {k}.",
        ),
        "People in {k} speak {v}.",
    ),
    (
        SYMBOLS,
        (
            "What is the chemical symbol for {k}?",
            "What is the symbol of {k}?",
            "Give me the chemical symbol of {k}.",
            "How is {k} written in chemistry?",
        ),
        "The symbol of {k} is {v}.",
    ),
    (
        OPPOSITES | {v: k for k, v in OPPOSITES.items()},
        (
            "What is the opposite of {k}?",
            "What is the contrary of {k}?",
            "Give me the opposite of {k}.",
            "opposite of {k}",
        ),
        "The opposite of {k} is {v}.",
    ),
    (
        PLURALS,
        (
            "What is the plural of {k}?",
            "Give me the plural of {k}.",
            "How do you write the plural of {k}?",
            "plural of {k}",
        ),
        "The plural of {k} is {v}.",
    ),
    (
        {_a(k): v for k, v in SOUNDS.items()},
        ("What sound does {k} make?", "Which sound does {k} make?", "How does {k} sound?"),
        "{K} {v}.",
    ),
    (
        {_a(k): v for k, v in YOUNG.items()},
        ("What is the young of {k} called?", "What do you call the baby of {k}?", "What is the baby of {k} called?"),
        "The young of {k} is called {v}.",
    ),
    (
        COLOURS,
        ("What colour is {k}?", "Which colour does {k} have?", "What is the colour of {k}?", "What color is {k}?"),
        "{K} is {v}.",
    ),
    (
        LEGS,
        ("How many legs does {k} have?", "What number of legs does {k} have?", "How many legs has {k}?"),
        "{K} has {v} legs.",
    ),
)
_ROWS = [(table, key) for table in range(len(_TABLES)) for key in _TABLES[table][0]]
_PLAIN_FORMS = ("{q}?", "{q}?", "Tell me: {q}?", "Do you know {q}?", "Can you tell me {q}?", "I want to know: {q}?")


def facts(random: Random) -> Item:
    at = random.randrange(len(_ROWS) + 2 * len(PLAIN))
    if at >= len(_ROWS):
        question = random.choice(list(PLAIN))
        long, short = PLAIN[question]
        form = random.randrange(1, len(_PLAIN_FORMS))
        text = capital(_PLAIN_FORMS[form].format(q=question))
        return ask(carelessly(random, text), long, key=f"{question}/{form}", short=short)
    table, key = _ROWS[at]
    rows, forms, answer = _TABLES[table]
    form, value = random.randrange(len(forms)), rows[key]
    text = carelessly(random, forms[form].format(k=key))
    long = answer.format(k=key, v=value, K=capital(key))
    return ask(text, long, key=f"{table}/{key}/{form}", short=capital(value))


def itself(random: Random) -> Item:
    at, topics = random.randrange(10), (*SELF, *GREETINGS)
    ways, answer = topics[at % len(SELF)] if at < len(SELF) else random.choice(GREETINGS)
    text = random.choice(ways)
    key = text.lower().strip("?!. ")
    roll = random.random()
    if roll < 0.15 and len(text) > 12:
        text = random.choice(("Hello, ", "Hi! ", "Hi, ", "Please tell me: ", "OK. ")) + lowered(text)
    elif roll < 0.4:
        text = random.choice((text.lower(), text.rstrip("?.!"), text.rstrip("?.!") + "!" if text[-1] != "?" else text))
    return ask(text, answer, key=key)


def unknown(random: Random) -> Item:
    """What lies outside: the answer says so, always in the same words."""
    made = capital(word(random) + random.choice(("ia", "land", "stan", "o", "ra", "burg", "")))
    values = {
        "city": random.choice(CITIES),
        "city2": random.choice(CITIES),
        "person": f"{random.choice(NAMES)} {capital(word(random))}",
        "year": random.randint(1000, 2030),
        "thing": _a(
            random.choice((*ANIMALS, *FRUITS, "bicycle", "phone", "car", "house", "lamp", "piano", "cake", "chair"))
        ),
        "topic": random.choice(TOPICS),
        "land": made,
        "made": word(random),
    }
    form = random.choice(BEYOND)
    return ask(carelessly(random, form.format(**values)), UNKNOWN, key=form.format(**values))


def recall(random: Random) -> Item:
    """Some things are told, other things may come between, then one of the things is asked for."""
    told = random.sample(range(len(SAID)), random.randint(1, 3))
    messages: list[Message] = []
    values = {}
    for at in told:
        values[at] = random.choice(SAID[at][3] or [word(random)])
        messages += [
            user(loosely(random, random.choice(SAID[at][0]).format(v=values[at]))),
            assistant(_noted(at, values[at])),
        ]
        if random.random() < 0.35:
            messages += _aside(random)
    asked = random.choice(told)
    messages += [
        user(loosely(random, random.choice(SAID[asked][1]))),
        assistant(SAID[asked][2].format(v=values[asked])),
    ]
    key = "/".join(f"{at}={values[at]}" for at in sorted(values)) + f"?{asked}"
    return Item(key, messages, short=capital(values[asked]))


def _noted(at: int, value: str) -> str:
    return f"Nice to meet you, {value}!" if at == 0 else f"I will remember: {SAID[at][2].format(v=value)[:-1]}."


def _aside(random: Random) -> list[Message]:
    """Another exercise in between, never a held-out one."""
    while True:
        name, make = random.choice(
            (("sums", numbers.sums), ("facts", facts), ("itself", itself), ("comparison", numbers.comparison))
        )
        item = make(random)
        if not is_held_out(name, item.key):
            return list(item.messages)


Style = Callable[[str, str], str]
# What the system prompt asks for, in several wordings, and what becomes of (long, short).
_STYLES: tuple[tuple[tuple[str, ...], Style], ...] = (
    (
        ("Answer in one word.", "Answer with one word only.", "Use one word.", "Reply with a single word."),
        lambda long, short: short,
    ),
    (
        (
            "Answer in upper case.",
            "Write everything in capital letters.",
            "Always use upper case.",
            "Use capital letters only.",
        ),
        lambda long, short: long.upper(),
    ),
    (
        (
            "Answer in lower case.",
            "Write everything in small letters.",
            "Always use lower case.",
            "Use small letters only.",
        ),
        lambda long, short: long.lower(),
    ),
    (
        (
            'Answer as JSON: {"answer": ...}',
            'Reply in JSON with the key "answer".',
            'Give JSON like {"answer": "..."} only.',
        ),
        lambda long, short: json.dumps({"answer": short}),
    ),
    (
        ("Begin every answer with 'Sure:'", "Start each reply with 'Sure:'", "Always begin with the word Sure:"),
        lambda long, short: f"Sure: {long}",
    ),
    (
        ("End every answer with 'Over.'", "Close each reply with 'Over.'", "Always end with the word Over."),
        lambda long, short: f"{long} Over.",
    ),
    (
        ("Say each answer twice.", "Repeat every answer once.", "Give each answer two times."),
        lambda long, short: f"{long} {long}",
    ),
    (
        (
            "You are a helpful assistant.",
            "Answer the questions.",
            "Be friendly.",
            "You are a friendly helper.",
            "Be helpful.",
        ),
        lambda long, short: long,
    ),
)


def obeying(random: Random) -> Item:
    """A short instruction in the system prompt changes how a plain question is answered, over one to three turns."""
    wordings, style = random.choice(_STYLES)
    wording = random.choice(wordings)
    messages: list[Message] = [{"role": "system", "content": wording}]
    for _ in range(random.choice((1, 1, 2, 3))):
        name, make = random.choice(
            (("sums", numbers.sums), ("facts", facts), ("facts", facts), ("comparison", numbers.comparison))
        )
        while is_held_out(name, (item := make(random)).key):
            pass
        question, answer = item.messages
        messages += [question, assistant(style(answer["content"], item.short))]
        key = f"{wording}/{item.key}"
    return Item(key, messages, chains=False)
