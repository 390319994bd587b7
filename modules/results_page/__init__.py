"""The results page: `results/<run>/index.html`, one file that a person opens from disk.

    evidence.py   what a run keeps for it beside the predictions: images, ADM masks, where each word looked
    compare.py    what reference and prediction say of each finding, and where
    build.py      results folder -> page; `python -m modules.results_page results/<run>` makes it anew
    page.html, page.css, script/   the page itself; all data reaches it as JSON, never as markup
"""
