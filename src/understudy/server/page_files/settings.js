// The system prompt and sampling of one conversation. What is left empty is as the model's own configuration says.

import { byId, element } from "./dom.js";
import { ServerError, object } from "./api.js";

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];

export class Settings {
  /** `changed` is called after each change. */
  constructor(changed) {
    this.changed = changed;
    this.dialog = byId("settings");
    byId("system").addEventListener("input", () => this.read());
    byId("model").addEventListener("change", () => this.read());
    for (const name of NUMBERS) byId(name).addEventListener("input", () => this.read());
    byId("close-settings").addEventListener("click", () => this.dialog.close());
    byId("default-settings").addEventListener("click", () => {
      for (const name of NUMBERS) byId(name).value = "";
      this.read();
    });
  }

  fill(conversation) {
    this.conversation = conversation;
    byId("system").value = conversation.system;
    for (const name of NUMBERS) byId(name).value = conversation.sampling[name] ?? "";
    const used = conversation.system.trim() || Object.keys(conversation.sampling).length;
    byId("open-settings").classList.toggle("used", Boolean(used));
  }

  read() {
    const sampling = {};
    for (const name of NUMBERS) {
      const field = byId(name);
      // A number that the field does not take is not sent.
      if (field.value !== "" && field.validity.valid) sampling[name] = field.valueAsNumber;
    }
    const model = byId("model-field").hidden ? "" : byId("model").value;
    Object.assign(this.conversation, { system: byId("system").value, sampling, model });
    byId("open-settings").classList.toggle("used", Boolean(this.conversation.system.trim() || Object.keys(sampling).length));
    this.changed();
  }

  async open(state) {
    this.dialog.showModal();
    if (!state) return;
    try {
      const { data } = await object("v1/models");
      const names = data.map(({ id }) => id);
      byId("model").replaceChildren(...names.map((name) => element("option", { value: name }, name)));
      byId("model").value = names.includes(this.conversation.model) ? this.conversation.model : names[0];
      byId("model-field").hidden = names.length < 2;
      // A model that is not here any more is asked for no longer.
      if (!names.includes(this.conversation.model)) this.read();
    } catch (error) {
      if (!(error instanceof ServerError)) throw error;
    }
  }
}
