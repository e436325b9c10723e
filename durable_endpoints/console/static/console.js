// Keys, quiet polling and a few conveniences. Every page works without it.
"use strict";

(() => {
  const signal = document.getElementById("signal");
  const detail = () => document.getElementById("detail");
  const live = Boolean(signal?.querySelector("i"));

  function say(state, text) {
    if (!signal || !live) return;
    signal.dataset.state = state;
    signal.lastChild.nodeValue = text;
  }

  // A page that nobody sees, or in which somebody marks text, is not redrawn.
  function busy(element) {
    if (document.hidden) return true;
    const marked = getSelection();
    return !marked.isCollapsed && element.contains(marked.anchorNode);
  }

  document.addEventListener("htmx:before:request", (event) => {
    const ctx = event.detail?.ctx;
    if (ctx?.sourceEvent?.type === "every" && busy(ctx.sourceElement)) event.preventDefault();
  });
  document.addEventListener("htmx:error", () => say("lost", "no answer, trying again"));
  document.addEventListener("htmx:response:error", () => say("lost", "no answer, trying again"));
  document.addEventListener("htmx:after:swap", (event) => {
    say("on", "live");
    if (event.target.id === "detail" || event.detail?.ctx?.target?.id === "detail") {
      detail().focus({ preventScroll: innerWidth > 900 });
    }
  });

  // --- forms

  for (const form of document.querySelectorAll("form[data-submit-on-change]")) {
    form.addEventListener("change", (event) => {
      if (event.target.matches("select, [list]")) form.requestSubmit();
    });
    form.addEventListener("submit", () => {
      for (const field of form.elements) if (!field.value) field.disabled = true;
    });
    addEventListener("pageshow", () => {
      for (const field of form.elements) field.disabled = false;
    });
  }

  // --- lists that grow

  for (const list of document.querySelectorAll("[data-keep]")) {
    const most = Number(list.dataset.keep);
    const end = () => list.scrollHeight - list.scrollTop - list.clientHeight < 80;
    let following = true;
    list.scrollTop = list.scrollHeight;
    list.addEventListener("scroll", () => { following = end(); }, { passive: true });
    new MutationObserver(() => {
      while (list.children.length > most) list.firstElementChild.remove();
      if (following) list.scrollTop = list.scrollHeight;
    }).observe(list, { childList: true });
    list.addEventListener("htmx:sse:close", () => {
      const said = document.getElementById("follow");
      if (said) said.textContent = "That was the last one.";
      say("off", "ended");
    });
  }

  // --- keys

  function close() {
    const open = detail();
    if (!open?.firstChild) return false;
    open.replaceChildren();
    return true;
  }

  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-close]")) close();
  });

  function step(by) {
    const rows = [...document.querySelectorAll("[data-row]")];
    if (!rows.length) return;
    const at = rows.indexOf(document.activeElement);
    const next = rows[at < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + by))];
    next.focus();
    next.scrollIntoView({ block: "nearest" });
  }

  let first = "";
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && close()) return;
    if (event.target.closest("input, select, textarea, [contenteditable]")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const key = first ? `${first} ${event.key}` : event.key;
    first = event.key === "g" && !first ? "g" : "";
    if (key === "j" || key === "k") step(key === "j" ? 1 : -1);
    const target = document.querySelector(`[data-key="${CSS.escape(key)}"]`);
    if (!target) return;
    event.preventDefault();
    if (target.matches("input")) target.select();
    else target.click();
  });
})();
