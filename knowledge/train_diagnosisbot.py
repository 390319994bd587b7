"""Train the DiagnosisBot: the first image of a study -> 14 probabilities and one threshold each.

    python -m knowledge.train_diagnosisbot --dataset_name iu_xray
    python -m knowledge.train_diagnosisbot --dataset_name miniature --labels_path data/miniature/labels.csv

Writes <knowledge_dir>/diagnosisbot.pt, its manifest diagnosisbot.pt.json and the figures diagnosisbot.<split>.json.
Kill it and run it again: it goes on after the last whole epoch.
"""

from knowledge.classifier.flags import Job
from knowledge.classifier.training import run
from modules.errors import entry
from modules.nets.visual_extractor import RESNET_WIDTH

JOB = Job(
    what="DiagnosisBot",
    command="train_diagnosisbot",
    file="diagnosisbot.pt",
    backbones=("swin_t", *RESNET_WIDTH, "efficientnet_lite0"),
    defaults={
        "backbone": "swin_t", "image_size": 224, "epochs": 20, "batch_size": 32, "lr": 1e-4, "weight_decay": 0.05,
    },
    presets={
        "miniature": {"backbone": "efficientnet_lite0", "image_size": 128, "epochs": 4, "batch_size": 16, "lr": 2e-3},
        "mimic_cxr": {"epochs": 5, "batch_size": 64, "num_workers": 8, "image_check": "quick"},
    },
)  # fmt: skip


@entry
def main(argv: list[str] | None = None) -> None:
    """Command line; see the head of this file."""
    run(argv, JOB)


if __name__ == "__main__":
    main()
