"use strict";
// All data comes from JSON in the page and reaches the document through textContent and attributes only.

const RUN = JSON.parse(document.getElementById("data-run").textContent);
const STUDIES = JSON.parse(document.getElementById("data-studies").textContent).map((s, number) => ({
  number,
  id: s[0],
  texts: [s[1], s[2]],
  states: s[3],
  relations: s[4],
  statements: s[5],
  diagnosis: s[6],
  expert: s[7] === null ? null : RUN.experts[s[7]],
  distance: s[8],
  scores: s[9],
  sought: null,
}));
const FLAGS = RUN.test_run.flags || {};
const SIDES = ["reference", "prediction"];
const SAID = { "+": "stated", "?": "stated as uncertain", "-": "denied", ".": "not mentioned" };
// letter -> class, sign, what it means; in order of weight
const RELATIONS = {
  x: { css: "x", sign: "\u2260", text: "contradicted", long: "stated by one, denied by the other" },
  m: { css: "m", sign: "\u2212", text: "missed", long: "stated by the reference alone" },
  a: { css: "a", sign: "+", text: "added", long: "stated by the prediction alone" },
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
const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : noun.endsWith("y") ? "" : "s"}`;
const studiesOf = (count) => `${count.toLocaleString("en")} ${count === 1 ? "study" : "studies"}`;
const digits = new Map(); // a score that is a whole number in every study is written as one
function scoreText(study, k) {
  if (!digits.has(k)) digits.set(k, STUDIES.every(({ scores }) => scores[k] === null || Number.isInteger(scores[k])) ? 0 : 3);
  return study.scores[k] === null ? "n/a" : study.scores[k].toFixed(digits.get(k));
}
const metricName = (name) => name.replace(/BLEU_/g, "BLEU-").replace(/ROUGE_L/g, "ROUGE-L");

/** What the run kept of a study's pictures and attention; null while the file is still being read, or if it has none. */
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

// ---------------------------------------------------------------------------------------------------- scores

function scoreCell(cell) {
  if (!cell) return el("td", { class: "number", text: "\u2013" });
  const [value, low, high, key] = cell;
  const node = el("td", { class: "number", title: key, text: shown(value) });
  if (value === null) node.title = `${key}: ${RUN.notes[key] || RUN.notes[key.split("/").at(-1)] || "could not be computed"}`;
  if (low !== null && low !== undefined)
    node.append(el("span", { class: "interval", text: `${shown(low)}\u2013${shown(high)}` }));
  return node;
}

function drawScores() {
  const view = $("view-scores");
  const flat = new Map(RUN.tables.flatMap((table) => table.rows.flatMap((row) => row.cells.map((cell) => [cell[3], cell]))));
  const wanted = ["r2gen/BLEU_1", "r2gen/BLEU_4", "r2gen/METEOR", "r2gen/ROUGE_L", "r2gen/CIDEr"];
  wanted.push(...[...flat.keys()].filter((key) => /^ce\/[^/]+\/14\/micro\/u1\/f1$/.test(key)));
  const tiles = el("div", { class: "tiles" });
  for (const key of wanted.filter((name) => flat.has(name))) {
    const constant = flat.get(`constant/${key}`),
      [value, low, high] = flat.get(key);
    tiles.append(
      el(
        "div",
        { class: "tile" },
        el("h3", { text: metricName(key) }),
        el("div", { class: "value", text: shown(value) }),
        low === null || low === undefined ? null : el("p", { text: `95%: ${shown(low)}\u2013${shown(high)}` }),
        constant ? el("p", { text: `constant report ${shown(constant[0])}` }) : null,
      ),
    );
  }
  const { studies, distinct_reports: distinct, commonest_share: commonest } = RUN.texts;
  tiles.append(
    el(
      "div",
      { class: "tile" },
      el("h3", { text: "Distinct reports" }),
      el("div", { class: "value", text: distinct.toLocaleString("en") }),
      el("p", { text: `of ${studies.toLocaleString("en")}; the commonest is ${percent(commonest)}` }),
    ),
  );
  const tables = RUN.tables.map(metricTable);
  view.append(tiles, ...(tables.shift() || []), findingsTable(), ...tables.flat(), ...subsets(), ...byLabel());
  const notes = Object.entries(RUN.notes);
  if (notes.length)
    view.append(
      el("h2", { text: "Notes" }),
      el("ul", { class: "notes" }, ...notes.map(([key, text]) => el("li", { text: `${key}: ${text}` }))),
    );
  view.append(
    el("h2", { text: "Texts" }),
    el(
      "dl",
      { class: "facts" },
      ...Object.entries(RUN.texts).flatMap(([key, value]) => [
        el("dt", { text: key.replaceAll("_", " ") }),
        el("dd", { text: plainText(value) }),
      ]),
    ),
  );
  if (RUN.constant)
    view.append(
      el("h2", { text: "The constant report" }),
      el("p", {
        class: "quiet",
        text: "One training report, the best on validation, given to every study: what a system must beat.",
      }),
      el("blockquote", { text: RUN.constant }),
    );
}

function metricTable(table) {
  const nlg = table.columns.some((name) => name.startsWith("BLEU") || name === "CIDEr");
  const oracle = () => (RUN.facts.oracle_labels ? el("span", { class: "badge", text: "oracle" }) : null);
  const rows = table.rows.map(({ row, cells }) => ({
    constant: row.startsWith("constant/"),
    row: row.replace(/^constant\//, ""),
    cells,
  }));
  const names = [...new Set(rows.map((row) => row.row))];
  rows.sort((a, b) => names.indexOf(a.row) - names.indexOf(b.row) || a.constant - b.constant);
  const body = el("tbody");
  let last = null;
  for (const { constant, row, cells } of rows) {
    const kind = `${constant ? "" : "own"}${row === last ? "" : " group"}`;
    body.append(
      el(
        "tr",
        { class: kind },
        el("th", { scope: "row", class: "mono", text: row }),
        el("td", {}, constant ? "constant report" : "this system ", constant ? null : oracle()),
        ...cells.map(scoreCell),
      ),
    );
    last = row;
  }
  if (nlg)
    for (const [system, values] of Object.entries(RUN.published)) {
      body.append(
        el(
          "tr",
          { class: `published${last === "published" ? "" : " group"}` },
          el("th", { scope: "row", text: "published" }),
          el("td", { text: system }),
          ...table.columns.map((name) => scoreCell(name in values ? [values[name], null, null, name] : null)),
        ),
      );
      last = "published";
    }
  const head = el(
    "tr",
    {},
    el("th", { text: nlg ? "protocol" : "what" }),
    el("th", { text: "system" }),
    ...table.columns.map((name) => el("th", { class: "number", text: metricName(name) })),
  );
  const clinical = /^(constant\/)?ce\//.test(table.rows[0].row);
  const title = nlg ? "Text metrics" : clinical ? "Clinical metrics" : metricName(table.columns.join(", "));
  const about = nlg
    ? "The same texts score differently under another preparation, so the protocol is part of each figure. Published rows as their papers give them."
    : clinical
      ? "Named by labeler, labels (14 or 5), average, and what an uncertain finding counts as: u0 absent, u1 present."
      : "";
  return [
    el("h2", { text: title }),
    about ? el("p", { class: "quiet", text: about, style: "margin-bottom:.6rem" }) : null,
    el("div", { class: "scroll" }, el("table", {}, el("thead", {}, head), body)),
  ].filter(Boolean);
}

/** Scores of parts of the split: a table over them, and every figure of each behind its name. */
function subsets() {
  const [first] = RUN.tables,
    parts = RUN.subsets.filter((part) => part.tables.length);
  if (!parts.length || !first) return [];
  const nodes = [
    el("h2", { text: "Parts of the split" }),
    el("p", {
      class: "quiet",
      text: `Chosen by the references alone; protocol ${first.rows[0].row}.`,
      style: "margin-bottom:.6rem",
    }),
  ];
  const body = el("tbody"),
    own = first.rows[0].row;
  for (const { name, studies, tables } of parts)
    for (const row of [own, `constant/${own}`]) {
      const found = tables.flatMap((table) => table.rows).find((other) => other.row === row);
      if (found)
        body.append(
          el(
            "tr",
            { class: row === own ? "group" : "" },
            el("th", { scope: "row", text: row === own ? name.replace("_", " ") : "" }),
            el("td", { class: "number", text: row === own ? studies.toLocaleString("en") : "" }),
            el("td", { text: row === own ? "this system" : "constant report" }),
            ...found.cells.map(scoreCell),
          ),
        );
    }
  nodes.push(
    el(
      "div",
      { class: "scroll" },
      el(
        "table",
        {},
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            el("th", { text: "part" }),
            el("th", { class: "number", text: "studies" }),
            el("th", { text: "system" }),
            ...first.columns.map((name) => el("th", { class: "number", text: metricName(name) })),
          ),
        ),
        body,
      ),
    ),
  );
  for (const { name, tables } of parts.filter((part) => part.tables.length > 1)) {
    nodes.push(
      el(
        "details",
        {
          ontoggle: (event) => {
            if (event.target.open && event.target.children.length === 1) event.target.append(...tables.flatMap(metricTable));
          },
        },
        el("summary", { text: `Every figure: ${name.replace("_", " ")}` }),
      ),
    );
  }
  return nodes;
}

/** Precision, recall and F1 of each label, by labeler and by what an uncertain finding counts as. */
function byLabel() {
  return Object.entries(RUN.by_label).flatMap(([labeler, table]) => {
    const rules = Object.keys(Object.values(table)[0] || {}),
      names = Object.keys(Object.values(table)[0]?.[rules[0]] || {});
    const body = el(
      "tbody",
      {},
      ...Object.entries(table).map(([label, found]) =>
        el(
          "tr",
          {},
          el("th", { scope: "row", text: label }),
          ...rules.flatMap((rule) =>
            names.map((name) =>
              el("td", { class: "number", title: `${label}, ${rule}, ${name}`, text: shown(found[rule][name]) }),
            ),
          ),
        ),
      ),
    );
    const head = [
      el(
        "tr",
        {},
        el("th"),
        ...rules.map((rule) =>
          el("th", {
            class: "number",
            colspan: names.length,
            text: rule === "u0" ? "uncertain counts as absent" : rule === "u1" ? "uncertain counts as present" : rule,
          }),
        ),
      ),
      el(
        "tr",
        {},
        el("th", { text: "label" }),
        ...rules.flatMap(() => names.map((name) => el("th", { class: "number", text: name }))),
      ),
    ];
    return [
      el("h2", { text: `By label: ${labeler}` }),
      el("div", { class: "scroll" }, el("table", {}, el("thead", {}, ...head), body)),
    ];
  });
}

/** How often each finding is stated, agreed on, contradicted ...; every count leads to its studies. */
function findingsTable() {
  const columns = [
    ["in-reference", "in reference"],
    ["in-prediction", "in prediction"],
    ["=", "agreed"],
    ["x", "contradicted"],
    ["m", "missed"],
    ["a", "added"],
    ["h", "hedged"],
    ["d", "denied by both"],
  ];
  const body = el("tbody");
  RUN.labels.forEach((label, k) => {
    const counts = columns.map(([kind]) => STUDIES.reduce((sum, study) => sum + matches(study, k, kind), 0));
    if (!counts.some(Boolean)) return;
    body.append(
      el(
        "tr",
        {},
        el("th", { scope: "row", text: label }),
        ...counts.map((count, c) =>
          el(
            "td",
            { class: "number" },
            count
              ? el("button", {
                  type: "button",
                  class: "link",
                  text: count.toLocaleString("en"),
                  "aria-label": `${count} studies: ${label} ${columns[c][1]}`,
                  onclick: () => showFiltered(String(k), columns[c][0]),
                })
              : el("span", { class: "quiet", text: "0" }),
          ),
        ),
      ),
    );
  });
  const head = el(
    "tr",
    {},
    el("th", { text: "finding" }),
    ...columns.map(([kind, name]) =>
      el("th", { class: "number", text: `${name}${RELATIONS[kind] && RELATIONS[kind].sign ? ` ${RELATIONS[kind].sign}` : ""}` }),
    ),
  );
  return el(
    "div",
    {},
    el("h2", { text: "Findings, study by study" }),
    el("p", {
      class: "quiet",
      style: "margin-bottom:.6rem",
      text: "What the rule-based labeler reads in reference and prediction. Select a number to see its studies.",
    }),
    el("div", { class: "scroll" }, el("table", { id: "findings" }, el("thead", {}, head), body)),
  );
}

function showFiltered(label, kind) {
  $("search").value = "";
  $("filter-label").value = label;
  $("filter-relation").value = kind;
  current = null;
  location.hash = "#studies";
}

// ---------------------------------------------------------------------------------------------------- list

let order = STUDIES.map((study) => study.number); // numbers of the studies listed
let selected = -1; // place in `order`
let current = null; // the study shown

const stated = (letter) => letter === "+" || letter === "?";

/** Does finding k of a study stand in the relation `kind`? */
function matches(study, k, kind) {
  switch (kind) {
    case "":
      return stated(study.states[0][k]) || stated(study.states[1][k]);
    case "in-reference":
      return stated(study.states[0][k]);
    case "in-prediction":
      return stated(study.states[1][k]);
    case "diagnosed":
      return study.diagnosis !== null && study.diagnosis.includes(RUN.labels[k]);
    case "misdiagnosed":
      return study.diagnosis !== null && study.diagnosis.includes(RUN.labels[k]) !== stated(study.states[0][k]);
    default:
      return study.relations[k] === kind;
  }
}

function fillChoices() {
  const add = (id, rows) => $(id).append(...rows.map(([value, text]) => el("option", { value, text })));
  add("filter-label", [["", "any"], ...RUN.labels.map((label, k) => [k, label])]);
  const relations = [
    ["", "all studies"],
    ["x", "contradicted \u2260"],
    ["m", "missed \u2212"],
    ["a", "added +"],
    ["h", "hedged ~"],
    ["=", "agreed ="],
    ["d", "denied by both"],
    ["in-reference", "stated in the reference"],
    ["in-prediction", "stated in the prediction"],
  ];
  if (STUDIES.some((study) => study.diagnosis !== null))
    relations.push(["diagnosed", "diagnosed"], ["misdiagnosed", "diagnosis disagrees"]);
  add("filter-relation", relations);
  add("sort", [["", "order of the file"], ...RUN.scores.map((score, k) => [k, metricName(score.name)])]);
  for (const id of ["filter-label", "filter-relation", "sort", "order"]) $(id).addEventListener("change", () => refill());
  $("search").addEventListener("input", () => refill());
  $("filters").addEventListener("submit", (event) => event.preventDefault());
}

/** Filter and sort anew and open the first study; with `keep` the one that is open stays so while it is listed. */
function refill(keep = false) {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const label = $("filter-label").value,
    kind = $("filter-relation").value,
    sort = $("sort").value;
  const labels = label === "" ? RUN.labels.map((_, k) => k) : [Number(label)];
  $("filter-relation").options[0].textContent = label === "" ? "all studies" : "stated by either";
  order = [];
  for (const study of STUDIES) {
    if (words.length) {
      study.sought = study.sought || `${study.id}\n${study.texts[0]}\n${study.texts[1]}`.toLowerCase();
      if (!words.every((word) => study.sought.includes(word))) continue;
    }
    if ((label !== "" || kind !== "") && !labels.some((k) => matches(study, k, kind))) continue;
    order.push(study.number);
  }
  $("order").disabled = sort === "";
  if (sort !== "") {
    const rising = RUN.scores[sort].less_is_better !== ($("order").value === "worst");
    const value = (number) => STUDIES[number].scores[sort];
    order.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      return (rising ? x - y : y - x) || a - b;
    });
  }
  $("count").textContent =
    order.length === STUDIES.length
      ? studiesOf(order.length)
      : `${order.length.toLocaleString("en")} of ${studiesOf(STUDIES.length)}`;
  $("rows").style.height = `${order.length * ROW}px`;
  $("list").scrollTop = 0;
  selected = current === null ? -1 : order.indexOf(current.number);
  const open = keep && selected >= 0 ? selected : 0;
  if (order.length && !$("view-studies").hidden) select(open);
  drawRows(true);
  if (current) drawPlace();
}

const drawn = new Map(); // place in `order` -> row element

/** Draw the rows in view, remove the others: the document holds a few dozen rows whatever the set's size. */
function drawRows(anew = false) {
  const list = $("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
  const last = Math.min(order.length - 1, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
  for (const [place, node] of drawn) {
    if (anew || place < first || place > last) {
      node.remove();
      drawn.delete(place);
    }
  }
  for (let place = first; place <= last; place++) {
    if (!drawn.has(place)) {
      const node = row(place);
      drawn.set(place, node);
      $("rows").append(node);
    }
    drawn.get(place).setAttribute("aria-selected", String(place === selected));
  }
  if (selected >= 0 && drawn.has(selected)) list.setAttribute("aria-activedescendant", `row-${selected}`);
  else list.removeAttribute("aria-activedescendant");
}

function row(place) {
  const study = STUDIES[order[place]],
    sort = $("sort").value;
  const shot = (evidence(study)?.pictures || []).find((picture) => picture.jpeg);
  const counts = ["x", "m", "a"]
    .map((kind) => [kind, [...study.relations].filter((letter) => letter === kind).length])
    .filter(([, count]) => count);
  const node = el(
    "div",
    {
      class: "row",
      role: "option",
      id: `row-${place}`,
      "aria-setsize": order.length,
      "aria-posinset": place + 1,
      style: `top:${place * ROW}px`,
      onclick: () => {
        select(place);
      },
    },
    shot ? el("img", { class: "thumb", alt: "", src: `data:image/jpeg;base64,${shot.jpeg}` }) : el("div", { class: "thumb" }),
    el(
      "div",
      {},
      el(
        "div",
        { class: "line" },
        el("span", { class: "id", text: study.id }),
        el("span", { class: "score", text: sort === "" ? "" : scoreText(study, sort) }),
      ),
      el("div", { class: "text", text: study.texts[1].slice(0, 160) || "(empty prediction)" }),
      el(
        "div",
        { class: "counts" },
        ...(counts.length
          ? counts.map(([kind, count]) =>
              el("span", { class: kind, text: `${RELATIONS[kind].sign} ${count} ${RELATIONS[kind].text}` }),
            )
          : [el("span", { class: "ok", text: "no finding differs" })]),
      ),
    ),
  );
  return node;
}

function reveal(place) {
  const list = $("list"),
    top = place * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
}

/** Open the study at a place of the list. */
function select(place) {
  if (!order.length) return;
  selected = Math.min(Math.max(place, 0), order.length - 1);
  reveal(selected);
  drawRows();
  const study = STUDIES[order[selected]];
  if (study !== current) {
    drawStudy(study);
    history.replaceState(null, "", `#studies/${encodeURIComponent(study.id)}`);
  }
}

