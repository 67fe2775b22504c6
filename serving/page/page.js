/** The page at /: picks a model, sends what is typed, shows the answer with its times, and keeps the last runs. */

import { curl, info, predict, Refusal, stream, useKey } from "./asking.js";
import { copyButton, find, make } from "./dom.js";
import { MODES, namesOf, parametersOf } from "./forms.js";
import { short } from "./marks.js";
import { KINDS } from "./panels.js";
import { decimal, locale, say, sayOf, speak, speaks } from "./words.js";

const RUNS_KEPT = 20;
const ASKED_AGAIN_MS = 2000;
const TIMES = ["queue", "tokenize", "compute"];
/** What a reply has of each instance. */
const LISTS = ["predictions", "tokens", "truncated"];

/** What is shown: the server's models by name, the one that is asked and how, the run on display, and those before. */
const state = { models: {}, limits: {}, name: "", mode: "", shown: undefined, runs: [], running: undefined };
const form = find("form");
const page = { fill: fillBox, announce };

async function start() {
  for (const button of document.querySelectorAll("[data-language]")) {
    button.addEventListener("click", () => speakTo(button.dataset.language));
  }
  find("model").addEventListener("change", ({ target }) => chooseModel(target.value));
  find("stop").addEventListener("click", () => state.running?.abort());
  find("clear").addEventListener("click", clear);
  form.addEventListener("submit", submit);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && state.name) form.requestSubmit();
  });
  sayAll();
  await readModels();
}

/** Ask the server for its models; while some are loading, again and again. */
async function readModels() {
  find("before").hidden = true;
  try {
    Object.assign(state, await info(locale()));
  } catch (error) {
    showBefore(messageOf(error), error.code === "unauthorized" ? keyBox() : againButton());
    return;
  }
  const models = Object.entries(state.models);
  const ready = models.filter(([, found]) => found.state === "ready").map(([name]) => name);
  if (ready.length < models.length) setTimeout(readModels, ASKED_AGAIN_MS);
  if (!ready.length) showBefore(say("loading"));
  const option = ([name]) => make("option", { value: name, disabled: !ready.includes(name) }, name);
  find("model").replaceChildren(...models.map(option));
  for (const id of ["model-head", "work"]) find(id).hidden = !ready.length;
  if (!state.name && ready.length) chooseModel(ready[0]);
  find("model").value = state.name;
}

/** Show what stands in the place of the form while there is no model. */
function showBefore(...children) {
  find("before").replaceChildren(...children);
  find("before").hidden = false;
}

const againButton = () => make("button", { type: "button", class: "plain", on: { click: readModels } }, say("again"));

function keyBox() {
  const input = make("input", { type: "password", id: "key", name: "key", autocomplete: "off" });
  const enter = (event) => {
    event.preventDefault();
    useKey(input.value);
    readModels();
  };
  const label = make("label", { for: "key" }, say("key"));
  return make("form", { class: "key", on: { submit: enter } }, label, input, make("button", {}, say("useKey")));
}

/** Show the texts of index.html, and everything that is made, in the language of the page. */
function sayAll() {
  speak(speaks("zh") ? "zh" : "en");
  for (const node of document.querySelectorAll("[data-say]")) node.textContent = say(node.dataset.say);
  for (const node of document.querySelectorAll("[data-say-label]")) {
    node.setAttribute("aria-label", say(node.dataset.sayLabel));
  }
  for (const button of document.querySelectorAll("[data-language]")) {
    button.setAttribute("aria-pressed", String(speaks(button.dataset.language)));
  }
}

function speakTo(language) {
  const typed = valuesOf();
  speak(language);
  sayAll();
  if (!state.name) return;
  showHead();
  showForm();
  enter(typed);
  showRun(state.shown);
  showRuns();
}

const model = () => state.models[state.name];
const kindOf = (found) => KINDS[found.kind];
/** Return the ways of asking a model: texts are compared where it gives vectors. */
const modesOf = (found) => Object.keys(kindOf(found).panels).filter((mode) => mode !== "several" || found.embeds);

function chooseModel(name) {
  state.running?.abort();
  state.name = name;
  find("model").value = name;
  [state.mode] = modesOf(model());
  showHead();
  showForm();
  showRun(undefined);
}

function showHead() {
  const { kind, labels, max_seq_length: count, precision, format, version } = model();
  find("title").textContent = say(kindOf(model()).title(model()));
  const facts = [
    sayOf("kind", kind),
    labels.length && say("factLabels", { count: labels.length }),
    say("factTokens", { count }),
    precision,
    sayOf("format", format),
    say("factVersion", { version }),
  ];
  find("facts").replaceChildren(...facts.filter(Boolean).map((fact) => make("span", {}, fact)));
}

function showForm() {
  const modes = modesOf(model());
  find("modes").hidden = modes.length < 2;
  find("modes").replaceChildren(...modes.map(modeButton));
  find("fields").replaceChildren(...MODES[state.mode].boxes(model()).map(box));
  find("fields").append(make("div", { class: "extras" }, MODES[state.mode].extras(model(), form)));
  find("problem").hidden = true;
  showExamples();
}

