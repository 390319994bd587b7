// Run: data card, weights, versions, inputs, flags.

/** Any value of a JSON file for people: numbers short, lists and objects in a line. */
function plainText(value) {
  if (value === null) return "\u2013";
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(4)));
  if (Array.isArray(value)) return value.map(plainText).join(" ");
  if (typeof value === "object")
    return Object.entries(value)
      .map(([name, item]) => `${name} ${plainText(item)}`)
      .join(", ");
  return String(value);
}

const factList = (rows) =>
  el(
    "dl",
    { class: "facts" },
    ...rows
      .filter(([, value]) => value !== undefined)
      .flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { class: "mono", text: plainText(value) })]),
  );

function drawRun() {
  const view = $("view-run"),
    run = RUN.test_run,
    card = run.data;
  view.append(
    el("p", {
      class: "quiet",
      style: "margin-top:1rem",
      text: "This file holds images and reports of the data set. Hand it on only to those whom the data set's licence or use agreement allows to see them.",
    }),
  );
  if (card) {
    view.append(
      el("h2", { text: "Data card" }),
      factList([
        ["data set", card.data_set],
        ["annotation", card.annotation],
        ["text", card.section],
        ["images used per study", card.views_used],
        ["studies listed, " + RUN.split, RUN.facts.studies_listed],
        ...Object.entries(card.shared || {}).map(([pair, counts]) => [
          "shared, " + pair,
          Object.entries(counts)
            .map(([what, count]) => `${what} of ${count.toLocaleString("en")} rows`)
            .join(", "),
        ]),
        ["skipped as broken", Object.keys(card.skipped || {}).length],
      ]),
    );
    view.append(
      el(
        "div",
        { class: "scroll", style: "margin-top:.7rem" },
        el(
          "table",
          {},
          el(
            "thead",
            {},
            el(
              "tr",
              {},
              ...["split", "studies", "images per study", "hash of the ids"].map((text, k) =>
                el("th", { class: k === 1 ? "number" : "", text }),
              ),
            ),
          ),
          el(
            "tbody",
            {},
            ...Object.entries(card.splits || {}).map(([split, facts]) =>
              el(
                "tr",
                {},
                el("th", { scope: "row", text: split }),
                el("td", { class: "number", text: facts.studies.toLocaleString("en") }),
                el("td", {
                  text: Object.entries(facts.images_per_study)
                    .map(([images, count]) => `${images} in ${count.toLocaleString("en")}`)
                    .join(", "),
                }),
                el("td", { class: "mono", text: facts.ids_sha256 }),
              ),
            ),
          ),
        ),
      ),
    );
  }
  view.append(
    el("h2", { text: "This evaluation" }),
    factList([
      ["weights", RUN.facts.weights?.path],
      ["sha256", RUN.facts.weights?.sha256],
      ["command", run.command],
      ["code", run.git?.commit && `${run.git.commit}${run.git.changed ? ", with changes" : ""}`],
      ["device", run.device],
      ...Object.entries(run.versions || {}),
      ["oracle labels", RUN.facts.oracle_labels],
      ["diagnoses without an entry of their own", RUN.facts.knowledge_fallbacks],
    ]),
  );
  const others = Object.entries(RUN.facts).filter(
    ([key]) => !["split", "weights", "studies_listed", "skipped", "oracle_labels", "knowledge_fallbacks", "flags"].includes(key),
  );
  if (others.length) view.append(factList(others));
  const inputs = Object.entries(run.inputs || {});
  if (inputs.length)
    view.append(
      el("h2", { text: "Inputs" }),
      factList(inputs.map(([flag, facts]) => [`--${flag}`, `${facts.path}  sha256 ${facts.sha256.slice(0, 16)}\u2026`])),
    );
  const flags = Object.entries(FLAGS);
  if (flags.length)
    view.append(
      el("h2", { text: "Flags" }),
      el(
        "dl",
        { class: "flags" },
        ...flags.map(([name, value]) => el("div", {}, el("dt", { text: name }), el("dd", { text: plainText(value) }))),
      ),
    );
}
