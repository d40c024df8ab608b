// A finished answer as Markdown. marked reads it, DOMPurify builds what is shown: text, code and links, nothing that loads or runs.

import { element } from "./dom.js";
import { Marked } from "./vendor/marked.esm.js";
import "./vendor/purify.min.js";

const purify = globalThis.DOMPurify;
const LINKS = /^(?:https?|mailto):/i;
const TAGS = [
  ..."p br hr strong em del code pre blockquote ul ol li h1 h2 h3 h4 h5 h6 table thead tbody tr th td a".split(" "),
];

const escaped = (text) =>
  text.replace(/[&<>"']/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" })[sign]);

const marked = new Marked({
  gfm: true,
  breaks: false,
  // Between <script> and its end marked takes text for tags that are to be as they are.
  walkTokens(token) {
    if (token.type === "text") token.escaped = false;
  },
  renderer: {
    // Tags that a model writes are shown as they stand.
    html: ({ text }) => escaped(text),
    // Pictures would be asked for elsewhere, and tell what was said: their address is a link at most.
    image: ({ href, text }) => {
      const name = escaped(text || href);
      return LINKS.test(href) ? `<a href="${escaped(href)}">${name}</a>` : name;
    },
    heading({ tokens, depth }) {
      // Below the page's own headings.
      const level = Math.min(depth + 2, 6);
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

/** The nodes of a Markdown text; the text as it stands where it is nested too deep to be read. */
export function rendered(text) {
  let read;
  try {
    read = marked.parse(text);
  } catch (error) {
    // marked reads a quote in a quote by calling itself, and a model that repeats itself writes thousands.
    if (!(error instanceof RangeError)) throw error;
    return element("div", { className: "plain" }, text);
  }
  const fragment = purify.sanitize(read, {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ["href", "align", "start"],
    ALLOWED_URI_REGEXP: LINKS,
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  return fragment;
}
