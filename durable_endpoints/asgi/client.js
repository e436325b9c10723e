/**
 * Follows durable runs in a page until they are done: over lost connections, restarted servers,
 * sleeping laptops and reloads.
 *
 *     import { durable, reattach } from "/_durable/client.js";
 *
 *     const run = reattach("chat") ?? durable("/chat", { json: { prompt }, key: "chat" });
 *     run.onchange = () => {
 *       out.textContent = run.text;
 *       badge.textContent = run.state;
 *     };
 *     stop.onclick = () => run.cancel(); // leaving the page cancels nothing
 *     yes.onclick = () => run.signal("confirm", { ok: true }); // while `run.waiting` says so
 *
 * or, item by item: `for await (const item of run) …`. Every event comes once and in order; what
 * a rewind took back is gone from `run.events` and `run.text`.
 */

const PREFIX = import.meta.url.replace(/\/client\.js.*$/s, "");
const HEARTBEAT_MS = 15_000;
/** Two and a half heartbeats: one may be lost or late, two are not. */
const IDLE_MS = 2.5 * HEARTBEAT_MS;
const BACKOFF_MS = 250;
const BACKOFF_MS_MAX = 10_000;
/** Characters of one event: four times the server's own bound. */
const BLOCK_MAX = 1 << 20;
const NOBODY_HOME = [502, 503, 504];
const STORED = "durable-endpoints:";

/**
 * @typedef {"connecting" | "streaming" | "reconnecting" | "done" | "failed"} State
 * "done": the run was completed or cancelled, see `status`. "failed": see `error`.
 *
 * @typedef {{type: string, data: string, id: string, offset: number}} DurableEvent
 * @typedef {{type: "durable.rewind", to: number, id: string, offset: number}} Rewind
 * All events with an offset above `to` are taken back.
 *
 * @typedef {{kind: string, name: string, until: string | null}} Wait
 * `kind`: signal, approval, decision, timer, child, … `until`: ISO 8601, null if it has no end.
 *
 * @typedef {object} Options
 * @property {string} [method] "POST" if there is a body, else "GET".
 * @property {unknown} [json] The body, to be sent as JSON.
 * @property {string} [body] The body as it is. Set a Content-Type among the headers.
 * @property {Record<string, string>} [headers] For every request of the run. Never stored.
 * @property {RequestCredentials} [credentials] As for `fetch`.
 * @property {string} [key] Remember the run in `sessionStorage`, for `reattach(key)`.
 * @property {string} [idempotencyKey] A second run with the same key is the same run.
 * @property {string} [prefix] Address of the durable routes, if this file comes from elsewhere.
 */

/** Why a run can't be followed: `status` is HTTP's (0: found here), `type` the problem's. */
export class DurableError extends Error {
  /** @param {string} message @param {number} [status] @param {string} [type] */
  constructor(message, status = 0, type = "") {
    super(message);
    this.name = "DurableError";
    this.status = status;
    this.type = type;
  }
}

/** A failed try, to be followed by another, not before `afterMs`. */
class TryAgain extends Error {
  /** @param {string} message @param {number} [afterMs] */
  constructor(message, afterMs = 0) {
    super(message);
    this.afterMs = afterMs;
  }
}

/** What the network does may fail, and is tried again. @template T @param {Promise<T>} doing */
const network = (doing) =>
  doing.catch((error) => {
    throw new TryAgain(String(error));
  });

/**
 * Start a run.
 * @param {string} url @param {Options} [options] @returns {DurableRun}
 */
export function durable(url, options = {}) {
  const json = options.json !== undefined;
  const body = json ? JSON.stringify(options.json) : options.body;
  const method = options.method ?? (body === undefined ? "GET" : "POST");
  const idempotencyKey = options.idempotencyKey ?? newKey();
  return new DurableRun(options, { url, method, body, json, idempotencyKey });
}

/**
 * Follow a run by its id, from its start or after an offset.
 * @param {string} runId @param {Options & {after?: number}} [options] @returns {DurableRun}
 */
export function attach(runId, options = {}) {
  return new DurableRun(options, { runId, after: options.after ?? 0 });
}

/**
 * Follow the run that this tab remembers under a key, from its start; null if it remembers none.
 * A request whose answer the page never saw is sent again, and finds the same run.
 * @param {string} key @param {Options} [options] @returns {DurableRun | null}
 */
