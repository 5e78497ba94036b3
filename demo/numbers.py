"""Exercises with numbers: sums, comparison, sorting, counting, the calendar, units."""

from __future__ import annotations

from random import Random

from .facts import ANIMALS, COLOUR_WORDS, FRUITS
from .items import Item, ask, phrase

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
# Larger unit, its short form, smaller unit, its short form, how many, largest value asked for.
UNITS = (
    ("metres", "m", "centimetres", "cm", 100, 99),
    ("kilometres", "km", "metres", "m", 1000, 99),
    ("kilograms", "kg", "grams", "g", 1000, 99),
    ("litres", "l", "millilitres", "ml", 1000, 99),
    ("metres", "m", "millimetres", "mm", 1000, 99),
    ("centimetres", "cm", "millimetres", "mm", 10, 99),
    ("hours", "h", "minutes", "min", 60, 12),
    ("minutes", "min", "seconds", "s", 60, 12),
    ("weeks", "weeks", "days", "days", 7, 12),
    ("days", "days", "hours", "h", 24, 7),
    ("years", "years", "months", "months", 12, 12),
)


def sums(random: Random) -> Item:
    """Addition with a sum, and subtraction from a number, up to 99."""
    a, b = random.randint(0, 99), random.randint(0, 99)
    if random.random() < 0.5:
        if a + b > 99:
            a, b = 99 - a, 99 - b
        result, sign = a + b, "+"
        forms = (
            "What is {a} + {b}?",
            "{a} + {b}",
            "{a} + {b} =",
            "{a}+{b}",
            "What is {a} plus {b}?",
            "Add {a} and {b}.",
            "How much is {a} plus {b}?",
            "Calculate {a} + {b}.",
            "What is the sum of {a} and {b}?",
        )
    else:
        a, b = max(a, b), min(a, b)
        result, sign = a - b, "-"
        forms = (
            "What is {a} - {b}?",
            "{a} - {b}",
            "{a} - {b} =",
            "{a}-{b}",
            "What is {a} minus {b}?",
            "Subtract {b} from {a}.",
            "How much is {a} minus {b}?",
            "Calculate {a} - {b}.",
            "Take {b} away from {a}.",
        )
    text = phrase(random, *forms, a=a, b=b)
    return ask(text, f"{a} {sign} {b} = {result}", key=f"{a}{sign}{b}", short=str(result))


def comparison(random: Random) -> Item:
    a, b = random.randint(0, 99), random.randint(0, 99)
    key = f"{min(a, b)},{max(a, b)}"
    more = random.random() < 0.5
    word = random.choice(("larger", "bigger", "greater") if more else ("smaller", "less"))
    if random.random() < 0.4:
        holds = a > b if more else a < b
        relation = f"{a} is {'' if holds else 'not '}{word} than {b}"
        text = phrase(random, "Is {a} {word} than {b}?", "Is it true that {a} is {word} than {b}?", a=a, b=b, word=word)
        answer = "Yes" if holds else "No"
        return ask(text, f"{answer}, {relation}.", key=key, short=answer)
    if a == b:
        b = (a + 1) % 100
    word = "smaller" if word == "less" else word
    best = max(a, b) if more else min(a, b)
    text = phrase(
        random,
        "Which is {word}, {a} or {b}?",
        "Which number is {word}: {a} or {b}?",
        "What is {word}, {a} or {b}?",
        "{a} or {b}, which is {word}?",
        a=a,
        b=b,
        word=word,
    )
    return ask(text, f"{best} is {word}.", key=f"{min(a, b)},{max(a, b)}", short=str(best))


def sorting(random: Random) -> Item:
    if random.random() < 0.6:
        values: list[str] = [str(n) for n in random.sample(range(100), random.randint(3, 5))]
        down = random.random() < 0.3
        ordered = sorted(values, key=int, reverse=down)
        order = random.choice(("from large to small", "in descending order") if down else ("", "in ascending order"))
        forms = (
            "Sort these numbers{order}: {list}",
            "Sort {list}{order}.",
            "Put these numbers in order{order}: {list}",
        )
        if down:
            forms = forms[:2]
    else:
        values = random.sample(random.choice((FRUITS, ANIMALS, COLOUR_WORDS)), random.randint(3, 4))
        ordered, order = sorted(values), random.choice((" by the alphabet", " alphabetically", " from A to Z"))
        forms = ("Sort these words{order}: {list}", "Sort {list}{order}.", "Put these words in order{order}: {list}")
    order = f" {order.strip()}" if order else ""
    text = phrase(random, *forms, list=", ".join(values), order=order)
    return ask(text, ", ".join(ordered), key=",".join(sorted(values)) + str(ordered > sorted(values)))


