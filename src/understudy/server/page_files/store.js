// Conversations in the browser's storage, each under a key of its own, so that tabs do not overwrite one another's.

const PREFIX = "understudy.conversation.";
// After so many milliseconds without a sign of its tab, an answer that was under way has ended with it.
const SILENT = 4000;

/** Called with a message where nothing more can be kept. */
export let whenFull = () => {};
export function onFull(call) {
  whenFull = call;
}

export function create() {
  const id = Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => (byte % 36).toString(36)).join("");
  return { id, created: Date.now(), changed: Date.now(), model: "", system: "", sampling: {}, messages: [] };
}

function isMessage(found) {
  return typeof found?.role === "string" && typeof found.content === "string";
}

/** The conversation `id`; null where there is none, or what stands there is not one. */
export function load(id) {
  try {
    const found = JSON.parse(localStorage.getItem(PREFIX + id));
    if (found?.id !== id || !Array.isArray(found.messages) || !found.messages.every(isMessage)) return null;
    return { model: "", system: "", sampling: {}, ...found };
  } catch {
    return null;
  }
}

export function save(conversation) {
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
  } catch {
    whenFull("This browser has no room for more: delete or export old conversations.");
  }
}

export function remove(id) {
  localStorage.removeItem(PREFIX + id);
}

/** All of them, the one that changed last first. */
export function all() {
  const ids = Object.keys(localStorage).filter((name) => name.startsWith(PREFIX)).map((name) => name.slice(PREFIX.length));
  return ids.map(load).filter(Boolean).sort((one, other) => other.changed - one.changed);
}

/** Calls back with the id of a conversation that another tab has changed. */
export function watch(changed) {
  addEventListener("storage", (event) => {
    if (event.key?.startsWith(PREFIX)) changed(event.key.slice(PREFIX.length));
  });
}

/** Whether a message is being written at this moment, by some tab. */
export function underWay(message) {
  return message?.state === "streaming" && Date.now() - message.beat < SILENT;
}

export function title(conversation) {
  const first = conversation.messages.find((message) => message.role === "user")?.content.trim().split("\n")[0] ?? "";
  return first.length > 60 ? `${first.slice(0, 59)}…` : first || "New conversation";
}
