// The engine at work: what the answer at hand took, who shares its passes, and what lies where.

import { bytes, element, plural, speed } from "./dom.js";

// Passes that the small chart has room for.
const SHOWN = 48;
// What the plan counts, in the words of the picture, from what matters most to what is always there.
const GROUPS = [
  ["copy", "4-bit copy", ["substitute", "draft model"]],
  ["exact", "exact weights kept here", ["resident weights", "whole weights"]],
  ["ring", "exact weights in transit", ["ring"]],
  ["cache", "KV cache", ["KV cache"]],
  ["room", "room to work", null],
  ["runtime", "program and tokenizer", ["runtime", "tokenizer"]],
];

/** The groups of the picture, each with its bytes; the rest of the plan's items is room to work. */
export function groupsOf(items) {
  const named = new Set(GROUPS.flatMap(([, , names]) => names ?? []));
  const rest = Object.keys(items).filter((name) => !named.has(name));
  return GROUPS.map(([kind, label, names]) => {
    const size = (names ?? rest).reduce((sum, name) => sum + (items[name] ?? 0), 0);
    return { kind, label, size };
  }).filter(({ size }) => size > 0);
}

/** The plan as a picture: fast memory with its parts, the link, and where the exact weights lie. */
export function picture(plan, measured) {
  const fast = plan.device.startsWith("cpu") ? "Memory" : "GPU memory";
  const slow = plan.host_memory > 0 ? "Host memory" : "Disk";
  const groups = groupsOf(plan.items);
  const bar = element("div", { className: "bar", "aria-hidden": "true" });
  const free = Math.max(plan.budget - plan.used, 0);
  // What is free may be many times the rest: it is cut off where it would leave nothing to see.
  const shownFree = Math.min(free, plan.used * 0.35);
  for (const { kind, size } of [...groups, { kind: "free", size: shownFree }]) {
    const part = element("span", { className: `part ${kind}` });
    part.style.flexGrow = String(size);
    bar.append(part);
  }
  const legend = element("ul", { className: "legend-list" });
  for (const { kind, label, size } of groups) {
    legend.append(element("li", {}, element("span", { className: `swatch ${kind}`, "aria-hidden": "true" }), label, element("b", {}, bytes(size))));
  }
  legend.append(element("li", {}, element("span", { className: "swatch free", "aria-hidden": "true" }), "free", element("b", {}, bytes(free))));
  return element(
    "div",
    { className: "picture" },
    element("div", { className: "place" }, element("h4", {}, fast), element("p", { className: "of" }, `${bytes(plan.used)} of ${bytes(plan.budget)}`), bar, legend),
    linkOf(plan, measured),
    slowOf(plan, slow),
    plan.speeds.memory ? element("p", { className: "hint" }, `${fast} itself is read at ${speed(plan.speeds.memory)}.`) : null,
  );
}

function linkOf(plan, measured) {
  const rate = measured || plan.link_bytes_per_second;
  const label = rate ? `${speed(rate)}${measured ? " now" : ""}` : "speed not measured";
  const per = plan.streamed ? `${bytes(plan.streamed)} in each pass` : "nothing passes: all that is exact lies in memory";
  const arrow = element("span", { className: plan.streamed ? "arrow" : "arrow idle", "aria-hidden": "true" });
  return element("div", { className: "link" }, arrow, element("p", {}, element("b", {}, label), element("span", {}, per)));
}

function slowOf(plan, slow) {
  const bar = element("div", { className: "bar", "aria-hidden": "true" });
  const kept = Math.max(plan.total - plan.streamed, 0);
  for (const [kind, size] of [["ring", plan.streamed], ["exact", kept]]) {
    const part = element("span", { className: `part ${kind}` });
    part.style.flexGrow = String(size);
    if (size) bar.append(part);
  }
  const share = plan.streamed < plan.total ? `${bytes(plan.streamed)} of them` : "all of them";
  const what = plan.streamed ? `${share} read in every pass` : "read once, at the start";
  return element("div", { className: "place" }, element("h4", {}, slow), element("p", { className: "of" }, `${bytes(plan.total)} of exact weights, ${what}`), bar);
}

