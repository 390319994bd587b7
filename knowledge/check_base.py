"""Ask a knowledge base for every study of a split: how many diagnoses have no entry of their own, and what answers instead.

    python -m knowledge.check_base --dataset_name iu_xray --split test [--diagnosis_path labels.csv]

The diagnoses are the DiagnosisBot's, or those of a label table (the labels of the reports, say: what a perfect one would find).
"""

import argparse
from collections import Counter
from pathlib import Path

import torch

from data.studies import SPLITS, read_annotation
from knowledge.classifier.flags import add_shared, with_defaults
from knowledge.diagnose import diagnosis_table
from modules import flags
from modules.errors import InputError, entry
from modules.nets.diagnosisbot import load_diagnosisbot
from modules.nets.knowledge_base import KnowledgeBase, load_knowledge
from modules.precision import choose_device
from modules.text.labels import CHEXPERT_14, read_label_table

SHOWN = 5


def names(vector) -> str:
    """A label vector for people."""
    return ", ".join(name for name, bit in zip(CHEXPERT_14, vector) if bit) or "nothing"


def text(base: KnowledgeBase, diagnoses: dict[str, list[int]]) -> str:
    """The table, and the commonest diagnoses without an entry with the key that answers for each."""
    answers = {name: base.expert(torch.tensor(vector)) for name, vector in diagnoses.items()}
    distances = Counter(answer["distance"] for answer in answers.values())
    lines = [f"{len(diagnoses)} studies, {len({tuple(vector) for vector in diagnoses.values()})} different diagnoses, "
             f"{len(base.keys)} entries"]  # fmt: skip
    for distance, count in sorted(distances.items()):
        what = "an entry of its own" if distance == 0 else f"the nearest entry differs in {distance} label(s)"
        lines.append(f"  {count:5d} ({count / len(diagnoses):6.1%})  {what}")
    unseen = Counter(tuple(diagnoses[name]) for name, answer in answers.items() if answer["distance"])
    for vector, count in unseen.most_common(SHOWN):
        key = base.expert(torch.tensor(vector))["key"]
        lines.append(f"  {count:5d} x {names(vector)}  ->  {names(key)}")
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The flags of this command."""
    parser = flags.Parser(prog="python -m knowledge.check_base", argument_default=argparse.SUPPRESS, description=__doc__)
    shared = {
        "data": ("dataset_name", "data_dir", "ann_path", "image_dir"),
        "run": ("knowledge_dir", "device", "num_workers"),
    }
    for group, flag_names in shared.items():
        add_shared(parser, group, flag_names)
    new = parser.add_argument_group("base")
    new.add_argument("--base", help="knowledge base [<knowledge_dir>/base.pt]")
    new.add_argument("--diagnosisbot", help="DiagnosisBot [<knowledge_dir>/diagnosisbot.pt]")
    new.add_argument("--diagnosis_path", help="CSV of diagnoses by study id instead of a DiagnosisBot")
    new.add_argument("--split", choices=SPLITS, help="split to ask for [val]")
    typed = vars(parser.parse_args(argv))
    own = {"dataset_name": "iu_xray", "base": None, "diagnosisbot": None, "diagnosis_path": None, "split": "val"}
    args = with_defaults(typed, tuple(name for group in shared.values() for name in group), own, {})
    args.base = args.base or str(Path(args.knowledge_dir) / "base.pt")
    args.diagnosisbot = args.diagnosisbot or str(Path(args.knowledge_dir) / "diagnosisbot.pt")
    return args


@entry
def main(argv: list[str] | None = None) -> None:
    """Command line; see the head of this file."""
    args = parse(argv)
    base = load_knowledge(args.base, labels=CHEXPERT_14)
    studies = read_annotation(args.ann_path)[args.split]
    if args.diagnosis_path:
        table = read_label_table(args.diagnosis_path)
        missing = [study.id for study in studies if study.id not in table]
        if missing:
            raise InputError(f"--diagnosis_path {args.diagnosis_path} lacks {len(missing)} studies, such as {missing[:3]}")
        diagnoses = {study.id: table[study.id] for study in studies}
    else:
        settings = {"folder": args.knowledge_dir, "device": choose_device(args.device), "num_workers": args.num_workers}
        diagnoses = diagnosis_table(load_diagnosisbot(args.diagnosisbot), studies, args.image_dir, **settings)
    print(f"{args.base}, {args.split} split, diagnoses by {args.diagnosis_path or args.diagnosisbot}")
    print(text(base, diagnoses))


if __name__ == "__main__":
    main()
