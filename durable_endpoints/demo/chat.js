// The demo's page. What makes it durable is in client.js; this only shows it.
import { attach, durable } from "/_durable/client.js";
import { drawStrip } from "./strip.js";

const $ = (id) => document.getElementById(id);
const STORE = "durable-demo";
const STATUS_MS = 1000;
const STATUS_PATIENCE_MS = 800;
/** Messages sent along, so that a small model's context is not overrun. */
const MEMORY = 4;
const CONTEXT_CHARS = 1500;
const BOLT = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M13 2 4 14h7l-1 8 9-12h-7z"/></svg>';

/**
 * What outlives this page, for all tabs. `key` finds the run even if its first answer was lost.
 * @typedef {{question: string, key: string, runId: string | null, bolts: Bolt[]}} Stored
 * Deaths of the server that the answer survived, just before the event with number `at`.
 * @typedef {{at: number, ms: number, from: number, to: number, deaths: number}} Bolt
 */

/** @returns {Stored[]} */
function load() {
  try {
    return JSON.parse(localStorage.getItem(STORE) ?? "[]");
  } catch {
    return [];
  }
}

/** @param {Stored[]} turns */
const save = (turns) => localStorage.setItem(STORE, JSON.stringify(turns));

/** Change one turn in what all tabs share. @param {string} key @param {(turn: Stored) => void} change */
function update(key, change) {
  const turns = load();
  const turn = turns.find((one) => one.key === key);
  if (turn) change(turn);
  save(turns);
}

// --- the server's health

const server = { pid: 0, upSince: 0, down: false };

function showServer(state, text) {
  $("server").dataset.state = state;
  $("server-text").textContent = text;
}

function serverDown(text) {
  server.down = true;
  $("crash").disabled = true;
  showServer("down", text);
}

async function askStatus() {
  const answer = await fetch("/status", { cache: "no-store", signal: AbortSignal.timeout(30_000) });
  const status = await answer.json();
  if (server.pid && server.pid !== status.pid) current?.deaths.add(status.pid);
  server.pid = status.pid;
  server.upSince = performance.now() - status.up_s * 1000;
  server.down = false;
  $("crash").disabled = false;
  return status;
}

function uptime() {
  const seconds = (performance.now() - server.upSince) / 1000;
  const time = seconds < 60 ? `${seconds.toFixed(0)} s` : `${Math.floor(seconds / 60)} min`;
  showServer("up", `pid ${server.pid} · up ${time}`);
}

async function watchServer() {
  for (;;) {
    const late = setTimeout(() => serverDown("no answer …"), STATUS_PATIENCE_MS);
    try {
      await askStatus();
      uptime();
    } catch {
      serverDown(server.pid ? `pid ${server.pid} is dead` : "no answer …");
    }
    clearTimeout(late);
    await new Promise((resolve) => setTimeout(resolve, server.down ? 100 : STATUS_MS));
  }
}

$("crash").onclick = () => {
  serverDown(`pid ${server.pid} killed`);
  say("The server was killed.");
  current?.lost();
  fetch(`/crash?pid=${server.pid}`, { method: "POST" }).catch(() => {}); // dies, does not answer
};

// --- one question and its answer

class Turn {
  /** @param {Stored} stored @param {object} run */
  constructor(stored, run) {
    this.stored = stored;
    this.run = run;
    this.pid = server.pid;
    this.text = "";
    this.shown = 0;
    this.outage = null;
    this.deaths = new Set(); // pids of servers that followed a dead one, since the last bolt
    this.times = [];
    this.outages = [];
    this.question = element("li", "question", stored.question);
    this.answer = element("li", "answer live");
    $("turns").append(this.question, this.answer);
    run.onchange = () => this.changed();
    run.finished.then(() => this.end(), (error) => this.end(error));
  }

  get live() {
    return this.run.state !== "done" && this.run.state !== "failed";
  }

