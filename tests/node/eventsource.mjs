// The npm package `eventsource`: it comes back with Last-Event-ID until it is answered 204.
// Usage: node eventsource.mjs URL. Prints one JSON line for each event, then {"end": …}.
import { EventSource } from "eventsource";

const print = (line) => process.stdout.write(JSON.stringify(line) + "\n");

const source = new EventSource(process.argv[2]);
source.onmessage = ({ type, data, lastEventId }) => print({ type, data, id: lastEventId });
source.onerror = (error) => {
  if (source.readyState === EventSource.CLOSED) print({ end: error.code });
  else process.stderr.write(`reconnecting after ${error.code ?? error.message}\n`);
};
