"""Make the page of a results folder anew, from the files in it: `python -m modules.results_page results/<run>`."""

import sys
from pathlib import Path

from modules.errors import entry
from modules.flags import Parser
from modules.results_page.build import write_page


@entry
def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m modules.results_page", description=__doc__)
    parser.add_argument("folder", type=Path, help="results folder, with predictions_<split>.csv and metrics_<split>.json")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"), help="split to show [test]")
    args = parser.parse_args(argv)
    print(f"written: {write_page(args.folder, args.split)}")


if __name__ == "__main__":
    main(sys.argv[1:])
