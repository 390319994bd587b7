// One study: reports with marks, findings, regions, diagnosis, knowledge, scores.

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
  region = null;
  const found = evidence(study);
  viewNumber = Math.max(
    0,
    (found?.images || []).findIndex((image) => image.jpeg),
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
        el("div", { class: `pair${PAIR ? " three" : ""}` }, ...study.texts.map((_, side) => report(study, side))),
        findings(study),
        regions(study),
        diagnosis(study),
        knowledge(study),
        values(study),
      ),
    ),
  );
  drawViewer();
  drawPlace();
}

/** How finding k of a report stands to the reference; of the reference itself, the worst of what the predictions make of it. */
function relationAt(study, side, k) {
  const letters = side ? [study.relations[side - 1][k]] : study.relations.map((relations) => relations[k]);
  return letters.sort((a, b) => WEIGHT.indexOf(a) - WEIGHT.indexOf(b))[0];
}

/** What the other reports say of finding k, for people; details where they differ. */
function elsewhere(study, side, k) {
  const others = SIDES.map((_, n) => n).filter((n) => n !== side && (n === 0 || side === 0));
  return others.map((n) => {
    const detail = study.details[Math.max(n, side) - 1].find(([number]) => number === k);
    const words = detail && detail[3].length ? ` (${detail[n ? 2 : 1]}, not ${detail[n ? 1 : 2]})` : "";
    return `${SAID[study.states[n][k]]} in ${n ? SIDE_NAMES[n].replace("Prediction", "the prediction") : "the reference"}${words}`;
  });
}

/** One report with its marks; the words of the prediction can be chosen where the run kept their attention. */
function report(study, side) {
  const text = study.texts[side];
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
    kind: state === study.states[side][k] ? relationAt(study, side, k) : "n",
  }));
  const body = el("div", { class: "body", lang: "en" });
  let at = 0,
    open = null;
  function close({ node, first, said }) {
    const about = [...said].join("; ");
    node.title = about;
    if (RELATIONS[first.kind].sign)
      node.append(el("span", { class: "sign", "aria-hidden": "true", text: RELATIONS[first.kind].sign }));
    if ("xmaq".includes(first.kind)) node.append(el("span", { class: "hidden-text", text: ` (${about}) ` }));
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
        open.said.add(`${RUN.labels[mark.k]}: ${[`${SAID[mark.state]} here`, ...elsewhere(study, side, mark.k)].join(", ")}`),
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
    el(
      "h3",
      {},
      SIDE_NAMES[side],
      el("span", { text: `${words.length.toLocaleString("en")} ${words.length === 1 ? "word" : "words"}` }),
    ),
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
        grid: [views, height, width],
        maps,
      } = evidence(current).attention,
      cells = height * width;
    const map = bytes(maps).subarray(word * views * cells, (word + 1) * views * cells);
    viewNumber = Math.floor(map.indexOf(Math.max(...map)) / cells); // the image it looked at most
  }
  drawViewer();
}

/** The findings that the reports speak of, worst first, with side, place and size. */
function findings(study) {
  const rows = RUN.labels.map((label, k) => ({ label, k, kinds: study.relations.map((letters) => letters[k]) }));
  const spoken = rows.filter(({ kinds }) => kinds.some((kind) => !".dn".includes(kind)));
  const weight = ({ kinds }) => Math.min(...kinds.map((kind) => (kind === "." ? 99 : WEIGHT.indexOf(kind))));
  spoken.sort((a, b) => weight(a) - weight(b));
  const quiet = (kind) =>
    rows
      .filter(({ kinds }) => kinds.every((one) => one === kind))
      .map(({ label }) => label.toLowerCase())
      .join(", ");
  const box = el("div", { class: "block" }, el("h3", { text: "Findings" }));
  if (spoken.length) {
    const body = spoken.map(({ label, k, kinds }) =>
      el(
        "tr",
        {},
        el("th", { scope: "row", text: label }),
        saidCell(study, 0, k),
        ...kinds.flatMap((kind, n) => [saidCell(study, n + 1, k), el("td", { class: `how ${RELATIONS[kind]?.css || ""}`, text: howText(kind) })]),
      ),
    );
    const heads = ["finding", "reference", ...(PAIR ? ["A", "", "B", ""] : ["prediction", ""])];
    box.append(
      el(
        "div",
        { class: "scroll" },
        el(
          "table",
          { class: "findings" },
          el("thead", {}, el("tr", {}, ...heads.map((text) => el("th", { text })))),
          el("tbody", {}, ...body),
        ),
      ),
    );
  } else box.append(el("p", { class: "quiet", text: `${PAIR ? "No" : "Neither"} report states a finding.` }));
  const both = quiet("d"),
    one = quiet("n");
  if (both) box.append(el("p", { class: "quiet", text: `Denied by ${PAIR ? "all" : "both"}: ${both}.` }));
  if (one && !PAIR) box.append(el("p", { class: "quiet", text: `Denied by one, the other is silent: ${one}.` }));
  return box;
}

const howText = (kind) => (RELATIONS[kind] ? `${RELATIONS[kind].sign} ${RELATIONS[kind].text}`.trim() : "");