// ---------------------------------------------------------------------------------------------------- one study

let word = null; // number of the word whose attention is shown
let viewNumber = 0;
const overlay = { mask: true, strength: 0.8 };

function drawPlace() {
  const place = document.querySelector("#detail .place");
  if (place)
    place.textContent =
      selected < 0
        ? "not among the studies listed"
        : `${(selected + 1).toLocaleString("en")} of ${order.length.toLocaleString("en")}`;
}

function drawStudy(study) {
  current = study;
  word = null;
  const found = evidence(study);
  viewNumber = Math.max(
    0,
    (found?.pictures || []).findIndex((picture) => picture.jpeg),
  );
  const detail = $("detail");
  detail.scrollTop = 0;
  detail.replaceChildren(
    el(
      "div",
      { class: "detail-head" },
      el("h2", { text: study.id }),
      el("span", { class: "place" }),
      el("button", { type: "button", text: "Previous", title: "k", onclick: () => select(selected - 1) }),
      el("button", { type: "button", text: "Next", title: "j", onclick: () => select(selected + 1) }),
    ),
    el(
      "div",
      { class: "study" },
      el("div", { class: "viewer", id: "viewer" }),
      el(
        "div",
        {},
        el("div", { class: "pair" }, report(study, 0), report(study, 1)),
        findings(study),
        diagnosis(study),
        knowledge(study),
        values(study),
      ),
    ),
  );
  drawViewer();
  drawPlace();
}

