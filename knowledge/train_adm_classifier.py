"""Train the classifier whose Grad-CAM maps become the ADM masks (see generate_adm.py).

    python -m knowledge.train_adm_classifier --dataset_name iu_xray
    python -m knowledge.train_adm_classifier --dataset_name miniature --labels_path data/miniature/labels.csv

Writes <knowledge_dir>/adm_classifier.pt, its manifest and its figures, as train_diagnosisbot.py does. The network has
to end in a pooled linear layer, so Swin is not among the choices.
"""

from knowledge.classifier.flags import Job
from knowledge.classifier.training import run
from modules.errors import entry
from modules.nets.visual_extractor import RESNET_WIDTH

JOB = Job(
    what="ADM classifier",
    command="train_adm_classifier",
    file="adm_classifier.pt",
    backbones=(*RESNET_WIDTH, "efficientnet_lite0"),
    defaults={
        "backbone": "resnet34", "image_size": 300, "epochs": 20, "batch_size": 32, "lr": 3e-4, "weight_decay": 0.05,
    },
    presets={
        "miniature": {"backbone": "efficientnet_lite0", "image_size": 192, "epochs": 3, "batch_size": 16, "lr": 2e-3},
        "mimic_cxr": {"epochs": 5, "batch_size": 64, "num_workers": 8, "image_check": "quick"},
    },
)  # fmt: skip


@entry
def main(argv: list[str] | None = None) -> None:
    """Command line; see the head of this file."""
    run(argv, JOB)


if __name__ == "__main__":
    main()
