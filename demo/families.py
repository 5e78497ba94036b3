"""Families of tasks, as rows: the name, the shares of the training, and the keys that are held out."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from . import numbers, structured, talk, words
from .items import Item, Message, TaskFamily, is_held_out

FAMILIES: tuple[TaskFamily, ...] = (
    TaskFamily("sums", numbers.sums, (2.2, 4), "pairs of numbers"),
    TaskFamily("comparison", numbers.comparison, (0.8, 1), "pairs of numbers"),
    TaskFamily("sorting", numbers.sorting, (1.2, 2.6), "sets of values"),
    TaskFamily("counting", numbers.counting, (1.0, 1), "lists"),
    TaskFamily("calendar", numbers.calendar, (0.8, 0.8), "pairs of start and distance"),
    TaskFamily("units", numbers.units, (1.0, 1.2), "values (decimal units), value and wording (others)"),
    TaskFamily("spelling", words.spelling, (1.2, 3), "words"),
    TaskFamily("reversing", words.reversing, (1.6, 3), "words"),
    TaskFamily("letter_case", words.letter_case, (1.4, 3.5), "texts"),
    TaskFamily("facts", talk.facts, (2.6, 2.6), "fact and wording"),
    TaskFamily("itself", talk.itself, (0.8, 0.6), "wordings"),
    TaskFamily("unknown", talk.unknown, (0.9, 0.5), "questions"),
    TaskFamily("recall", talk.recall, (1.0, 0.6), "what was told"),
    TaskFamily("obeying", talk.obeying, (1.2, 1.8), "instruction and question"),
    TaskFamily("extraction", structured.extraction, (1.2, 0.8), "texts"),
    TaskFamily("schema", structured.schema, (1.0, 0.6), "texts"),
    TaskFamily("tools", structured.tools, (1.2, 0.9), "calls"),
)
_MAX_TURNS = 6


def training_item(family: TaskFamily, random: Random) -> Item:
    """An item whose key is not held out."""
    while is_held_out(family.name, (item := family.make(random)).key):
        pass
    return item


def held_out_item(family: TaskFamily, random: Random) -> Item:
    """An item whose key is held out; in four of ten cases some other turns, none held out, come before it."""
    while not is_held_out(family.name, (item := family.make(random)).key):
        pass
    if not item.chains or random.random() < 0.6:
        return item
    before = _turns(random, random.randint(1, 2))
    return Item(item.key, (*before, *item.messages), short=item.short)


def training_conversations(seed: int | str, count: int, part: int = 0) -> Iterator[Item]:
    """`count` conversations, each decided by the seed and its place alone; `part` says which shares count."""
    for place in range(count):
        random = Random(f"{seed}/{place}")
        item = training_item(_family(random, part), random)
        if item.chains and random.random() < 0.8:
            more = _turns(random, random.randint(1, _MAX_TURNS - 1), part)
            if random.random() < 0.15:
                more = [{"role": "system", "content": random.choice(_IDLE_SYSTEMS)}, *more]
            item = Item(item.key, (*more, *item.messages))
        yield item


_IDLE_SYSTEMS = ("You are a helpful assistant.", "Be helpful.", "You are a friendly helper.", "Answer the questions.")


def _family(random: Random, part: int) -> TaskFamily:
    return random.choices(FAMILIES, [family.shares[part] for family in FAMILIES])[0]


def _turns(random: Random, count: int, part: int = 0) -> list[Message]:
    """The turns of some items that are fit for company."""
    messages: list[Message] = []
    while count:
        item = training_item(_family(random, part), random)
        if item.chains:
            messages += item.messages
            count -= 1
    return messages