/** One report with its marks; the words of the prediction can be chosen where the run kept their attention. */
function report(study, side) {
  const text = study.texts[side],
    other = 1 - side;
  const words = [...text.matchAll(/\S+/g)].map((match) => ({
    start: match.index,
    end: match.index + match[0].length,
    text: match[0],
  }));
  const choose = side === 1 && attended(study);
  // a statement counts with the relation of its finding if it says what the report says of it as a whole
  const marks = study.statements[side].map(([k, state, start, end]) => ({
    k,
    state,
    start,
    end,
    kind: state === study.states[side][k] ? study.relations[k] : "n",
  }));
  const body = el("div", { class: "body", lang: "en" });
  let at = 0,
    open = null;
  function close({ node, first, said }) {
    const about = [...said].join("; ");
    node.title = about;
    if (RELATIONS[first.kind].sign)
      node.append(el("span", { class: "sign", "aria-hidden": "true", text: RELATIONS[first.kind].sign }));
    if ("xma".includes(first.kind)) node.append(el("span", { class: "hidden-text", text: ` (${about}) ` }));
    return null;
  }
  words.forEach((item, number) => {
    const own = marks
      .filter((mark) => mark.start < item.end && mark.end > item.start)
      .sort((a, b) => WEIGHT.indexOf(a.kind) - WEIGHT.indexOf(b.kind));
    if (open && open.first !== own[0]) open = close(open);
    (open ? open.node : body).append(text.slice(at, item.start));
    if (own.length && !open) {
      open = { first: own[0], said: new Set(), node: el("mark", { class: RELATIONS[own[0].kind].css }) };
      body.append(open.node);
    }
    if (open)
      own.forEach((mark) =>
        open.said.add(
          `${RUN.labels[mark.k]}: ${SAID[mark.state]} here, ${SAID[study.states[other][mark.k]]} in the ${SIDES[other]}`,
        ),
      );
    const node = choose
      ? el("span", {
          class: "w",
          role: "button",
          tabindex: number ? "-1" : "0",
          "data-word": number,
          "aria-pressed": "false",
          text: item.text,
        })
      : item.text;
    (open ? open.node : body).append(node);
    at = item.end;
  });
  if (open) close(open);
  body.append(text.slice(at));
  if (!words.length) {
    body.classList.add("empty");
    body.textContent = "(no word)";
  }
  if (choose) {
    body.addEventListener("click", (event) => {
      if (event.target.dataset.word) chooseWord(Number(event.target.dataset.word));
    });
    body.addEventListener("keydown", wordKeys);
  }
  return el(
    "div",
    { class: "report", id: SIDES[side] },
    el("h3", {}, side ? "Prediction" : "Reference", el("span", { text: plural(words.length, "word") })),
    body,
  );
}

