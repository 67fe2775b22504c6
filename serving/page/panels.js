/** How answers are shown: a panel for each kind of model and way of asking, made of the reply and what was asked. */

import { copyButton, download, make } from "./dom.js";
import { labelOf, MASK, namesOf } from "./forms.js";
import { pieces, short } from "./marks.js";
import { decimal, fixed, percent, say } from "./words.js";

const LABELS_AT_FIRST = 5;
// Of colours that are this far apart, however many there are, the next lies in the widest gap.
const GOLDEN_ANGLE = 137.5;
const FIRST_HUE = 230;

/**
 * What the page knows of a kind: its heading; its ways of asking (`forms.MODES`) with a panel for each, which gets a
 * run `{model, instances, reply}` and `page`; and `tell`, the answer to one instance in a few words.
 */
export const KINDS = {
  classification: {
    title: (model) => (model.fields.length > 1 ? "titlePair" : "titleClassification"),
    panels: { one: labelPanel, many: tablePanel },
    tell: (answer) => `${answer.prediction} ${percent(answer.confidence)}`,
  },
  multilabel: {
    title: () => "titleMultilabel",
    panels: { one: thresholdPanel, many: tablePanel },
    tell: (answer) => answer.prediction.join(", ") || say("noLabels"),
  },
  regression: {
    title: () => "titleRegression",
    panels: { one: scorePanel, many: tablePanel },
    tell: (answer) => `${say("score")} ${decimal(answer.score, 3)}`,
  },
  matching: { title: () => "titleMatching", panels: { pair: cosinePanel, several: comparisonPanel }, tell: tellVector },
  mining: { title: () => "titleMatching", panels: { pair: cosinePanel, several: comparisonPanel }, tell: tellVector },
  tagging: {
    title: () => "titleTagging",
    panels: { one: entityPanel },
    tell: (answer) => say("entitiesFound", { count: answer.entities.length }),
  },
  span: {
    title: () => "titleSpan",
    panels: { one: answerPanel },
    tell: (answer) => `${answer.answer || say("noAnswer")} ${percent(answer.probability)}`,
  },
  choice: {
    title: () => "titleChoice",
    panels: { one: choicePanel },
    tell: (answer) => `${answer.choice} ${percent(answer.probabilities[answer.prediction])}`,
  },
  generation: { title: () => "titleGeneration", panels: { generate: textPanel }, tell: (answer) => answer.generated },
  pretrained: {
    title: () => "titlePretrained",
    panels: { masks: gapPanel, several: comparisonPanel },
    tell: (answer) => (answer.masks ? answer.masks.map(([best]) => best.token).join(" ") : tellVector(answer)),
  },
};

function tellVector(answer) {
  if ("cosine" in answer) return `${say("cosine")} ${fixed(answer.cosine, 3)}`;
  return say("vector", { count: answer.embedding.length });
}

/** Return bars of rows `{label, share, text, isChosen}` as a list. */
function bars(rows) {
  const row = ({ label, share, text = percent(share), isChosen }) =>
    make(
      "li",
      { class: isChosen ? "bar chosen" : "bar", vars: { share: Math.max(0, share) } },
      make("span", { class: "bar-label" }, label),
      make("span", { class: "bar-value" }, text),
      make("span", { class: "bar-line", "aria-hidden": "true" }),
    );
  return make("ol", { class: "bars" }, rows.map(row));
}

function headline(text, value, note) {
  const number = value === undefined ? undefined : make("span", { class: "headline-value" }, value);
  return make(
    "p",
    { class: "headline" },
    make("strong", {}, text),
    number,
    note && make("span", { class: "quiet" }, note),
  );
}

const subtitle = (text) => make("h3", {}, text);
const sorted = (probabilities) => Object.entries(probabilities).sort((a, b) => b[1] - a[1]);

function labelPanel({ reply }) {
  const titles = reply.predictions.length > 1 ? [say("firstToSecond"), say("secondToFirst")] : [];
  const blocks = reply.predictions.map((answer, number) =>
    make("div", { class: "block" }, titles[number] && subtitle(titles[number]), labelBlock(answer)),
  );
  return [make("div", { class: blocks.length > 1 ? "beside" : "" }, blocks)];
}

function labelBlock({ prediction, confidence, probabilities }) {
  const rows = sorted(probabilities).map(([label, share]) => ({ label, share, isChosen: label === prediction }));
  const note = confidence < 0.5 ? make("p", { class: "note" }, say("unsure")) : undefined;
  return [headline(prediction, percent(confidence)), note, foldedBars(rows)];
}

