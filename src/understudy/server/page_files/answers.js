// Answers under way, one at most for each conversation, any number together: the server runs them in the same passes.

import { ServerError, chunks } from "./api.js";
import { save } from "./store.js";

// Milliseconds between two times that an answer under way is kept.
const KEEP = 1000;

/** The body that asks for the next message of a conversation. */
export function bodyOf(conversation) {
  const messages = conversation.system.trim() ? [{ role: "system", content: conversation.system }] : [];
  for (const { role, content, reasoning } of conversation.messages) {
    const last = messages.at(-1);
    // A question that no answer came to and the next one: many templates want turns that alternate.
    if (role === "user" && last?.role === "user") last.content += `\n\n${content}`;
    else if (content || role === "user") messages.push({ role, content, ...(reasoning ? { reasoning_content: reasoning } : {}) });
  }
  const model = conversation.model ? { model: conversation.model } : {};
  return { ...model, messages, stream: true, return_drafting: true, ...conversation.sampling };
}

/** Takes one chunk of a stream into `message`; returns the tokens it brought. */
export function take(message, chunk) {
  const choice = chunk.choices?.[0];
  if (chunk.understudy) message.figures = chunk.understudy;
  if (!choice) return [];
  message.content += choice.delta?.content ?? "";
  message.reasoning += choice.delta?.reasoning_content ?? "";
  message.finish = choice.finish_reason ?? message.finish;
  const tokens = choice.drafting?.tokens ?? [];
  for (const token of tokens) {
    const size = token.text.length;
    (message.marks[token.kind] ??= []).push([token.pass, token.drafted ? size : -size]);
  }
  return tokens;
}

export const fresh = () => ({
  role: "assistant",
  content: "",
  reasoning: "",
  // By kind of text: [number of the pass, characters] of each token; negative: the exact model's own.
  marks: {},
  state: "streaming",
  beat: Date.now(),
  finish: null,
  figures: null,
  note: "",
});

export class Answers {
  /** `told(conversation, message, tokens)` is called after each chunk, and with null tokens at the end. */
  constructor(told) {
    this.told = told;
    this.running = new Map();
  }

  isRunning(id) {
    return this.running.has(id);
  }

  /** Ask for the next message of `conversation`; it is kept as it comes. */
  async start(conversation) {
    const message = fresh();
    const body = bodyOf(conversation);
    conversation.messages.push(message);
    const run = { conversation, message, controller: new AbortController() };
    this.running.set(conversation.id, run);
    this.keep(run);
    const timer = setInterval(() => this.keep(run), KEEP);
    try {
      for await (const chunk of chunks(body, run.controller.signal)) this.told(conversation, message, take(message, chunk));
      message.state = "done";
    } catch (error) {
      if (run.controller.signal.aborted) message.state = "stopped";
      else if (error instanceof ServerError) this.failed(message, error);
      else throw error;
    } finally {
      clearInterval(timer);
      if (message.state === "streaming") this.failed(message, new Error("This page failed."));
      this.running.delete(conversation.id);
      this.keep(run);
      this.told(conversation, message, null);
    }
  }

  failed(message, error) {
    message.state = "failed";
    message.note = error.message;
    message.status = error.status ?? 0;
  }

  stop(id) {
    this.running.get(id)?.controller.abort();
  }

  /** Stop the answer of a conversation that is deleted: it is not kept any more. */
  forget(id) {
    const run = this.running.get(id);
    if (run) run.forgotten = true;
    this.stop(id);
  }

  keep({ conversation, message, forgotten }) {
    if (forgotten) return;
    message.beat = Date.now();
    conversation.changed = Date.now();
    save(conversation);
  }

  /** Before the page goes: what is there stays, and nothing is under way any more. */
  leave() {
    for (const run of this.running.values()) {
      run.message.state = "stopped";
      run.message.note = "Cut off when the page was left.";
      this.keep(run);
      run.controller.abort();
    }
  }
}
