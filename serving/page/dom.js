/** Elements made by calls: text enters as text nodes only, so nothing that a person or a model wrote becomes HTML. */

/**
 * Return a new element.
 * @param {string} tag
 * @param {object} attributes - by name; `on` holds listeners by event, `vars` custom properties of CSS; what is
 *   undefined or false is left out.
 * @param {...(Node|string|undefined|false|Array)} children - strings become text nodes; undefined and false nothing.
 */
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  const { on = {}, vars = {}, ...plain } = attributes;
  for (const [name, value] of Object.entries(plain)) {
    if (value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  for (const [event, listener] of Object.entries(on)) node.addEventListener(event, listener);
  // The content security policy forbids style attributes, and allows properties that are set by name.
  for (const [name, value] of Object.entries(vars)) node.style.setProperty(`--${name}`, value);
  node.append(...children.flat(Infinity).filter((child) => child !== undefined && child !== false));
  return node;
}

/** Return the element of index.html with an id. */
export const find = (id) => document.getElementById(id);

/** Return the button that copies what `text()` gives, and says so for a moment. */
export function copyButton(label, done, text) {
  const button = make("button", { type: "button", class: "plain", on: { click: copy } }, label);
  async function copy() {
    await writeToClipboard(text());
    button.textContent = done;
    setTimeout(() => (button.textContent = label), 1600);
  }
  return button;
}

async function writeToClipboard(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Over plain HTTP from another machine the browser has no clipboard object.
  const area = make("textarea", { class: "hidden" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** Offer a text as a file. */
export function download(name, text, type = "text/tab-separated-values") {
  const address = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  const link = make("a", { href: address, download: name });
  link.click();
  URL.revokeObjectURL(address);
}
