"""Ask a knowledge base for every study of a split: how many diagnoses have no entry of their own, and what answers instead.

    python -m knowledge.check_base --dataset_name iu_xray --split test [--diagnosis_path labels.csv]

The diagnoses are the DiagnosisBot's, or those of a label table (the labels of the reports, say: what a perfect one would find).
"""

from collections import Counter

import torch

from data.studies import SPLITS, read_annotation
from knowledge.command import read
from knowledge.diagnose import diagnosis_table
from modules.errors import InputError, entry
from modules.flags import Flag
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


SHARED = ("dataset_name", "data_dir", "ann_path", "image_dir", "limit", "knowledge_dir", "diagnosisbot", "diagnosis_path",
          "device", "num_workers")  # fmt: skip
OWN = (
    Flag("base", "knowledge_path", str, None, "knowledge base [<knowledge_dir>/base.pt]", file="base.pt"),
    Flag("base", "split", str, "val", "split to ask for", choices=SPLITS),
)


@entry
def main(argv: list[str] | None = None) -> None:
    """Command line; see the head of this file."""
    args = read(argv, "check_base", __doc__, SHARED, OWN)
    base = load_knowledge(args.knowledge_path, labels=CHEXPERT_14)
    studies = read_annotation(args.ann_path, args.limit)[args.split]
    if args.diagnosis_path:
        table = read_label_table(args.diagnosis_path)
        missing = [study.id for study in studies if study.id not in table]
        if missing:
            raise InputError(f"--diagnosis_path {args.diagnosis_path} lacks {len(missing)} studies, such as {missing[:3]}")
        diagnoses = {study.id: table[study.id] for study in studies}
    else:
        settings = {"folder": args.knowledge_dir, "device": choose_device(args.device), "num_workers": args.num_workers}
        diagnoses = diagnosis_table(load_diagnosisbot(args.diagnosisbot), studies, args.image_dir, **settings)
    print(f"{args.knowledge_path}, {args.split} split, diagnoses by {args.diagnosis_path or args.diagnosisbot}")
    print(text(base, diagnoses))


if __name__ == "__main__":
    main()
