// The frame: parts of the page, theme, keys, start.

function show() {
  const [path, filters] = location.hash.slice(1).split("?"),
    [name, id] = path.split("/");
  const link = document.querySelector(`#tabs a[href="#${CSS.escape(name)}"]`);
  const view = link && !link.hidden ? name : "scores";
  document.body.dataset.view = view;
  for (const section of document.querySelectorAll(".view")) section.hidden = section.id !== `view-${view}`;
  for (const link of document.querySelectorAll("#tabs a")) {
    if (link.getAttribute("href") === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (view === "studies") {
    // the bare name comes back to what was open
    if (id || filters) readFilters(new URLSearchParams(filters));
    const wanted = id ? STUDIES.find((study) => encodeURIComponent(study.id) === id) : null;
    if (wanted && wanted !== current) drawStudy(wanted);
    refill(true);
    $("list").focus({ preventScroll: true });
  }
}

const dark = matchMedia("(prefers-color-scheme: dark)");
function theme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").textContent = name === "dark" ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", name === "dark" ? "Switch to light" : "Switch to dark");
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open || $("zoom").open) return;
  const typing =
    /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "checkbox" && event.target.type !== "range";
  const inStudies = document.body.dataset.view === "studies",
    inList = document.activeElement === $("list");
  const page = Math.max(1, Math.floor($("list").clientHeight / ROW) - 1);
  let done = true;
  if (event.key === "Escape" && inStudies) {
    if (word !== null) chooseWord(null);
    else if (!inList && document.activeElement !== $("search")) $("list").focus();
    else {
      $("search").value = "";
      refill();
      $("list").focus();
    }
  } else if (event.key === "Enter" && event.target === $("search")) $("list").focus();
  else if (typing) done = false;
  else if (event.key === "/") {
    if (!inStudies) location.hash = "#studies";
    show();
    $("search").focus();
    $("search").select();
  } else if (event.key === "?") $("help").showModal();
  else if (!inStudies) done = false;
  else if (event.key === "j" || (inList && event.key === "ArrowDown")) select(selected + 1);
  else if (event.key === "k" || (inList && event.key === "ArrowUp")) select(selected - 1);
  else if (inList && event.key === "PageDown") select(selected + page);
  else if (inList && event.key === "PageUp") select(selected - page);
  else if (inList && event.key === "Home") select(0);
  else if (inList && event.key === "End") select(order.length - 1);
  else if (inList && event.key === "Enter") (document.querySelector(".w") || $("detail")).focus();
  else if (event.key === "a" && $("mask")) $("mask").click();
  else if (event.key === "e") openZoom();
  else done = false;
  if (done) event.preventDefault();
}

function start() {
  $("title").textContent = RUN.title;
  $("subtitle").textContent = PAIR
    ? `${studiesOf(STUDIES.length)}, ${RUN.split} split. Research software, not for clinical use.`
    : `${RUN.facts.weights && FLAGS.model ? `${FLAGS.model} on ${FLAGS.dataset_name}, ` : ""}${RUN.split} split, ${studiesOf(STUDIES.length)}. Research software, not for clinical use.`;
  if (RUN.facts.oracle_labels) {
    $("banner").hidden = false;
    $("banner").textContent =
      "Oracle: the diagnoses of these studies were made from their own reports. These figures are no result of a system that sees images alone.";
  }
  for (const { css, sign, text, long } of Object.values(RELATIONS)) {
    $("legend").append(
      el("dt", {}, el("mark", { class: css, text: "effusion" }, sign ? el("span", { class: "sign", text: sign }) : null)),
      el("dd", { text: `${text === long ? "" : `${text}: `}${long}` }),
    );
  }
  theme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => theme(dark.matches ? "dark" : "light"));
  $("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  $("help-button").addEventListener("click", () => $("help").showModal());
  $("list").addEventListener("scroll", () => drawRows());
  addEventListener("resize", () => drawRows());
  addEventListener("hashchange", show);
  addEventListener("keydown", keys);
  startZoom();
  fillChoices();
  if (PAIR) {
    drawPair();
    document.querySelector('#tabs a[href="#training"]').hidden = true;
    document.querySelector('#tabs a[href="#diagnosis"]').hidden = true;
  } else {
    drawScores();
    drawDiagnosis();
    drawTraining();
    drawRun();
  }
  show();
}

start();
document.addEventListener("DOMContentLoaded", () => {
  // images and attention stand behind this script in the file
  document.body.classList.toggle("bare", !hasEvidence());
  drawRows(true);
  if (current && word === null) drawStudy(current);
});
