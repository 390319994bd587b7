// The list of studies: search, filter, sort; only the rows in view are in the document.

let order = STUDIES.map((study) => study.number); // numbers of the studies listed
let selected = -1; // place in `order`
let current = null; // the study shown

const stated = (letter) => letter === "+" || letter === "?";

const wrong = (letter) => "xmaq".includes(letter);

/** Does finding k of a study stand in the relation `kind`? */
function matches(study, k, kind) {
  const first = study.relations[0],
    second = study.relations[1],
    diagnosed = () => study.diagnosis !== null && study.diagnosis.includes(RUN.labels[k]);
  switch (kind) {
    case "":
      return study.states.some((letters) => stated(letters[k]));
    case "in-reference":
      return stated(study.states[0][k]);
    case "in-prediction":
      return stated(study.states[1][k]);
    case "diagnosed":
      return diagnosed();
    case "misdiagnosed":
      return study.diagnosis !== null && diagnosed() !== stated(study.states[0][k]);
    case "own-diagnosis":
      return againstDiagnosis(study, k);
    case "fixed":
      return wrong(first[k]) && !wrong(second[k]);
    case "broken":
      return !wrong(first[k]) && wrong(second[k]);
    case "wrong":
      return wrong(first[k]) && wrong(second[k]);
    default:
      return first[k] === kind;
  }
}

/** Does the prediction deny a finding of its own diagnosis, or state one that was not diagnosed? Silence is no contradiction. */
function againstDiagnosis(study, k) {
  if (study.diagnosis === null || RUN.labels[k] === "No Finding") return false;
  const state = study.states[1][k];
  return study.diagnosis.includes(RUN.labels[k]) ? state === "-" : state === "+";
}

function fillChoices() {
  const add = (id, rows) => $(id).append(...rows.map(([value, text]) => el("option", { value, text })));
  add("filter-label", [["", "any"], ...RUN.labels.map((label, k) => [k, label])]);
  const own = [
    ["x", "contradicted \u2260"],
    ["m", "missed \u2212"],
    ["a", "added +"],
    ["q", "differs in detail \u2248"],
    ["h", "hedged ~"],
    ["=", "agreed ="],
    ["d", "denied by both"],
    ["in-reference", "stated in the reference"],
    ["in-prediction", "stated in the prediction"],
  ];
  const two = [
    ["fixed", "wrong in A, not in B"],
    ["broken", "wrong in B, not in A"],
    ["wrong", "wrong in both"],
    ["in-reference", "stated in the reference"],
  ];
  const relations = [["", "all studies"], ...(PAIR ? two : own)];
  if (STUDIES.some((study) => study.diagnosis !== null))
    relations.push(
      ["own-diagnosis", "report contradicts its own diagnosis"],
      ["diagnosed", "diagnosed"],
      ["misdiagnosed", "diagnosis disagrees with the reference"],
    );
  add("filter-relation", relations);
  add("sort", [["", "order of the file"], ...RUN.scores.map((score, k) => [k, keyName(score.name)])]);
  if (PAIR) {
    $("sort").value = "0";
    $("order").options[0].textContent = "most changed or lost first";
    $("order").options[1].textContent = "most gained first";
  }
  for (const id of ["filter-label", "filter-relation", "sort", "order"]) $(id).addEventListener("change", () => refill());
  $("search").addEventListener("input", () => refill());
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("reset").addEventListener("click", () => {
    readFilters(new URLSearchParams());
    refill();
  });
}

// -- filters in the address: #studies/<id>?find=words&finding=Edema&is=x&sort=r2gen/CIDEr&order=best

/** Set the controls as an address says; what it does not name, or names wrongly, is as at the start. */
function readFilters(words) {
  const choose = (id, value, otherwise = "") => {
    $(id).value = value;
    if ($(id).selectedIndex < 0) $(id).value = otherwise;
  };
  const place = (list, value) => (list.indexOf(value) < 0 ? "" : String(list.indexOf(value)));
  const sorts = RUN.scores.map(({ name }) => name);
  $("search").value = words.get("find") || "";
  choose("filter-label", place(RUN.labels, words.get("finding")));
  choose("filter-relation", words.get("is") || "");
  choose("sort", words.has("sort") ? place(sorts, words.get("sort")) : PAIR ? "0" : "");
  choose("order", words.get("order") || "worst", "worst");
}

/** Write controls and study into the address, so that it can be kept and sent. */
function writeAddress() {
  if ($("view-studies").hidden) return;
  const words = new URLSearchParams(),
    sort = $("sort").value;
  if ($("search").value) words.set("find", $("search").value);
  if ($("filter-label").value) words.set("finding", RUN.labels[$("filter-label").value]);
  if ($("filter-relation").value) words.set("is", $("filter-relation").value);
  if (sort !== (PAIR ? "0" : "")) words.set("sort", sort === "" ? "file" : RUN.scores[sort].name);
  if ($("order").value !== "worst") words.set("order", $("order").value);
  const filters = words.toString();
  $("reset").hidden = !filters;
  history.replaceState(null, "", `#studies${current ? `/${encodeURIComponent(current.id)}` : ""}${filters ? `?${filters}` : ""}`);
}

/** Filter and sort anew and open the first study; with `keep` the one that is open stays so while it is listed. */
function refill(keep = false) {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const label = $("filter-label").value,
    kind = $("filter-relation").value,
    sort = $("sort").value;
  const labels = label === "" ? RUN.labels.map((_, k) => k) : [Number(label)];
  $("filter-relation").options[0].textContent = label === "" ? "all studies" : "stated by any";
  order = [];
  for (const study of STUDIES) {
    if (words.length) {
      study.sought = study.sought || [study.id, ...study.texts].join("\n").toLowerCase();
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
    order.length === STUDIES.length ? studiesOf(order.length) : `${whole(order.length)} of ${studiesOf(STUDIES.length)}`;
  $("rows").style.height = `${order.length * ROW}px`;
  $("list").scrollTop = 0;
  selected = current === null ? -1 : order.indexOf(current.number);
  const open = keep && selected >= 0 ? selected : 0;
  if (order.length && !$("view-studies").hidden) select(open);
  drawRows(true);
  if (current) drawPlace();
  writeAddress();
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

const countText = (kind, count) =>
  PAIR ? `B ${kind === "fixed" ? "repairs" : "breaks"} ${count}` : `${RELATIONS[kind].sign} ${count} ${kind === "q" ? "differs" : RELATIONS[kind].text}`;

/** What is said of a study where nothing differs: agreement is good news, silence is none. */
function sameness(study) {
  if (PAIR) return el("span", { text: study.texts[1] === study.texts[2] ? "the same report" : "nothing repaired or broken" });
  const agreed = [...study.relations[0]].some((letter) => "=h".includes(letter));
  return el("span", agreed ? { class: "ok", text: "findings agree" } : { text: "no finding is stated" });
}

function row(place) {
  const study = STUDIES[order[place]],
    sort = $("sort").value;
  const shot = (evidence(study)?.images || []).find((image) => image.jpeg);
  const counts = (PAIR ? ["fixed", "broken"] : ["x", "m", "a", "q"])
    .map((kind) => [kind, RUN.labels.filter((_, k) => matches(study, k, kind)).length])
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
      el("div", { class: "text", text: study.texts.at(-1).slice(0, 160) || "(empty prediction)" }),
      el(
        "div",
        { class: "counts" },
        ...(counts.length
          ? counts.map(([kind, count]) => el("span", { class: kind, text: countText(kind, count) }))
          : [sameness(study)]),
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
    writeAddress();
  }
}