function wordKeys(event) {
  const count = evidence(current).attention.peak.length,
    at = Number(event.target.dataset.word);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: count - 1, Enter: at, " ": at }[event.key];
  if (to === undefined || to < 0 || to >= count) return;
  event.preventDefault();
  event.stopPropagation();
  chooseWord(to, event.key === "Enter" || event.key === " ");
  document.querySelector(`#prediction [data-word="${to}"]`).focus();
}

/** Show the attention of a word of the prediction; chosen once more, or null: none. */
function chooseWord(number, toggle = true) {
  const old = document.querySelector('#prediction [aria-pressed="true"]');
  if (old) old.setAttribute("aria-pressed", "false");
  word = number === null || (toggle && number === word) ? null : number;
  if (word !== null) {
    document.querySelectorAll('#prediction .w[tabindex="0"]').forEach((node) => node.setAttribute("tabindex", "-1"));
    const node = document.querySelector(`#prediction [data-word="${word}"]`);
    node.setAttribute("aria-pressed", "true");
    node.setAttribute("tabindex", "0");
    const {
        grid: [views, height, breadth],
        maps,
      } = evidence(current).attention,
      cells = height * breadth;
    const map = bytes(maps).subarray(word * views * cells, (word + 1) * views * cells);
    viewNumber = Math.floor(map.indexOf(Math.max(...map)) / cells); // the picture it looked at most
  }
  drawViewer();
}