export function reattach(key, options = {}) {
  const stored = storage((items) => items.getItem(STORED + key)) ?? null;
  return stored === null ? null : new DurableRun({ ...options, key }, JSON.parse(stored));
}

/** Forget what is remembered under a key. @param {string} key */
export function forget(key) {
  storage((items) => items.removeItem(STORED + key));
}

/** One run, as far as it has come. Made by `durable`, `attach` and `reattach`. */
export class DurableRun {
  /** @type {State} */ state = "connecting";
  /** @type {string | null} */ runId;
  /** The run's status once it is known: completed, failed, cancelled … @type {string | null} */
  status = null;
  /** @type {DurableError | null} */ error = null;
  /** What rewinds left of the events. @type {DurableEvent[]} */ events = [];
  /** What the run waits for while it is suspended; null while it works. @type {Wait[] | null} */
  waiting = null;
  /** Called after every item and every change of state. @type {(() => void) | null} */
  onchange = null;
  /** Settles with the run: resolves when it is done, rejects with `error` when it failed. */
  finished;

  #text = "";
  #decoder = new TextDecoder();
  #options;
  #opening;
  #prefix;
  #offset;
  /** @type {string | null} */ #cursor = null;
  #retryMs = 0;
  #tries = 0;
  #sent = 0;
  #heardAt = 0;
  /** @type {AbortController | null} */ #connection = null;
  /** Ends the waits that are under way. @type {Set<() => void>} */ #skips = new Set();
  /** @type {(DurableEvent | Rewind)[]} */ #items = [];
  /** @type {(() => void)[]} */ #waiting = [];
  #detached = false;

  /** @param {Options} options @param {any} opening */
  constructor(options, opening) {
    this.#options = options;
    this.#opening = opening;
    this.runId = opening.runId ?? null;
    this.#prefix = (options.prefix ?? PREFIX).replace(/\/$/, "");
    this.#offset = opening.after ?? 0;
    this.#remember();
    this.finished = this.#follow();
    this.finished.catch(() => {}); // told by `state` and `error` too: no unhandled rejection
  }

  /** The data of the surviving events of the default type, joined. */
  get text() {
    return this.#text;
  }