function modeButton(mode) {
  const choose = () => {
    state.running?.abort();
    state.mode = mode;
    showForm();
    showRun(undefined);
    find("modes").querySelector("[aria-pressed=true]").focus();
  };
  const attributes = { type: "button", "aria-pressed": String(mode === state.mode), on: { click: choose } };
  return make("button", attributes, say(MODES[mode].label));
}

function box({ name, label, rows, hint, isOptional }) {
  const id = `box-${name}`;
  const described = hint ? `hint-${name} wrong-${name}` : `wrong-${name}`;
  return make(
    "div",
    { class: "field" },
    make("label", { for: id }, label, isOptional && make("span", { class: "quiet" }, say("optional"))),
    make("textarea", { id, name, rows, "aria-describedby": described, spellcheck: "false", autocomplete: "off" }),
    hint && make("p", { class: "quiet", id: `hint-${name}` }, hint),
    make("p", { class: "wrong", id: `wrong-${name}`, hidden: true }),
  );
}

function showExamples() {
  const examples = model().examples.filter(canBeAsked);
  find("examples").hidden = !examples.length;
  const buttons = examples.map((example) => {
    const choose = () => {
      enter(textsOf(example));
      form.requestSubmit();
    };
    const text = short(Object.values(textsOf(example)).join(" · "), 44);
    return make("button", { type: "button", class: "example", on: { click: choose } }, text);
  });
  find("examples").replaceChildren(make("p", { class: "quiet" }, say("examples")), ...buttons);
}

const canBeAsked = (example) => Object.keys(textsOf(example)).every((name) => form.elements[name]);

/** Return an example of the server as texts of boxes. */
function textsOf(example) {
  const text = (name) => (Array.isArray(example[name]) ? example[name].join("\n") : example[name]);
  return Object.fromEntries(
    namesOf(model())
      .filter((name) => name in example)
      .map((name) => [name, text(name)]),
  );
}

/** Return what the form holds, by the names of its controls. */
function valuesOf() {
  const found = {};
  for (const { name, type, value, checked } of form.elements) {
    if (name && type !== "file") found[name] = type === "checkbox" ? checked : value;
  }
  return found;
}

function enter(values) {
  for (const [name, value] of Object.entries(values)) {
    const control = form.elements[name];
    if (!control) continue;
    if (control.type === "checkbox") control.checked = value;
    else control.value = value;
  }
}

function fillBox(name, text) {
  form.elements[name].value = text;
  form.elements[name].focus();
}

function clear() {
  enter(Object.fromEntries([...form.querySelectorAll("textarea")].map(({ name }) => [name, ""])));
  showWrong(undefined);
  showRun(undefined);
  form.querySelector("textarea").focus();
}

async function submit(event) {
  event.preventDefault();
  if (state.running) return;
  showWrong(undefined);
  const run = { name: state.name, mode: state.mode, model: model(), values: valuesOf() };
  try {
    run.instances = MODES[run.mode].instances(run.values, run.model);
    run.parameters = parametersOf(run.model, form);
    await answered(run);
    keep(run);
    announce(told(run));
  } catch (error) {
    if (error.name === "AbortError") announce(say("stopped"));
    else {
      showRun(undefined);
      showWrong(error);
    }
  } finally {
    setRunning(undefined);
  }
}

/** Ask the server and bring its reply into the run. */
async function answered(run) {
  setRunning(new AbortController());
  announce(say("running"));
  const options = { language: locale(), signal: state.running.signal };
  const begin = performance.now();
  run.body = { instances: run.instances, parameters: run.parameters };
  run.reply = run.model.streams ? await streamed(run, options) : await inParts(run, options);
  run.elapsed = performance.now() - begin;
}

/** Ask in requests of as many instances as the server takes, one after the other, and join the replies. */
async function inParts(run, options) {
  const most = state.limits.texts;
  const joined = { timing_ms: {} };
  for (let place = 0; place < run.instances.length; place += most) {
    const instances = run.instances.slice(place, place + most);
    const reply = await predict(run.name, { instances, parameters: run.parameters }, options);
    const lists = LISTS.map((name) => [name, [...(joined[name] ?? []), ...(reply[name] ?? [])]]);
    const times = TIMES.map((name) => [name, (joined.timing_ms[name] ?? 0) + reply.timing_ms[name]]);
    Object.assign(joined, reply, Object.fromEntries(lists), { timing_ms: Object.fromEntries(times) });
    announce(say("answered", { count: joined.predictions.length, all: run.instances.length }));
  }
  return joined;
}

async function streamed(run, options) {
  const text = make("p", { class: "marked large growing", "aria-busy": "true" });
  find("result").replaceChildren(text);
  find("notes").hidden = true;
  const begin = performance.now();
  let last;
  try {
    for await (const event of stream(run.name, run.body, options)) {
      if (event.done) last = event;
      else text.textContent = event.text;
    }
  } finally {
    text.classList.remove("growing");
    text.removeAttribute("aria-busy");
  }
  const { prediction, timing_ms, tokens, truncated } = last;
  run.seconds = (performance.now() - begin) / 1000;
  return { predictions: [prediction], timing_ms, tokens, truncated };
}

