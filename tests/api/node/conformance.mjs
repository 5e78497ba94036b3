// What the vendors' clients for Node see of a server: run as `node conformance.mjs URL`, prints a line per check.
// The server's model is scripted, see test_node.py.

import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const url = process.argv[2];
const model = "tiny";
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });

const hi = [{ role: "user", content: "Hi" }];
const ask = [{ role: "user", content: "Weather" }];
const parameters = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
const chatTool = { type: "function", function: { name: "weather", parameters } };
const responseTool = { type: "function", name: "weather", parameters, strict: true };
const messageTool = { name: "weather", input_schema: parameters };

const checks = {
  async "chat, whole"() {
    const answer = await openai.chat.completions.create({ model, messages: hi });
    assert.equal(answer.choices[0].message.content, "Hello, wörld.");
    assert.equal(answer.choices[0].finish_reason, "stop");
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  },
  async "chat, streamed"() {
    const stream = await openai.chat.completions.create({
      model,
      messages: hi,
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = "";
    let last;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      last = chunk;
    }
    assert.equal(text, "Hello, wörld.");
    assert.deepEqual(last.choices, []);
    assert.ok(last.usage.completion_tokens > 0);
  },
  async "chat, a tool's round by the client's own runner"() {
    const asked = [];
    const run = openai.chat.completions.runTools({
      model,
      messages: ask,
      stream: true,
      tools: [
        {
          type: "function",
          function: {
            name: "weather",
            parameters,
            parse: JSON.parse,
            function: ({ city }) => (asked.push(city), "Rain"),
          },
        },
      ],
    });
    assert.equal(await run.finalContent(), "Rain it is.");
    assert.deepEqual(asked, ["Oslo"]);
  },
  async "chat, a call in pieces"() {
    const helper = openai.chat.completions.stream({ model, messages: ask, tools: [chatTool] });
    let pieces = 0;
    helper.on("tool_calls.function.arguments.delta", () => (pieces += 1));
    const [choice] = (await helper.finalChatCompletion()).choices;
    const [call] = choice.message.tool_calls;
    assert.ok(pieces > 3);
    assert.ok(call.id);
    assert.deepEqual([call.type, call.function.name], ["function", "weather"]);
    assert.deepEqual(JSON.parse(call.function.arguments), { city: "Oslo" });
    assert.equal(choice.finish_reason, "tool_calls");
  },
  async "chat, several choices"() {
    const stream = openai.chat.completions.stream({ model, messages: hi, n: 2 });
    const final = await stream.finalChatCompletion();
    assert.deepEqual(final.choices.map((choice) => choice.message.content), ["Hello, wörld.", "Hello, wörld."]);
  },
  async "responses, whole and streamed"() {
    const whole = await openai.responses.create({ model, input: "Hi" });
    assert.equal(whole.output_text, "Hello, wörld.");
    const stream = openai.responses.stream({ model, input: "Hi" });
    let text = "";
    stream.on("response.output_text.delta", (event) => (text += event.delta));
    const final = await stream.finalResponse();
    assert.equal(text, "Hello, wörld.");
    assert.equal(final.output_text, text);
    const kept = await openai.responses.retrieve(final.id);
    assert.equal(kept.output_text, text);
    await openai.responses.delete(final.id);
    await assert.rejects(openai.responses.retrieve(final.id), OpenAI.NotFoundError);
  },
  async "responses, a tool's round"() {
    const first = await openai.responses.create({ model, input: ask, tools: [{ type: "web_search" }, responseTool] });
    const call = first.output.find((item) => item.type === "function_call");
    assert.deepEqual(JSON.parse(call.arguments), { city: "Oslo" });
    const second = await openai.responses.create({
      model,
      previous_response_id: first.id,
      input: [{ type: "function_call_output", call_id: call.call_id, output: "Rain" }],
      tools: [responseTool],
    });
    assert.equal(second.output_text, "Rain it is.");
  },
  async "embeddings, which the client asks for in base64"() {
    const both = await openai.embeddings.create({ model, input: ["a", "b"] });
    const floats = await openai.embeddings.create({ model, input: ["a", "b"], encoding_format: "float" });
    both.data.forEach((item, index) => {
      const length = Math.hypot(...item.embedding);
      assert.ok(Math.abs(length - 1) < 1e-5);
      item.embedding.forEach((x, i) => assert.ok(Math.abs(x - floats.data[index].embedding[i]) < 1e-6));
    });
  },
  async "models"() {
    const names = [];
    for await (const card of openai.models.list()) names.push(card.id);
    assert.deepEqual(names, ["org/tiny", model]);
  },
  async "errors, with their messages"() {
    await assert.rejects(openai.chat.completions.create({ model: "other", messages: hi }), (error) => {
      assert.ok(error instanceof OpenAI.NotFoundError);
      assert.match(error.message, /not served here/);
      return true;
    });
    await assert.rejects(openai.chat.completions.create({ model, messages: hi, top_p: 7 }), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      assert.equal(error.param, "top_p");
      assert.match(error.message, /top_p/);
      return true;
    });
    await assert.rejects(anthropic.messages.create({ model, max_tokens: 1, messages: [] }), (error) => {
      assert.ok(error instanceof Anthropic.BadRequestError);
      assert.equal(error.error.error.type, "invalid_request_error");
      return true;
    });
  },
  async "messages, whole and streamed"() {
    const whole = await anthropic.messages.create({ model: "claude-x", max_tokens: 50, messages: hi });
    assert.equal(whole.content[0].text, "Hello, wörld.");
    assert.equal(whole.stop_reason, "end_turn");
    const stream = anthropic.messages.stream({ model, max_tokens: 50, messages: hi });
    let text = "";
    stream.on("text", (piece) => (text += piece));
    const final = await stream.finalMessage();
    assert.equal(text, "Hello, wörld.");
    assert.equal(final.usage.output_tokens, whole.usage.output_tokens);
    const counted = await anthropic.messages.countTokens({ model, messages: hi });
    assert.equal(counted.input_tokens, whole.usage.input_tokens + whole.usage.cache_read_input_tokens);
  },
  async "messages, a tool's round, streamed"() {
    const asked = { model, max_tokens: 200, tools: [messageTool] };
    const first = await anthropic.messages.stream({ ...asked, messages: ask }).finalMessage();
    assert.equal(first.stop_reason, "tool_use");
    const call = first.content.find((block) => block.type === "tool_use");
    assert.deepEqual(call.input, { city: "Oslo" });
    const result = { type: "tool_result", tool_use_id: call.id, content: "Rain" };
    const turns = [...ask, { role: "assistant", content: first.content }, { role: "user", content: [result] }];
    const second = await anthropic.messages.create({ ...asked, messages: turns });
    assert.equal(second.content[0].text, "Rain it is.");
  },
  async "a stream that is broken off"() {
    const stream = await openai.chat.completions.create({ model, messages: hi, stream: true });
    for await (const chunk of stream) {
      assert.ok(chunk.id);
      break;
    }
    assert.ok(stream.controller.signal.aborted);
  },
};

let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(`ok: ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED: ${name}: ${error.stack}`);
  }
}
process.exit(failed ? 1 : 0);