function drawViewer() {
  const box = $("viewer"),
    found = evidence(current),
    pictures = found?.pictures || [],
    picture = pictures[viewNumber];
  const parts = [];
  if (pictures.length > 1) {
    parts.push(
      el(
        "div",
        { class: "views", role: "group", "aria-label": "Pictures of the study" },
        ...pictures.map((item, k) =>
          el("button", {
            type: "button",
            "aria-pressed": String(k === viewNumber),
            text: `Picture ${k + 1}${item.seen ? "" : " (unused)"}`,
            onclick: () => {
              viewNumber = k;
              drawViewer();
            },
          }),
        ),
      ),
    );
  }
  const light = el("div", { class: "light-box" });
  if (picture?.jpeg) {
    light.append(
      el("img", { src: `data:image/jpeg;base64,${picture.jpeg}`, alt: `Picture ${viewNumber + 1} of study ${current.id}` }),
      el("canvas", { id: "mask-canvas" }),
      el("canvas", { id: "attention-canvas" }),
    );
  } else {
    light.append(
      el("p", {
        class: "missing",
        text: picture
          ? picture.note
          : document.readyState === "loading"
            ? "The picture is still being read from the file."
            : hasEvidence()
              ? "No picture of this study was kept: the page would have become too large."
              : "No pictures: no evidence file lies beside the predictions.",
      }),
    );
  }
  parts.push(light);
  const controls = el("div", { class: "controls" });
  if (picture?.mask) {
    controls.append(
      el(
        "label",
        {},
        el("input", {
          type: "checkbox",
          id: "mask",
          checked: overlay.mask,
          onchange: (event) => {
            overlay.mask = event.target.checked;
            drawOverlays();
          },
        }),
        "ADM mask",
      ),
    );
  }
  if (picture?.mask || found?.attention) {
    controls.append(
      el(
        "label",
        {},
        "Overlay",
        el("input", {
          type: "range",
          id: "strength",
          min: 0,
          max: 1,
          step: 0.05,
          value: overlay.strength,
          oninput: (event) => {
            overlay.strength = Number(event.target.value);
            drawOverlays();
          },
        }),
      ),
    );
  }
  parts.push(controls, ...remarks(found, picture).map((text) => el("p", { class: "quiet", text })));
  box.replaceChildren(...parts);
  drawOverlays();
}

/** Sentences under the picture: what was done with the mask, what the word looked at. */
function remarks(found, picture) {
  const lines = [],
    attention = found?.attention;
  if (attention && word !== null) {
    const [views, height, breadth] = attention.grid,
      text = document.querySelector(`#prediction [data-word="${word}"]`).textContent;
    const [full, wide] = attention.full_grid,
      coarse = full * wide > height * breadth ? `, kept at ${height} \u00d7 ${breadth} of ${full} \u00d7 ${wide}` : "";
    lines.push(
      `\u201c${text}\u201d, word ${word + 1}: the strongest patch holds ${percent(attention.peak[word])} of its attention, an even look would give each ${percent(1 / (views * full * wide))}. Coloured: more than even; mean over heads and layers${coarse}.`,
    );
  } else if (attention) {
    lines.push(
      attended(current)
        ? "Select a word of the prediction to see where the model looked when it wrote it."
        : "The prediction in the file is not the one whose attention was kept, so it is not shown.",
    );
  } else if (found) {
    lines.push(
      current.texts[1].trim()
        ? "No attention: this system does not offer it (see \u201cSystem\u201d in CONTRIBUTING.md)."
        : "No word was written, so there is no attention.",
    );
  }
  if (picture && !picture.seen) lines.push("This picture was not given to the model (--max_views).");
  if (picture?.mask) {
    const theta = FLAGS.theta ?? 0.4,
      gamma = FLAGS.gamma ?? 0.4;
    lines.push(
      picture.mask_used
        ? `ADM keeps ${percent(picture.mask_share)} of the picture; outside the line the model saw it at ${percent(gamma)} brightness.`
        : `ADM found ${percent(picture.mask_share)} of the picture, not more than the threshold ${percent(theta)}: the mask was not used.`,
    );
  } else if (picture?.seen && picture.jpeg) lines.push("The model saw this picture complete, without a mask.");
  return lines;
}

function drawOverlays() {
  const picture = evidence(current)?.pictures?.[viewNumber];
  if (!picture?.jpeg) return;
  drawMask($("mask-canvas"), picture);
  drawAttention($("attention-canvas"), evidence(current).attention);
}

/** Dims what the model saw dimmed, and draws the mask's border. */
function drawMask(canvas, picture) {
  const side = RUN.mask_side;
  canvas.width = canvas.height = side;
  if (!picture.mask || !overlay.mask) return;
  const packed = bytes(picture.mask),
    pen = canvas.getContext("2d"),
    image = pen.createImageData(side, side);
  const bit = (at) => (packed[at >> 3] >> (7 - (at & 7))) & 1;
  const inside = (x, y) => x < 0 || y < 0 || x >= side || y >= side || bit(y * side + x); // no line along the picture's own border
  const dark = picture.mask_used ? 255 * (1 - (FLAGS.gamma ?? 0.4)) * overlay.strength : 0;
  for (let y = 0; y < side; y++)
    for (let x = 0; x < side; x++) {
      const at = 4 * (y * side + x),
        here = inside(x, y);
      const edge = here && !(inside(x - 1, y) && inside(x + 1, y) && inside(x, y - 1) && inside(x, y + 1));
      image.data.set(edge ? [90, 200, 235, 255 * overlay.strength] : [0, 0, 0, here ? 0 : dark], at);
    }
  pen.putImageData(image, 0, 0);
}

/** The chosen word's map, smoothly enlarged: nothing where it looked evenly or less, orange, yellow at its strongest. */
function drawAttention(canvas, attention) {
  const side = 256;
  canvas.width = canvas.height = side;
  if (!attention || word === null) return;
  const [views, height, breadth] = attention.grid,
    cells = height * breadth;
  if (viewNumber >= views) return;
  const all = bytes(attention.maps).subarray(word * views * cells, (word + 1) * views * cells);
  const even = all.reduce((sum, value) => sum + value, 0) / all.length,
    map = all.subarray(viewNumber * cells, (viewNumber + 1) * cells);
  const small = el("canvas", { width: breadth, height }),
    brush = small.getContext("2d"),
    image = brush.createImageData(breadth, height);
  const strength = overlay.strength * Math.min(1, 0.25 + 0.25 * (255 / even - 1)); // faint where the look is nearly even
  map.forEach((value, k) => {
    const more = even < 255 ? Math.max(0, value - even) / (255 - even) : 0;
    image.data.set([255, 120 + 110 * more, 20, 235 * strength * more], 4 * k);
  });
  brush.putImageData(image, 0, 0);
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = true;
  pen.imageSmoothingQuality = "high";
  pen.drawImage(small, 0, 0, side, side);
}

