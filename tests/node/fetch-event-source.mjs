// @microsoft/fetch-event-source: it comes back by sending the same POST with last-event-id.
// Usage: node fetch-event-source.mjs URL BODY. Prints one JSON line for each event, then {"end": …}.

// It is made for pages: these are the parts of one that it touches.
globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
const { fetchEventSource } = (await import("@microsoft/fetch-event-source")).default;

const print = (line) => process.stdout.write(JSON.stringify(line) + "\n");

let opened = 0;
await fetchEventSource(process.argv[2], {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: process.argv[3],
  async onopen(response) {
    opened++;
    if (response.status !== 200) throw new Error(`answered ${response.status}`);
  },
  onmessage: ({ event, data, id }) => print({ type: event || "message", data, id }),
  onerror(error) {
    process.stderr.write(`reconnecting after ${error.message}\n`);
    return 200; // milliseconds
  },
});
print({ end: opened });