  changed() {
    if (this.run.runId && this.run.runId !== this.stored.runId) {
      this.stored.runId = this.run.runId;
      update(this.stored.key, (turn) => (turn.runId = this.run.runId));
    }
    if (this.run.state === "reconnecting") this.lost();
    this.render();
    if (this === current) showRun();
  }

  /** The connection is gone. Whether the server died is known when it answers again. */
  lost() {
    if (this.outage || !this.live) return;
    this.outage = { since: performance.now(), at: this.run.events.length };
    this.answer.classList.add("lost");
    drawStrip($("strip"), current);
  }

  /** The first event after an outage. */
  async back() {
    const outage = this.outage;
    const [from, until] = [this.pid, performance.now()];
    this.outage = null;
    this.answer.classList.remove("lost");
    let pid;
    try {
      ({ pid } = await askStatus());
    } catch {
      this.outage ??= outage; // it died once more: the next event asks again
      return;
    }
    const { since, at } = outage;
    const ms = Math.round(until - since);
    this.outages.push([since, until]);
    const deaths = this.deaths.size;
    this.deaths.clear();
    this.pid = pid;
    if (!deaths || this.stored.bolts.some((bolt) => bolt.to === pid)) return; // only the line broke
    const bolt = { at, ms, from, to: pid, deaths };
    this.stored.bolts.push(bolt);
    update(this.stored.key, (turn) => {
      if (!turn.bolts.some((one) => one.to === pid)) turn.bolts.push(bolt);
    });
    this.rebuild();
    if (this !== current) return;
    showRun();
    restart($("score"), "hit");
    say(`A new server answers after ${seconds(ms)}. The answer goes on.`);
  }

  rebuild() {
    this.answer.replaceChildren();
    this.shown = 0;
    this.text = "";
    this.render();
  }

  render() {
    const { events } = this.run;
    if (events.length < this.shown) return this.rebuild(); // a rewind took some back
    if (events.length === this.shown) return;
    const stick = atBottom();
    if (this.outage && events.length > this.outage.at) this.back();
    for (const event of events.slice(this.shown)) {
      const bolt = this.stored.bolts.find((one) => one.at === this.shown);
      if (bolt) this.answer.append(boltMark(bolt));
      const { text = "", error } = JSON.parse(event.data);
      if (error) this.answer.append(element("span", "end bad", `The model failed: ${error}`));
      this.answer.append(text);
      this.text += text;
      this.times[this.shown++] ??= performance.now();
    }
    if (stick) $("chat").scrollTop = $("chat").scrollHeight;
    drawStrip($("strip"), current);
  }

  /** @param {Error} [error] */
  end(error) {
    this.answer.classList.remove("live", "lost");
    this.ended = performance.now();
    if (error) {
      const gone = error.status === 404 || error.status === 410;
      const why = gone ? "The server does not know this run any more." : error.message;
      this.answer.append(element("span", "end bad", why));
    } else if (this.run.status === "cancelled") {
      this.answer.append(element("span", "end", "Stopped."));
    } else if (this.stored.bolts.length) {
      const deaths = survived(this.stored);
      const times = deaths === 1 ? "once" : `${deaths} times`;
      const end = `Complete: ${this.shown} events. The server died ${times} on the way.`;
      this.answer.append(element("span", "end", end));
    }
    if (this === current) {
      showRun();
      ready();
    }
  }
}

const survived = ({ bolts }) => bolts.reduce((sum, bolt) => sum + bolt.deaths, 0);

/** @type {Turn[]} */
let turns = [];
/** @type {Turn | null} */
let current = null;

function boltMark({ ms, from, to }) {
  const mark = element("span", "bolt");
  mark.innerHTML = BOLT;
  mark.append(seconds(ms));
  mark.title = `The server (pid ${from}) was killed here; pid ${to} went on after ${seconds(ms)}.`;
  mark.setAttribute("aria-label", mark.title);
  return mark;
}

// --- asking

function conversation(question) {
  const said = turns.flatMap(({ stored, text }) => [
    { role: "user", content: stored.question.slice(0, CONTEXT_CHARS) },
    { role: "assistant", content: text.slice(0, CONTEXT_CHARS) || "…" },
  ]);
  return [...said.slice(-MEMORY), { role: "user", content: question }];
}

