// What a conversation looks like: tokens with their marks while an answer comes, Markdown when it is finished.

import { copy, element, icon, plural, speed } from "./dom.js";
import { rendered } from "./markdown.js";
import { underWay } from "./store.js";

const CUT = { stopped: "Stopped.", failed: "Failed." };

/** One token: underlined where it is the exact model's own. */
function tokenSpan(text, drafted, number) {
  const how = drafted ? `guessed and accepted in pass ${number}` : `the exact model's own, in pass ${number}`;
  return element("span", { className: drafted ? "drafted" : "exact", title: how }, text);
}

/** Adds tokens to `box`, those of one pass together. */
function addToken(box, text, drafted, number) {
  let group = box.lastElementChild;
  if (!group || group.dataset.pass !== String(number)) {
    group = element("span", { className: "pass" });
    group.dataset.pass = number;
    box.append(group);
  }
  // A line under the space before a word would say nothing.
  const word = drafted ? text : text.trimStart();
  if (word.length < text.length) group.append(text.slice(0, text.length - word.length));
  if (word) group.append(tokenSpan(word, drafted, number));
}

/** A text with its marks; what no mark covers stands as it is. */
function marked(text, marks = []) {
  const box = element("div", { className: "tokens" });
  let at = 0;
  for (const [number, size] of marks) {
    addToken(box, text.slice(at, at + Math.abs(size)), size > 0, number);
    at += Math.abs(size);
  }
  if (at < text.length) box.append(text.slice(at));
  return box;
}

export function figuresLine(figures) {
  if (!figures?.tokens) return "";
  const parts = [
    plural(figures.tokens, "token"),
    `${figures.tokens_per_second.toFixed(1)} tokens/s`,
    `${figures.tokens_per_pass.toFixed(1)} tokens per pass`,
  ];
  if (figures.bytes_streamed) parts.push(`link ${speed(figures.link_bytes_per_second)}`);
  return parts.join(" · ");
}

/** The list of messages. `act(what, index, detail)` is called for what a person does with one of them. */
export class Messages {
  constructor(list, act) {
    this.list = list;
    this.act = act;
    // Answers that are shown by their tokens although they are finished.
    this.byTokens = new WeakSet();
  }

  show(conversation, running) {
    this.conversation = conversation;
    this.list.replaceChildren(...conversation.messages.map((message, index) => this.item(message, index, running)));
  }

  /** Shows the message `index` anew. */
  refresh(index, running) {
    const old = this.list.children[index];
    const made = this.item(this.conversation.messages[index], index, running);
    if (old) old.replaceWith(made);
    else this.list.append(made);
  }

  /** Adds tokens to the last message, which is under way. */
  add(tokens, figures) {
    const item = this.list.lastElementChild;
    for (const { text, kind, drafted, pass } of tokens) addToken(this.place(item, kind), text, drafted, pass);
    item.querySelector(".waiting")?.remove();
    item.querySelector(".figures").textContent = figuresLine(figures);
  }

  /** Where tokens of a kind go. */
  place(item, kind) {
    const found = item.querySelector(`.${kind} .tokens`);
    if (found) return found;
    const tokens = element("div", { className: "tokens" });
    const body = item.querySelector(".body");
    if (kind === "reasoning") body.prepend(thoughts(tokens, true));
    else body.append(element("div", { className: "content" }, tokens));
    return tokens;
  }

  item(message, index, running) {
    if (message.role === "user") return this.question(message, index);
    const last = index === this.conversation.messages.length - 1;
    const mine = running && last;
    const item = element("li", { className: "answer" });
    const coming = mine || underWay(message);
    item.setAttribute("aria-busy", String(coming));
    const head = element("h2", { className: "hidden" }, "Answer");
    const body = element("div", { className: "body" });
    item.append(head, body);
    this.fill(body, message, coming || this.byTokens.has(message));
    if (coming && !message.content && !message.reasoning) {
      body.append(element("p", { className: "waiting" }, mine ? "Reading" : "Another tab is asking", dots()));
    }
    const note = this.note(message, coming);
    if (note) item.append(note);
    const figures = element("p", { className: "figures" }, figuresLine(message.figures));
    item.append(element("div", { className: "foot" }, figures, coming ? null : this.tools(message, index, last)));
    return item;
  }

