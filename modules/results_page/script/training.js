// Training: curves of log.jsonl.

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
function ticks(low, high, count, least = 0) {
  const rough = (high - low || Math.abs(high) || 1) / count,
    power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(least, [1, 2, 5, 10].find((factor) => factor * power >= rough) * power),
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
  const counts = ys.every(Number.isInteger),
    reading = (value) => (counts ? whole(value) : value.toPrecision(4)); // counts are whole numbers
  const { found: rows, step } = ticks(Math.min(...ys), Math.max(...ys), 4, counts ? 1 : 0);
  const [x0, x1] = [Math.min(0, ...xs), Math.max(...xs, 1)],
    [y0, y1] = [rows[0], rows.at(-1) === rows[0] ? rows[0] + step : rows.at(-1)];
  const px = (x) => L + ((W - L - R) * (x - x0)) / (x1 - x0 || 1),
    py = (y) => H - B - ((H - T - B) * (y - y0)) / (y1 - y0 || 1);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const label = (value) => (step < 1e-3 ? value.toExponential(0) : value.toFixed(digits));
  const image = svg("svg", {
    viewBox: `0 0 ${W} ${H}`,
    role: "img",
    "aria-label": `${name} by epoch; the values stand in the table below`,
  });
  for (const value of rows) {
    const text = svg("text", { x: L - 8, y: py(value) + 4, "text-anchor": "end" });
    text.textContent = label(value);
    image.append(svg("line", { class: "grid", x1: L, x2: W - R, y1: py(value), y2: py(value) }), text);
  }
  const columns = ticks(x0, x1, 6);
  for (const value of columns.found.filter((x) => Number.isInteger(x) && x > x0 && x <= x1)) {
    const text = svg("text", { x: px(value), y: H - 11, "text-anchor": "middle" });
    text.textContent = value;
    image.append(text);
  }
  const unit = svg("text", { x: L, y: H - 11, "text-anchor": "end", dx: -8 });
  unit.textContent = "epoch";
  image.append(unit);
  for (const { k, round, points } of lines) {
    image.append(
      svg("path", {
        d: points.map(([x, y], n) => `${n ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join(""),
        style: `stroke:${colour(k)}`,
        "stroke-dasharray": dash(k),
      }),
    );
    if (points.length <= 40)
      for (const [x, y] of points) {
        const best = name.startsWith("val/") && x === round.best_epoch;
        image.append(
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
  image.append(cursor);
  const read = el("div", { class: "read" });
  image.addEventListener("pointermove", (event) => {
    const box = image.getBoundingClientRect(),
      x = x0 + ((((event.clientX - box.left) / box.width) * W - L) / (W - L - R)) * (x1 - x0);
    const near = xs.reduce((best, value) => (Math.abs(value - x) < Math.abs(best - x) ? value : best));
    cursor.setAttribute("x1", px(near));
    cursor.setAttribute("x2", px(near));
    read.textContent = `epoch ${near}: ${lines
      .map(({ round, points }) => [round.name, points.find(([at]) => at === near)])
      .filter(([, point]) => point)
      .map(([who, point]) => `${who} ${reading(point[1])}`)
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
              return el("td", { class: "number", text: point ? reading(point[1]) : "" });
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
  const saves = el("div", { class: "saves" }, svgButton(name, image));
  return el("figure", { class: "chart", "data-name": name }, el("figcaption", {}, title), image, read, el("div", { class: "below" }, values, saves));
}
