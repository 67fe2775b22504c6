/** What is asked: the boxes of each way of asking, and the instances that their texts make. */

import { Refusal } from "./asking.js";
import { make } from "./dom.js";
import { say, sayOf } from "./words.js";

export const MASK = "[MASK]";
const MOST_COMPARED = 8;

/**
 * The ways of asking by name. `boxes(model)` describes the boxes, `instances(values, model)` makes what is sent of
 * their texts and throws a `Refusal` that names a box, `extras(model, form)` are controls below the boxes.
 */
export const MODES = {
  one: { label: "modeOne", boxes: boxesOfFields, instances: oneInstance, extras: pairControls },
  pair: { label: "modePair", boxes: boxesOfFields, instances: oneInstance, extras: pairControls },
  masks: { label: "modeMasks", boxes: maskBox, instances: oneInstance, extras: maskButton },
  many: { label: "modeMany", boxes: manyBox, instances: manyInstances, extras: fileButton },
  several: { label: "modeSeveral", boxes: severalBox, instances: severalInstances, extras: () => [] },
  generate: { label: "modeOne", boxes: boxesOfFields, instances: oneInstance, extras: parameterBoxes },
};

const ROWS = { question: 2, context: 6, choices: 4 };
const ORDER = ["context", "question", "choices"];
const isPair = (model) => namesOf(model).includes("text_b");
const lines = (text) => text.split(/\r?\n/).filter((line) => line.trim());

/** Return the names of the columns of a model's input, in the order in which a person reads them. */
export function namesOf(model) {
  const names = model.fields.map(({ name }) => name);
  return names.includes("choices") ? ORDER.filter((name) => names.includes(name)) : names;
}

function boxesOfFields(model) {
  return namesOf(model).map((name) => {
    const { required } = model.fields.find((field) => field.name === name);
    return { name, label: labelOf(name, model), rows: ROWS[name] ?? 3, isOptional: !required };
  });
}

/** Return what a column is called. */
export function labelOf(name, model) {
  if (model.fields.length === 1) return say("fieldText");
  if (name === "context" && namesOf(model).includes("choices")) return say("fieldChoiceContext");
  return sayOf("field", name);
}

function oneInstance(values, model) {
  const instance = {};
  for (const { name, required, list } of model.fields) {
    const text = values[name] ?? "";
    if (text.trim()) instance[name] = list ? lines(text) : text;
    else if (required) throw new Refusal(say("emptyField"), { field: name });
  }
  return values.bothWays ? [instance, swapped(instance)] : [instance];
}

const swapped = ({ text_a, text_b, ...rest }) => ({ text_a: text_b, text_b: text_a, ...rest });

function maskBox(model) {
  return [{ name: namesOf(model)[0], label: say("fieldText"), hint: say("hintMasks"), rows: 3 }];
}

function manyBox(model) {
  return [{ name: "lines", label: say(isPair(model) ? "fieldManyPairs" : "fieldMany"), rows: 9 }];
}

function manyInstances(values, model) {
  const texts = lines(values.lines ?? "");
  if (!texts.length) throw new Refusal(say("emptyField"), { field: "lines" });
  return texts.map((line, number) => lineInstance(line.split("\t"), number, model));
}

function lineInstance(columns, number, model) {
  const needed = model.fields.filter(({ required }) => required).length;
  if (columns.length < needed) throw new Refusal(say("noSecondText", { line: number + 1 }), { field: "lines" });
  const known = namesOf(model).slice(0, columns.length);
  return Object.fromEntries(known.map((name, column) => [name, columns[column]]));
}

function severalBox() {
  return [{ name: "lines", label: say("fieldSeveral"), rows: 8 }];
}

function severalInstances(values, model) {
  const texts = lines(values.lines ?? "");
  const wrong = texts.length < 2 ? say("tooFew") : texts.length > MOST_COMPARED ? tooMany(texts.length) : maskIn(texts);
  if (wrong) throw new Refusal(wrong, { field: "lines" });
  return texts.map((text) => ({ [namesOf(model)[0]]: text }));
}

const tooMany = (count) => say("tooMany", { count, most: MOST_COMPARED });
const maskIn = (texts) => (texts.some((text) => text.includes(MASK)) ? say("noMaskHere") : "");

function pairControls(model, form) {
  if (!isPair(model)) return [];
  const swap = make("button", { type: "button", class: "plain", on: { click: exchange } }, `⇅ ${say("swap")}`);
  function exchange() {
    const { text_a: first, text_b: second } = form.elements;
    [first.value, second.value] = [second.value, first.value];
  }
  return [swap, ...(model.kind === "classification" ? [checkbox("bothWays", say("bothWays"))] : [])];
}

const checkbox = (name, label) => make("label", { class: "check" }, make("input", { type: "checkbox", name }), label);

function maskButton(model, form) {
  return [make("button", { type: "button", class: "plain", on: { click: insert } }, say("insertMask"))];
  function insert() {
    const box = form.elements[namesOf(model)[0]];
    box.setRangeText(MASK, box.selectionStart, box.selectionEnd, "end");
    box.focus();
  }
}

function fileButton(model, form) {
  const input = make("input", { type: "file", name: "file", accept: ".tsv,.txt,text/*", on: { change: read } });
  async function read() {
    form.elements.lines.value = await input.files[0].text();
  }
  return [make("label", { class: "file plain" }, input, say("openFile"))];
}

/** Return boxes for the numbers that a model takes, as it describes them: `{name: {minimum, maximum, value}}`. */
function parameterBoxes({ parameters = {} }) {
  const numbers = Object.entries(parameters).map(numberBox);
  if (!numbers.length) return [];
  return [
    make(
      "fieldset",
      { class: "parameters" },
      make("legend", {}, say("parameters")),
      make("div", { class: "numbers" }, numbers),
    ),
  ];
}

function numberBox([name, { minimum: min, maximum: max, value }]) {
  const id = `box-${name}`;
  const described = `wrong-${name}`;
  const step = Number.isInteger(min) ? 1 : min;
  const range = { min, max, step, value: value ?? "" };
  const input = make("input", { type: "number", id, name, ...range, "aria-describedby": described });
  const problem = make("p", { class: "wrong", id: described, hidden: true });
  return make("div", { class: "number" }, make("label", { for: id }, sayOf("parameter", name)), input, problem);
}

/** Return the parameters that the boxes of a form say; an empty box, or its first number, leaves the model's own. */
export function parametersOf({ parameters = {} }, form) {
  const numbers = Object.keys(parameters).map((name) => [name, form.elements[name].valueAsNumber]);
  const isAsked = ([name, value]) => !Number.isNaN(value) && value !== parameters[name].value;
  return Object.fromEntries(numbers.filter(isAsked));
}