function foldedBars(rows) {
  if (rows.length <= LABELS_AT_FIRST) return bars(rows);
  const holder = make("div");
  show(false);
  return holder;
  function show(all) {
    const label = all ? say("fewLabels", { count: LABELS_AT_FIRST }) : say("allLabels", { count: rows.length });
    const toggle = make("button", { type: "button", class: "plain", "aria-expanded": String(all) }, label);
    const hadFocus = holder.contains(document.activeElement);
    toggle.addEventListener("click", () => show(!all));
    holder.replaceChildren(bars(all ? rows : rows.slice(0, LABELS_AT_FIRST)), toggle);
    if (hadFocus) toggle.focus();
  }
}

function thresholdPanel({ model, reply }) {
  const [{ probabilities }] = reply.predictions;
  const rows = sorted(probabilities);
  const holder = make("div");
  const value = make("output", { for: "threshold" });
  const attributes = { type: "range", id: "threshold", min: 0, max: 1, step: 0.01, on: { input: show } };
  const slider = make("input", attributes);
  slider.value = model.threshold ?? 0.5;
  show();
  return [
    make("div", { class: "slider" }, make("label", { for: "threshold" }, say("threshold")), slider, value),
    holder,
  ];
  function show() {
    const threshold = slider.valueAsNumber;
    const chosen = rows.filter(([, share]) => share >= threshold);
    const counted = { count: chosen.length, all: rows.length, threshold: threshold.toFixed(2) };
    value.textContent = counted.threshold;
    const labels = chosen.map(([label]) => make("li", {}, label));
    holder.replaceChildren(
      make("ul", { class: "chips" }, labels.length ? labels : make("li", { class: "quiet" }, say("noLabels"))),
      make("p", { class: "quiet", role: "status" }, say("labelsAbove", counted)),
      bars(rows.map(([label, share]) => ({ label, share, isChosen: share >= threshold }))),
    );
  }
}

function scorePanel({ reply }) {
  return [headline(decimal(reply.predictions[0].score, 4), undefined, say("score"))];
}

function tablePanel({ model, instances, reply }) {
  const names = namesOf(model).filter((name) => instances.some((instance) => name in instance));
  const isScore = "score" in reply.predictions[0];
  const header = [say("number"), ...names.map((name) => labelOf(name, model)), say(isScore ? "score" : "prediction")];
  if ("confidence" in reply.predictions[0]) header.push(say("confidence"));
  const rows = reply.predictions.map((answer, number) => [
    String(number + 1),
    ...names.map((name) => instances[number][name] ?? ""),
    ...cellsOf(answer),
  ]);
  const table = make(
    "table",
    {},
    make(
      "thead",
      {},
      make(
        "tr",
        {},
        header.map((name) => make("th", { scope: "col" }, name)),
      ),
    ),
    make(
      "tbody",
      {},
      rows.map((cells) =>
        make(
          "tr",
          {},
          cells.map((cell) => make("td", {}, cell)),
        ),
      ),
    ),
  );
  const save = () => download("predictions.tsv", tabSeparated([header, ...rows]));
  return [
    make("p", { class: "quiet" }, say("answered", { count: rows.length, all: instances.length })),
    scrolling(table, say("answer")),
    make("button", { type: "button", class: "plain", on: { click: save } }, say("downloadTable")),
  ];
}

function cellsOf(answer) {
  if ("score" in answer) return [decimal(answer.score, 4)];
  if (Array.isArray(answer.prediction)) return [answer.prediction.join(", ") || say("noLabels")];
  return [answer.prediction, percent(answer.confidence)];
}

const tabSeparated = (rows) =>
  `${rows.map((cells) => cells.map((cell) => cell.replace(/\s/g, " ")).join("\t")).join("\n")}\n`;

function scrolling(table, label) {
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, table);
}

function cosinePanel(run) {
  const [answer] = run.reply.predictions;
  if (!("cosine" in answer)) return vectorPanel(answer);
  const row = { label: say("cosine"), share: answer.cosine, text: fixed(answer.cosine, 4), isChosen: true };
  const head = answer.prediction ? headline(answer.prediction, fixed(answer.cosine, 3), say("cosine")) : undefined;
  return [head ?? headline(fixed(answer.cosine, 3), undefined, say("cosine")), bars([row])];
}

function vectorPanel({ embedding }) {
  const most = Math.max(...embedding.map(Math.abs));
  const shown = embedding.slice(0, 96).map((value) => {
    return make("span", { class: value < 0 ? "below" : "", vars: { share: Math.abs(value) / most } });
  });
  return [
    make("p", { class: "headline-quiet" }, say("vector", { count: embedding.length })),
    make("div", { class: "vector", "aria-hidden": "true" }, shown),
    copyButton(say("copyVector"), say("copied"), () => JSON.stringify(embedding)),
  ];
}

