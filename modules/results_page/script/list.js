// The list of studies: search, filter, sort; only the rows in view are in the document.

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
  const shot = (evidence(study)?.images || []).find((image) => image.jpeg);
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
