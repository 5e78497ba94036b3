// The chat page. What comes from the model or the server becomes text nodes, and never markup.

const $ = (id) => document.getElementById(id);
const IDEAS = ["Name three rivers.", "Explain recursion to a child.", "Write a haiku about the sea."];
const LOST = "The connection was lost before the answer was complete.";

let messages = []; // the conversation, as the API takes it
let running = null; // { abort } while an answer is on its way
let model = null;

// --- small things

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function store(kind, name, value) {
  try { // a browser may forbid it
    if (value === undefined) return kind.getItem(name);
    if (value) kind.setItem(name, value); else kind.removeItem(name);
  } catch { /* then it is not remembered */ }
  return null;
}

function headers() {
  const key = store(sessionStorage, "key");
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

class Refusal extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

async function refusal(response) {
  let message = "";
  try { message = (await response.json()).error.message; } catch { /* not from us, perhaps a proxy */ }
  return new Refusal(message || `The server answered with status ${response.status}.`, response.status);
}

// --- Markdown, the little of it that answers are full of: text in, elements with text nodes out

function inline(parent, text) {
  // Each looks no further than the next mark, so that no answer can keep the browser busy.
  const marks = /`([^`\n]+)`|\*\*([^*\s][^*]*)\*\*|(?<!\*)\*([^*\s][^*\n]*)\*(?!\*)/g;
  let at = 0;
  for (const found of text.matchAll(marks)) {
    const [whole, code, bold, slanted] = found;
    parent.append(text.slice(at, found.index));
    if (code !== undefined) parent.append(element("code", "", code));
    else if (bold !== undefined) inline(parent.appendChild(element("strong")), bold);
    else inline(parent.appendChild(element("em")), slanted);
    at = found.index + whole.length;
  }
  parent.append(text.slice(at));
}

export function markdown(text) {
  const blocks = [];
  let paragraph = [], list = null, fence = null;
  const endParagraph = () => {
    if (paragraph.length) inline(blocks[blocks.push(element("p")) - 1], paragraph.join("\n"));
    paragraph = [];
  };
  for (const line of text.split("\n")) {
    if (fence) {
      if (line.trim().startsWith(fence.mark) && !line.trim().slice(fence.mark.length).trim()) fence = null;
      else fence.code.append((fence.empty ? "" : "\n") + line), fence.empty = false;
      continue;
    }
    const opened = line.match(/^\s*(`{3,}|~{3,})\s*[\w+#.-]*\s*$/);
    const heading = line.match(/^#{1,6}\s+(.+)$/);
    const item = line.match(/^\s*(?:([-*+])|(\d{1,9})[.)])\s+(.+)$/);
    if (opened || heading || item || !line.trim()) endParagraph();
    if (!item && line.trim()) list = null;
    if (opened) {
      const pre = element("pre");
      fence = { mark: opened[1], code: pre.appendChild(element("code")), empty: true };
      blocks.push(pre);
    } else if (heading) {
      inline(blocks[blocks.push(element("h3")) - 1], heading[1]);
    } else if (item) {
      const tag = item[1] ? "UL" : "OL";
      if (!list || list.tagName !== tag) {
        list = element(tag);
        if (item[2]) list.start = Number(item[2]);
        blocks.push(list);
      }
      inline(list.appendChild(element("li")), item[3]);
    } else if (line.trim()) {
      paragraph.push(line);
    }
  }
  endParagraph();
  return blocks;
}

// --- the conversation on the screen

const scroll = $("scroll");
const atBottom = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
const toBottom = () => { scroll.scrollTop = scroll.scrollHeight; };

function showUser(text) {
  $("empty").hidden = true;
  $("chat").append(element("li", "user", text));
  toBottom();
}

class Answer {
  constructor() {
    this.text = "";
    this.thought = "";
    this.pieces = 0;
    this.usage = null;
    this.began = performance.now();
    this.first = null;
    this.last = null;
    this.item = $("chat").appendChild(element("li", "assistant busy"));
    this.body = this.item.appendChild(element("div", "answer"));
    this.under = element("div", "under");
    this.figures = this.under.appendChild(element("span", "figures"));
    this.item.append(this.under);
    toBottom();
  }

  take(delta) {
    const thought = delta.reasoning_content ?? delta.reasoning ?? "";
    if (!thought && !delta.content) return;
    this.last = performance.now();
    this.first ??= this.last;
    this.pieces += 1;
    this.thought += thought;
    this.text += delta.content ?? "";
    if (!this.due) this.due = requestAnimationFrame(() => this.show()); // one drawing for many pieces
  }

  show() {
    this.due = 0;
    const follow = atBottom();
    if (this.thought) {
      this.thinking ??= this.item.insertBefore(element("details"), this.body);
      this.thinking.replaceChildren(element("summary", "", "Thoughts"), element("p", "", this.thought.trim()));
    }
    this.body.replaceChildren(...markdown(this.text));
    this.showFigures(true);
    if (follow) toBottom();
  }

  showFigures(live) {
    const parts = [];
    const out = this.usage?.completion_tokens ?? this.pieces;
    const about = this.usage ? "" : "≈ ";
    if (this.usage) parts.push(`${this.usage.prompt_tokens} tokens in`);
    if (out) parts.push(`${about}${out} tokens out`);
    const seconds = (this.last - this.first) / 1000;
    if (out > 1 && seconds > 0) parts.push(`${about}${((out - 1) / seconds).toFixed(1)} tokens/s`);
    if (this.first) parts.push(`first after ${((this.first - this.began) / 1000).toFixed(2)} s`);
    if (!live && this.reason) parts.push(this.reason);
    this.figures.replaceChildren(...parts.map((part) => element("span", "", part)));
  }

