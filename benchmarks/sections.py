"""Sections of the table: one function for each, from a session to its rows.

A session holds what all parts share: the model, the processes that have been started, patience, and every sample taken.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median

import checkpoints
import contention
import llama_server
import numpy as np
import servers
from bandwidth import read_bandwidth
from processes import Worker
from samples import Figures, Job, QuietWait, Record, best, in_turns, medians
from table import OURS, Bar, Better, Row

from llmserve.bench.host import LLMSERVE, options, prepare
from llmserve.bench.plan import BATCHES, CONTEXT, LONG_CONTEXT, PREFILL

# Ways to set up the peer; where both are measured, the better one of each figure counts.
FLASH = {"llama.cpp": "flash 0", "llama.cpp, flash": "flash 1"}
DEMO_BAR = 1.5
DEMO_BEGIN, DEMO_STEPS, DEMO_ROUNDS = 64, 128, 8  # its steps are so short that a sample takes many


@dataclass
class Session:
    """`peer`: whether llama.cpp is there. Use as a context: its processes end with it."""

    checkpoint: Path
    quant: str
    threads: int
    peer: bool
    repetitions: int
    patience: QuietWait
    stack: ExitStack
    record: dict[str, Record] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    notes: dict[str, object] = field(default_factory=dict)

    @cached_property
    def gguf(self) -> Path:
        return checkpoints.gguf_file(self.checkpoint)

    @cached_property
    def ours(self) -> Worker:
        worker = self.worker("llmserve", model=self.checkpoint, quant=self.quant, long=True)
        self.notes["llmserve compiled"] = worker.ask("system")
        return worker

    @cached_property
    def theirs(self) -> Worker:
        worker = self.worker("llama.cpp", model=self.gguf)
        self.notes["llama.cpp compiled for"] = worker.ask("system")
        self.notes["logits correlation"] = round(agreement(self.ours, worker, self.checkpoint), 3)
        return worker

    def worker(self, runtime: str, *, long: bool = False, **settings: object) -> Worker:
        """Started, and stopped outright until it is asked something."""
        words = options(**settings, threads=self.threads)
        if settings.get("model") is not None and runtime != "llama.cpp":
            self.prepared(str(settings["model"]), str(settings["quant"]))
        worker = Worker(runtime, *words, *(["--long"] if long else []))
        self.stack.callback(worker.close)
        self.commands.append(worker.command)
        return worker

    def prepared(self, model: str, quant: str) -> None:
        """Converts and compiles what is not there, in a process of its own."""
        self.notes[f"prepared {quant}"] = prepare(model, quant=quant)[1]

    def measured(self, part: str, questions: Iterable[list[Job]], repetitions: int | None = None) -> dict[str, Figures]:
        """In turns; keeps all samples, and returns the medians of those that count, by who was measured."""
        record = in_turns(questions, repetitions or self.repetitions, self.patience)
        self.record[part] = record
        return {name: medians(samples) for name, samples in record.items()}

    def questions(self, questions: Iterable[str]) -> list[list[Job]]:
        """A job for each system, and each way to set up the peer, for each question."""
        return [[self.job(self.ours, OURS, q), *self.peer_jobs(q)] for q in questions]

    def peer_jobs(self, question: str) -> list[Job]:
        return [self.job(self.theirs, name, question, flash) for name, flash in FLASH.items()] if self.peer else []

    @staticmethod
    def job(worker: Worker, name: str, question: str, setting: str | None = None) -> Job:
        def ask() -> Figures:
            if setting is not None:
                worker.ask(setting)
            return {question: float(worker.ask(question))}

        return Job(name, ask, (worker.pid,))


def agreement(ours: Worker, theirs: Worker, checkpoint: Path) -> float:
    """Correlation of the logits after one prompt: far from 1, the two would not be running the same model."""
    vocab = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    question = "logits " + " ".join(map(str, random.Random(0).choices(range(vocab), k=32)))
    return float(np.corrcoef(ours.ask(question), theirs.ask(question))[0, 1])


def speed_rows(session: Session, labels: dict[str, str], found: dict[str, Figures]) -> list[Row]:
    """Rows of tokens per second, by question."""
    ours, theirs = found[OURS], best(found[name] for name in FLASH if name in found)
    return [Row(label, ours.get(q), theirs.get(q) if session.peer else math.nan) for q, label in labels.items()]


def decode(session: Session) -> list[Row]:
    """A step at batch 1 reads every weight once: its rate is also given against the highest at which memory can bring
    them. Memory may be twice as fast a minute later, so that is measured in turns with it."""
    labels = {f"decode {b}": f"decode tok/s, batch {b}{' in all' if b > 1 else ''}, context {CONTEXT}" for b in BATCHES}
    single, *others = session.questions(labels)
    read = Job("read", lambda: {"bytes_s": read_bandwidth(session.threads)}, ("self",))
    found = session.measured("decode", [[*single, read], *others])
    bandwidth = found["read"].get("bytes_s")
    session.notes["read bandwidth, GB/s"] = None if bandwidth is None else round(bandwidth / 1e9, 1)

    def share(worker: Worker, rate: float | None) -> float | None:
        return None if rate is None or bandwidth is None else rate * float(worker.ask("weights")) / bandwidth

    rows = speed_rows(session, labels, found)
    shares = [share(session.ours, rows[0].ours), share(session.theirs, rows[0].theirs) if session.peer else math.nan]
    return [rows[0], Row("  of read bandwidth ÷ weight bytes, batch 1", *shares), *rows[1:]]


def context(session: Session) -> list[Row]:
    labels = {f"decode 1 {LONG_CONTEXT}": f"decode tok/s, batch 1, context {LONG_CONTEXT}"}
    return speed_rows(session, labels, session.measured("context", session.questions(labels)))


def prefill(session: Session) -> list[Row]:
    labels = {f"prefill {n}": f"prefill tok/s, {n} tokens" for n in PREFILL}
    return speed_rows(session, labels, session.measured("prefill", session.questions(labels)))


def q3(session: Session) -> list[Row]:
    """Three bits against four, ours against ours; the column of the peer stays empty."""
    three = session.worker("llmserve", model=session.checkpoint, quant="q3")
    found = session.measured(
        "q3", [[session.job(worker, name, "decode 1") for worker, name in ((three, "q3"), (session.ours, OURS))]]
    )
    rate, base = found["q3"].get("decode 1"), found[OURS].get("decode 1")
    return [
        Row(f"decode tok/s, batch 1, context {CONTEXT}, q3", rate),
        Row("  q3 against our own q4", rate / base if rate and base else None),
    ]


def _server_commands(session: Session) -> dict[str, servers.Command]:
    session.prepared(str(session.checkpoint), session.quant)
    commands = {OURS: servers.ours(session.checkpoint, session.threads, session.quant)}
    if session.peer:
        built = llama_server.build(session.threads)
        session.notes["llama-server"] = llama_server.described()
        for name, flash in zip(FLASH, ("off", "on"), strict=True):
            commands[name] = servers.theirs(built, session.gguf, session.threads, flash)
    return commands


def serve(session: Session) -> list[Row]:
    """Streaming clients over HTTP. The peer's figures are all of whichever way of setting it up makes more tokens."""
    commands = _server_commands(session)
    starts = [Job(name, servers.starting(command), ("self",)) for name, command in commands.items()]
    found = session.measured("start", [starts])
    with ExitStack() as stack:
        every = {name: servers.start(stack, name, command) for name, command in commands.items()}
        session.commands += [server.command for server in every.values()]
        served = session.measured(
            "serve", [[server.job() for server in every.values()]], max(1, session.repetitions - 1)
        )
        for name, server in every.items():
            found[name] |= {**served[name], **server.memory()}
    session.notes["servers"] = found
    faster = max((name for name in FLASH if name in found), key=lambda n: found[n].get("output_tok_s", 0.0), default="")

    def row(label: str, figure: str, better: Better = "less") -> Row:
        theirs = found[faster].get(figure) if faster else math.nan
        return Row(label, found[OURS].get(figure), theirs, better)

    shape = f"{servers.CLIENTS} clients, {servers.PROMPT} in, {servers.ANSWER} out"
    return [
        row(f"HTTP output tok/s, {shape}", "output_tok_s", "more"),
        row("HTTP time to first token, median, ms", "first_token_median_ms"),
        row("HTTP time per token after it, median, ms", "per_token_median_ms"),
        row("server's peak resident memory, MiB", "peak_rss_mib"),
        row("server's start until ready, all cached, s", "ready_seconds"),
    ]


