// Scores: key figures, tables, findings, parts of the split.

function scoreCell(cell) {
  if (!cell) return el("td", { class: "number", text: "\u2013" });
  const [value, low, high, key] = cell;
  const node = el("td", { class: "number", title: keyName(key), text: shown(value) });
  if (value === null) node.title = `${keyName(key)}: ${RUN.notes[key] || RUN.notes[key.split("/").at(-1)] || "could not be computed"}`;
  if (low !== null && low !== undefined)
    node.append(el("span", { class: "interval", text: `${shown(low)}\u2013${shown(high)}` }));
  return node;
}

const quietText = (text) => el("p", { class: "quiet about", text });
const baselineName = (name) => RUN.baselines[name]?.title || name.replaceAll("_", " ");
const cellsByKey = (tables) => new Map(tables.flatMap(({ rows }) => rows.flatMap(({ of, cells }) => cells.map((cell) => [`${of}:${cell[3].slice(of ? of.length + 1 : 0)}`, cell]))));

function drawScores() {
  const view = $("view-scores");
  const family = (name) => RUN.tables.filter((table) => table.family === name);
  view.append(
    tiles(),
    ...textTables(family("text")),
    ...family("clinical").flatMap(clinicalTables),
    findingsTable(),
    ...family("other").flatMap((table) => [el("h2", { text: metricName(table.columns.join(", ")) }), metricTable("scores", table.rows, table.columns)]),
    ...subsets(),
    ...byLabel(),
  );
  const notes = Object.entries(RUN.notes);
  if (notes.length)
    view.append(
      el("h2", { text: "Notes" }),
      el("ul", { class: "notes" }, ...notes.map(([key, text]) => el("li", { text: `${keyName(key)}: ${text}` }))),
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
  const given = Object.values(RUN.baselines);
  if (given.length)
    view.append(
      el("h2", { text: "Baselines" }),
      ...given.flatMap(({ title, about, text }) => [
        quietText(`${title}${about ? `: ${about}` : ""}.`),
        text ? el("blockquote", { text }) : null,
      ]),
    );
}

/** The figures that people look for first, each beside its best baseline. */
function tiles() {
  const flat = cellsByKey(RUN.tables),
    text = RUN.tables.find((table) => table.family === "text"),
    protocol = text?.rows[0].row;
  const wanted = ["BLEU_1", "BLEU_4", "METEOR", "ROUGE_L", "CIDEr"].map((name) => `${protocol}/${name}`);
  wanted.push(...[...flat.keys()].map((key) => key.slice(1)).filter((key) => /^ce\/.*\/micro\/u1\/f1$/.test(key)).slice(0, 1));
  const abnormal = RUN.subsets.find(({ name }) => name === "abnormal"),
    apart = cellsByKey(abnormal ? abnormal.tables : []);
  const box = el("div", { class: "tiles" });
  for (const key of wanted.filter((name) => flat.has(`:${name}`))) {
    const [value, low, high] = flat.get(`:${key}`);
    const [best, name] = Object.keys(RUN.baselines)
      .map((of) => [flat.get(`${of}:${key}`)?.[0] ?? null, of])
      .reduce((a, b) => (b[0] !== null && (a[0] === null || b[0] > a[0]) ? b : a), [null, ""]);
    box.append(
      el(
        "div",
        { class: "tile", title: keyName(key) },
        el("h3", { text: key.startsWith("ce/") ? `F1, ${LABEL_SETS[key.split("/")[2]] || key.split("/")[2]}` : metricName(key.split("/")[1]) }),
        el("div", { class: "value", text: shown(value) }),
        low === null || low === undefined ? null : el("p", { text: `95%: ${shown(low)}\u2013${shown(high)}` }),
        apart.has(`:${key}`) ? el("p", { text: `${whole(abnormal.studies)} abnormal studies: ${shown(apart.get(`:${key}`)[0])}` }) : null,
        best === null ? null : el("p", { text: `${baselineName(name)}: ${shown(best)}` }),
      ),
    );
  }
  const { studies, distinct_reports: distinct, commonest_share: commonest } = RUN.texts;
  box.append(
    el(
      "div",
      { class: "tile" },
      el("h3", { text: "Distinct reports" }),
      el("div", { class: "value", text: whole(distinct) }),
      el("p", { text: `of ${whole(studies)}; the commonest is ${percent(commonest)}` }),
    ),
  );
  return box;
}

/** Rows of one thing (a protocol, an average): this system, then the baselines, then `more` rows of texts and cells. */
function metricTable(name, rows, columns, { heads = null, more = [] } = {}) {
  const marks = [...(RUN.facts.oracle_labels ? ["oracle"] : []), ...(RUN.facts.marks || [])];
  const names = [...new Set(rows.map(({ row }) => row))];
  const body = el("tbody");
  for (const row of names) {
    if (heads || names.length > 1)
      body.append(
        el("tr", { class: "group" }, el("th", { scope: "rowgroup", class: "what", colspan: columns.length + 1, text: heads ? heads(row) : row })),
      );
    const own = rows.filter((one) => one.row === row).sort((a, b) => (a.of !== "") - (b.of !== ""));
    for (const { of, cells } of own)
      body.append(
        el(
          "tr",
          { class: of ? "" : "own" },
          el("th", { scope: "row" }, of ? baselineName(of) : "this system ", ...(of ? [] : marks.map((text) => el("span", { class: "badge", text })))),
          ...cells.map(scoreCell),
        ),
      );
  }
  body.append(...more);
  const head = el("tr", {}, el("th", { text: "system" }), ...columns.map((column) => el("th", { class: "number", text: metricName(column) })));
  return tableBox(name, el("table", { class: "scores" }, el("thead", {}, head), body));
}

/** Text metrics: the first protocol, the others behind their names. */
function textTables(tables) {
  const protocols = [...new Set(tables.flatMap(({ rows }) => rows.map(({ row }) => row)))];
  if (!protocols.length) return [];
  const published = (protocol, columns) =>
    Object.entries(RUN.published)
      .filter(([, values]) => (values.protocol || "r2gen") === protocol)
      .map(([system, values]) =>
        el(
          "tr",
          { class: "published" },
          el("th", { scope: "row", text: `${system}, published` }),
          ...columns.map((name) => scoreCell(name in values ? [values[name], null, null, name] : null)),
        ),
      );
  const one = (protocol) =>
    tables
      .map(({ rows, columns }) => [rows.filter(({ row }) => row === protocol), columns])
      .filter(([rows]) => rows.length)
      .map(([rows, columns]) => metricTable(`text metrics, ${protocol}`, rows, columns, { more: published(protocol, columns) }));
  const title = (protocol) => `Protocol ${protocol}${PROTOCOLS[protocol] ? `: ${PROTOCOLS[protocol]}` : ""}`;
  return [
    el("h2", { text: "Text metrics" }),
    quietText(
      `${title(protocols[0])}. The same texts score differently under another preparation, so the protocol is part of each figure. Published rows as their papers give them.`,
    ),
    ...one(protocols[0]),
    ...protocols.slice(1).map((protocol) => folded(title(protocol), () => one(protocol))),
  ];
}

/** Clinical metrics: a table for each labeler, label set and rule, in words; the first with "uncertain counts as present" stands open. */
function clinicalTables(table) {
  const kinds = new Map(); // "labeler, set, rule" -> rows
  for (const row of table.rows) {
    const [, labeler, set, , rule] = row.row.split("/");
    const kind = [labeler, set, rule].join("/");
    kinds.set(kind, [...(kinds.get(kind) || []), row]);
  }
  const words = (kind) => {
    const [labeler, set, rule] = kind.split("/");
    return `${LABEL_SETS[set] || set}; ${UNCERTAIN[rule] || rule}; ${labelerName(labeler)}`;
  };
  const one = (kind) =>
    metricTable(`clinical metrics, ${words(kind)}`, kinds.get(kind), table.columns, {
      heads: (row) => `${AVERAGES[row.split("/")[3]] || row.split("/")[3]} (${row.split("/")[3]})`,
    });
  const open = [...kinds.keys()].find((kind) => kind.endsWith("/u1")) || [...kinds.keys()][0];
  return [
    el("h2", { text: "Clinical metrics" }),
    quietText(`Does the prediction state the findings of the reference? ${words(open)}.`),
    one(open),
    ...[...kinds.keys()].filter((kind) => kind !== open).map((kind) => folded(words(kind), () => [one(kind)])),
  ];
}

/** Scores of parts of the split: a table over them, and every figure of each behind its name. */
function subsets() {
  const first = RUN.tables.find(({ family }) => family === "text"),
    parts = RUN.subsets.filter((part) => part.tables.length);
  if (!parts.length || !first) return [];
  const protocol = first.rows[0].row,
    named = (name) => name.replace("label/", "").replaceAll("_", " ");
  const body = el("tbody");
  for (const { name, studies, tables } of parts) {
    body.append(
      el("tr", { class: "group" }, el("th", { scope: "rowgroup", class: "what", colspan: first.columns.length + 1, text: `${named(name)}: ${studiesOf(studies)}` })),
    );
    for (const { row, of, cells } of tables.flatMap((table) => table.rows))
      if (row === protocol)
        body.append(
          el("tr", { class: of ? "" : "own" }, el("th", { scope: "row", text: of ? baselineName(of) : "this system" }), ...cells.map(scoreCell)),
        );
  }
  const head = el("tr", {}, el("th", { text: "system" }), ...first.columns.map((name) => el("th", { class: "number", text: metricName(name) })));
  return [
    el("h2", { text: "Parts of the split" }),
    folded(`Abnormal and normal studies, those that speak of earlier ones, each finding: protocol ${protocol}`, () => [
      quietText("Chosen by the references alone."),
      tableBox("parts of the split", el("table", { class: "scores" }, el("thead", {}, head), body)),
    ]),
    ...parts
      .filter((part) => part.tables.length > 1)
      .map(({ name, tables }) =>
        folded(`Every figure: ${named(name)}`, () =>
          tables.flatMap((table) => [
            metricTable(`${named(name)}, ${table.family}`, table.rows, table.columns, {
              heads: (row) => (row.startsWith("ce/") ? keyName(row) : row),
            }),
          ]),
        ),
      ),
  ];
}

const COUNTS = ["reference", "prediction"]; // of by_label: how many studies, not a share

/** Precision, recall and F1 of each label, by labeler and by what an uncertain finding counts as. */
function byLabel() {
  return Object.entries(RUN.by_label).flatMap(([labeler, table]) => {
    const rules = Object.keys(Object.values(table)[0] || {});
    const one = (rule) => {
      const names = Object.keys(Object.values(table)[0]?.[rule] || {});
      const rows = Object.entries(table).map(([label, found]) => [
        label,
        ...names.map((name) => (COUNTS.includes(name) ? whole(found[rule][name]) : shown(found[rule][name]))),
      ]);
      const heads = names.map((name) => (COUNTS.includes(name) ? `in ${name}` : name === "f1" ? "F1" : name));
      return tableBox(`by finding, ${labelerName(labeler)}, ${UNCERTAIN[rule] || rule}`, plainTable(["finding", ...heads], rows, (k) => k > 0));
    };
    return [
      el("h2", { text: `Finding by finding: ${labelerName(labeler)}` }),
      ...rules.map((rule) => folded(UNCERTAIN[rule] || rule, () => [one(rule)])),
    ];
  });
}

const HEAT = [
  ["in-reference", "in reference", "accent"],
  ["in-prediction", "in prediction", "accent"],
  ["=", "agreed =", "same"],
  ["q", "differs in detail \u2248", "one"],
  ["h", "hedged ~", "one"],
  ["m", "missed \u2212", "one"],
  ["a", "added +", "one"],
  ["x", "contradicted \u2260", "clash"],
  ["d", "denied by both", "soft"],
];

/** Findings x states as a heat map: how often each is stated, agreed on, contradicted ...; every count leads to its studies. */
function findingsTable() {
  const rows = RUN.labels
    .map((label, k) => [label, k, HEAT.map(([kind]) => STUDIES.reduce((sum, study) => sum + matches(study, k, kind), 0))])
    .filter(([, , counts]) => counts.some(Boolean));
  const most = Math.max(1, ...rows.flatMap(([, , counts]) => counts.slice(0, -1)));
  const heat = (count, tone) =>
    count ? `background: color-mix(in srgb, var(--${tone}) ${Math.round(8 + 40 * Math.sqrt(Math.min(1, count / most)))}%, var(--panel))` : null;
  const body = rows.map(([label, k, counts]) => [
    el("th", { scope: "row", text: label }),
    ...counts.map((count, c) =>
      el(
        "td",
        { class: "number heat", style: heat(count, HEAT[c][2]) },
        label === "No Finding" && c > 1
          ? el("span", { class: "quiet", text: "\u2013" }) // no statement that two reports could share or contradict
          : count
          ? el("button", {
              type: "button",
              class: "link",
              text: whole(count),
              "aria-label": `${studiesOf(count)}: ${label} ${HEAT[c][1]}`,
              onclick: () => showFiltered(String(k), HEAT[c][0]),
            })
          : el("span", { class: "quiet", text: "0" }),
      ),
    ),
  ]);
  const table = plainTable(["finding", ...HEAT.map(([, name]) => name)], body, (k) => k > 0);
  table.id = "findings";
  return el(
    "div",
    {},
    el("h2", { text: "Findings by what the reports say of them" }),
    quietText("Studies, as the rule-based labeler reads reference and prediction; the darker, the more. Select a number to see its studies."),
    tableBox("findings", table),
  );
}

function showFiltered(label, kind) {
  current = null;
  location.hash = `#studies?${new URLSearchParams({ finding: RUN.labels[label], is: kind })}`;
}