/** The findings both reports speak of, worst first. */
function findings(study) {
  const rows = RUN.labels.map((label, k) => ({ label, k, kind: study.relations[k] })).filter(({ kind }) => kind !== ".");
  rows.sort((a, b) => WEIGHT.indexOf(a.kind) - WEIGHT.indexOf(b.kind));
  const told = rows.filter(({ kind }) => !"dn".includes(kind)),
    quiet = (kind) =>
      rows
        .filter((row) => row.kind === kind)
        .map((row) => row.label.toLowerCase())
        .join(", ");
  const box = el("div", { class: "block" }, el("h3", { text: "Findings" }));
  if (told.length) {
    box.append(
      el(
        "div",
        { class: "scroll" },
        el(
          "table",
          { class: "findings" },
          el("thead", {}, el("tr", {}, ...["", "finding", "reference", "prediction"].map((text) => el("th", { text })))),
          el(
            "tbody",
            {},
            ...told.map(({ label, k, kind }) =>
              el(
                "tr",
                { class: RELATIONS[kind].css },
                el("td", { class: "how", text: `${RELATIONS[kind].sign} ${RELATIONS[kind].text}` }),
                el("th", { scope: "row", text: label }),
                el("td", { text: SAID[study.states[0][k]] }),
                el("td", { text: SAID[study.states[1][k]] }),
              ),
            ),
          ),
        ),
      ),
    );
  } else box.append(el("p", { text: "Neither report states a finding." }));
  const both = quiet("d"),
    one = quiet("n");
  if (both) box.append(el("p", { class: "quiet", text: `Denied by both: ${both}.` }));
  if (one) box.append(el("p", { class: "quiet", text: `Denied by one, the other is silent: ${one}.` }));
  return box;
}

function diagnosis(study) {
  if (study.diagnosis === null) return null;
  const rows = RUN.labels
    .map((label, k) => [label, study.diagnosis.includes(label), stated(study.states[0][k])])
    .filter(([, given, told]) => given || told);
  const chips = rows.map(([label, given, told]) =>
    el("li", {
      class: given && told ? "both" : "only",
      text: given && told ? `\u2713 ${label}` : given ? `+ ${label}: not in the reference` : `\u2212 ${label}: not diagnosed`,
    }),
  );
  return el(
    "div",
    { class: "block", id: "diagnosis" },
    el(
      "h3",
      {},
      "Diagnosis that chose the knowledge, against the reference ",
      RUN.facts.oracle_labels ? el("span", { class: "badge", text: "oracle" }) : null,
    ),
    chips.length ? el("ul", { class: "chips" }, ...chips) : el("p", { class: "quiet", text: "No label, in either." }),
  );
}

function knowledge(study) {
  if (study.expert === null && study.distance === "") return null;
  const match =
    study.distance === ""
      ? ""
      : study.distance === "0"
        ? "the entry of exactly this diagnosis"
        : `nearest entry, ${study.distance} label${study.distance === "1" ? "" : "s"} away from the diagnosis`;
  const [id, text] = study.expert || ["", ""];
  return el(
    "div",
    { class: "block", id: "knowledge" },
    el("h3", { text: `Knowledge: expert report ${id}` }),
    el("p", { class: "quiet", text: match, style: "margin-bottom:.4rem" }),
    text ? el("blockquote", { text }) : null,
  );
}

function values(study) {
  return el(
    "div",
    { class: "block" },
    el("h3", { text: "Scores of this study" }),
    el(
      "dl",
      { class: "values" },
      ...RUN.scores.map((score, k) =>
        el("div", {}, el("dt", { text: metricName(score.name) }), el("dd", { text: scoreText(study, k) })),
      ),
    ),
  );
}

// ---------------------------------------------------------------------------------------------------- training

const GROUPS = [
  ["train/", "Training"],
  ["step/", "Within epochs"],
  ["val/", "Validation"],
  ["lr/", "Learning rate"],
  ["", "Speed"],
];

function drawTraining() {
  const view = $("view-training"),
    rounds = RUN.curves.rounds;
  const names = [...new Set(rounds.flatMap((round) => Object.keys(round.series)))];
  if (!names.length) {
    view.append(
      el("h2", { text: "Training" }),
      el("p", { class: "quiet", text: "No training log (log.jsonl) lies beside the weights or in the folder above them." }),
    );
    return;
  }
  const monitor = `val/${FLAGS.monitor_metric || "r2gen/CIDEr"}`;
  const first = new Set(
    ["train/loss", monitor, "val/r2gen/BLEU_4", "val/distinct_reports"].filter((name) => names.includes(name)),
  );
  const charts = el("div", { class: "charts" });
  const choices = el("div", { class: "choices" });
  const taken = new Set();
  for (const [prefix, title] of GROUPS) {
    const own = names.filter((name) => name.startsWith(prefix) && !taken.has(name));
    own.forEach((name) => taken.add(name));
    if (!own.length) continue;
    choices.append(
      el(
        "div",
        { class: "choice", role: "group", "aria-label": title },
        el("span", { class: "quiet", text: title }),
        el(
          "div",
          {},
          ...own.map((name) =>
            el(
              "label",
              {},
              el("input", { type: "checkbox", value: name, checked: first.has(name), onchange: draw }),
              metricName(name.slice(prefix.length)),
              name === monitor ? " (chooses best.pt)" : "",
            ),
          ),
        ),
      ),
    );
  }
  const legend = el(
    "p",
    {},
    ...rounds.map((round, k) =>
      el(
        "span",
        { class: "legend-line" },
        svgLine(k),
        `${round.name}${round.best_epoch ? `, best at epoch ${round.best_epoch}` : ""}`,
      ),
    ),
  );
  view.append(
    el("h2", { text: "Training" }),
    el(
      "p",
      { class: "quiet" },
      "From ",
      el("span", { class: "mono", text: RUN.curves.log }),
      ". A ring marks the epoch of the best checkpoint.",
    ),
    choices,
    legend,
    charts,
  );
  draw();

  function draw() {
    const wanted = [...choices.querySelectorAll("input:checked")].map((input) => input.value);
    charts.replaceChildren(...wanted.map((name) => chart(name, rounds)));
  }
}

const dash = (k) => ["", "6 3", "2 3", "8 3 2 3"][k % 4];
const colour = (k) => `var(--series-${k % 4})`;
const svgLine = (k) =>
  svg(
    "svg",
    { width: 30, height: 10, "aria-hidden": "true" },
    svg("path", { d: "M0 5H30", style: `stroke:${colour(k)};stroke-width:2`, "stroke-dasharray": dash(k) }),
  );