/** Tokens of each pass of a message: [guessed, the exact model's own]. */
export function passesOf(message) {
  const passes = new Map();
  for (const [number, size] of Object.values(message?.marks ?? {}).flat()) {
    const found = passes.get(number) ?? [0, 0];
    found[size > 0 ? 0 : 1] += 1;
    passes.set(number, found);
  }
  return [...passes.keys()].sort((one, other) => one - other).map((number) => passes.get(number));
}

/** What the answer at hand took. */
export function answerNow(message, plan) {
  const figures = message?.figures;
  if (!figures) return element("p", { className: "hint" }, "Figures come with the first words.");
  const passes = passesOf(message);
  const most = Math.max(...passes.map(([guessed, own]) => guessed + own), 1);
  const chart = element("div", { className: "chart", role: "img", "aria-label": chartLabel(passes) });
  for (const [guessed, own] of passes.slice(-SHOWN)) {
    const column = element("span", { className: "column" });
    const parts = [element("i", { className: "own" }), element("i", { className: "guessed" })];
    parts[0].style.height = `${(own / most) * 100}%`;
    parts[1].style.height = `${(guessed / most) * 100}%`;
    column.append(...parts);
    chart.append(column);
  }
  const numbers = element(
    "dl",
    { className: "numbers" },
    number("tokens per pass", figures.tokens_per_pass.toFixed(1)),
    number("tokens/s", figures.tokens_per_second.toFixed(1)),
    number("link", figures.bytes_streamed ? speed(figures.link_bytes_per_second) : "not needed"),
    number(plan ? `memory, of ${bytes(plan.budget)}` : "memory", bytes(figures.peak_memory_bytes)),
  );
  return element("div", {}, numbers, chart, element("p", { className: "hint" }, "Tokens of each pass: guessed, and on top the exact model's own."));
}

function chartLabel(passes) {
  const guessed = passes.reduce((sum, pass) => sum + pass[0], 0);
  const own = passes.reduce((sum, pass) => sum + pass[1], 0);
  return `${plural(passes.length, "pass", "passes")}: ${plural(guessed, "guessed token")} accepted, ${own} of the exact model's own`;
}

function number(name, value) {
  return element("div", {}, element("dt", {}, name), element("dd", {}, value));
}

/** The rows of the batch: whose text runs in which, and how far it is. `names`: titles of this tab's answers by row. */
export function batch(state, names, before) {
  const running = new Map(state.running.map((text) => [text.row, text]));
  const rows = element("ul", { className: "rows" });
  for (let row = 0; row < state.plan.rows; row += 1) {
    const text = running.get(row);
    const name = text ? (names.get(row) ?? (state.replica ? "a text" : "another client")) : "free";
    const far = !text ? "" : text.tokens ? plural(text.tokens, "token") : `reading ${text.held} of ${text.prompt_tokens}`;
    rows.append(element("li", { className: text ? "taken" : "" }, element("span", { className: "name" }, name), element("span", { className: "far" }, far)));
  }
  const { passes = 0, pass_rows = 0 } = before ?? {};
  const more = state.figures.passes - passes;
  const together = before && more > 0 ? `${((state.figures.pass_rows - pass_rows) / more).toFixed(1)} texts in each pass` : "";
  const waiting = state.figures.num_requests_waiting ? plural(state.figures.num_requests_waiting, "waits", "wait") : "";
  const one = state.replica ? `replica ${state.replica}, one of several` : "";
  const line = [one, `${state.running.length} of ${plural(state.plan.rows, "row")} taken`, waiting, together].filter(Boolean).join(" · ");
  return element("div", {}, element("p", { className: "hint" }, line), rows);
}

/** The link's speed while it was busy between two looks; 0 where nothing came. */
export function linkSpeed(state, before) {
  const seconds = state.figures.link_busy_seconds - (before?.link_busy_seconds ?? 0);
  const count = state.figures.link_bytes - (before?.link_bytes ?? 0);
  return before && seconds > 0 && count > 0 ? count / seconds : 0;
}