/** What a report says of finding k, and below it side, place and size where both reports state it; what differs is bold. */
function saidCell(study, side, k) {
  const cell = el("td", { text: SAID[study.states[side][k]] });
  const compared = side ? study.details[side - 1] : study.details.flat();
  const detail = compared.find(([number]) => number === k);
  if (detail) {
    const words = detail[side ? 2 : 1];
    cell.append(el("span", { class: detail[3].length ? "detail differs" : "detail", text: words || "no side, place or size" }));
  }
  return cell;
}

/** The regions that the report was written from, with attributes; beside them the report's own where that is known. */
function regions(study) {
  if (study.regions === null) return null;
  const truth = evidence(study)?.graph?.truth ?? null;
  const chance = (value) => (value === null ? "" : ` ${value.toFixed(2)}`);
  const chosen = study.regions.map(([name]) => name);
  const mark = (good) => (good ? "\u2713 " : "+ ");
  const rows = study.regions.map(([name, probability, attributes]) => {
    const said = truth && (truth[name] || []);
    const missing = said ? said.filter((one) => !attributes.some(([other]) => other === one)) : [];
    return [
      regionButton(name),
      probability === null ? "" : probability.toFixed(2),
      ...(truth ? [truth[name] ? "\u2713 in the report" : "+ not in the report"] : []),
      el(
        "td",
        {},
        el(
          "ul",
          { class: "chips" },
          ...attributes.map(([one, value]) =>
            el("li", { class: said ? (said.includes(one) ? "both" : "only") : "", text: `${said ? mark(said.includes(one)) : ""}${attributeText(one)}${chance(value)}` }),
          ),
          ...missing.map((one) => el("li", { class: "only", text: `\u2212 ${attributeText(one)}` })),
        ),
      ),
    ];
  });
  for (const name of truth ? Object.keys(truth).filter((one) => !chosen.includes(one)) : [])
    rows.push([
      regionButton(name),
      "",
      "\u2212 not chosen",
      el("td", {}, el("ul", { class: "chips" }, ...truth[name].map((one) => el("li", { class: "only", text: `\u2212 ${attributeText(one)}` })))),
    ]);
  const hits = truth ? chosen.filter((name) => truth[name]).length : 0;
  const all = ([, , found], name) => [found.length, found.filter(([one]) => (truth[name] || []).includes(one)).length];
  const counted = truth ? study.regions.map((row) => all(row, row[0])) : [];
  const sum = (k) => counted.reduce((total, row) => total + row[k], 0);
  return el(
    "div",
    { class: "block", id: "regions" },
    el("h3", { text: "Regions that the report was written from" }),
    truth
      ? quietText(
          `${hits} of ${chosen.length} chosen regions are spoken of in the reference, which speaks of ${Object.keys(truth).length}; ` +
            `${sum(1)} of ${sum(0)} attributes agree with its ${Object.values(truth).flat().length}. Select a region to see its box.`,
        )
      : quietText("Select a region to see its box; no graph of the reference is known."),
    el("div", { class: "scroll" }, plainTable(["region", "probability", ...(truth ? ["reference"] : []), "attributes"], rows, (k) => k === 1)),
  );
}

const attributeText = (name) => name.replace(/^yes\|/, "").replace(/^no\|/, "no ").replace(/^(?:degree|normal|abnormal)\|/, "").replaceAll("|", " ");

function regionButton(name) {
  const boxed = Boolean(evidence(current)?.graph?.boxes[name]);
  return el(
    "th",
    { scope: "row" },
    boxed
      ? el("button", { type: "button", class: "link region", "data-region": name, "aria-pressed": "false", text: name, onclick: () => chooseRegion(name) })
      : name,
  );
}

function diagnosis(study) {
  if (study.diagnosis === null) return null;
  const rows = RUN.labels
    .map((label, k) => [label, study.diagnosis.includes(label), stated(study.states[0][k])])
    .filter(([, given, predicted]) => given || predicted);
  const chance = (label) => {
    const place = RUN.thresholds ? Object.keys(RUN.thresholds).indexOf(label) : -1;
    return study.probabilities && place >= 0 ? ` ${study.probabilities[place].toFixed(2)} (threshold ${RUN.thresholds[label].toFixed(2)})` : "";
  };
  const chips = rows.map(([label, given, predicted]) =>
    el("li", {
      class: given && predicted ? "both" : "only",
      text: `${given && predicted ? "\u2713" : given ? "+" : "\u2212"} ${label}${chance(label)}${given && predicted ? "" : given ? ": not in the reference" : ": not diagnosed"}`,
    }),
  );
  const against = RUN.labels.map((_, k) => k).filter((k) => againstDiagnosis(study, k));
  const clash = against.map((k) => `${RUN.labels[k]} is ${study.states[1][k] === "-" ? "diagnosed, but denied" : "stated, but not diagnosed"}`);
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
    clash.length ? el("p", { class: "clash", text: `The report contradicts its own diagnosis: ${clash.join("; ")}.` }) : null,
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
        el("div", {}, el("dt", { text: keyName(score.name) }), el("dd", { text: scoreText(study, k) })),
      ),
    ),
  );
}
