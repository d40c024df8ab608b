// The page: one conversation is shown, others may be answered meanwhile.

import { Answers } from "./answers.js";
import * as api from "./api.js";
import { announce, byId, copy, element, plural, words } from "./dom.js";
import { answerNow, batch, linkSpeed, picture } from "./engine.js";
import { asJson, asMarkdown, download } from "./exporting.js";
import { Messages } from "./messages.js";
import { Settings } from "./settings.js";
import * as store from "./store.js";

// Milliseconds between looks at the server: while something is under way, and otherwise.
const SOON = 1500;
const LATER = 5000;
// Seconds between two words to a screen reader while an answer comes.
const SAID = 10_000;
const CURRENT = "understudy.current";

const question = byId("question");
const scroll = byId("scroll");
const narrow = matchMedia("(max-width: 760px)");
const roomy = matchMedia("(min-width: 1160px)");

let current = store.create();
let state = null;
let before = null;
let alive = false;
let said = 0;
let deleted = null;
// Whether the key was asked for since one was last given.
let keyAsked = false;

const answers = new Answers(told);
const messages = new Messages(byId("messages"), act);
const settings = new Settings(() => {
  if (current.messages.length) store.save(current);
});

function told(conversation, message, tokens) {
  const shown = conversation === current;
  if (tokens === null) ended(conversation, message, shown);
  else if (shown) {
    const end = atEnd();
    messages.add(tokens, message.figures);
    if (end) toEnd();
    if (Date.now() - said > SAID) {
      said = Date.now();
      announce(`Answering, ${plural(words(message.content), "word")} so far`);
    }
  }
  if (shown) showNow();
  if (tokens === null || !tokens.length) showList();
}

function ended(conversation, message, shown) {
  if (shown) {
    const end = atEnd();
    messages.refresh(conversation.messages.length - 1, false);
    if (end) toEnd();
    showSending();
    const how = message.state === "done" ? "Done" : message.state === "stopped" ? "Stopped" : `Failed: ${message.note}`;
    announce(`${how}, ${plural(words(message.content), "word")}`);
  }
  if (message.status === 401) askKey();
  if (message.state === "failed" && !message.status) look();
}

function answer(conversation) {
  said = Date.now();
  announce("Answering");
  answers.start(conversation);
  show(conversation);
  toEnd();
  lookSoon();
}

/** Whether another tab is answering in the conversation at hand. */
function elsewhere() {
  return !answers.isRunning(current.id) && store.underWay(current.messages.at(-1));
}

function ask() {
  const text = question.value.trim();
  if (!text || answers.isRunning(current.id)) return;
  if (elsewhere()) {
    announce("Another tab is answering in this conversation.");
    toast("Another tab is answering in this conversation.");
    return;
  }
  question.value = "";
  fit();
  current.messages.push({ role: "user", content: text });
  answer(current);
  question.focus();
}

function act(what, index, text) {
  if (answers.isRunning(current.id) || elsewhere()) return;
  if (what === "again") current.messages.splice(index);
  else current.messages.splice(index, Infinity, { role: "user", content: text.trim() });
  answer(current);
  question.focus();
}

function show(conversation) {
  current = conversation;
  sessionStorage.setItem(CURRENT, conversation.id);
  const address = conversation.messages.length ? `#${conversation.id}` : location.pathname + location.search;
  if (location.hash.slice(1) !== (conversation.messages.length ? conversation.id : "")) history.replaceState(null, "", address);
  const name = store.title(conversation);
  byId("title").textContent = name;
  document.title = conversation.messages.length ? `${name} · Understudy` : "Understudy";
  byId("welcome").hidden = conversation.messages.length > 0;
  messages.show(conversation, answers.isRunning(conversation.id));
  settings.fill(conversation);
  showSending();
  showList();
  showNow();
}

function showSending() {
  const running = answers.isRunning(current.id);
  byId("send").hidden = running;
  byId("stop").hidden = !running;
}

function showNow() {
  byId("now").replaceChildren(answerNow(current.messages.findLast((message) => message.figures), state?.plan));
}

function showList() {
  const list = byId("conversations");
  const items = store.all();
  list.replaceChildren(
    ...items.map((conversation) => {
      const button = element("button", { type: "button" }, element("span", { className: "name" }, store.title(conversation)));
      if (conversation.id === current.id) button.setAttribute("aria-current", "true");
      if (answers.isRunning(conversation.id)) {
        button.append(element("span", { className: "dots", "aria-hidden": "true" }), element("span", { className: "hidden" }, ", answering"));
      }
      button.addEventListener("click", () => {
        open(conversation.id);
        drawer("side", false);
        question.focus();
      });
      return element("li", {}, button);
    }),
  );
}

