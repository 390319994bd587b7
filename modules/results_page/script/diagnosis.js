// Diagnosis: how the classifier behind the diagnoses ranks, is calibrated and decides; label by label.

function drawDiagnosis() {
  const rows = RUN.diagnosis || [];
  document.querySelector('#tabs a[href="#diagnosis"]').hidden = !rows.length;
  if (!rows.length) return;
  const share = (part, all) => (all ? shown(part / all, 2) : "n/a");
  const table = rows.map((row) => [
    row.label,
    whole(row.positives),
    row.auroc === null ? "n/a" : shown(row.auroc),
    row.threshold >= 1 ? "never" : shown(row.threshold),
    whole(row.said),
    share(row.hits, row.said),
    share(row.hits, row.positives),
    row.at ? shown(1 - row.at[0], 2) : "n/a",
  ]);
  const known = rows.filter((row) => row.roc);
  const mean = known.reduce((sum, row) => sum + row.auroc, 0) / known.length;
  $("view-diagnosis").append(
    el("h2", { text: "Diagnosis: thresholds" }),
    quietText(
      `What the classifier gave for ${studiesOf(STUDIES.length)}, against what the rule-based labeler reads in their references; uncertain counts as present.` +
        (known.length ? ` AUROC, mean over ${known.length} labels with both classes: ${shown(mean)}.` : ""),
    ),
    tableBox(
      "diagnosis",
      plainTable(["label", "present", "AUROC", "threshold", "diagnosed", "precision", "sensitivity", "specificity"], table, (k) => k > 0),
    ),
    el("h2", { text: "ROC and calibration" }),
    quietText("Left: sensitivity over 1 \u2212 specificity, the ring is the threshold. Right: share present over probability, in tenths; the larger the dot, the more studies; the line is a perfect calibration, the dashes are the threshold."),
    el(
      "div",
      { class: "charts" },
      ...rows.filter((row) => row.roc).map((row) => {
        const image = diagnosisFigure(row);
        return el(
          "figure",
          { class: "chart", "data-name": row.label },
          el("figcaption", {}, el("strong", { text: row.label }), el("span", { text: `AUROC ${shown(row.auroc)}, ${whole(row.positives)} present` })),
          image,
          el("div", { class: "saves" }, svgButton(`diagnosis ${row.label}`, image)),
        );
      }),
    ),
  );
  if (!known.length) $("view-diagnosis").append(quietText("No label has studies with and without it."));
}

function diagnosisFigure(row) {
  const side = 150,
    top = 10,
    lefts = [40, 255];
  const text = (x, y, words, anchor = "middle") => {
    const node = svg("text", { x, y, "text-anchor": anchor });
    node.textContent = words;
    return node;
  };
  const image = svg("svg", { viewBox: "0 0 420 200", role: "img", "aria-label": `${row.label}: ROC, AUROC ${shown(row.auroc)}, and calibration` });
  const at = (left) => ([x, y]) => [left + x * side, top + (1 - y) * side];
  lefts.forEach((left, k) => {
    for (const value of [0, 0.5, 1]) {
      const [x, y] = at(left)([value, value]);
      image.append(
        svg("line", { class: "grid", x1: left, x2: left + side, y1: y, y2: y }),
        svg("line", { class: "grid", x1: x, x2: x, y1: top, y2: top + side }),
        text(left - 6, y + 4, value, "end"),
        text(x, top + side + 14, value),
      );
    }
    image.append(
      svg("line", { class: "even", x1: left, y1: top + side, x2: left + side, y2: top }),
      text(left + side / 2, top + side + 30, ["1 \u2212 specificity", "probability"][k]),
    );
  });
  const path = (points, left) => points.map(at(left)).map(([x, y], n) => `${n ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  image.append(svg("path", { d: path(row.roc, lefts[0]), style: `stroke:${colour(0)}` }));
  const [x, y] = at(lefts[0])(row.at);
  image.append(svg("circle", { cx: x, cy: y, r: 5, style: `fill:none;stroke:${colour(1)};stroke-width:2` }));
  image.append(svg("path", { d: path(row.bins.map(([p, share]) => [p, share]), lefts[1]), style: `stroke:${colour(0)}`, opacity: 0.5 }));
  const most = Math.max(...row.bins.map(([, , count]) => count));
  for (const [p, share, count] of row.bins) {
    const [cx, cy] = at(lefts[1])([p, share]);
    const dot = svg("circle", { cx, cy, r: 2.5 + 4 * Math.sqrt(count / most), style: `fill:${colour(0)}` }, svg("title", {}));
    dot.firstChild.textContent = `probability ${shown(p)}: present in ${percent(share)} of ${studiesOf(count)}`;
    image.append(dot);
  }
  const cut = lefts[1] + Math.min(1, row.threshold) * side;
  image.append(svg("line", { x1: cut, x2: cut, y1: top, y2: top + side, style: `stroke:${colour(1)};stroke-width:1.5`, "stroke-dasharray": "4 3" }));
  return image;
}