function setRunning(controller) {
  state.running = controller;
  find("run").disabled = Boolean(controller);
  find("stop").hidden = !controller;
  find("answer").setAttribute("aria-busy", String(Boolean(controller)));
}

function announce(text) {
  find("status").textContent = text;
}

function messageOf(error) {
  if (!(error instanceof Refusal)) throw error;
  const wait = error.retryAfter ? ` ${say("retryAfter", { seconds: error.retryAfter })}` : "";
  const own = { unreachable: "unreachable", unauthorized: "keyNeeded" }[error.code];
  return (own ? say(own) : error.message) + wait;
}

/** Show what is wrong beside the control that the server names, else above the button; undefined takes it away. */
function showWrong(error) {
  for (const note of form.querySelectorAll(".wrong")) note.hidden = true;
  for (const control of form.querySelectorAll("[aria-invalid]")) control.removeAttribute("aria-invalid");
  find("problem").hidden = true;
  if (!error) return;
  const message = messageOf(error);
  const name = (error.field ?? "").split(/[^\w]+/).findLast((part) => find(`wrong-${part}`));
  const note = name ? find(`wrong-${name}`) : find("problem");
  note.textContent = message;
  note.hidden = false;
  if (name) {
    form.elements[name].setAttribute("aria-invalid", "true");
    form.elements[name].focus();
  }
  announce(message);
}

/** Return the answer of a run in a few words. */
function told({ model: asked, mode, reply: { predictions } }) {
  if (mode === "several") return say("compared", { count: predictions.length });
  if (mode === "many") return say("answered", { count: predictions.length, all: predictions.length });
  return predictions.slice(0, 2).map(kindOf(asked).tell).join(" · ");
}

function keep(run) {
  run.time = new Date();
  state.runs = [run, ...state.runs].slice(0, RUNS_KEPT);
  showRun(run);
  showRuns();
}

function showRun(run) {
  state.shown = run;
  find("notes").hidden = !run;
  if (!run) {
    find("result").replaceChildren(make("p", { class: "quiet empty" }, say("nothingYet")));
    return;
  }
  const panel = kindOf(run.model).panels[run.mode];
  find("result").replaceChildren(
    ...panel(run, page)
      .flat(Infinity)
      .filter((node) => node !== undefined),
  );
  const raw = make("pre", { tabindex: "0" }, JSON.stringify(run.reply, undefined, 2));
  find("notes").replaceChildren(
    ...tokenNotes(run),
    timeBar(run),
    make(
      "div",
      { class: "note-actions" },
      copyButton(say("copyCurl"), say("copied"), () => curl(run.name, run.body)),
      make("details", {}, make("summary", {}, say("raw")), raw),
    ),
  );
}

/** Return how many tokens a text has, and whether the model read all of them. */
function tokenNotes({ model: { max_seq_length: most }, reply: { tokens = [], truncated = [] } }) {
  const count = tokens.length === 1 && make("p", { class: "quiet" }, say("tokens", { count: tokens[0], most }));
  const cut = truncated.some(Boolean) && make("p", { class: "note" }, say("truncated", { most }));
  return [count, cut].filter(Boolean);
}

function timeBar({ reply: { timing_ms: times }, elapsed }) {
  const parts = TIMES.map((name) => make("span", { class: `part ${name}`, vars: { share: times[name] } }));
  const names = TIMES.map((name) =>
    make(
      "li",
      {},
      make("span", { class: `dot ${name}`, "aria-hidden": "true" }),
      `${say(name)} ${decimal(times[name], 1)} ms`,
    ),
  );
  return make(
    "div",
    { class: "time" },
    make("h3", {}, say("timing")),
    make("div", { class: "time-bar", "aria-hidden": "true" }, parts),
    make("ul", { class: "legend" }, names, make("li", {}, say("roundTrip", { total: decimal(elapsed, 0) }))),
  );
}

function showRuns() {
  find("runs").hidden = !state.runs.length;
  find("runs-list").replaceChildren(...state.runs.map((run) => make("li", {}, runButton(run))));
}

function runButton(run) {
  const again = () => {
    chooseModel(run.name);
    state.mode = run.mode;
    showForm();
    enter(run.values);
    showRun(run);
    find("answer").focus();
  };
  const asked = Object.values(run.instances[0]).flat().join(" · ");
  return make(
    "button",
    { type: "button", class: "past", on: { click: again } },
    make("time", { datetime: run.time.toISOString() }, run.time.toLocaleTimeString(locale(), { hourCycle: "h23" })),
    make("span", { class: "past-model" }, run.name),
    make("span", { class: "past-asked" }, short(asked, 70)),
    make("span", { class: "past-told" }, short(told(run), 40)),
  );
}

start();
