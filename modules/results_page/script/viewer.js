// The image of a study: mask, attention and regions over it; enlarged with zoom, contrast and inversion.

let word = null; // number of the word whose attention is shown
let region = null; // name of the region whose box stands out
let viewNumber = 0;
const overlay = { mask: true, boxes: true, strength: 0.8 };

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
            text: `Image ${k + 1}${item.seen === false ? " (unused)" : ""}`,
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
      boxesImage(),
      el("button", { type: "button", class: "enlarge", "aria-label": "Enlarge the image: zoom, contrast, inversion", title: "Enlarge (e)", text: "\u2922", onclick: openZoom }),
    );
    light.addEventListener("click", (event) => event.target.closest("button") || openZoom());
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
    controls.append(overlaySwitch("mask", "ADM mask"));
  }
  if (found?.graph && viewNumber === 0) {
    controls.append(overlaySwitch("boxes", "Regions"));
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

/** A check box that shows or hides the overlay `name`. */
function overlaySwitch(name, title) {
  const onchange = (event) => {
    overlay[name] = event.target.checked;
    drawOverlays();
  };
  return el("label", {}, el("input", { type: "checkbox", id: name, checked: overlay[name], onchange }), title);
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
  } else if (found && !PAIR && image?.seen !== null) {
    lines.push(
      current.texts[1].trim()
        ? "No attention: this system does not offer it (see \u201cSystem\u201d in CONTRIBUTING.md)."
        : "No word was written, so there is no attention.",
    );
  }
  if (image?.seen === false) lines.push("This image was not given to the model (--max_views).");
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
  $("light-boxes").replaceWith(boxesImage());
}

/** The boxes of the chosen regions over the first image; the region that was selected stands out, whatever it is. */
function boxesImage() {
  const boxes = evidence(current)?.graph?.boxes || {},
    names = (current.regions || []).map(([name]) => name);
  const image = svg("svg", { id: "light-boxes", viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" });
  if (viewNumber !== 0) return image;
  for (const [name, [x0, y0, x1, y1]] of Object.entries(boxes)) {
    const kind = name === region ? "chosen" : overlay.boxes && names.includes(name) ? "" : null;
    if (kind === null) continue;
    const rect = svg("rect", { x: 100 * x0, y: 100 * y0, width: 100 * (x1 - x0), height: 100 * (y1 - y0), class: kind });
    image[kind ? "append" : "prepend"](rect);
  }
  return image;
}

/** Show the box of a region; chosen once more: none. */
function chooseRegion(name) {
  region = region === name ? null : name;
  for (const button of document.querySelectorAll("button.region")) button.setAttribute("aria-pressed", String(button.dataset.region === region));
  if (region !== null && viewNumber !== 0) {
    viewNumber = 0;
    drawViewer();
  } else drawOverlays();
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

// -- enlarged

const zoom = { scale: 1, x: 0, y: 0, contrast: 100, brightness: 100, invert: false, overlays: false };
const PLAIN = { ...zoom };

function openZoom() {
  const image = document.querySelector("#viewer .light-box img");
  if (!image) return;
  Object.assign(zoom, PLAIN);
  const stage = $("zoom-stage"),
    sheet = el("div", { id: "zoom-sheet" }, el("img", { src: image.src, alt: image.alt, draggable: "false" }));
  for (const canvas of document.querySelectorAll("#viewer .light-box canvas")) {
    const copy = el("canvas", { width: canvas.width, height: canvas.height });
    copy.getContext("2d").drawImage(canvas, 0, 0);
    sheet.append(copy);
  }
  const boxes = boxesImage();
  boxes.removeAttribute("id");
  sheet.append(boxes);
  stage.replaceChildren(sheet);
  $("zoom-title").textContent = image.alt;
  for (const name of ["contrast", "brightness"]) $(`zoom-${name}`).value = zoom[name];
  for (const name of ["invert", "overlays"]) $(`zoom-${name}`).checked = zoom[name];
  if (!$("zoom").open) $("zoom").showModal();
  drawZoom();
}

function drawZoom() {
  const sheet = $("zoom-sheet"),
    { width, height } = $("zoom-stage").getBoundingClientRect();
  zoom.scale = Math.min(12, Math.max(1, zoom.scale));
  const reach = (side) => (side * (zoom.scale - 1)) / 2; // the sheet never leaves the stage
  zoom.x = Math.min(reach(width), Math.max(-reach(width), zoom.x));
  zoom.y = Math.min(reach(height), Math.max(-reach(height), zoom.y));
  sheet.style.transform = `translate(${zoom.x}px, ${zoom.y}px) scale(${zoom.scale})`;
  sheet.firstChild.style.filter = `invert(${zoom.invert ? 1 : 0}) contrast(${zoom.contrast}%) brightness(${zoom.brightness}%)`;
  sheet.classList.toggle("plain", !zoom.overlays);
  $("zoom-scale").textContent = `${Math.round(100 * zoom.scale)}%`;
}

/** Zoom by a factor, keeping the point (x, y) of the window where it is; without a point, the middle. */
function zoomBy(factor, x = null, y = null) {
  const box = $("zoom-stage").getBoundingClientRect(),
    old = zoom.scale;
  zoom.scale = Math.min(12, Math.max(1, old * factor));
  const [dx, dy] = [x === null ? 0 : x - box.x - box.width / 2, y === null ? 0 : y - box.y - box.height / 2];
  zoom.x = dx - ((dx - zoom.x) * zoom.scale) / old;
  zoom.y = dy - ((dy - zoom.y) * zoom.scale) / old;
  drawZoom();
}

function zoomKeys(event) {
  const step = 60,
    move = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] }[event.key];
  if (event.target.type === "range" && move) return;
  if (move) {
    zoom.x += move[0];
    zoom.y += move[1];
    drawZoom();
  } else if ("+=".includes(event.key)) zoomBy(1.4);
  else if (event.key === "-") zoomBy(1 / 1.4);
  else if (event.key === "0") resetZoom();
  else if (event.key === "i") $("zoom-invert").click();
  else return;
  event.preventDefault();
}

function resetZoom() {
  const { overlays } = zoom;
  Object.assign(zoom, PLAIN, { overlays });
  for (const name of ["contrast", "brightness"]) $(`zoom-${name}`).value = zoom[name];
  $("zoom-invert").checked = false;
  drawZoom();
}

function startZoom() {
  const stage = $("zoom-stage");
  for (const name of ["contrast", "brightness"])
    $(`zoom-${name}`).addEventListener("input", (event) => {
      zoom[name] = Number(event.target.value);
      drawZoom();
    });
  for (const name of ["invert", "overlays"])
    $(`zoom-${name}`).addEventListener("change", (event) => {
      zoom[name] = event.target.checked;
      drawZoom();
    });
  $("zoom-in").addEventListener("click", () => zoomBy(1.4));
  $("zoom-out").addEventListener("click", () => zoomBy(1 / 1.4));
  $("zoom-reset").addEventListener("click", resetZoom);
  $("zoom-close").addEventListener("click", () => $("zoom").close());
  $("zoom").addEventListener("keydown", zoomKeys);
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomBy(event.deltaY < 0 ? 1.2 : 1 / 1.2, event.clientX, event.clientY);
  }, { passive: false });
  stage.addEventListener("dblclick", (event) => (zoom.scale > 1 ? resetZoom() : zoomBy(3, event.clientX, event.clientY)));
  stage.addEventListener("pointermove", (event) => {
    if (!event.buttons) return;
    zoom.x += event.movementX;
    zoom.y += event.movementY;
    drawZoom();
  });
}
