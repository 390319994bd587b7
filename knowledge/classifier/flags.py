"""Flags of the commands that train an image classifier."""

import argparse
from dataclasses import dataclass

from data.studies import SPLITS
from knowledge import command
from modules.flags import Flag, natural, not_negative, positive_float, positive_int
from modules.text.labels import UNCERTAIN_VALUES

SHARED = (*command.DATA, "labels_path", "knowledge_dir", "seed", "device", "precision", "num_workers", "weights_dir", "offline",
          "dry_run")  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What differs between the two commands: name of the classifier, of the command, of the file; defaults.

    defaults: flag values. presets: flag values by --dataset_name, in place of the defaults.
    """

    what: str
    command: str
    file: str
    backbones: tuple[str, ...]
    defaults: dict
    presets: dict[str, dict]

    @property
    def flags(self) -> tuple[Flag, ...]:
        """The rows of the command beside SHARED."""
        network = (
            ("backbone", str, "network", self.backbones),
            ("image_size", positive_int, "side of the image in pixels", ()),
            ("epochs", positive_int, "passes over the training studies", ()),
            ("batch_size", positive_int, "images per step", ()),
            ("lr", positive_float, "highest learning rate: a tenth of the run warms up, a cosine falls", ()),
            ("weight_decay", not_negative, "AdamW's decoupled weight decay", ()),
        )
        return (
            *(Flag("network", name, kind, self.defaults[name], text, choices=names) for name, kind, text, names in network),
            command.BACKBONE_WEIGHTS,
            *COMMON,
            *command.out(self.file),
        )


# fmt: off
COMMON = (
    Flag("training", "augment", str, "light", "training images: light = small turns, shifts and brightness, no flips", choices=("light", "none")),
    Flag("training", "views", str, "first", "images of a study that are learnt from, each with the study's labels", choices=("first", "all")),
    Flag("training", "freeze", str, "none", "stem: the first blocks keep the weights they start from", choices=("none", "stem")),
    Flag("training", "uncertain", str, "positive", "what -1 in --labels_path counts as; ignore: left out for that study", choices=tuple(UNCERTAIN_VALUES)),
    Flag("training", "pos_weight_cap", positive_float, 4.0, "positives weigh sqrt(negatives / positives), at most this; 1 = no weights"),
    Flag("training", "eval_split", str, "val", "split to measure at the end; never used for choosing", choices=SPLITS),
    Flag("training", "bootstrap", natural, 1000, "rounds for the 95% intervals, 0 = none"),
    Flag("training", "cache_gb", not_negative, 4.0, "keep decoded images in memory up to this many GB, else read them each epoch"),
)
# fmt: on


def parse(argv: list[str] | None, job: Job) -> argparse.Namespace:
    """The flags of a training command. Unknown ones are answered with the nearest names (exit code 2)."""
    return command.read(argv, job.command, f"Train the {job.what}.", SHARED, job.flags, job.presets)