function open(id) {
  if (id === current.id && current.messages.length) return;
  const running = answers.running.get(id)?.conversation;
  const found = running ?? store.load(id);
  if (found) {
    show(found);
    toEnd();
  }
}

function begin() {
  const { model, system, sampling } = current;
  show(Object.assign(store.create(), { model, system, sampling: { ...sampling } }));
  drawer("side", false);
  question.focus();
}

// Where the text is looked at, and whether it follows.

function atEnd() {
  return scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80;
}

function toEnd() {
  scroll.scrollTop = scroll.scrollHeight;
}

function fit() {
  question.style.height = "auto";
  question.style.height = `${Math.min(question.scrollHeight, 200)}px`;
}

// Drawers: the list on narrow screens, the engine's figures on all.

function drawer(name, open) {
  const panel = byId(name);
  panel.classList.toggle("open", open);
  byId(`open-${name}`).setAttribute("aria-expanded", String(open));
  const covers = name === "side" ? narrow.matches : !roomy.matches;
  byId("main").inert = (open && covers) || false;
  document.body.classList.toggle("covered", open && covers);
  panel.inert = !open && (name === "engine" || narrow.matches);
}

function isOpen(name) {
  return byId(name).classList.contains("open");
}

function fitDrawers() {
  drawer("side", false);
  drawer("engine", roomy.matches);
}

// The server: whether it answers, and what it is at.

function server(text, kind) {
  byId("server-text").textContent = text;
  byId("server").dataset.kind = kind;
}

let timer = 0;

function lookSoon() {
  clearTimeout(timer);
  timer = setTimeout(look, 300);
}

async function look() {
  clearTimeout(timer);
  try {
    await lookOnce();
  } catch (error) {
    if (!(error instanceof api.ServerError)) throw error;
    state = null;
    if (error.status === 401) {
      server("This server asks for a key", "down");
      if (!keyAsked) askKey();
    } else server(error.status ? error.message : "The server does not answer; looking again", "down");
    if (alive && !error.status) announce("The server does not answer.");
    alive = error.status > 0;
  }
  timer = setTimeout(look, document.hidden ? 4 * LATER : answers.running.size || (state?.running.length ?? 0) ? SOON : LATER);
}

async function lookOnce() {
  const found = await api.health();
  if (found.status !== "ok") {
    const far = typeof found.progress === "number" ? ` ${Math.round(found.progress * 100)}%` : "";
    server(found.status === "loading" ? `Loading the model${found.stage ? `: ${found.stage}${far}` : ""}` : `Not ready: ${found.status}`, "loading");
    alive = false;
    state = null;
    return;
  }
  const last = state;
  const model = current.model ? `?model=${encodeURIComponent(current.model)}` : "";
  state = await api.object(`understudy${model}`).catch((error) => {
    // A model that this server does not have: what it has is shown.
    if (error.status === 404 && model) return api.object("understudy");
    throw error;
  });
  if (!alive) announce("The server is ready.");
  alive = true;
  server(`${state.model} · ${state.context.toLocaleString("en")} tokens of context`, "ready");
  // Of several replicas any one answers: only figures of the same can be compared.
  before = last && last.replica === state.replica ? last.figures : null;
  if (isOpen("engine")) showEngine();
}

function showEngine() {
  if (!state) return;
  const names = new Map();
  for (const { conversation, message } of answers.running.values()) {
    // Of several replicas nobody tells which one an answer comes from.
    if (!state.replica && message.figures && message.figures.row >= 0) names.set(message.figures.row, store.title(conversation));
  }
  byId("batch").replaceChildren(batch(state, names, before));
  byId("plan").replaceChildren(picture(state.plan, linkSpeed(state, before)));
  showNow();
}

// Keys, and what is said at the edge.

function askKey() {
  const dialog = byId("key-dialog");
  if (dialog.open) return;
  keyAsked = true;
  byId("key-note").textContent = api.key.get() ? "The server does not know the last one. It is kept until this tab is closed." : "It is kept until this tab is closed.";
  byId("key").value = "";
  dialog.showModal();
}

let fading = 0;

