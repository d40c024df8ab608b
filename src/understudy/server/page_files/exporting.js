// A conversation for use elsewhere.

import { element } from "./dom.js";
import { title } from "./store.js";

export function asMarkdown(conversation) {
  const parts = [`# ${title(conversation)}`];
  if (conversation.system.trim()) parts.push(`> ${conversation.system.trim().split("\n").join("\n> ")}`);
  for (const { role, content } of conversation.messages) parts.push(`## ${role === "user" ? "Question" : "Answer"}`, content);
  return `${parts.join("\n\n")}\n`;
}

/** In the form that the API takes, with what it was asked with. */
export function asJson(conversation) {
  const { created, model, system, sampling, messages } = conversation;
  const told = messages.map(({ role, content, reasoning, finish, figures }) => ({
    role,
    content,
    ...(reasoning ? { reasoning_content: reasoning } : {}),
    ...(finish ? { finish_reason: finish } : {}),
    ...(figures ? { understudy: figures } : {}),
  }));
  const first = system.trim() ? [{ role: "system", content: system }] : [];
  return `${JSON.stringify({ created: new Date(created).toISOString(), model, sampling, messages: [...first, ...told] }, null, 2)}\n`;
}

export function download(conversation, content, kind, ending) {
  const name = title(conversation).replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").toLowerCase() || "conversation";
  const address = URL.createObjectURL(new Blob([content], { type: kind }));
  element("a", { href: address, download: `${name}.${ending}` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
