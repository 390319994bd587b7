"""Pictures of the results page of a run on the miniature set, and the figure of the way of the data.

    bash demo.sh && python -m benchmarks.screenshots --run results/demo --out docs/images
    python -m benchmarks.screenshots --run results/demo --every /tmp/pages      # each part, three widths, light, dark, print

Writes <out>/study.png (one study) and <out>/way.svg. Only a run on the miniature set is taken: no image or report of a real data
set may end in a picture that is handed on. Needs Chromium.
"""

import html
import io
import json
import sys
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.browser import CHROMIUM, Browser
from modules.artefact import read_json, write_atomic
from modules.errors import InputError, entry
from modules.flags import Parser

PARTS = ("scores", "studies", "diagnosis", "training", "run")
WIDTHS = {1440: 900, 1024: 768, 390: 844}
COLOURS = 128  # of study.png, so that it stays small

# column of boxes -> (title, lines); arrows go from one column to the next
WAY = (
    (("images and reports", "IU X-Ray, MIMIC-CXR,\nyour own table"),),
    (("data.check", "whatever is wrong,\nall at once"),),
    (("labels", "rules or CheXbert"), ("DiagnosisBot", "image to diagnosis"), ("ADM masks", "where it looks"),
     ("knowledge", "expert reports,\nprototypes, graphs")),
    (("main_train.py", "--model ...\nTrainer, validation"),),
    (("main_test.py", "beam search, cached"),),
    (("predictions file", "the only input\nof scoring"),),
    (("scores", "text and clinical,\nwith intervals"), ("results page", "one HTML file")),
)  # fmt: skip
BOX, GAP, HIGH = (162, 72), (32, 18), 400


def way_svg() -> str:
    """The way of the data from left to right."""
    (width, height), (between, below) = BOX, GAP
    places: list[list[tuple[float, float]]] = []
    for column, boxes in enumerate(WAY):
        top = (HIGH - len(boxes) * height - (len(boxes) - 1) * below) / 2
        places.append([(12 + column * (width + between), top + row * (height + below)) for row in range(len(boxes))])
    arrows, drawn = [], []
    for left, right in zip(places, places[1:]):
        for x0, y0 in left:
            for x1, y1 in right:
                a, b, middle = y0 + height / 2, y1 + height / 2, (x0 + width + x1) / 2
                arrows.append(f'<path d="M{x0 + width} {a:g}C{middle:g} {a:g} {middle:g} {b:g} {x1 - 6:g} {b:g}"/>')
    for boxes, spots in zip(WAY, places):
        for (title, about), (x, y) in zip(boxes, spots):
            lines = about.split("\n")
            first = y + height / 2 - 7 * len(lines) + 2
            drawn.append(f'<rect x="{x:g}" y="{y:g}" width="{width}" height="{height}" rx="7"/>')
            drawn.append(f'<text class="title" x="{x + width / 2:g}" y="{first:g}">{html.escape(title)}</text>')
            for number, line in enumerate(lines, 1):
                drawn.append(f'<text x="{x + width / 2:g}" y="{first + 16 * number:g}">{html.escape(line)}</text>')
    wide = 24 + len(WAY) * width + (len(WAY) - 1) * between
    style = (
        "text{font:12px system-ui,sans-serif;fill:#4d5a63;text-anchor:middle}"
        ".title{font-size:13.5px;font-weight:650;fill:#0b5f77}"
        "rect{fill:#fff;stroke:#7f8b93}path{fill:none;stroke:#7f8b93;stroke-width:1.4;marker-end:url(#tip)}"
    )
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {HIGH}" role="img" aria-label="The way of the data">',
        f"<style>{style}</style>",
        f'<defs>{tip}<polygon points="0,0 8,4 0,8" fill="#7f8b93"/></marker></defs>',
        f'<rect width="{wide}" height="{HIGH}" style="fill:#f3f5f6;stroke:none"/>',
        *arrows,
        *drawn,
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def check_miniature(folder: Path) -> Path:
    """The page of a run; InputError unless that was tested on the miniature set."""
    facts = read_json(folder / "metrics_test.json", "--run: test a run on the miniature set first (bash demo.sh)")
    if facts.get("data_set") != "miniature":
        raise InputError(f"--run: {folder} was tested on {facts.get('data_set')}; pictures are made of the miniature set alone")
    return folder / "index.html"


def telling_study(browser: Browser) -> str:
    """Address of the study to show: image and report with as many kinds of mark as any, of those the shortest."""
    return browser.run(
        """(() => {
          const kinds = (study) => new Set([...study.relations[0]].filter((letter) => "xmaq=".includes(letter))).size;
          const sorted = [...STUDIES].sort((a, b) => kinds(b) - kinds(a) || a.texts[0].length - b.texts[0].length);
          return `#studies/${encodeURIComponent(sorted[0].id)}`;
        })()"""
    )


def study_picture(browser: Browser, page: Path, out: Path, study: str | None) -> None:
    """study.png: one study at 1280 x 800, a word of the prediction chosen where there is attention."""
    browser.size(1280, 800)
    browser.open(page, f"#studies/{study}" if study else "#studies")
    browser.loaded()
    if not study:
        browser.open(page, telling_study(browser))
        browser.loaded()
    browser.run("(document.querySelector('#prediction mark .w') || document.querySelector('#prediction .w'))?.click()")
    held = io.BytesIO(browser.picture())
    small = Image.open(held).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    write_atomic(out, lambda temporary: small.save(temporary, "PNG", optimize=True))


def every_part(browser: Browser, page: Path, folder: Path) -> list[str]:
    """Each part of the page in full height; returns which are wider than their window."""
    folder.mkdir(parents=True, exist_ok=True)
    wide = []
    for width, height in WIDTHS.items():
        for theme in ("light", "dark", "print"):
            if theme == "print" and width != 1024:
                continue
            browser.media(kind="print" if theme == "print" else "", scheme="dark" if theme == "dark" else "light")
            for part in PARTS:
                browser.size(width, height)
                browser.open(page, f"#{part}")
                browser.loaded()
                if browser.run("document.body.dataset.view") != part:
                    continue  # a page without a diagnosis
                found = browser.run("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
                name = f"{part}_{width}_{theme}"
                wide += [f"{name}: {found[0]} pixels"] if found[0] > width else []
                browser.size(width, max(height, min(found[1], 6000)))
                (folder / f"{name}.png").write_bytes(browser.picture())
    browser.media()
    return wide


@entry
def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m benchmarks.screenshots", description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("results/demo"), help="results folder [results/demo]")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of study.png and way.svg [docs/images]")
    parser.add_argument("--study", help="id of the study to show [the one with most kinds of mark]")
    parser.add_argument("--every", type=Path, help="write each part of the page into this folder instead")
    args = parser.parse_args(argv)
    if CHROMIUM is None:
        raise InputError("screenshots need Chromium (Debian: apt-get install chromium)")
    page = check_miniature(args.run)
    with tempfile.TemporaryDirectory() as profile, Browser(Path(profile)) as browser:
        if args.every:
            wide = every_part(browser, page, args.every)
            print(json.dumps({"pictures": len(list(args.every.glob("*.png"))), "wider than the window": wide}))
            return
        study_picture(browser, page, args.out / "study.png", args.study)
    write_atomic(args.out / "way.svg", lambda temporary: temporary.write_text(way_svg(), encoding="utf-8"))
    for name in ("study.png", "way.svg"):
        print(f"{args.out / name}: {(args.out / name).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
