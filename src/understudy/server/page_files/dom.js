// Small things that all views need. Text only ever becomes a text node.

/** An element with a class, properties and children; texts become text nodes. */
export function element(name, given = {}, ...children) {
  const found = document.createElement(name);
  for (const [key, value] of Object.entries(given)) {
    if (key in found) found[key] = value;
    else found.setAttribute(key, value);
  }
  found.append(...children.filter((child) => child !== null && child !== undefined));
  return found;
}

export const byId = (id) => document.getElementById(id);

const PATHS = {
  copy: "M9 9h10v11H9zM15 9V4H5v11h4",
  again: "M19 12a7 7 0 1 1-2.2-5.1M19 4v4h-4",
  edit: "M5 19h3L19 8l-3-3L5 16z",
  tokens: "M4 7h7M14 7h6M4 12h12M4 17h5M12 17h8",
  done: "M5 12.5l5 5L19 7",
};

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** Say something to a screen reader, once. */
export function announce(text) {
  byId("status").textContent = text;
}

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let size = count;
  let unit = 0;
  for (; size >= 1024 && unit < units.length - 1; unit += 1) size /= 1024;
  return `${unit && size < 10 ? size.toFixed(1) : Math.round(size)} ${units[unit]}`;
}

/** Links are sold in decimal: 1.31 GB/s, 18 MB/s. */
export function speed(bytesPerSecond) {
  return bytesPerSecond >= 1e9 ? `${(bytesPerSecond / 1e9).toFixed(2)} GB/s` : `${Math.round(bytesPerSecond / 1e6)} MB/s`;
}

export const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

export function words(text) {
  return text.trim() ? text.trim().split(/\s+/).length : 0;
}

/** Put `text` on the clipboard; false where the browser does not let us. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Pages that do not come by TLS or from this machine have no clipboard of their own.
    const area = element("textarea", { value: text, className: "hidden" });
    const before = document.activeElement;
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    before?.focus();
    return copied;
  }
}