/** Round numbers between low and high, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low || Math.abs(high) || 1) / count,
    power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power,
    found = [];
  for (let k = Math.floor(low / step); k * step < high + step * 0.999; k++) found.push(k * step);
  return { found, step };
}

function chart(name, rounds) {
  const W = 430,
    H = 210,
    L = 50,
    R = 12,
    T = 12,
    B = 30;
  const lines = rounds
    .map((round, k) => ({ k, round, points: (round.series[name] || []).filter(([, value]) => value !== null) }))
    .filter(({ points }) => points.length);
  const xs = lines.flatMap(({ points }) => points.map(([x]) => x)),
    ys = lines.flatMap(({ points }) => points.map(([, y]) => y));
  const title = el("strong", { text: metricName(name) });
  if (!xs.length)
    return el("figure", { class: "chart" }, el("figcaption", {}, title), el("p", { class: "quiet", text: "No finite value." }));
  const { found: rows, step } = ticks(Math.min(...ys), Math.max(...ys), 4);
  const [x0, x1] = [Math.min(0, ...xs), Math.max(...xs, 1)],
    [y0, y1] = [rows[0], rows.at(-1) === rows[0] ? rows[0] + step : rows.at(-1)];
  const px = (x) => L + ((W - L - R) * (x - x0)) / (x1 - x0 || 1),
    py = (y) => H - B - ((H - T - B) * (y - y0)) / (y1 - y0 || 1);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const label = (value) => (step < 1e-3 ? value.toExponential(0) : value.toFixed(digits));
  const picture = svg("svg", {
    viewBox: `0 0 ${W} ${H}`,
    role: "img",
    "aria-label": `${name} by epoch; the values stand in the table below`,
  });
  for (const value of rows) {
    const text = svg("text", { x: L - 8, y: py(value) + 4, "text-anchor": "end" });
    text.textContent = label(value);
    picture.append(svg("line", { class: "grid", x1: L, x2: W - R, y1: py(value), y2: py(value) }), text);
  }
  const columns = ticks(x0, x1, 6);
  for (const value of columns.found.filter((x) => Number.isInteger(x) && x > x0 && x <= x1)) {
    const text = svg("text", { x: px(value), y: H - 11, "text-anchor": "middle" });
    text.textContent = value;
    picture.append(text);
  }
  const unit = svg("text", { x: L, y: H - 11, "text-anchor": "end", dx: -8 });
  unit.textContent = "epoch";
  picture.append(unit);
  for (const { k, round, points } of lines) {
    picture.append(
      svg("path", {
        d: points.map(([x, y], n) => `${n ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join(""),
        style: `stroke:${colour(k)}`,
        "stroke-dasharray": dash(k),
      }),
    );
    if (points.length <= 40)
      for (const [x, y] of points) {
        const best = name.startsWith("val/") && x === round.best_epoch;
        picture.append(
          svg("circle", {
            cx: px(x),
            cy: py(y),
            r: best ? 6 : 2.6,
            style: best ? `fill:none;stroke:${colour(k)};stroke-width:2` : `fill:${colour(k)}`,
          }),
        );
      }
  }
  const cursor = svg("line", { class: "cursor", y1: T, y2: H - B, x1: -9, x2: -9 });
  picture.append(cursor);
  const read = el("div", { class: "read" });
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect(),
      x = x0 + ((((event.clientX - box.left) / box.width) * W - L) / (W - L - R)) * (x1 - x0);
    const near = xs.reduce((best, value) => (Math.abs(value - x) < Math.abs(best - x) ? value : best));
    cursor.setAttribute("x1", px(near));
    cursor.setAttribute("x2", px(near));
    read.textContent = `epoch ${near}: ${lines
      .map(({ round, points }) => [round.name, points.find(([at]) => at === near)])
      .filter(([, point]) => point)
      .map(([who, point]) => `${who} ${point[1].toPrecision(4)}`)
      .join(", ")}`;
  });
  const places = [...new Set(xs)].sort((a, b) => a - b);
  const table = () =>
    el(
      "table",
      {},
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          el("th", { class: "number", text: "epoch" }),
          ...lines.map(({ round }) => el("th", { class: "number", text: round.name })),
        ),
      ),
      el(
        "tbody",
        {},
        ...places.map((x) =>
          el(
            "tr",
            {},
            el("td", { class: "number", text: x }),
            ...lines.map(({ points }) => {
              const point = points.find(([at]) => at === x);
              return el("td", { class: "number", text: point ? point[1].toPrecision(4) : "" });
            }),
          ),
        ),
      ),
    );
  const values = el(
    "details",
    {
      ontoggle: (event) => {
        if (event.target.open && event.target.children.length === 1) event.target.append(table());
      },
    },
    el("summary", { text: "Values" }),
  );
  return el("figure", { class: "chart", "data-name": name }, el("figcaption", {}, title), picture, read, values);
}

// ---------------------------------------------------------------------------------------------------- run

/** Any value of a JSON file for people: numbers short, lists and objects in a line. */
function plainText(value) {
  if (value === null) return "\u2013";
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(4)));
  if (Array.isArray(value)) return value.map(plainText).join(" ");
  if (typeof value === "object")
    return Object.entries(value)
      .map(([name, item]) => `${name} ${plainText(item)}`)
      .join(", ");
  return String(value);
}

const factList = (rows) =>
  el(
    "dl",
    { class: "facts" },
    ...rows
      .filter(([, value]) => value !== undefined)
      .flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { class: "mono", text: plainText(value) })]),
  );