function toast(text, undo = null) {
  deleted = undo;
  byId("toast-text").textContent = text;
  byId("undo").hidden = !undo;
  byId("toast").hidden = false;
  clearTimeout(fading);
  fading = setTimeout(() => (byId("toast").hidden = true), 8000);
}

function removeCurrent() {
  const gone = current;
  answers.forget(gone.id);
  store.remove(gone.id);
  begin();
  if (!gone.messages.length) return;
  announce("Deleted");
  toast("Conversation deleted.", () => {
    store.save(gone);
    show(gone);
  });
}

function more(open) {
  byId("more").hidden = !open;
  byId("open-more").setAttribute("aria-expanded", String(open));
}

function escape() {
  if (!byId("more").hidden) {
    more(false);
    byId("open-more").focus();
  } else if (narrow.matches && isOpen("side")) close("side");
  else if (!roomy.matches && isOpen("engine")) close("engine");
  else answers.stop(current.id);
}

function close(name) {
  drawer(name, false);
  byId(`open-${name}`).focus();
}

function listen() {
  const on = (id, call) => byId(id).addEventListener("click", call);
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  question.addEventListener("input", fit);
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      ask();
    } else if (event.key === "ArrowUp" && !question.value) {
      const edits = document.querySelectorAll('#messages [aria-label="Edit question"]');
      if (edits.length) event.preventDefault();
      edits[edits.length - 1]?.click();
    }
  });
  on("stop", () => {
    answers.stop(current.id);
    question.focus();
  });
  on("new", begin);
  on("open-side", () => {
    drawer("side", true);
    byId("close-side").focus();
  });
  on("close-side", () => close("side"));
  on("open-engine", () => {
    drawer("engine", !isOpen("engine"));
    if (isOpen("engine")) {
      showEngine();
      look();
      if (!roomy.matches) byId("close-engine").focus();
    }
  });
  on("close-engine", () => close("engine"));
  on("open-settings", () => settings.open(state));
  on("open-more", () => more(byId("more").hidden));
  on("copy-all", async () => {
    more(false);
    toast((await copy(asMarkdown(current))) ? "Copied." : "This browser did not let us copy.");
  });
  on("save-markdown", () => {
    more(false);
    download(current, asMarkdown(current), "text/markdown", "md");
  });
  on("save-json", () => {
    more(false);
    download(current, asJson(current), "application/json", "json");
  });
  on("delete", () => {
    more(false);
    removeCurrent();
  });
  on("undo", () => {
    byId("toast").hidden = true;
    deleted?.();
  });
  on("to-end", () => {
    toEnd();
    question.focus();
  });
  on("skip-key", () => byId("key-dialog").close());
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    giveKey();
  });
  scroll.addEventListener("scroll", () => (byId("to-end").hidden = atEnd()));
  listenToPage();
}

function giveKey() {
  api.key.set(byId("key").value.trim());
  keyAsked = false;
  byId("key-dialog").close();
  look();
}

function listenToPage() {
  document.addEventListener("keydown", (event) => {
    // Escape also ends a word that is being composed from several keys.
    if (event.key === "Escape" && !event.isComposing && !document.querySelector("dialog[open]")) escape();
  });
  document.addEventListener("click", (event) => {
    if (!byId("more").hidden && !event.target.closest(".menu")) more(false);
    if (document.body.classList.contains("covered") && event.target === document.body) {
      for (const name of ["side", "engine"]) if (isOpen(name)) close(name);
    }
  });
  addEventListener("pagehide", () => answers.leave());
  addEventListener("hashchange", () => open(location.hash.slice(1)));
  document.addEventListener("visibilitychange", () => document.hidden || look());
  for (const query of [narrow, roomy]) query.addEventListener("change", fitDrawers);
  store.onFull((text) => {
    announce(text);
    toast(text);
  });
  store.watch((id) => {
    showList();
    if (id !== current.id || answers.isRunning(id)) return;
    const found = store.load(id);
    const end = atEnd();
    if (found) show(found);
    if (found && end) toEnd();
  });
  // An answer of another tab that ended with it shows as cut off some seconds later.
  setInterval(() => {
    const item = byId("messages").lastElementChild;
    if (item?.getAttribute("aria-busy") === "true" && !answers.isRunning(current.id) && !elsewhere()) show(current);
  }, 2000);
}

fitDrawers();
listen();
const wanted = store.load(location.hash.slice(1)) ?? store.load(sessionStorage.getItem(CURRENT) ?? "");
show(wanted ?? current);
toEnd();
look();
question.focus();