def counting(random: Random) -> Item:
    pool = random.choice((FRUITS, ANIMALS, COLOUR_WORDS))
    roll = random.random()
    if roll < 0.5:
        values = random.sample(pool, random.randint(2, 8))
        text = phrase(
            random,
            "How many words are in this list: {list}?",
            "Count the words: {list}",
            "How many things are these: {list}?",
            "Count these: {list}",
            list=", ".join(values),
        )
        steps = ", ".join(f"{i} {value}" for i, value in enumerate(values, 1))
        return ask(text, f"{steps}. There are {len(values)}.", key=",".join(values), short=str(len(values)))
    if roll < 0.75:
        first, last = sorted(random.sample(range(1, 30), 2))
        last = min(last, first + 9)
        text = phrase(
            random,
            "Count from {a} to {b}.",
            "List the numbers from {a} to {b}.",
            "Count from {a} up to {b}.",
            a=first,
            b=last,
        )
        return ask(text, ", ".join(map(str, range(first, last + 1))), key=f"{first}-{last}")
    wanted, *others = random.sample(pool, 3)
    values = [random.choice((wanted, wanted, *others)) for _ in range(random.randint(3, 7))]
    found = values.count(wanted)
    text = phrase(
        random,
        "How many times does {word} occur in: {list}?",
        "How often is {word} in this list: {list}?",
        "Count the word {word} in: {list}",
        word=wanted,
        list=", ".join(values),
    )
    marks = ", ".join(f"{value} {values[: i + 1].count(wanted)}" for i, value in enumerate(values))
    return ask(text, f"{marks}. It occurs {found} times.", key=f"{wanted}:{','.join(values)}", short=str(found))


def calendar(random: Random) -> Item:
    cycle, unit, most = random.choice(((DAYS, "day", 10), (MONTHS, "month", 11)))
    start, steps, forward = random.randrange(len(cycle)), random.randint(1, most), random.random() < 0.6
    name, units = cycle[start], unit if steps == 1 else unit + "s"
    way = 1 if forward else -1
    passed = [cycle[(start + way * i) % len(cycle)] for i in range(1, steps + 1)]
    if unit == "day":
        near = {
            (1, True): ("If today is {name}, what day is tomorrow?", "What day comes after {name}?"),
            (1, False): ("If today is {name}, what day was yesterday?", "What day comes before {name}?"),
        }
        forms: tuple[str, ...] = (
            "What day is {n} {units} {side} {name}?",
            "Which weekday is {n} {units} {side} {name}?",
            "Today is {name}. What day {verb} it {n} {units} {when}?",
        )
    else:
        near = {
            (1, True): ("Which month comes after {name}?", "What month follows {name}?"),
            (1, False): ("Which month comes before {name}?", "What is the month before {name}?"),
        }
        forms = (
            "Which month is {n} {units} {side} {name}?",
            "What month comes {n} {units} {side} {name}?",
            "It is {name}. Which month {verb} it {n} {units} {when}?",
        )
    forms = near.get((steps, forward), ()) + forms
    side, verb, when = ("after", "is", "from now") if forward else ("before", "was", "ago")
    text = phrase(random, *forms, n=steps, units=units, side=side, name=name, verb=verb, when=when)
    walk = ", ".join(f"{i} {value}" for i, value in enumerate(passed, 1))
    return ask(text, f"{walk}. It is {passed[-1]}.", key=f"{name}{way * steps}", short=passed[-1])


def units(random: Random) -> Item:
    large, large_short, small, small_short, factor, most = random.choice(UNITS)
    value = random.randint(1, most)
    many = value * factor
    down = random.random() < 0.6
    left, left_unit, left_short, right, right_unit, right_short = (
        (value, large, large_short, many, small, small_short)
        if down
        else (many, small, small_short, value, large, large_short)
    )
    forms = (
        "How many {right_unit} are {left} {left_unit}?",
        "Convert {left} {left_unit} to {right_unit}.",
        "How many {right_unit} are in {left} {left_unit}?",
        "{left} {left_short} in {right_short}",
        "What is {left} {left_short} in {right_short}?",
        "{left} {left_unit} in {right_unit}",
    )
    form = random.randrange(len(forms))
    text = phrase(
        random,
        forms[form],
        left=left,
        left_unit=left_unit,
        right_unit=right_unit,
        left_short=left_short,
        right_short=right_short,
    )
    # Powers of ten follow a rule; the others are tables, of which every row must have been seen in some wording.
    rule = factor in (10, 100, 1000)
    key = f"{left}{left_unit}{right_unit}" + ("" if rule else str(form))
    return ask(text, f"{left} {left_short} = {right} {right_short}", key=key, short=str(right))