  end(reason) {
    cancelAnimationFrame(this.due);
    this.reason = { stopped: "stopped", length: "cut off at the longest allowed" }[reason];
    const follow = atBottom();
    this.show();
    this.item.classList.remove("busy");
    this.showFigures(false);
    for (const old of document.querySelectorAll(".again")) old.remove();
    if (this.text) this.button("Copy", "", async (button) => {
      try { await navigator.clipboard.writeText(this.text); button.textContent = "Copied"; }
      catch { button.textContent = "The browser does not allow it"; }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    this.button("Again", "again", () => again(this.item));
    if (follow) toBottom();
  }

  button(label, className, action) {
    const button = element("button", `quiet ${className}`, label);
    button.type = "button";
    button.addEventListener("click", () => action(button));
    this.under.append(button);
  }

  fail(message) {
    const error = element("p", "error", message);
    error.setAttribute("role", "alert");
    this.item.insertBefore(error, this.under);
  }
}

// --- asking

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Refusal(LOST);
    waiting += value;
    const lines = waiting.split("\n");
    waiting = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") return;
      yield JSON.parse(line.slice(6));
    }
  }
}

function question() {
  const system = $("system").value.trim();
  const body = {
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
    stream: true,
    stream_options: { include_usage: true },
  };
  if (model) body.model = model;
  if ($("temperature-set").checked) body.temperature = Number($("temperature").value);
  if (Number($("max-tokens").value) >= 1) body.max_tokens = Math.floor(Number($("max-tokens").value));
  return body;
}

async function ask() {
  const answer = new Answer();
  const control = new AbortController();
  running = control;
  refresh();
  let reason = null;
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(question()), signal: control.signal,
    });
    if (!response.ok) throw await refusal(response);
    for await (const event of events(response)) {
      if (event.error) throw new Refusal(event.error.message);
      if (event.usage) answer.usage = event.usage;
      for (const choice of event.choices) {
        answer.take(choice.delta);
        reason = choice.finish_reason ?? reason;
      }
    }
  } catch (error) {
    if (control.signal.aborted) reason = "stopped";
    else if (error instanceof Refusal) answer.fail(error.message);
    else if (answer.pieces) answer.fail(LOST);
    else answer.fail("The server cannot be reached. Is it still running?");
    if (error.status === 401) askForKey();
  }
  if (running !== control) return; // a new chat has begun meanwhile
  running = null;
  if (answer.text) messages.push({ role: "assistant", content: answer.text });
  answer.end(reason);
  refresh();
}

function send(text) {
  if (running || !text.trim()) return;
  if (messages.at(-1)?.role === "user") messages.pop(); // it was not answered, and templates want turns
  messages.push({ role: "user", content: text.trim() });
  showUser(text.trim());
  $("text").value = "";
  grow();
  ask();
}

function again(item) {
  if (running) return;
  item.remove();
  if (messages.at(-1)?.role === "assistant") messages.pop();
  ask();
}

function stop() { running?.abort(); }

function newChat() {
  const control = running;
  running = null;
  control?.abort();
  messages = [];
  $("chat").replaceChildren();
  $("empty").hidden = false;
  refresh();
  $("text").focus();
}

// --- the rest of the page

function refresh() {
  $("stop").hidden = !running;
  $("send").hidden = Boolean(running);
  $("send").disabled = !$("text").value.trim();
  $("new").disabled = !messages.length && !running;
}

function grow() {
  const text = $("text");
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight}px`;
  refresh();
}

function askForKey() {
  const before = store(sessionStorage, "key");
  $("about").textContent = before ? "the key was not accepted" : "an API key is needed";
  $("key-form").hidden = false;
  $("key").focus();
}

async function meet() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (response.status === 401) return askForKey();
    if (!response.ok) throw await refusal(response);
    const card = (await response.json()).data[0];
    model = card.id;
    $("model").textContent = model;
    $("about").textContent = `${card.context_length.toLocaleString("en")} tokens of context`;
    document.title = `${model} · llmserve`;
    $("key-form").hidden = true;
  } catch (error) {
    $("about").textContent = error instanceof Refusal ? error.message : "The server cannot be reached.";
  }
}

function theme(choice) {
  if (choice) document.documentElement.dataset.theme = choice; else delete document.documentElement.dataset.theme;
}

for (const idea of IDEAS) {
  const button = $("ideas").appendChild(element("button", "", idea));
  button.type = "button";
  button.addEventListener("click", () => send(idea));
}
$("ask").addEventListener("submit", (event) => { event.preventDefault(); send($("text").value); });
$("text").addEventListener("input", grow);
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send($("text").value);
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && !$("settings").open) stop(); });
$("stop").addEventListener("click", stop);
$("new").addEventListener("click", newChat);
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  store(sessionStorage, "key", $("key").value.trim());
  $("key").value = "";
  meet().then(() => { if ($("key-form").hidden) $("text").focus(); });
});

$("open-settings").addEventListener("click", () => $("settings").showModal());
$("settings").addEventListener("click", (event) => { if (event.target === $("settings")) $("settings").close(); });
function temperature() {
  $("temperature").disabled = !$("temperature-set").checked;
  $("temperature-is").textContent = $("temperature-set").checked ? $("temperature").value : "the model’s own";
}
$("temperature").addEventListener("input", temperature);
$("temperature-set").addEventListener("change", temperature);
$("theme").value = store(localStorage, "theme") ?? "";
$("theme").addEventListener("change", () => { store(localStorage, "theme", $("theme").value); theme($("theme").value); });
theme($("theme").value);

temperature();
refresh();
meet();
