"""The chat page: what is served, and how it behaves in a real browser."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator

import pytest

from ..text import templates
from .browser import Browser, chromium
from .server import MODEL, Executor, Running, serve

LONG = "The river flows on and on. " * 12
ANSWERS = {
    "rivers": "Three **rivers**:\n\n1. Amazon\n2. Nile\n\n```python\nprint('<b>*x*</b>')\n```\n"
    "Use `print` with *care*.",
    "markup": "<img src=x onerror=\"document.title='hit'\"><script>document.title='hit'</script>"
    "[a](javascript:alert(1)) **<i>bold</i>**",
    "long": LONG,
    "context": "",
}


def script(prompt: str) -> str:
    if "Be brief" in prompt:
        return "briefly"
    last = prompt.rpartition("<|im_start|>user\n")[2]
    return next(
        (answer for word, answer in ANSWERS.items() if word in last), f"You said {prompt.count('user')} things."
    )


def executor(**more: float) -> Executor:
    return Executor(max_model_len=2048, num_pages=2048, script=script, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def slow() -> Iterator[Running]:
    with serve(executor=executor(step_seconds=0.01), template=templates.CHATML) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


# --- what is served


@pytest.mark.parametrize(("path", "kind"), [("/", "html"), ("/page.css", "css"), ("/page.js", "javascript")])
def test_files(server: Running, path: str, kind: str) -> None:
    response = server.get(path)
    assert response.status_code == 200 and kind in response.headers["content-type"]
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    again = server.get(path, headers={"if-none-match": response.headers["etag"]})
    assert again.status_code == 304 and not again.content
    assert not re.search(r"(src|href|url|@import)\W{1,3}https?:", response.text)


def test_the_page_can_be_left_out() -> None:
    with serve(page=False) as server:
        assert server.get("/").status_code == server.get("/page.js").status_code == 404


# --- in a browser


def test_a_question_and_its_answer_as_it_comes(slow: Running, browser: Browser) -> None:
    browser.open(slow.url)
    browser.wait(lambda: browser.text("#model") == MODEL)
    assert "2,048 tokens" in browser.text("#about")
    assert not browser.find("#send").is_enabled()
    browser.say("long, please")
    seen = set()
    while not seen or len(max(seen, key=len)) < 150:
        browser.wait(lambda: len(browser.text(".answer")) > len(max(seen, default="", key=len)))
        seen.add(browser.text(".answer"))
    assert len(seen) > 3 and all(LONG.startswith(text.strip()) for text in seen)  # it came piece by piece
    assert browser.find("#stop").is_displayed() and not browser.find("#send").is_displayed()
    browser.wait_for_end()
    assert browser.text(".answer").strip() == LONG.strip()
    assert browser.text("li.user") == "long, please"
    assert not browser.find("#stop").is_displayed() and not browser.find("#empty").is_displayed()
    figures = browser.text(".figures")
    tokens = len(slow.tokenizer.encode(LONG, False)) + 1
    assert f"{tokens} tokens out" in figures and re.search(r"\d+ tokens in", figures)
    assert re.search(r"[\d.]+ tokens/s", figures) and re.search(r"first after [\d.]+ s", figures)
    browser.say("and now?")
    browser.wait_for_end()
    assert browser.text(".answer") == "You said 2 things."  # the whole conversation is sent


def test_stop_frees_the_sequence(slow: Running, browser: Browser) -> None:
    browser.open(slow.url)
    browser.say("long, please")
    browser.wait(lambda: len(browser.text(".answer")) > 100)
    assert slow.engine.stats().num_running == 1
    browser.find("#stop").click()
    browser.wait_for_end()
    slow.wait_until_idle(1)
    assert "stopped" in browser.text(".figures") and len(browser.text(".answer")) < len(LONG) - 100
    browser.find(".again").click()  # another answer to the same question
    browser.wait(lambda: len(browser.text(".answer")) > 50)
    browser.find("#new").click()  # ends it too
    slow.wait_until_idle(1)
    assert browser.find("#empty").is_displayed() and not browser.all("#chat li")
    browser.say("and now?")
    browser.wait_for_end()
    assert browser.text(".answer") == "You said 1 things."


def test_answers_are_text_and_never_markup(slow: Running, browser: Browser) -> None:
    browser.open(slow.url)
    browser.say("rivers")
    browser.wait_for_end()
    shape = browser.script("return [...document.querySelector('.answer').children].map(e => e.tagName).join()")
    assert shape == "P,OL,PRE,P"
    assert browser.text(".answer pre") == "print('<b>*x*</b>')" and browser.text(".answer strong") == "rivers"
    assert browser.text(".answer p code") == "print" and browser.text(".answer em") == "care"
    browser.say("markup <u>mine</u>")
    browser.wait_for_end()
    assert not browser.all("#chat img, #chat script, #chat a, #chat i, #chat u")
    assert browser.script("return document.title") == f"{MODEL} · llmserve"
    assert ANSWERS["markup"].replace("**", "") == browser.text(".answer")
    assert browser.text("li.user") == "markup <u>mine</u>"


@pytest.mark.parametrize("text", ["`", "*", "*a", "`a", "**a", "**a *b ", "- ", "- a\n", "# ", "> ", "~~~\n"])
def test_no_answer_keeps_the_browser_busy(server: Running, browser: Browser, text: str) -> None:
    """The page's own reader of Markdown on a hundred thousand characters that all mean something to it."""
    browser.open(server.url)
    source = json.dumps(text * (100_000 // len(text)))
    seconds = browser.script(
        "const { markdown } = await import('/page.js'); const began = performance.now();"
        f"markdown({source}); return (performance.now() - began) / 1000"
    )
    assert seconds < 5


def test_settings_reach_the_model(slow: Running, browser: Browser) -> None:
    browser.open(slow.url)
    browser.find("#open-settings").click()
    browser.find("#system").send_keys("Be brief")
    browser.find("#temperature-set").click()
    browser.find("#max-tokens").send_keys("3")
    browser.script(
        "const t = document.getElementById('temperature'); t.value = 0.3; t.dispatchEvent(new Event('input'))"
    )
    assert browser.text("#temperature-is") == "0.3"
    browser.find("#settings .primary").click()
    browser.asked_for()
    browser.say("hello")
    browser.wait_for_end()
    assert browser.text(".answer") == "bri" and "cut off" in browser.text(".figures")
    bodies = browser.sent()
    assert bodies[-1]["temperature"] == 0.3 and bodies[-1]["max_tokens"] == 3
    assert bodies[-1]["messages"][0] == {"role": "system", "content": "Be brief"}


def test_errors_are_sentences(slow: Running, browser: Browser) -> None:
    browser.open(slow.url)
    browser.script("document.getElementById('text').value = 'x'.repeat(5000)")
    browser.say("!")
    browser.wait(lambda: browser.text(".error"))
    assert "maximum context length is 2048 tokens" in browser.text(".error")
    browser.say("better")
    browser.wait_for_end()
    assert browser.text(".answer") == "You said 1 things."  # what was refused is not sent again


def test_a_server_that_goes_away_is_said(browser: Browser) -> None:
    with serve(executor=executor(step_seconds=0.05)) as server:
        browser.open(server.url)
        browser.say("long, please")
        browser.wait(lambda: browser.text(".answer"))
    browser.wait_for_end()
    assert re.search("lost before the answer|shutting down", browser.text(".error")) and browser.text(".answer")
    browser.say("are you there?")
    browser.wait(lambda: "cannot be reached" in browser.text(".error"))
    browser.complaints()  # the browser says so too


def test_a_key_is_asked_for(browser: Browser) -> None:
    with serve(executor=executor(), api_keys=["sesame"]) as server:
        browser.open(server.url)
        browser.wait(lambda: browser.find("#key-form").is_displayed())
        for key in ("wrong", "sesame"):
            assert "key" in browser.text("#about")
            browser.find("#key").send_keys(key + "\n")
            browser.wait(lambda key=key: key == "wrong" or not browser.find("#key-form").is_displayed())
            browser.wait(lambda key=key: key == "sesame" or "not accepted" in browser.text("#about"))
        browser.say("hello")
        browser.wait_for_end()
        assert browser.text(".answer") == "You said 1 things."
        assert "sesame" not in browser.script("return document.body.innerHTML")
        browser.complaints()  # of the two 401s


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_widths_and_colours(slow: Running, browser: Browser, width: int) -> None:
    browser.resize(width, 700)
    browser.open(slow.url)
    browser.say("rivers and a_very_long_word_" + "x" * 200)
    browser.wait_for_end()
    wide: Callable[[], object] = lambda: browser.script("return document.documentElement.scrollWidth")  # noqa: E731
    assert wide() == width
    box = browser.find("#send").rect
    assert box["x"] + box["width"] <= width and box["y"] + box["height"] <= 700 and box["width"] >= 36
    browser.find("#open-settings").click()
    assert wide() == width and browser.find("#settings .primary").rect["x"] < width
    colours = {}
    for scheme in ("light", "dark"):
        browser.prefer(scheme)
        colours[scheme] = browser.script("return getComputedStyle(document.body).backgroundColor")
    assert colours["light"] != colours["dark"]
    browser.script(
        "const t = document.getElementById('theme'); t.value = 'light'; t.dispatchEvent(new Event('change'))"
    )
    assert browser.script("return getComputedStyle(document.body).backgroundColor") == colours["light"]
    browser.script("localStorage.clear()")


def test_nothing_leaves_for_elsewhere(slow: Running, browser: Browser) -> None:
    browser.complaints()
    browser.asked_for()
    browser.open(slow.url)
    browser.say("rivers")
    browser.wait_for_end()
    browser.find("#open-settings").click()
    asked = browser.asked_for()
    paths = {url.removeprefix(slow.url) for url in asked if not url.startswith("data:")}
    assert paths == {"/", "/page.css", "/page.js", "/v1/models", "/v1/chat/completions"}
    assert browser.complaints() == []
    # And the policy holds if something tries.
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(1)
        browser.script(f"const i = new Image(); i.src = 'http://127.0.0.1:{elsewhere.getsockname()[1]}/leak.png'")
        browser.wait(lambda: any("Content Security Policy" in line for line in browser.complaints()))
        with pytest.raises(TimeoutError):
            elsewhere.accept()
