/** What went wrong, in words, with what can be done about it. */

import { byId, element } from "./dom.js";
import { seconds } from "./numerals.js";

const TITLES = {
  unreachable: "The service cannot be reached",
  unauthenticated: "The service wants a key",
  forbidden: "The key does not permit this",
  too_large: "Too large for this service",
  invalid_input: "This cannot be used",
  malformed: "This cannot be used",
  unknown_model: "No such size here",
  fingerprint_mismatch: "These codes are of other weights",
  overloaded: "The service is busy",
  not_ready: "The service is not ready",
  deadline_exceeded: "It took too long",
};
const AGAIN = ["unreachable", "overloaded", "not_ready", "deadline_exceeded", "internal", "unknown"];

/** Tell of `error`. `again` is offered where trying again may help, after the time that the service asks for. */
export function tell(error, again, actions = []) {
  const { code = "unknown", message, requestId = "", waitMs = null } = error;
  const shown = byId("notice");
  const parts = [element("h2", {}, TITLES[code] ?? "It did not work"), element("p", {}, sentence(message))];
  if (code === "overloaded" && waitMs !== null)
    parts.push(element("p", {}, `It asks to come again in ${seconds(waitMs / 1000)}.`));
  if (requestId) parts.push(element("p", { class: "quiet" }, `Request ${requestId}`));
  const offered = AGAIN.includes(code) && again ? [["Try again", again], ...actions] : actions;
  const buttons = offered.map(([label, act]) => button(label, act, code === "overloaded" ? waitMs : null));
  shown.replaceChildren(...parts, element("p", { class: "buttons" }, ...buttons, button("Dismiss", clear)));
  shown.hidden = false;
}

export function clear() {
  byId("notice").hidden = true;
  byId("notice").replaceChildren();
}

function button(label, act, waitMs = null) {
  const made = element("button", { type: "button" }, label);
  made.addEventListener("click", () => {
    clear();
    act();
  });
  if (waitMs) {
    made.disabled = true;
    setTimeout(() => (made.disabled = false), waitMs);
  }
  return made;
}

function sentence(message) {
  const text = message.charAt(0).toUpperCase() + message.slice(1);
  return /[.?!…]$/.test(text) ? text : `${text}.`;
}
