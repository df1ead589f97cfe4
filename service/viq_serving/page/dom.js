/** Elements made and found in the page, without markup as text. */

/** The element of this id. */
export function byId(id) {
  return document.getElementById(id);
}

/** A new element; `about` holds attributes, children are elements or text. */
export function element(tag, about = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(about)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A row of a table: its head, then its cells. */
export function row(head, ...cells) {
  return element("tr", {}, element("th", { scope: "row" }, head), ...cells.map((cell) => element("td", {}, cell)));
}

/** Options of a select, `[value, label]` each; keeps what was chosen if it is still there, and tells what is. */
export function choices(select, options, wanted = select.value) {
  select.replaceChildren(...options.map(([value, label]) => element("option", { value }, label)));
  if (options.some(([value]) => value === wanted)) select.value = wanted;
  return select.value;
}

/** Offer a file to keep. */
export function offer(data, name, type) {
  const url = URL.createObjectURL(new Blob([data], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