  fill(body, message, tokens) {
    if (message.reasoning) {
      const text = tokens ? marked(message.reasoning, message.marks?.reasoning) : element("div", { className: "plain" }, message.reasoning);
      body.append(thoughts(text, tokens));
    }
    if (!message.content) return;
    const content = element("div", { className: "content" });
    if (tokens) content.append(marked(message.content, message.marks?.content));
    else {
      content.classList.add("markdown");
      content.append(rendered(message.content));
      for (const block of content.querySelectorAll("pre")) withCopy(block);
      for (const table of content.querySelectorAll("table")) scrollable(table);
    }
    body.append(content);
  }

  note(message, coming) {
    if (coming) return null;
    const cut = message.state === "streaming" ? "Cut off." : CUT[message.state];
    const ended = message.state === "done" && message.finish === "length" ? "It ended at the most tokens that there may be." : "";
    const text = [cut, message.note, ended].filter(Boolean).join(" ");
    return text ? element("p", { className: message.state === "failed" ? "note failed" : "note" }, text) : null;
  }

  tools(message, index, last) {
    const tools = element("div", { className: "tools" });
    if (message.content) tools.append(this.tool("copy", "Copy", async (button) => copied(button, await copy(message.content))));
    if (last) tools.append(this.tool("again", "Regenerate", () => this.act("again", index)));
    if (message.marks?.content?.length || message.marks?.reasoning?.length) {
      const on = this.byTokens.has(message);
      const button = this.tool("tokens", "How it came about", () => {
        if (on) this.byTokens.delete(message);
        else this.byTokens.add(message);
        this.refresh(index, false);
        this.list.children[index].querySelector("[aria-pressed]")?.focus();
      });
      button.setAttribute("aria-pressed", String(on));
      tools.append(button);
    }
    return tools;
  }

  tool(sign, name, call) {
    const button = element("button", { type: "button", title: name, "aria-label": name }, icon(sign));
    button.addEventListener("click", () => call(button));
    return button;
  }

  question(message, index) {
    const item = element("li", { className: "question" });
    const text = element("div", { className: "said" }, message.content);
    const tools = element(
      "div",
      { className: "tools" },
      this.tool("copy", "Copy question", async (button) => copied(button, await copy(message.content))),
      this.tool("edit", "Edit question", () => this.edit(item, message, index)),
    );
    item.append(element("h2", { className: "hidden" }, "You"), text, tools);
    return item;
  }

  edit(item, message, index) {
    if (this.list.querySelector("[aria-busy=true]")) return;
    const area = element("textarea", { value: message.content, "aria-label": "Edit the question" });
    const send = element("button", { type: "button", className: "solid" }, "Ask again");
    const cancel = element("button", { type: "button", className: "quiet" }, "Cancel");
    const back = () => {
      this.refresh(index, false);
      this.list.children[index]?.querySelector('[aria-label="Edit question"]')?.focus();
    };
    cancel.addEventListener("click", back);
    send.addEventListener("click", () => area.value.trim() && this.act("edit", index, area.value));
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        back();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send.click();
      }
    });
    item.classList.add("editing");
    item.replaceChildren(area, element("div", { className: "row" }, cancel, send));
    area.rows = Math.min(Math.max(message.content.split("\n").length, 2), 12);
    area.focus();
  }
}

function thoughts(text, open) {
  return element("details", { className: "reasoning", open }, element("summary", {}, "Reasoning"), text);
}

function dots() {
  return element("span", { className: "dots", "aria-hidden": "true" });
}

function copied(button, done) {
  button.replaceChildren(icon(done ? "done" : "copy"));
  button.title = done ? "Copied" : "This browser did not let us copy";
  setTimeout(() => {
    button.replaceChildren(icon("copy"));
    button.title = button.getAttribute("aria-label");
  }, 1500);
}

function withCopy(block) {
  const box = element("div", { className: "code" });
  const button = element("button", { type: "button", title: "Copy code", "aria-label": "Copy code" }, icon("copy"));
  button.addEventListener("click", async () => copied(button, await copy(block.textContent)));
  block.replaceWith(box);
  // A box that scrolls can be reached by the keyboard.
  block.tabIndex = 0;
  box.append(block, button);
}

function scrollable(table) {
  const box = element("div", { className: "wide-table", tabIndex: 0 });
  table.replaceWith(box);
  box.append(table);
}