const product = (one, other) => one.reduce((sum, value, place) => sum + value * other[place], 0);

function comparisonPanel({ model, instances, reply }) {
  const texts = instances.map((instance) => instance[namesOf(model)[0]]);
  const vectors = reply.predictions.map((answer) => answer.embedding);
  const cosines = vectors.map((one) => vectors.map((other) => product(one, other)));
  const nearest = make("div", { class: "nearest", role: "status" });
  const choices = texts.map((text, number) => {
    const button = { type: "button", class: "number-button", "aria-pressed": "false", title: text };
    return make("button", { ...button, on: { click: () => choose(number) } }, String(number + 1));
  });
  choose(0);
  return [nearest, subtitle(say("matrix")), scrolling(matrix(texts, cosines, choices), say("matrix"))];
  function choose(chosen) {
    choices.forEach((button, number) => button.setAttribute("aria-pressed", String(number === chosen)));
    const others = texts.map((text, number) => ({ number, label: text, share: cosines[chosen][number] }));
    const ranked = others.filter(({ number }) => number !== chosen).sort((a, b) => b.share - a.share);
    const rows = ranked.map((row, rank) => ({ ...row, text: fixed(row.share, 3), isChosen: rank === 0 }));
    nearest.replaceChildren(subtitle(`${say("nearest")} ${chosen + 1} · ${short(texts[chosen], 40)}`), bars(rows));
  }
}

function matrix(texts, cosines, choices) {
  const cell = (value) => make("td", { vars: { share: Math.max(0, value) } }, value.toFixed(2));
  const rows = cosines.map((row, number) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, choices[number], make("span", {}, short(texts[number], 24))),
      row.map(cell),
    ),
  );
  const columns = texts.map((text, number) => make("th", { scope: "col", title: text }, String(number + 1)));
  const corner = make("td", { class: "corner" });
  return make(
    "table",
    { class: "matrix" },
    make("thead", {}, make("tr", {}, corner, columns)),
    make("tbody", {}, rows),
  );
}

function entityPanel({ model, instances, reply }) {
  const text = instances[0][namesOf(model)[0]];
  const { entities } = reply.predictions[0];
  const hue = (type) => (FIRST_HUE + GOLDEN_ANGLE * model.labels.indexOf(type)) % 360;
  if (!entities.length) return [make("p", { class: "marked" }, text), make("p", { class: "note" }, say("noEntities"))];
  const marked = pieces(text, entities).map(([piece, entity]) =>
    entity ? markOf(piece, entity, hue(entity.type)) : piece,
  );
  const cells = (e) => [e.text, e.type, `${e.begin}–${e.end}`, percent(e.probability)];
  const header = [say("entity"), say("type"), say("place"), say("probability")];
  const table = make(
    "table",
    {},
    make(
      "thead",
      {},
      make(
        "tr",
        {},
        header.map((name) => make("th", { scope: "col" }, name)),
      ),
    ),
    make(
      "tbody",
      {},
      entities.map((e) =>
        make(
          "tr",
          {},
          cells(e).map((cell) => make("td", {}, cell)),
        ),
      ),
    ),
  );
  return [
    make("p", { class: "marked" }, marked),
    legend(entities, hue),
    scrolling(table, say("entitiesFound", { count: entities.length })),
    copyButton(say("copyList"), say("copied"), () => tabSeparated([header, ...entities.map(cells)])),
  ];
}

function markOf(piece, { type, begin, end, probability }, hue) {
  const title = `${type} · ${begin}–${end} · ${percent(probability)}`;
  return make("mark", { class: "entity", title, vars: { hue } }, piece, make("span", { class: "entity-type" }, type));
}

function legend(entities, hue) {
  const counts = new Map();
  for (const { type } of entities) counts.set(type, (counts.get(type) ?? 0) + 1);
  const items = [...counts].map(([type, count]) =>
    make(
      "li",
      { vars: { hue: hue(type) } },
      make("span", { class: "dot", "aria-hidden": "true" }),
      `${type} × ${count}`,
    ),
  );
  return make("ul", { class: "legend", "aria-label": say("legend") }, items);
}

function answerPanel({ instances, reply }) {
  const [answer] = reply.predictions;
  const { context } = instances[0];
  const place = make("p", { class: "marked" });
  const mark = (found) => place.replaceChildren(...markedContext(context, found));
  const candidates = answer.n_best ?? [];
  mark(answer);
  return [
    headline(answer.answer || say("noAnswer"), percent(answer.probability)),
    subtitle(say("inContext")),
    place,
    candidates.length > 1 ? [subtitle(say("candidates")), candidateList(candidates, answer, mark)] : undefined,
  ];
}