function start(stored, messages) {
  return durable("/chat", { json: { messages }, idempotencyKey: stored.key });
}

function ask(question) {
  if (current?.live) return;
  const messages = conversation(question);
  const key = Array.from(crypto.getRandomValues(new Uint8Array(12)), (n) => n.toString(16)).join("");
  const stored = { question, key, runId: null, bolts: [], messages };
  save([...load(), stored]);
  show(stored);
  $("chat").scrollTop = $("chat").scrollHeight;
}

/** Show a turn: follow its run, or send its question (again, if the run was never heard of). */
function show(stored) {
  const run = stored.runId ? attach(stored.runId) : start(stored, stored.messages);
  current = new Turn(stored, run);
  turns.push(current);
  $("welcome").hidden = true;
  ready();
  showRun();
}

function ready() {
  const busy = Boolean(current?.live);
  $("send").hidden = busy;
  $("stop").hidden = !busy;
}

function forget() {
  for (const turn of turns) {
    turn.run.onchange = null;
    turn.run.detach();
  }
  turns = [];
  current = null;
  $("turns").replaceChildren();
  $("welcome").hidden = false;
  ready();
  showRun();
}

$("ask").onsubmit = (event) => {
  event.preventDefault();
  const question = $("prompt").value.trim();
  if (!question || current?.live) return;
  $("prompt").value = "";
  ask(question);
};
$("prompt").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("ask").requestSubmit();
};
$("prompts").onclick = ({ target }) => {
  if (target.tagName === "BUTTON") ask(target.textContent);
};
$("stop").onclick = () => current?.run.cancel().catch((error) => say(error.message));
$("reset").onclick = () => {
  save([]);
  forget();
  $("prompt").focus();
};
$("run-id").onclick = async () => {
  await navigator.clipboard.writeText(current.stored.runId);
  say("Copied.");
};
// Another tab asked something, or began anew: this one follows.
addEventListener("storage", ({ key }) => {
  if (key !== STORE) return;
  const stored = load();
  if (stored.length < turns.length) forget();
  for (const turn of stored.slice(turns.length)) show(turn);
});

// --- the panel

function showRun() {
  const run = current?.run;
  const bolts = current?.stored.bolts ?? [];
  const state = run?.state === "done" || run?.state === "failed" ? run.status ?? "failed" : "running";
  $("crashes").textContent = String(current ? survived(current.stored) : 0);
  $("run-id").textContent = current?.stored.runId ?? "–";
  $("run-id").disabled = !current?.stored.runId;
  $("status").textContent = !run ? "–" : current.outage ? "no server" : state;
  $("status").dataset.status = run ? state : "";
  $("events").textContent = run ? String(run.events.length) : "–";
  $("outage").textContent = bolts.length ? seconds(bolts[bolts.length - 1].ms) : "–";
  drawStrip($("strip"), current);
}

// --- small things

function element(tag, classes, text = "") {
  const made = document.createElement(tag);
  made.className = classes;
  made.textContent = text;
  return made;
}

function atBottom() {
  const { scrollTop, clientHeight, scrollHeight } = $("chat");
  return scrollTop + clientHeight > scrollHeight - 80;
}

const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`;

function say(text) {
  $("news").textContent = text;
}

/** Play a CSS animation again. */
function restart(node, name) {
  node.classList.remove(name);
  void node.offsetWidth;
  node.classList.add(name);
}

addEventListener("resize", () => drawStrip($("strip"), current));
$("attach").textContent = `durable attach last --url ${location.origin}`;

const { model, local } = await askStatus();
uptime();
watchServer();
$("about").textContent = local
  ? `${model}, 135 million parameters, on your own processor. Its prose is often nonsense; that it survives is not.`
  : `Talking to ${model}.`;
for (const stored of load()) show(stored);
if (matchMedia("(hover: hover)").matches) $("prompt").focus();