function drawRun() {
  const view = $("view-run"),
    run = RUN.test_run,
    card = run.data;
  view.append(
    el("p", {
      class: "quiet",
      style: "margin-top:1rem",
      text: "This file holds pictures and reports of the data set. Hand it on only to those whom the data set's licence or use agreement allows to see them.",
    }),
  );
  if (card) {
    view.append(
      el("h2", { text: "Data card" }),
      factList([
        ["data set", card.data_set],
        ["annotation", card.annotation],
        ["text", card.section],
        ["pictures used per study", card.views_used],
        ["studies listed, " + RUN.split, RUN.facts.studies_listed],
        ["skipped as broken", Object.keys(card.skipped || {}).length],
      ]),
    );
    view.append(
      el(
        "div",
        { class: "scroll", style: "margin-top:.7rem" },
        el(
          "table",
          {},
          el(
            "thead",
            {},
            el(
              "tr",
              {},
              ...["split", "studies", "pictures per study", "hash of the ids"].map((text, k) =>
                el("th", { class: k === 1 ? "number" : "", text }),
              ),
            ),
          ),
          el(
            "tbody",
            {},
            ...Object.entries(card.splits || {}).map(([split, facts]) =>
              el(
                "tr",
                {},
                el("th", { scope: "row", text: split }),
                el("td", { class: "number", text: facts.studies.toLocaleString("en") }),
                el("td", {
                  text: Object.entries(facts.pictures_per_study)
                    .map(([pictures, count]) => `${pictures} in ${count.toLocaleString("en")}`)
                    .join(", "),
                }),
                el("td", { class: "mono", text: facts.ids_sha256 }),
              ),
            ),
          ),
        ),
      ),
    );
  }
  view.append(
    el("h2", { text: "This evaluation" }),
    factList([
      ["weights", RUN.facts.weights?.path],
      ["sha256", RUN.facts.weights?.sha256],
      ["command", run.command],
      ["code", run.git?.commit && `${run.git.commit}${run.git.changed ? ", with changes" : ""}`],
      ["device", run.device],
      ...Object.entries(run.versions || {}),
      ["oracle labels", RUN.facts.oracle_labels],
      ["diagnoses without an entry of their own", RUN.facts.knowledge_fallbacks],
    ]),
  );
  const others = Object.entries(RUN.facts).filter(
    ([key]) => !["split", "weights", "studies_listed", "skipped", "oracle_labels", "knowledge_fallbacks", "flags"].includes(key),
  );
  if (others.length) view.append(factList(others));
  const inputs = Object.entries(run.inputs || {});
  if (inputs.length)
    view.append(
      el("h2", { text: "Inputs" }),
      factList(inputs.map(([flag, facts]) => [`--${flag}`, `${facts.path}  sha256 ${facts.sha256.slice(0, 16)}\u2026`])),
    );
  const flags = Object.entries(FLAGS);
  if (flags.length)
    view.append(
      el("h2", { text: "Flags" }),
      el(
        "dl",
        { class: "flags" },
        ...flags.map(([name, value]) => el("div", {}, el("dt", { text: name }), el("dd", { text: plainText(value) }))),
      ),
    );
}

// ---------------------------------------------------------------------------------------------------- frame

function show() {
  const [name, id] = location.hash.slice(1).split("/");
  const view = ["scores", "studies", "training", "run"].includes(name) ? name : "scores";
  document.body.dataset.view = view;
  for (const section of document.querySelectorAll(".view")) section.hidden = section.id !== `view-${view}`;
  for (const link of document.querySelectorAll("#tabs a")) {
    if (link.getAttribute("href") === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (view === "studies") {
    const wanted = id ? STUDIES.find((study) => study.id === decodeURIComponent(id)) : null;
    if (wanted && wanted !== current) drawStudy(wanted);
    refill(true);
    $("list").focus({ preventScroll: true });
  }
}

const dark = matchMedia("(prefers-color-scheme: dark)");
function theme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").textContent = name === "dark" ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", name === "dark" ? "Switch to light" : "Switch to dark");
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  const typing =
    /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "checkbox" && event.target.type !== "range";
  const inStudies = document.body.dataset.view === "studies",
    inList = document.activeElement === $("list");
  const page = Math.max(1, Math.floor($("list").clientHeight / ROW) - 1);
  let done = true;
  if (event.key === "Escape" && inStudies) {
    if (word !== null) chooseWord(null);
    else if (!inList && document.activeElement !== $("search")) $("list").focus();
    else {
      $("search").value = "";
      refill();
      $("list").focus();
    }
  } else if (event.key === "Enter" && event.target === $("search")) $("list").focus();
  else if (typing) done = false;
  else if (event.key === "/") {
    location.hash = inStudies ? location.hash : "#studies";
    show();
    $("search").focus();
    $("search").select();
  } else if (event.key === "?") $("help").showModal();
  else if (!inStudies) done = false;
  else if (event.key === "j" || (inList && event.key === "ArrowDown")) select(selected + 1);
  else if (event.key === "k" || (inList && event.key === "ArrowUp")) select(selected - 1);
  else if (inList && event.key === "PageDown") select(selected + page);
  else if (inList && event.key === "PageUp") select(selected - page);
  else if (inList && event.key === "Home") select(0);
  else if (inList && event.key === "End") select(order.length - 1);
  else if (inList && event.key === "Enter") (document.querySelector("#prediction .w") || $("detail")).focus();
  else if (event.key === "a" && $("mask")) $("mask").click();
  else done = false;
  if (done) event.preventDefault();
}

function start() {
  $("title").textContent = RUN.title;
  $("subtitle").textContent =
    `${FLAGS.model ? `${FLAGS.model} on ${FLAGS.dataset_name}, ` : ""}${RUN.split} split, ${studiesOf(STUDIES.length)}. Research software, not for clinical use.`;
  if (RUN.facts.oracle_labels) {
    $("banner").hidden = false;
    $("banner").textContent =
      "Oracle: the diagnoses of these studies were made from their own reports. These figures are no result of a system that sees pictures alone.";
  }
  for (const { css, sign, text, long } of Object.values(RELATIONS)) {
    $("legend").append(
      el("dt", {}, el("mark", { class: css, text: "effusion" }, sign ? el("span", { class: "sign", text: sign }) : null)),
      el("dd", { text: `${text === long ? "" : `${text}: `}${long}` }),
    );
  }
  theme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => theme(dark.matches ? "dark" : "light"));
  $("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  $("help-button").addEventListener("click", () => $("help").showModal());
  $("list").addEventListener("scroll", () => drawRows());
  addEventListener("resize", () => drawRows());
  addEventListener("hashchange", show);
  addEventListener("keydown", keys);
  fillChoices();
  drawScores();
  drawTraining();
  drawRun();
  show();
}

start();
document.addEventListener("DOMContentLoaded", () => {
  // pictures and attention stand behind this script in the file
  document.body.classList.toggle("bare", !hasEvidence());
  drawRows(true);
  if (current && word === null) drawStudy(current);
});
