// Two runs side by side: the metrics of both, their difference, and what it can be told apart from.

function drawPair() {
  const { names, rows, note, files } = PAIR;
  const number = (value, digits = 4) => (value === null ? "n/a" : value.toFixed(digits));
  const signed = (value) => (value === null ? "n/a" : `${value > 0 ? "+" : value < 0 ? "\u2212" : ""}${Math.abs(value).toFixed(4)}`);
  const table = (chosen) =>
    plainTable(
      ["metric", "A", "B", "B \u2212 A", "95% interval", "p", "verdict"],
      chosen.map((row) => [
        el("th", { scope: "row", title: row.key, text: keyName(row.key) }),
        number(row.a),
        number(row.b),
        signed(row.difference),
        row.interval.map(signed).join(" to "),
        number(row.p, 3),
        el("td", { class: "nowrap", text: row.verdict }),
      ]),
      (k) => k > 0 && k < 6,
    );
  const text = rows.filter((row) => !row.key.startsWith("ce/")),
    first = text[0]?.key.split("/")[0],
    leading = text.filter((row) => row.key.startsWith(`${first}/`)),
    clinical = rows.filter((row) => row.key.startsWith("ce/")),
    rest = text.filter((row) => !leading.includes(row));
  const changed = ["fixed", "broken", "wrong"].map((kind) => STUDIES.reduce((sum, study) => sum + RUN.labels.some((_, k) => matches(study, k, kind)), 0));
  const tile = (title, count, kind, about) =>
    el(
      "div",
      { class: "tile" },
      el("h3", { text: title }),
      el("div", { class: "value" }, el("button", { type: "button", class: "link", text: whole(count), onclick: () => showKind(kind) })),
      el("p", { text: about }),
    );
  $("view-scores").append(
    el("div", { class: "tiles" },
      tile("B repairs", changed[0], "fixed", "studies with a finding that A has wrong and B has not"),
      tile("B breaks", changed[1], "broken", "studies with a finding that B has wrong and A has not"),
      tile("Wrong in both", changed[2], "wrong", "studies with a finding that both have wrong"),
      el("div", { class: "tile" }, el("h3", { text: "Same report" }), el("div", { class: "value", text: whole(STUDIES.filter(({ texts }) => texts[1] === texts[2]).length) }), el("p", { text: `of ${studiesOf(STUDIES.length)}` })),
    ),
    el("h2", { text: "Text metrics" }),
    quietText(`A: ${names[0]}. B: ${names[1]}. ${note}`),
    tableBox(`comparison, ${first}`, table(leading)),
    ...(rest.length ? [folded("The other protocols", () => [tableBox("comparison, other protocols", table(rest))])] : []),
    ...(clinical.length ? [el("h2", { text: "Clinical metrics, F1" }), tableBox("comparison, clinical", table(clinical))] : []),
  );
  $("view-run").append(
    el("h2", { text: "What is compared" }),
    factList(files.flatMap(({ path, sha256, marks }, k) => [["AB"[k], path], ["sha256", sha256], ...(marks.length ? [["marks", marks.join("; ")]] : [])])),
  );
}

function showKind(kind) {
  current = null;
  location.hash = `#studies?${new URLSearchParams({ is: kind })}`;
}
