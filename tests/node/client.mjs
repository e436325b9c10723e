// Our own client.js outside a page.
// Usage: node client.mjs BASE PATH BODY. Prints one JSON line for each item, then {"end": …}.
import { pathToFileURL } from "node:url";

const [base, path, body, file] = process.argv.slice(2);
const { durable } = await import(pathToFileURL(file));

const print = (line) => process.stdout.write(JSON.stringify(line) + "\n");

const run = durable(base + path, { json: JSON.parse(body), prefix: `${base}/_durable` });
const states = [];
run.onchange = () => {
  if (states.at(-1) !== run.state) states.push(run.state);
};
for await (const { type, data, id, to } of run) print({ type, data: data ?? `{"to":${to}}`, id });
print({ end: states, text: run.text });
