// One study: reports with marks, image with mask and attention, findings, diagnosis, knowledge, scores.

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
    el(
      "h3",
      {},
      side ? "Prediction" : "Reference",
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

function drawViewer() {
  const box = $("viewer"),
    found = evidence(current),
    images = found?.images || [],
    image = images[viewNumber];
  const parts = [];
  if (images.length > 1) {
    parts.push(
      el(
        "div",
        { class: "views", role: "group", "aria-label": "Images of the study" },
        ...images.map((item, k) =>
          el("button", {
            type: "button",
            "aria-pressed": String(k === viewNumber),
            text: `Image ${k + 1}${item.seen ? "" : " (unused)"}`,
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
  if (image?.jpeg) {
    light.append(
      el("img", { src: `data:image/jpeg;base64,${image.jpeg}`, alt: `Image ${viewNumber + 1} of study ${current.id}` }),
      el("canvas", { id: "mask-canvas" }),
      el("canvas", { id: "attention-canvas" }),
    );
  } else {
    light.append(
      el("p", {
        class: "missing",
        text: image
          ? image.note
          : document.readyState === "loading"
            ? "The image is still being read from the file."
            : hasEvidence()
              ? "No image of this study was kept: the page would have become too large."
              : "No images: no evidence file lies beside the predictions.",
      }),
    );
  }
  parts.push(light);
  const controls = el("div", { class: "controls" });
  if (image?.mask) {
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
  if (image?.mask || found?.attention) {
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
  parts.push(controls, ...remarks(found, image).map((text) => el("p", { class: "quiet", text })));
  box.replaceChildren(...parts);
  drawOverlays();
}

/** Sentences under the image: what was done with the mask, what the word looked at. */
function remarks(found, image) {
  const lines = [],
    attention = found?.attention;
  if (attention && word !== null) {
    const [views, height, width] = attention.grid,
      text = document.querySelector(`#prediction [data-word="${word}"]`).textContent;
    const [full, wide] = attention.full_grid,
      coarse = full * wide > height * width ? `, kept at ${height} \u00d7 ${width} of ${full} \u00d7 ${wide}` : "";
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
  if (image && !image.seen) lines.push("This image was not given to the model (--max_views).");
  if (image?.mask) {
    const theta = FLAGS.theta ?? 0.4,
      gamma = FLAGS.gamma ?? 0.4;
    lines.push(
      image.mask_used
        ? `ADM keeps ${percent(image.mask_share)} of the image; outside the line the model saw it at ${percent(gamma)} brightness.`
        : `ADM found ${percent(image.mask_share)} of the image, not more than the threshold ${percent(theta)}: the mask was not used.`,
    );
  } else if (image?.seen && image.jpeg) lines.push("The model saw this image complete, without a mask.");
  return lines;
}

function drawOverlays() {
  const image = evidence(current)?.images?.[viewNumber];
  if (!image?.jpeg) return;
  drawMask($("mask-canvas"), image);
  drawAttention($("attention-canvas"), evidence(current).attention);
}

/** Dims what the model saw dimmed, and draws the mask's border. */
function drawMask(canvas, image) {
  const side = RUN.mask_side;
  canvas.width = canvas.height = side;
  if (!image.mask || !overlay.mask) return;
  const packed = bytes(image.mask),
    pen = canvas.getContext("2d"),
    shade = pen.createImageData(side, side);
  const bit = (at) => (packed[at >> 3] >> (7 - (at & 7))) & 1;
  const inside = (x, y) => x < 0 || y < 0 || x >= side || y >= side || bit(y * side + x); // no line along the image's own border
  const dark = image.mask_used ? 255 * (1 - (FLAGS.gamma ?? 0.4)) * overlay.strength : 0;
  for (let y = 0; y < side; y++)
    for (let x = 0; x < side; x++) {
      const at = 4 * (y * side + x),
        here = inside(x, y);
      const edge = here && !(inside(x - 1, y) && inside(x + 1, y) && inside(x, y - 1) && inside(x, y + 1));
      shade.data.set(edge ? [90, 200, 235, 255 * overlay.strength] : [0, 0, 0, here ? 0 : dark], at);
    }
  pen.putImageData(shade, 0, 0);
}

/** The chosen word's map, smoothly enlarged: nothing where it looked evenly or less, orange, yellow at its strongest. */
function drawAttention(canvas, attention) {
  const side = 256;
  canvas.width = canvas.height = side;
  if (!attention || word === null) return;
  const [views, height, width] = attention.grid,
    cells = height * width;
  if (viewNumber >= views) return;
  const all = bytes(attention.maps).subarray(word * views * cells, (word + 1) * views * cells);
  const even = all.reduce((sum, value) => sum + value, 0) / all.length,
    map = all.subarray(viewNumber * cells, (viewNumber + 1) * cells);
  const small = el("canvas", { width: width, height }),
    brush = small.getContext("2d"),
    image = brush.createImageData(width, height);
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
  const predicted = rows.filter(({ kind }) => !"dn".includes(kind)),
    quiet = (kind) =>
      rows
        .filter((row) => row.kind === kind)
        .map((row) => row.label.toLowerCase())
        .join(", ");
  const box = el("div", { class: "block" }, el("h3", { text: "Findings" }));
  if (predicted.length) {
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
            ...predicted.map(({ label, k, kind }) =>
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
    .filter(([, given, predicted]) => given || predicted);
  const chips = rows.map(([label, given, predicted]) =>
    el("li", {
      class: given && predicted ? "both" : "only",
      text: given && predicted ? `\u2713 ${label}` : given ? `+ ${label}: not in the reference` : `\u2212 ${label}: not diagnosed`,
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