function markedContext(context, { answer, begin, end }) {
  if (!answer) return [context];
  return pieces(context, [{ begin, end }]).map(([piece, span]) =>
    span ? make("mark", { class: "found" }, piece) : piece,
  );
}

function candidateList(candidates, chosen, mark) {
  const rows = candidates.map((found) => ({
    label: found.answer || say("noAnswer"),
    share: found.probability,
    isChosen: found.answer === chosen.answer,
  }));
  return barButtons(rows, (number) => mark(candidates[number]));
}

/** Return bars of which one at a time is chosen; `choose` gets its number. A row may say how it is `spoken`. */
function barButtons(rows, choose) {
  const buttons = rows.map(({ label, share, spoken, isChosen }, number) => {
    const attributes = { type: "button", class: "bar", "aria-label": spoken, "aria-pressed": String(isChosen) };
    return make(
      "button",
      { ...attributes, vars: { share }, on: { click: () => press(number) } },
      make("span", { class: "bar-label" }, label),
      make("span", { class: "bar-value" }, percent(share)),
      make("span", { class: "bar-line", "aria-hidden": "true" }),
    );
  });
  return make(
    "ol",
    { class: "bars" },
    buttons.map((button) => make("li", {}, button)),
  );
  function press(chosen) {
    buttons.forEach((button, number) => button.setAttribute("aria-pressed", String(number === chosen)));
    choose(chosen);
  }
}

function choicePanel({ instances, reply }) {
  const [{ prediction, probabilities }] = reply.predictions;
  const { context, question, choices } = instances[0];
  const rows = choices.map((choice, number) => {
    const letter = make("span", { class: "letter", "aria-hidden": "true" }, String.fromCharCode(65 + number));
    const sign = number === prediction ? make("span", { class: "tag" }, say("chosen")) : undefined;
    return { label: [letter, choice, " ", sign], share: probabilities[number], isChosen: number === prediction };
  });
  return [
    make("blockquote", { class: "marked" }, context),
    question ? make("p", { class: "question" }, question) : undefined,
    bars(rows),
  ];
}

function gapPanel({ model, instances, reply }, page) {
  const [{ masks, ...answer }] = reply.predictions;
  if (!masks) return vectorPanel(answer);
  const [field] = namesOf(model);
  const parts = instances[0][field].split(MASK);
  const chosen = masks.map(([best]) => wordOf(best.token));
  const sentence = make("p", { class: "marked large", "aria-label": say("filled") });
  const lists = masks.map((tokens, gap) =>
    make("div", { class: "block" }, subtitle(say("gap", { number: gap + 1 })), tokenList(tokens, gap, fill)),
  );
  const use = () => page.fill(field, parts.map((part, gap) => part + (chosen[gap] ?? "")).join(""));
  show();
  return [
    sentence,
    make("button", { type: "button", class: "plain", on: { click: use } }, say("useFilled")),
    make("div", { class: "gaps" }, lists),
  ];
  function fill(gap, token) {
    chosen[gap] = wordOf(token);
    show();
    page.announce(sentence.textContent);
  }
  function show() {
    const word = (gap) => (gap < chosen.length ? make("mark", { class: "found" }, chosen[gap]) : "");
    sentence.replaceChildren(...parts.flatMap((part, gap) => [part, word(gap)]));
  }
}

function tokenList(tokens, gap, fill) {
  const rows = tokens.map(({ token, probability }, rank) => ({
    label: token,
    share: probability,
    spoken: say("fillWith", { number: gap + 1, token, probability: percent(probability) }),
    isChosen: rank === 0,
  }));
  return barButtons(rows, (rank) => fill(gap, tokens[rank].token));
}

/** Return a token as it stands in a text: WordPiece's sign of a continued word left out. */
const wordOf = (token) => token.replace(/^##/, "");

function textPanel({ reply, seconds }) {
  const [answer] = reply.predictions;
  const hypotheses = answer.hypotheses ?? [];
  const items = hypotheses.map(({ text, score }) =>
    make("li", {}, make("span", {}, text), make("span", { class: "bar-value" }, decimal(score, 3))),
  );
  return [
    make("p", { class: "marked large" }, answer.generated),
    seconds && make("p", { class: "quiet" }, speedOf(answer.generated, seconds)),
    items.length > 1 ? [subtitle(say("hypotheses")), make("ol", { class: "hypotheses" }, items)] : undefined,
    copyButton(say("copyText"), say("copied"), () => answer.generated),
  ];
}

function speedOf(text, seconds) {
  const count = Array.from(text).length;
  return say("charactersPerSecond", { count, rate: decimal(count / seconds, 1) });
}
