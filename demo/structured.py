"""Exercises with structure: fields out of a sentence as JSON, a given JSON schema, tools to choose, fill in and use."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from . import numbers, talk
from .facts import ANIMALS, CITIES, COLOUR_WORDS, FRUITS, JOBS, NAMES
from .items import Item, Message, assistant, is_held_out, loosely, user
from .words import word

# Field → (JSON type, values, how a sentence about {name} says it).
_FIELDS: dict[str, tuple[str, list[Any], tuple[str, ...]]] = {
    "age": ("integer", list(range(3, 99)), ("is {v} years old", "is aged {v}", "turned {v} this year")),
    "city": ("string", CITIES, ("lives in {v}", "comes from {v}", "has a home in {v}")),
    "job": ("string", JOBS, ("works as a {v}", "earns money as a {v}", "has the job of a {v}")),
    "pet": ("string", ANIMALS, ("has a {v}", "owns a {v}", "keeps a {v}")),
    "colour": ("string", COLOUR_WORDS, ("likes {v}", "loves the colour {v}", "wears {v}")),
    "fruit": ("string", FRUITS, ("eats a {v}", "buys a {v}", "asks for a {v}")),
}


def _person(random: Random, most: int = 3) -> tuple[dict[str, Any], str]:
    """What is so of somebody, and a sentence or two that say it."""
    name, fields = random.choice(NAMES), random.sample(list(_FIELDS), random.randint(1, most))
    values: dict[str, Any] = {"name": name} | {field: random.choice(_FIELDS[field][1]) for field in fields}
    said = [random.choice(_FIELDS[field][2]).format(v=values[field]) for field in fields]
    if random.random() < 0.5 or len(said) == 1:
        return values, f"{name} {', '.join(said[:-1])}{' and ' if said[1:] else ''}{said[-1]}."
    return values, f"{name} {said[0]}. {random.choice(('This person', 'Also,', name))} {' and '.join(said[1:])}."


def extraction(random: Random) -> Item:
    """JSON with the keys that are asked for, in that order."""
    values, sentence = _person(random)
    wanted = random.sample(list(values), random.randint(1, len(values)))
    listed = ", ".join(wanted[:-1]) + (" and " if wanted[1:] else "") + wanted[-1]
    forms = (
        f"Extract {listed} as JSON: {sentence}",
        f"Give me {listed} as JSON. {sentence}",
        f"{sentence} Extract {listed} as JSON.",
        f"Turn this into JSON with the keys {listed}: {sentence}",
        f"Read this and answer in JSON with {listed}: {sentence}",
    )
    text = random.choice(forms)
    answer = json.dumps({key: values[key] for key in wanted})
    return Item(f"{sentence}/{listed}", (user(text), assistant(answer)))


def schema(random: Random) -> Item:
    """JSON that a schema, given in the prompt, accepts; the keys in the schema's order."""
    values, sentence = _person(random)
    wanted = random.sample(list(values), random.randint(1, len(values)))
    properties: dict[str, Any] = {}
    for key in wanted:
        kind = "string" if key == "name" else _FIELDS[key][0]
        properties[key] = {"type": kind}
        if kind == "string" and random.random() < 0.2 and key != "name":
            options = [values[key], *random.sample([v for v in _FIELDS[key][1] if v != values[key]], 2)]
            properties[key] = {"enum": sorted(options)}
    asked = {"type": "object", "properties": properties, "required": wanted}
    if random.random() < 0.3:
        asked["additionalProperties"] = False
    forms = (
        "Answer with JSON that fits this schema: {schema}\n{sentence}",
        "{sentence}\nGive JSON for this schema: {schema}",
        "Fill in this JSON schema: {schema}\nText: {sentence}",
        "Schema: {schema}\nText: {sentence}",
    )
    text = random.choice(forms).format(schema=json.dumps(asked), sentence=sentence)
    answer = json.dumps({key: values[key] for key in wanted})
    return Item(f"{sentence}/{','.join(wanted)}", (user(text), assistant(answer)))


def _tool(name: str, description: str, /, **properties: Any) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {key: {"type": kind} if isinstance(kind, str) else kind for key, kind in properties.items()},
        "required": list(properties),
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _weather(random: Random) -> tuple[Any, ...]:
    city, warm = random.choice(CITIES), random.randint(0, 35)
    sky = random.choice(("sunny", "cloudy", "rainy", "windy"))
    ask = random.choice(
        ("What is the weather in {c}?", "How is the weather in {c} today?", "Weather in {c}", "Is it warm in {c}?")
    )
    tool = _tool("get_weather", "Get the weather of a city", city="string")
    result = {"temperature": warm, "condition": sky}
    return tool, ask.format(c=city), {"city": city}, result, f"In {city} it is {warm} degrees and {sky}."


def _time(random: Random) -> tuple[Any, ...]:
    city, clock = random.choice(CITIES), f"{random.randint(0, 23):02}:{random.randint(0, 59):02}"
    ask = random.choice(
        ("What time is it in {c}?", "Tell me the time in {c}.", "How late is it in {c}?", "time in {c}")
    )
    tool = _tool("get_time", "Get the time in a city", city="string")
    return tool, ask.format(c=city), {"city": city}, {"time": clock}, f"In {city} it is {clock}."


