"use strict";
// All data comes from JSON in the page and reaches the document through textContent and attributes only.

const RUN = JSON.parse(document.getElementById("data-run").textContent);
const STUDIES = JSON.parse(document.getElementById("data-studies").textContent).map((s, number) => ({
  number,
  id: s[0],
  texts: s[1], // reference, prediction; of two runs a third
  states: s[2],
  relations: s[3], // of each prediction to the reference, a letter a label
  statements: s[4],
  details: s[5], // of each prediction
  scores: s[6],
  diagnosis: s[7],
  expert: s[8] === null ? null : RUN.experts[s[8]],
  distance: s[9],
  probabilities: s[10],
  regions: s[11],
  sought: null,
}));
const FLAGS = RUN.test_run.flags || {};
const PAIR = RUN.pair || null; // two runs side by side
const SIDES = PAIR ? ["reference", "prediction-a", "prediction-b"] : ["reference", "prediction"];
const SIDE_NAMES = PAIR ? ["Reference", `A: ${PAIR.names[0]}`, `B: ${PAIR.names[1]}`] : ["Reference", "Prediction"];
const SAID = { "+": "stated", "?": "stated as uncertain", "-": "denied", ".": "not mentioned" };
// letter -> class, sign, what it means; in order of weight
const RELATIONS = {
  x: { css: "x", sign: "\u2260", text: "contradicted", long: "stated by one, denied by the other" },
  m: { css: "m", sign: "\u2212", text: "missed", long: "stated by the reference alone" },
  a: { css: "a", sign: "+", text: "added", long: "stated by the prediction alone" },
  q: { css: "q", sign: "\u2248", text: "differs in detail", long: "stated by both, with another side, place or size" },
  h: { css: "h", sign: "~", text: "hedged", long: "stated by both, by one as uncertain" },
  "=": { css: "eq", sign: "=", text: "agreed", long: "stated by both" },
  d: { css: "d", sign: "", text: "denied by both", long: "denied by both" },
  n: { css: "n", sign: "", text: "denied by one", long: "denied by one, the other is silent" },
};
const WEIGHT = Object.keys(RELATIONS).join("");
const ROW = 78;

const $ = (id) => document.getElementById(id);

/** An element with properties (class, text, on<event>, or attributes) and children. */
function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") node.textContent = value;
    else if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const shown = (value, digits = 3) =>
  value === null || value === undefined
    ? "n/a"
    : Number.isInteger(value) && value !== 0 && value !== 1
      ? String(value)
      : value.toFixed(digits);
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;
const whole = (count) => count.toLocaleString("en");
const studiesOf = (count) => `${count.toLocaleString("en")} ${count === 1 ? "study" : "studies"}`;
const decimals = new Map(); // a score that is a whole number in every study is written as one
function scoreText(study, k) {
  if (!decimals.has(k)) decimals.set(k, STUDIES.every(({ scores }) => scores[k] === null || Number.isInteger(scores[k])) ? 0 : 3);
  return study.scores[k] === null ? "n/a" : study.scores[k].toFixed(decimals.get(k));
}
const metricName = (name) => name.replace(/BLEU_/g, "BLEU-").replace(/ROUGE_L/g, "ROUGE-L").replace(/^f1$/, "F1");

// -- keys in words

const LABELERS = { rules: "rule-based labeler", chexbert: "CheXbert" };
const LABEL_SETS = { 13: "13 findings, without No Finding", 14: "14 labels, with No Finding", 5: "the 5 commonest findings" };
const AVERAGES = { micro: "all decisions pooled", macro: "mean over findings", example: "mean over studies" };
const UNCERTAIN = { u0: "uncertain counts as absent", u1: "uncertain counts as present" };
const PROTOCOLS = {
  r2gen: "as R2Gen and most after it score: references cut, rare words replaced",
  clean: "complete cleaned references",
  ptb: "raw references, tokens of the Penn Treebank",
  cvt2: "as CvT2DistilGPT2 scores: its limits on every data set",
};
const labelerName = (name) => {
  const [kind, version] = name.split("-");
  return LABELERS[kind] ? `${LABELERS[kind]}${version ? `, version ${version}` : ""}` : name;
};
/** ["ce", labeler, set, average, rule, value] of a key in words, as far as they are known. */
const inWords = (parts) => parts.map((part, k) => [, labelerName, ...[LABEL_SETS, AVERAGES, UNCERTAIN].map((of) => (p) => of[p] || p)][k]?.(part) ?? part);
/** A key of a metric in words: "F1, 13 findings ..., all decisions pooled, uncertain counts as present". */
function keyName(key) {
  const [, difference, name] = key.match(/^(B \u2212 A: )?(.*)$/s);
  if (difference) return difference + keyName(name);
  const parts = key.split("/");
  if (parts[0] !== "ce") return metricName(parts.length > 1 ? `${parts.at(-1)}, ${parts.slice(0, -1).join("/")}` : key);
  const value = parts.length > 5 ? parts.pop() : "";
  const words = inWords(parts).slice(1);
  return `${value === "f1" ? "F1" : value}: ${[...words.slice(1), words[0]].join(", ")}`;
}

/** What the run kept of a study's images and attention; null while the file is still being read, or if it has none. */
const kept = new Map();
function evidence(study) {
  if (!kept.has(study.number)) {
    const node = $(`e${study.number}`);
    if (!node) return null;
    if (kept.size > 150) kept.delete(kept.keys().next().value);
    kept.set(study.number, JSON.parse(node.textContent));
  }
  return kept.get(study.number);
}

const hasEvidence = () => document.querySelector('script[id^="e"]') !== null;

/** Was attention kept, and of the very report that stands in the predictions file? */
function attended(study) {
  const attention = evidence(study)?.attention;
  return Boolean(attention) && attention.text === study.texts[1];
}

function bytes(base64) {
  const text = atob(base64);
  const values = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) values[i] = text.charCodeAt(i);
  return values;
}