def compile_(session: Session) -> list[Row]:
    session.prepared(str(session.checkpoint), session.quant)
    command = [*LLMSERVE, "compile", str(session.checkpoint), *options(quant=session.quant)]
    session.commands.append(servers.shown(command))
    job = Job(OURS, lambda: servers.cold_compile_seconds(command), ("self",))
    found = session.measured("compile", [[job]], 1)
    return [Row("compile with no library cached, s", found[OURS].get("compile_seconds"), math.nan, "less")]


def host(session: Session) -> list[Row]:
    """The host's part of a step, greedily and with a draw."""
    worker = session.worker("host", model=session.checkpoint, quant=session.quant)
    temperatures = {0.0: "greedy", 0.8: "sampled"}
    jobs = [
        [Job(f"host {batch} {t}", lambda b=batch, t=t: worker.ask(f"host {b} {t}"), (worker.pid,))]  # type: ignore[misc]
        for batch in (1, max(BATCHES))
        for t in temperatures
    ]
    found = session.measured("host", jobs)
    return [
        Row(f"host work, % of a decode step, batch {batch}, {word}", found[f"host {batch} {t}"].get("host_percent"))
        for batch in (1, max(BATCHES))
        for t, word in temperatures.items()
    ]


def demo(session: Session) -> list[Row]:
    """The package's own model: a token's time against that of the kernels it needs, at the same context on average."""
    prepare(None)
    worker = session.worker("llmserve")
    engine, kernels = f"decode 1 {DEMO_BEGIN} {DEMO_STEPS}", f"kernels 1 {DEMO_BEGIN + DEMO_STEPS // 2}"

    def step() -> Figures:
        rounds = [worker.ask(kernels) for _ in range(DEMO_ROUNDS)]
        return {name: median(its[name] for its in rounds) for name in rounds[0]}

    def token() -> Figures:
        return {engine: median(worker.ask(engine) for _ in range(DEMO_ROUNDS))}

    with ExitStack() as stack:
        server = servers.start(stack, "HTTP", servers.ours(None, session.threads, None))
        session.commands.append(server.command)
        http = server.job(clients=1, prompt=DEMO_BEGIN, answer=DEMO_STEPS)
        inside = [Job("engine", token, (worker.pid,)), Job("kernels", step, (worker.pid,))]
        found = session.measured("demo", [[job] for job in (*inside, http)])
    rate, kernel_ms = found["engine"].get(engine), found["kernels"].get("kernels_ms")
    each, served = 1e3 / rate if rate else None, found["HTTP"].get("output_tok_s")
    return [
        Row("package's model, ms per token, batch 1, engine", each),
        Row("  its kernels, ms", kernel_ms),
        Row("  its compiled step by itself, ms", found["kernels"].get("step_ms")),
        Row(
            "  token ÷ kernels",
            each / kernel_ms if each and kernel_ms else None,
            better="less",
            bar=Bar(DEMO_BAR, "less"),
        ),
        Row("  ms per token over HTTP, streaming, first one and request included", 1e3 / served if served else None),
    ]


def contended(session: Session) -> list[Row]:
    """Both beside a second load; the peer as set up in whichever way is faster with it."""
    labels = {"decode 1": f"decode batch 1, context {CONTEXT}", f"prefill {PREFILL[0]}": f"prefill {PREFILL[0]} tokens"}
    record = contention.measure(session.questions(labels), session.repetitions, session.patience)
    session.record["contention"] = record
    found = {name: medians(samples) for name, samples in record.items()}

    def kept(name: str, question: str) -> float | None:
        return contention.kept(found[name].get(question), found[contention.loaded(name)].get(question))

    rows = []
    for question, label in labels.items():
        theirs = [share for name in FLASH if name in found and (share := kept(name, question)) is not None]
        rows.append(
            Row(
                f"speed kept beside a load on every core: {label}",
                kept(OURS, question),
                max(theirs, default=None) if session.peer else math.nan,
                bar=Bar(contention.SHARE_WANTED, "more"),
            )
        )
    return rows


SECTIONS: dict[str, Callable[[Session], list[Row]]] = {
    "decode": decode,
    "context": context,
    "prefill": prefill,
    "q3": q3,
    "serve": serve,
    "compile": compile_,
    "host": host,
    "demo": demo,
    "contention": contended,
}