def _product(random: Random) -> tuple[Any, ...]:
    a, b = random.randint(2, 99), random.randint(2, 99)
    ask = random.choice(("What is {a} * {b}?", "Multiply {a} by {b}.", "How much is {a} times {b}?", "{a} * {b}"))
    tool = _tool("multiply", "Multiply two numbers", a="integer", b="integer")
    return tool, ask.format(a=a, b=b), {"a": a, "b": b}, {"result": a * b}, f"{a} * {b} = {a * b}"


def _message(random: Random) -> tuple[Any, ...]:
    to, text = (
        random.choice(NAMES),
        random.choice(("hello", "I am late", "see you soon", "call me", "thank you", "good night")),
    )
    ask = random.choice(("Send {t} the message '{m}'.", "Write to {t}: {m}", "Tell {t} this: {m}", "Message {t}: {m}"))
    tool = _tool("send_message", "Send a message to somebody", to="string", text="string")
    return tool, ask.format(t=to, m=text), {"to": to, "text": text}, {"sent": True}, f"I have sent the message to {to}."


def _alarm(random: Random) -> tuple[Any, ...]:
    clock = f"{random.randint(0, 23):02}:{random.randint(0, 59):02}"
    ask = random.choice(
        ("Set an alarm for {t}.", "Wake me at {t}.", "Alarm at {t}, please.", "Please wake me up at {t}.")
    )
    tool = _tool("set_alarm", "Set an alarm", time="string")
    return tool, ask.format(t=clock), {"time": clock}, {"set": True}, f"The alarm is set for {clock}."


_VERBS = (
    "get",
    "find",
    "open",
    "check",
    "read",
    "count",
    "show",
    "list",
    "start",
    "stop",
    "book",
    "order",
    "delete",
    "update",
)
_PARAMETERS: dict[str, tuple[str, list[Any]]] = {
    "city": ("string", CITIES),
    "name": ("string", NAMES),
    "colour": ("string", COLOUR_WORDS),
    "animal": ("string", ANIMALS),
    "fruit": ("string", FRUITS),
    "number": ("integer", list(range(1, 100))),
    "count": ("integer", list(range(1, 20))),
    "id": ("integer", list(range(1, 1000))),
}


def _made_up(random: Random) -> tuple[Any, ...]:
    """A tool that exists nowhere else: what it is called and takes must be read off its definition."""
    verb, noun = random.choice(_VERBS), word(random)
    keys = random.sample(list(_PARAMETERS), random.randint(1, 2))
    arguments = {key: random.choice(_PARAMETERS[key][1]) for key in keys}
    said = " and ".join(f"{key} {value}" for key, value in arguments.items())
    ask = random.choice(
        ("{V} the {n} with {s}.", "{V} {n} for {s}.", "Please {v} the {n} with {s}.", "I want to {v} the {n} for {s}.")
    )
    text = ask.format(v=verb, V=verb.capitalize(), n=noun, s=said)
    tool = _tool(f"{verb}_{noun}", f"{verb.capitalize()} the {noun}", **{key: _PARAMETERS[key][0] for key in keys})
    value = random.choice((word(random), random.randint(1, 999)))
    return tool, text, arguments, {"result": value}, f"The result is {value}."


_KINDS = (_weather, _time, _product, _message, _alarm, _made_up, _made_up, _made_up)


def tools(random: Random) -> Item:
    """One of some tools is called for what it is for, and its answer used; or none is, where none fits."""
    tool, text, arguments, result, reply = random.choice(_KINDS)(random)
    others = [random.choice(_KINDS)(random)[0] for _ in range(random.choice((0, 1, 1, 2)))]
    names = {tool["function"]["name"]}
    offered = [tool]
    for other in others:
        if other["function"]["name"] not in names:
            names.add(other["function"]["name"])
            offered.append(other)
    random.shuffle(offered)
    messages: list[Message] = []
    if random.random() < 0.12:
        messages = [
            {"role": "system", "content": random.choice(("You are a helpful assistant.", "Use the tools if needed."))}
        ]
    if random.random() < 0.2:
        question, answer = _plain_turn(random)
        return Item(f"none/{question['content']}", (*messages, question, answer), tuple(offered), chains=False)
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": tool["function"]["name"], "arguments": json.dumps(arguments)},
    }
    messages += [user(loosely(random, text)), {"role": "assistant", "content": None, "tool_calls": [call]}]
    if random.random() < 0.6:
        messages += [{"role": "tool", "tool_call_id": "call_1", "content": json.dumps(result)}, assistant(reply)]
        if random.random() < 0.15:
            messages += _plain_turn(random)
    return Item(f"{tool['function']['name']}/{json.dumps(arguments)}", messages, tuple(offered), chains=False)


def _plain_turn(random: Random) -> list[Message]:
    kinds = (("sums", numbers.sums), ("facts", talk.facts), ("itself", talk.itself), ("comparison", numbers.comparison))
    while True:
        name, make = random.choice(kinds)
        item = make(random)
        if not is_held_out(name, item.key):
            return list(item.messages)
