"""Many clients, and clients that leave: nothing is lost, every page comes back, and the metrics add up."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from .server import MODEL, Executor, Running, serve

LONG: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 200,
    "ignore_eos": True,
}


def metrics(server: Running) -> dict[str, float]:
    """Every sample by its name, summed over labels other than a finish reason."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(server.get("/metrics").text):
        for sample in family.samples:
            name = sample.name + sample.labels.get("finished_reason", "")
            found[name] = found.get(name, 0) + sample.value
    return found


def test_clients_that_leave_free_their_pages() -> None:
    with serve(executor=Executor(step_seconds=0.02)) as server:
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json={**LONG, "stream": True}) as response:
            next(response.iter_lines())
            assert server.engine.stats().num_running == 1
        server.wait_until_idle(2)
        try:
            httpx.post(f"{server.url}/v1/chat/completions", json={**LONG, "n": 3}, timeout=0.3)
        except httpx.ReadTimeout:
            assert server.engine.stats().num_running == 3
        server.wait_until_idle(2)
        assert metrics(server)["llmserve:request_success_totalabort"] == 4


def test_clients_that_leave_while_queued_are_forgotten() -> None:
    limits = {"max_num_seqs": 1}
    with serve(executor=Executor(step_seconds=0.02), limits=limits) as server:

        async def main() -> None:
            async with httpx.AsyncClient(base_url=server.url) as client:
                posts = [
                    asyncio.create_task(client.post("/v1/chat/completions", json={**LONG, "stream": bool(i % 2)}))
                    for i in range(6)
                ]
                await asyncio.sleep(0.5)
                assert server.engine.stats().num_waiting == 5
                for post in posts:
                    post.cancel()
                await asyncio.gather(*posts, return_exceptions=True)

        asyncio.run(main())
        server.wait_until_idle(2)


def test_sixty_four_clients_of_which_some_leave() -> None:
    draw = random.Random(7)
    with serve(executor=Executor(num_pages=192, step_seconds=0.001), limits={"max_num_seqs": 24}) as server:

        async def client(number: int, http: httpx.AsyncClient) -> tuple[str, int]:
            """How it ended, and how many events came."""
            leaves_after = draw.choice([None, None, 0, 1, 5, 20])
            body = {**LONG, "messages": [{"role": "user", "content": f"{number % 5} hello"}], "stream": True}
            body |= {"max_tokens": draw.randrange(1, 60), "n": draw.choice([1, 1, 2]), "seed": number}
            await asyncio.sleep(draw.random() * 0.5)
            seen, finished = 0, 0
            async with http.stream("POST", "/v1/chat/completions", json=body) as response:
                assert response.status_code == 200
                async for line in response.aiter_lines():
                    if leaves_after is not None and seen >= leaves_after:
                        return "left", seen
                    seen += bool(line)
                    finished += '"finish_reason":"' in line
                    assert '"error"' not in line
            assert finished == body["n"], "a choice was lost"
            return "finished", finished

        async def main() -> list[tuple[str, int]]:
            limits = httpx.Limits(max_connections=64)
            async with httpx.AsyncClient(base_url=server.url, timeout=30, limits=limits) as http:
                return await asyncio.gather(*(client(i, http) for i in range(64)))

        ended = asyncio.run(main())
        server.wait_until_idle()
        assert sum(how == "finished" for how, _ in ended) > 10
        assert sum(how == "left" for how, _ in ended) > 10
        found, stats = metrics(server), server.engine.stats()
        assert found["llmserve:num_requests_running"] == found["llmserve:num_requests_waiting"] == 0
        assert found["llmserve:kv_cache_usage_perc"] == 0
        assert found["llmserve:generation_tokens_total"] == stats.num_generated_tokens
        assert found["llmserve:prompt_tokens_total"] == stats.num_prompt_tokens
        assert found["llmserve:prefix_cache_hits_total"] == stats.prefix_hits > 0
        ends = {name: count for name, count in found.items() if name.startswith("llmserve:request_success_total")}
        assert ends["llmserve:request_success_totallength"] >= sum(n for how, n in ended if how == "finished")
        assert ends["llmserve:request_success_totalerror"] == 0
        assert found["llmserve:time_to_first_token_seconds_count"] >= sum(how == "finished" for how, _ in ended)
        assert found["llmserve:e2e_request_latency_seconds_count"] >= sum(how == "finished" for how, _ in ended)
        assert found["llmserve:inter_token_latency_seconds_count"] > 0


def test_long_prompts_do_not_hold_up_the_others() -> None:
    # A loop over every character of a message: seconds of work for the template.
    slow = "{% for m in messages %}{% for c in m.content %}{% if c == '#' %}{% endif %}{% endfor %}x{% endfor %}"
    with serve(template=slow, max_body_bytes="4MB") as server:

        async def main() -> None:
            async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
                body = {**LONG, "messages": [{"role": "user", "content": "y" * 60_000}], "max_tokens": 1}
                heavy = [asyncio.create_task(client.post("/v1/chat/completions", json=body)) for _ in range(3)]
                await asyncio.sleep(0.1)
                delays = []
                while not all(task.done() for task in heavy):
                    start = time.perf_counter()
                    assert (await client.get("/health")).status_code == 200
                    delays.append(time.perf_counter() - start)
                    await asyncio.sleep(0.02)
                assert [task.result().status_code for task in heavy] == [200] * 3
                assert len(delays) > 3 and sorted(delays)[len(delays) // 2] < 0.5

        asyncio.run(main())


def test_a_stopping_server_ends_its_streams() -> None:
    with serve(executor=Executor(step_seconds=0.02)) as server:
        response = httpx.Client().send(
            httpx.Request("POST", f"{server.url}/v1/chat/completions", json={**LONG, "stream": True}), stream=True
        )
        lines = response.iter_lines()
        assert "assistant" in next(lines)
    # Leaving the block has stopped the server while the stream was open; its thread ended (asserted there).
    assert not server.engine.is_alive
