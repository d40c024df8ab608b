// What the page asks of the server: JSON, and streams of events. The key lives as long as the tab.

const KEY = "understudy.key";
// Milliseconds in which the server says how it is. One that hangs, or that the network lost, may leave a connection open for ever.
const PATIENCE = 10000;

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** What the server answered that was no success; status 0: it did not answer at all. */
export class ServerError extends Error {
  constructor(status, message, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

function headers(more = {}) {
  return key.get() ? { Authorization: `Bearer ${key.get()}`, ...more } : more;
}

async function asked(path, options) {
  try {
    return await fetch(path, { credentials: "omit", referrerPolicy: "no-referrer", cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The server does not answer.");
  }
}

async function failure(response) {
  const found = await response.json().catch(() => ({}));
  return new ServerError(response.status, found.error?.message ?? `The server answered ${response.status}.`, found.error?.code);
}

/** The object at `path`. Raises ServerError. */
export async function object(path) {
  const response = await asked(path, { headers: headers(), signal: AbortSignal.timeout(PATIENCE) });
  if (!response.ok) throw await failure(response);
  return response.json().catch(() => {
    throw new ServerError(0, "The connection broke off.");
  });
}

/** How the server is: {status, stage, progress}, also while it loads. Raises ServerError where it does not answer. */
export async function health() {
  const response = await asked("health", { signal: AbortSignal.timeout(PATIENCE) });
  return response.json().catch((error) => {
    if (error instanceof SyntaxError) return { status: `answered ${response.status}` };
    throw new ServerError(0, "The connection broke off.");
  });
}

/** The objects of a streamed answer as they come, to the end of the stream. Raises ServerError, also for one told in it. */
export async function* chunks(body, signal) {
  const response = await asked("v1/chat/completions", {
    method: "POST",
    headers: headers({ "Content-Type": "application/json" }),
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw await failure(response);
  let whole = false;
  for await (const data of events(response)) {
    if (data === "[DONE]") {
      whole = true;
      break;
    }
    const found = JSON.parse(data);
    if (found.error) throw new ServerError(response.status, found.error.message, found.error.code);
    yield found;
  }
  if (!whole) throw new ServerError(0, "The connection broke off.");
}

/** The data of server-sent events. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const whole = rest.split("\n\n");
      rest = whole.pop();
      for (const event of whole) {
        const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
        if (data.length) yield data.join("\n");
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The connection broke off.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
