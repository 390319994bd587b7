// Scores: key figures, tables, findings, parts of the split.

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
  const marks = [...(RUN.facts.oracle_labels ? ["oracle"] : []), ...(RUN.facts.marks || [])];
  const badges = () => marks.map((text) => el("span", { class: "badge", text }));
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
        el("td", {}, constant ? "constant report" : "this system ", ...(constant ? [] : badges())),
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