  /**
   * Ask the run to stop; it does, once this resolves, whatever happens. Resolves with its status:
   * "running" while it winds up, "cancelled" after that, another if it had ended before.
   */
  async cancel() {
    return this.#insist(async () => {
      const answer = await this.#fetch(this.#route("/cancel"), { method: "POST", keepalive: true });
      const ended = answer.status === 409 ? await this.#fetch(this.#route("")) : answer;
      return (await object(ended)).status;
    });
  }

  /**
   * Send the run a signal; it has it, once, when this resolves, whatever happens. Resolves with
   * "taken" by a wait, "kept" for one, or "known" if an answer was lost on the way. Rejects with a
   * `DurableError` if the run does not take it: its `type` ends with the reason.
   * @param {string} name @param {unknown} [data] What JSON can hold.
   */
  async signal(name, data = null) {
    const headers = { "Content-Type": "application/json", "Idempotency-Key": newKey() };
    const init = { method: "POST", headers, body: JSON.stringify(data) };
    return this.#insist(async () => {
      const tail = `/signals/${encodeURIComponent(name)}`;
      return (await object(await this.#fetch(this.#route(tail), init))).outcome;
    });
  }

  /** Stop following, here and now. The run goes on, and can be attached to again. */
  detach() {
    this.#detached = true;
    this.#connection?.abort();
    this.#skips.forEach((skip) => skip());
    this.#notify();
  }

  /** Every item once, in order, from the first; ends when the run is done. Throws `error`. */
  async *[Symbol.asyncIterator]() {
    for (let next = 0; ;) {
      while (next < this.#items.length) yield this.#items[next++];
      if (!this.#open) break;
      await this.#changed();
    }
    if (this.error) throw this.error;
  }

  get #open() {
    return this.state !== "done" && this.state !== "failed" && !this.#detached;
  }

  // --- connections

  /**
   * Ask until there is an answer: for what may be asked any number of times.
   * @template T @param {() => Promise<T>} asking @returns {Promise<T>}
   */
  async #insist(asking) {
    while (this.runId === null && this.#open) await this.#changed();
    if (this.runId === null) throw this.error ?? new DurableError("detached before it started");
    for (let tries = 0; ; tries++) {
      try {
        return await asking();
      } catch (error) {
        if (!(error instanceof TryAgain)) throw error;
        await this.#wait(tries, error.afterMs);
      }
    }
  }

  async #follow() {
    const stopWaking = this.#wakeWithThePage();
    try {
      while (this.#open) {
        try {
          await this.#connect();
        } catch (error) {
          if (this.#detached) break;
          if (!(error instanceof TryAgain)) throw error;
          this.#become("reconnecting");
          await this.#wait(this.#tries++, error.afterMs);
        }
      }
    } catch (error) {
      this.error = error instanceof DurableError ? error : new DurableError(String(error));
      if (this.#options.key && [404, 410].includes(this.error.status)) forget(this.#options.key);
      this.#become("failed");
      throw this.error;
    } finally {
      stopWaking();
    }
    return this;
  }

  /** One connection, from the request to the end of its body. Throws unless the run is done. */
  async #connect() {
    const connection = (this.#connection = new AbortController());
    const idle = setInterval(() => {
      if (performance.now() - this.#heardAt > IDLE_MS) connection.abort();
    }, HEARTBEAT_MS / 3);
    this.#heardAt = performance.now();
    try {
      const answer = await this.#ask(connection.signal);
      if (answer === null) return;
      this.#heardAt = performance.now();
      this.#become("streaming");
      await this.#read(answer);
    } finally {
      clearInterval(idle);
      connection.abort();
      this.#connection = null;
    }
    if (this.#open) throw new TryAgain("the body ended before the run was done");
  }

  /** @param {AbortSignal} signal @returns {Promise<Response | null>} */
  async #ask(signal) {
    const answer = await (this.runId === null ? this.#start(signal) : this.#resume(signal));
    if (answer.status === 204) {
      const { status, error } = await object(await this.#fetch(this.#route(""), { signal }));
      this.#end(status, error);
      return null;
    }
    if (answer.status !== 200) throw await refusal(answer);
    return answer;
  }

  /** @param {AbortSignal} signal */
  async #start(signal) {
    const { url, method, body, json, idempotencyKey } = this.#opening;
    /** @type {Record<string, string>} */
    const headers = { Accept: "text/event-stream, */*;q=0.5", "Idempotency-Key": idempotencyKey };
    if (json) headers["Content-Type"] = "application/json";
    // The first answer may have been lost: then all that is wanted is the id of the run.
    if (this.#sent++ > 0) headers["Prefer"] = "respond-async";
    const answer = await this.#fetch(url, { method, body, headers, signal });
    const runId = answer.headers.get("Durable-Run-Id");
    if (!answer.ok) throw await refusal(answer);
    if (runId === null) {
      const hint = "no Durable-Run-Id. Is the endpoint durable? Does its CORS expose the header?";
      throw new DurableError(`${url} answered ${answer.status}, but ${hint}`, answer.status);
    }
    this.runId = runId;
    this.#remember();
    this.#notify();
    if (isEventStream(answer)) return answer;
    await answer.body?.cancel(); // accepted, or another type: the run's address streams it
    return this.#resume(signal);
  }

  /** @param {AbortSignal} signal */
  async #resume(signal) {
    /** @type {Record<string, string>} */
    const headers = { Accept: "text/event-stream" };
    if (this.#cursor) headers["Last-Event-ID"] = this.#cursor;
    const query = !this.#cursor && this.#offset ? `?after=${this.#offset}` : "";
    const answer = await this.#fetch(this.#route("/stream") + query, { headers, signal });
    if (answer.status === 200 && !isEventStream(answer)) {
      throw new DurableError(`${answer.url} answered no event stream`, 200);
    }
    return answer;
  }

  /** @param {string} url @param {RequestInit} [init] */
  async #fetch(url, init = {}) {
    const headers = { ...this.#options.headers, "Durable-Events": "1", ...init.headers };
    const { credentials } = this.#options;
    const request = new Request(url, { ...init, headers, credentials, cache: "no-store" });
    const answer = await network(fetch(request));
    if (NOBODY_HOME.includes(answer.status) && !answer.headers.has("Durable-Run-Id")) {
      throw new TryAgain(`${answer.status}`, retryAfterMs(answer));
    }
    return answer;
  }

  /** @param {string} tail */
  #route(tail) {
    return `${this.#prefix}/runs/${encodeURIComponent(String(this.runId))}${tail}`;
  }

  // --- what comes over them

  /** @param {Response} answer */
  async #read(answer) {
    const decoder = new Decoder();
    const reader = /** @type {ReadableStream<Uint8Array>} */ (answer.body).getReader();
    while (this.#open) {
      const { done, value } = await network(reader.read());
      if (done) return;
      this.#heardAt = performance.now();
      for (const message of decoder.feed(value)) {
        if (message.comment) this.#tries = 0;
        else if (message.retry !== undefined) this.#retryMs = message.retry;
        else this.#take(message);
        if (!this.#open) return;
      }
    }
  }

  /** @param {any} message */
  #take({ type, data, id }) {
    if (type.startsWith("durable.") && id === null) {
      const told = JSON.parse(data);
      if (type === "durable.done") this.#end(told.status, told.error);
      if (type === "durable.run" && told.run_id !== this.runId) {
        throw new DurableError(`followed run ${this.runId}, was sent ${told.run_id}`);
      }
      // Every connection begins with `durable.run`, and is told anew if the run waits.
      if (type === "durable.run" || type === "durable.resumed") this.#waitsFor(null);
      if (type === "durable.suspended") this.#waitsFor(told.waiting);
      return;
    }
    const offset = this.#place(id);
    if (offset === null) return;
    this.#tries = 0;
    this.waiting = null;
    if (type === "durable.rewind") {
      const to = JSON.parse(data).to;
      this.events = this.events.filter((event) => event.offset <= to);
      this.#decoder = new TextDecoder();
      this.#text = this.events.map((event) => shown(event, this.#decoder)).join("");
      this.#items.push({ type, to, id: id ?? "", offset });
    } else {
      const event = { type, data, id: id ?? "", offset };
      this.events.push(event);
      this.#text += shown(event, this.#decoder);
      this.#items.push(event);
    }
    this.#notify();
  }

  /**
   * The event's offset, null if it was here before. Offsets are dense; an event with an id of the
   * app's own does not show its offset: it is counted.
   * @param {string | null} id
   */
  #place(id) {
    const due = this.#offset + 1;
    const own = /^([0-9a-f-]{32,36}):(\d{1,15})-[0-9a-f]+$/.exec(id ?? "");
    const offset = own && own[1] === this.runId ? Number(own[2]) : null;
    if (offset !== null && offset < due) return null;
    if (offset !== null && offset > due) {
      throw new DurableError(`event ${offset} came where ${due} was due: some are missing`);
    }
    this.#offset = due;
    this.#cursor = offset === null ? null : id;
    return due;
  }

  // --- states

  /** @param {string} status @param {string | null} error */
  #end(status, error) {
    this.status = status;
    this.waiting = null;
    if (!["completed", "running", "suspended", "cancelled"].includes(status)) {
      throw new DurableError(
        `run ${this.runId} ${status}: ${error ?? "no error given"}`,
        0,
        status,
      );
    }
    this.#become("done");
  }

  /** @param {Wait[] | null} waiting */
  #waitsFor(waiting) {
    if (this.waiting === waiting) return;
    this.waiting = waiting;
    this.#notify();
  }

  /** @param {State} state */
  #become(state) {
    if (this.state === state) return;
    this.state = state;
    this.#notify();
  }

  #notify() {
    this.#waiting.splice(0).forEach((wake) => wake());
    try {
      this.onchange?.();
    } catch (error) {
      queueMicrotask(() => {
        throw error; // the page's own error is the page's to see; the run goes on
      });
    }
  }

  /** @returns {Promise<void>} */
  #changed() {
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  #remember() {
    if (this.#options.key === undefined) return;
    const value = JSON.stringify(this.runId === null ? this.#opening : { runId: this.runId });
    storage((items) => items.setItem(STORED + this.#options.key, value));
  }

  /** @param {number} tries @param {number} leastMs @returns {Promise<void>} */
  #wait(tries, leastMs) {
    const ceiling = Math.min(BACKOFF_MS_MAX, BACKOFF_MS * 2 ** Math.min(tries, 16));
    const delay = Math.max(this.#retryMs, leastMs) + Math.random() * ceiling;
    return new Promise((resolve) => {
      const end = () => {
        clearTimeout(timer);
        this.#skips.delete(end);
        resolve();
      };
      const timer = setTimeout(end, delay);
      this.#skips.add(end);
    });
  }

  /** A page that slept, was hidden or was offline looks at once; timers do not run meanwhile. */
  #wakeWithThePage() {
    if (typeof window === "undefined") return () => {};
    /** @param {Event} event */
    const wake = (event) => {
      if (document.visibilityState === "hidden") return;
      this.#skips.forEach((skip) => skip());
      const silent = performance.now() - this.#heardAt > HEARTBEAT_MS * 1.2;
      if (silent || event.type === "online") this.#connection?.abort();
    };
    /** @type {[EventTarget, string][]} */
    const wakers = [
      [document, "visibilitychange"],
      [window, "pageshow"],
      [window, "online"],
    ];
    for (const [target, type] of wakers) target.addEventListener(type, wake);
    return () => wakers.forEach(([target, type]) => target.removeEventListener(type, wake));
  }
}

/** Decodes an event stream as the HTML standard says; comments and `retry` are told too. */
class Decoder {
  #text = new TextDecoder();
  #line = "";
  #size = 0;
  #afterCR = false;
  /** @type {string[]} */ #data = [];
  #type = "";
  /** @type {string | null} */ #id = null;

  /** @param {Uint8Array} chunk */
  *feed(chunk) {
    let text = this.#text.decode(chunk, { stream: true });
    if (text === "") return;
    if (this.#afterCR && text[0] === "\n") text = text.slice(1);
    this.#afterCR = text.endsWith("\r");
    const lines = text.split(/\r\n|\r|\n/);
    const rest = /** @type {string} */ (lines.pop());
    for (const line of lines) {
      const message = this.#take(this.#line + line);
      this.#line = "";
      if (message) yield message;
    }
    this.#line += rest;
    if (this.#line.length + this.#size > BLOCK_MAX) throw new DurableError("an endless event");
  }

  /** @param {string} line @returns {any} */
  #take(line) {
    if (line === "") {
      const message = { type: this.#type || "message", data: this.#data.join("\n"), id: this.#id };
      const complete = this.#data.length > 0;
      [this.#data, this.#type, this.#id, this.#size] = [[], "", null, 0];
      return complete ? message : null;
    }
    const [, name, value] = /** @type {string[]} */ (/^([^:]*):? ?(.*)$/s.exec(line));
    if (name === "") return { comment: true };
    this.#size += line.length;
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#type = value;
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    else if (name === "retry" && /^\d{1,9}$/.test(value)) return { retry: Number(value) };
    return null;
  }
}

/**
 * What a page shows of an event. A body that is no event stream comes in chunks; one that is not
 * text by itself, half a letter perhaps, comes as "durable.bytes", in base64.
 * @param {DurableEvent} event @param {TextDecoder} decoder
 */
function shown({ type, data }, decoder) {
  if (type === "message") return decoder.decode(new TextEncoder().encode(data), { stream: true });
  if (type !== "durable.bytes") return "";
  const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
  return decoder.decode(bytes, { stream: true });
}

/** @param {Response} answer */
async function object(answer) {
  if (!answer.ok) throw await refusal(answer);
  return JSON.parse(await network(answer.text()));
}

/** @param {Response} answer */
async function refusal(answer) {
  const text = (await network(answer.text())).slice(0, 10_000);
  try {
    const { type, title, detail } = JSON.parse(text);
    return new DurableError(detail ?? title ?? text, answer.status, type ?? "");
  } catch {
    return new DurableError(text || answer.statusText, answer.status); // no problem document
  }
}

/** @param {Response} answer */
function isEventStream(answer) {
  return /^text\/event-stream\s*(;|$)/i.test(answer.headers.get("Content-Type") ?? "");
}

/** @param {Response} answer */
function retryAfterMs(answer) {
  const value = answer.headers.get("Retry-After") ?? "";
  const ms = /^\d+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return ms > 0 ? ms : 0;
}

/**
 * The tab's storage may be closed to the page, or full: a run works without it, a reload does not.
 * @template T @param {(items: Storage) => T} use @returns {T | undefined}
 */
function storage(use) {
  try {
    return use(sessionStorage);
  } catch (error) {
    console.warn("durable: without sessionStorage a reload will not find its run:", error);
  }
}

function newKey() {
  // randomUUID is there only in secure contexts, and a page in development may have none.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
