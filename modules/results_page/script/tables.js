// Tables and figures that can be taken away: CSV and LaTeX of any table, SVG of any figure.

/** Hand a text to the reader as a file; nothing leaves the machine. */
function save(name, type, text) {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const fileName = (name, ending) => `${RUN.title}_${name}`.replace(/[^\w.-]+/g, "_").toLowerCase() + `.${ending}`;

/** The cells of a table as texts, row by row; a cell over several columns fills all of them, an interval stands in brackets. */
function cellTexts(table) {
  return [...table.rows].map((row) =>
    [...row.cells].flatMap((cell) => {
      const copy = cell.cloneNode(true);
      copy.querySelectorAll(".interval").forEach((node) => (node.textContent = ` [${node.textContent}]`));
      copy.querySelectorAll(".badge").forEach((node) => (node.textContent = ` (${node.textContent})`));
      const text = copy.textContent.replace(/\s+/g, " ").trim();
      return [text, ...Array(cell.colSpan - 1).fill("")];
    }),
  );
}

const csvOf = (table) =>
  cellTexts(table)
    .map((row) => row.map((text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text)).join(","))
    .join("\n") + "\n";

const LATEX = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "\u2013": "--", "\u00b1": "$\\pm$" };
LATEX["\u2260"] = "$\\neq$";
LATEX["\u2248"] = "$\\approx$";
LATEX["\u2212"] = "$-$";
const latexText = (text) => text.replace(/[\\&%$#_{}~^\u2013\u00b1\u2260\u2248\u2212]/g, (sign) => LATEX[sign] || `\\${sign}`);

/** A table with booktabs; columns of numbers stand right. */
function latexOf(table, caption) {
  const rows = cellTexts(table),
    heads = table.tHead ? table.tHead.rows.length : 0,
    wide = Math.max(...rows.map((row) => row.length));
  const right = [...table.rows].at(-1).cells;
  const columns = Array.from({ length: wide }, (_, k) => (right[k]?.classList.contains("number") ? "r" : "l")).join("");
  const line = (row) => `${[...row, ...Array(wide - row.length).fill("")].map(latexText).join(" & ")} \\\\`;
  return [
    `% ${RUN.title}: ${caption}`,
    `\\begin{tabular}{${columns}}`,
    "\\toprule",
    ...rows.slice(0, heads).map(line),
    "\\midrule",
    ...rows.slice(heads).map(line),
    "\\bottomrule",
    "\\end{tabular}",
    "",
  ].join("\n");
}

const STYLED = ["fill", "stroke", "stroke-width", "stroke-dasharray", "font-family", "font-size", "font-weight", "opacity"];

/** An SVG that stands alone: what the page's style says is written into it, on the page's ground. */
function svgOf(image) {
  const copy = image.cloneNode(true),
    box = image.viewBox.baseVal;
  const inside = [...image.querySelectorAll("*")];
  [...copy.querySelectorAll("*")].forEach((node, k) => {
    const style = getComputedStyle(inside[k]);
    node.removeAttribute("class");
    node.setAttribute("style", STYLED.map((name) => `${name}:${style.getPropertyValue(name)}`).join(";"));
  });
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.setAttribute("width", box.width);
  copy.setAttribute("height", box.height);
  const ground = getComputedStyle(document.documentElement).getPropertyValue("--panel");
  copy.prepend(svg("rect", { width: box.width, height: box.height, fill: ground }));
  return `${new XMLSerializer().serializeToString(copy)}\n`;
}

const saveButton = (text, about, action) => el("button", { type: "button", class: "save", text, title: about, onclick: action });

/** A table in a box that scrolls by itself, with its downloads below. */
function tableBox(name, table) {
  table.setAttribute("aria-label", name);
  return el(
    "div",
    { class: "table-box" },
    el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": name }, table),
    el(
      "div",
      { class: "saves" },
      saveButton("CSV", `Save the table "${name}" as CSV`, () => save(fileName(name, "csv"), "text/csv", csvOf(table))),
      saveButton("LaTeX", `Save the table "${name}" as LaTeX`, () =>
        save(fileName(name, "tex"), "application/x-tex", latexOf(table, name)),
      ),
    ),
  );
}

const svgButton = (name, image) =>
  saveButton("SVG", `Save the figure "${name}" as SVG`, () => save(fileName(name, "svg"), "image/svg+xml", svgOf(image)));

/** thead and tbody from rows of cells that are elements or texts; `number` says which columns hold numbers. */
function plainTable(heads, rows, number = () => false) {
  const cell = (tag, value, k) =>
    value instanceof Element ? value : el(tag, { class: number(k) ? "number" : "", text: value, scope: tag === "th" ? "row" : null });
  return el(
    "table",
    {},
    el("thead", {}, el("tr", {}, ...heads.map((text, k) => el("th", { class: number(k) ? "number" : "", text })))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((value, k) => cell(k ? "td" : "th", value, k))))),
  );
}

/** What is folded away until somebody opens it; `fill` gives its nodes then. */
function folded(title, fill) {
  return el(
    "details",
    {
      class: "fold",
      ontoggle: (event) => {
        if (event.target.open && event.target.children.length === 1) event.target.append(...fill());
      },
    },
    el("summary", { text: title }),
  );
}
