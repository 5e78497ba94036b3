// What the Node library makes of a server's answers, as JSON on standard output. Run by test_openai_node.py.
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Hi" }];
const tools = [{ type: "function", function: { name: "clock", parameters: { type: "object", properties: {} } } }];
const results = {};

const whole = await client.chat.completions.create({ model, messages, max_tokens: 300, tools });
results.whole = whole.choices[0];
results.usage = whole.usage;

const stream = await client.chat.completions.create({
  model, messages, max_tokens: 300, stream: true, stream_options: { include_usage: true },
});
results.text = "";
for await (const chunk of stream) {
  results.text += chunk.choices[0]?.delta?.content ?? "";
  results.streamedUsage = chunk.usage ?? results.streamedUsage;
}

const helper = client.chat.completions.stream({ model, messages, max_tokens: 300, tools });
let deltas = 0;
helper.on("tool_calls.function.arguments.delta", () => { deltas += 1; });
results.final = (await helper.finalChatCompletion()).choices[0];
results.argumentDeltas = deltas;

const runner = client.chat.completions.runTools({
  model, messages, max_tokens: 300,
  tools: [{
    type: "function",
    function: {
      name: "clock", description: "the time", parameters: { type: "object", properties: {} },
      parse: JSON.parse, function: () => "twelve",
    },
  }],
});
results.afterTools = await runner.finalContent();

for (const [name, body] of Object.entries({ badRequest: { top_p: 7 }, notFound: { model: "other" } })) {
  try {
    await client.chat.completions.create({ model, messages, max_tokens: 1, ...body });
  } catch (error) {
    results[name] = { kind: error.constructor.name, status: error.status, param: error.param, message: error.message };
  }
}
results.models = (await client.models.list()).data.map((card) => card.id);
console.log(JSON.stringify(results));
