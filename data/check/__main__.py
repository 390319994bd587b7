"""Is everything there that a run needs? `python -m data.check --dataset_name iu_xray --model r2gencmn [--raw DIR ...]`

Takes the flags of main_train.py besides its own. One line per item: found, missing, wrong or unusual, what was expected,
and what to do. Exit code 0 = ready, 1 = something is missing or wrong, 2 = ready but unusual. Nothing is changed.
"""

import argparse
import sys
from collections.abc import Sequence

from data.check.run import check_run
from models import SYSTEMS
from modules.errors import entry
from modules.flags import parse


@entry
def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the head of this file."""
    flags = argparse.ArgumentParser(
        prog="data.check", description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    flags.add_argument("--raw", nargs="+", default=[], metavar="DIR", help="folders with the official files")
    flags.add_argument("--depth", choices=("quick", "full"), default="quick", help="full: decode every image [quick]")
    flags.add_argument("--strict", action="store_true", help="exit code 1 for what is unusual, too")
    flags.add_argument("--out", metavar="FILE", help="write every item with all its names as JSON, such as check.json")
    flags.add_argument("--chexbert_path", help="look at this chexbert.pth")
    flags.add_argument("--chexbert_vocab", help="vocab.txt of BERT-base-uncased [beside --chexbert_path]")
    flags.add_argument("--radgraph_dir", help="look at the radgraph package's models in this folder")
    own, others = flags.parse_known_args(argv)
    args = parse(others, "train", systems=SYSTEMS)
    for name in ("chexbert_path", "chexbert_vocab", "radgraph_dir"):
        setattr(args, name, getattr(own, name))
    found = check_run(args, SYSTEMS[args.model], depth=own.depth, raw=own.raw)
    print("\n".join(found.lines()))
    if own.out:
        settings = {
            "data_set": args.dataset_name,
            "model": args.model,
            "depth": own.depth,
            "annotation": str(args.ann_path),
        }
        found.write(own.out, settings)
    sys.exit(found.exit_code(own.strict))


if __name__ == "__main__":
    main()
