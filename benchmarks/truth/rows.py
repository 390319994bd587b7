"""What is trained: the rows of the table, the recipe they share, and the decodings among which validation chooses."""

from dataclasses import dataclass

from benchmarks.ablations import CSR_LMCA, EKAGEN


@dataclass(frozen=True)
class Row:
    """A row of the table.

    train, test: its own flags of main_train.py and main_test.py. teacher: the row whose checkpoint of the same seed teaches it.
    of: the row whose checkpoints it tests, where it trains none. oracle: it is shown what a report of the scored study says.
    """

    title: str
    model: str
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    teacher: str | None = None
    of: str | None = None
    oracle: bool = False


@dataclass(frozen=True)
class Recipe:
    """What all rows share: flags of every training, side of the images, training of the extractor (flags of the DiagnosisBot)."""

    shared: tuple[str, ...]
    family: tuple[str, ...]
    extractor: tuple[str, ...]


TWO = ("--max_views", "2")
FAMILY = ("r2gencmn", "r2gen", "xpronet", "csr_lmca", "sgrrg")  # they drop features
ROWS = {
    "r2gencmn": Row("R2GenCMN", "r2gencmn", ("--mem_size", "256", *TWO)),
    "r2gen": Row("R2Gen", "r2gen", TWO),
    "xpronet": Row("XProNet", "xpronet", TWO),
    "ekagen_teacher": Row("EKAGen, no ADM, no GID (the teacher)", "ekagen", (*EKAGEN["teacher"][0], *TWO)),
    "ekagen": Row("EKAGen", "ekagen", TWO, teacher="ekagen_teacher"),
    "cvt2distilgpt2": Row("CvT2DistilGPT2", "cvt2distilgpt2", ("--decoder_weights", "none", "--bpe_vocab", "1000",
                                                               "--max_seq_length", "128", "--max_gen_length", "127", *TWO)),
    "csr_lmca": Row("CSR-LMCA", "csr_lmca", ("--mem_size", "256", "--m_layer", "1")),
    "sgrrg": Row("SGRRG", "sgrrg"),
    "ekagen_none": Row("EKAGen, no ADM, no IEK, no GID", "ekagen", (*EKAGEN["none"][0], *TWO)),
    "ekagen_no_adm": Row("EKAGen, no ADM", "ekagen", (*EKAGEN["no_adm"][0], *TWO), teacher="ekagen_teacher"),
    "ekagen_no_iek": Row("EKAGen, no IEK", "ekagen", (*EKAGEN["no_iek"][0], *TWO), teacher="ekagen_none"),
    "ekagen_no_gid": Row("EKAGen, no GID", "ekagen", (*EKAGEN["no_gid"][0], *TWO)),
    **{f"csr_lmca_{name}": Row(f"CSR-LMCA, {title}", "csr_lmca", ("--mem_size", "256", "--m_layer", "1", *flags))
       for name, (flags, _, title) in CSR_LMCA.items() if flags},
    "ekagen_oracle": Row("EKAGen, labels of the report", "ekagen", test=("--diagnosis_path", "{labels}", "--oracle_labels"),
                         of="ekagen", oracle=True),
    "xpronet_oracle": Row("XProNet, labels of the report", "xpronet", test=("--oracle_labels",),
                          of="xpronet", oracle=True),
    "sgrrg_oracle": Row("SGRRG, graph of the report", "sgrrg", test=("--oracle_graph",), of="sgrrg", oracle=True),
}  # fmt: skip
SYSTEMS = tuple(name for name, row in ROWS.items() if row.of is None and not name.startswith(("ekagen_", "csr_lmca_")))
SYSTEMS = (*SYSTEMS[:3], "ekagen_teacher", *SYSTEMS[3:])

# the same small search for all; the first wins among equals
DECODINGS = {
    "greedy": ("--beam_size", "1", "--min_gen_length", "0"),
    "beam3": ("--beam_size", "3", "--beam_search", "ours", "--length_penalty", "avg", "--min_gen_length", "0"),
    "beam3_min20": ("--beam_size", "3", "--beam_search", "ours", "--length_penalty", "avg", "--min_gen_length", "20"),
}

_ALL = (
    "--extractor_freeze", "all", "--augment", "none", "--visual_extractor", "efficientnet_lite0", "--resize_filter", "bilinear",
    "--num_workers", "0", "--optimizer", "adam", "--amsgrad", "--adam_beta1", "0.9", "--adam_beta2", "0.98", "--adam_eps", "1e-9",
    "--weight_decay", "0", "--clip_norm", "1", "--clip_value", "0", "--warmup_epochs", "0", "--lr_schedule", "cosine",
    "--precision", "float32", "--monitor_metric", "r2gen/CIDEr", "--beam_size", "1", "--beam_search", "ours", "--dropout", "0.1",
    "--no-block_trigrams",
)  # fmt: skip
RECIPES = {
    "iu_xray": Recipe(
        (*_ALL, "--image_size", "160", "--d_model", "128", "--d_ff", "512", "--num_heads", "8", "--num_layers", "3",
         "--max_seq_length", "80", "--max_gen_length", "79", "--batch_size", "16", "--lr_ed", "1e-3", "--epochs", "40",
         "--validate_from", "5", "--early_stop", "10"),
        ("--feature_dropout", "0.3"),
        ("--backbone", "efficientnet_lite0", "--image_size", "160", "--views", "all", "--freeze", "stem", "--epochs", "6",
         "--lr", "1e-3", "--batch_size", "32", "--bootstrap", "0"),
    ),
    "miniature": Recipe(
        (*_ALL, "--image_size", "64", "--d_model", "32", "--d_ff", "64", "--num_heads", "2", "--num_layers", "1",
         "--max_seq_length", "64", "--max_gen_length", "63", "--batch_size", "8", "--lr_ed", "1e-3", "--epochs", "2"),
        ("--feature_dropout", "0.3"),
        ("--backbone", "efficientnet_lite0", "--image_size", "64", "--views", "all", "--freeze", "stem", "--epochs", "1",
         "--backbone_weights", "none", "--bootstrap", "0"),
    ),
}  # fmt: skip


def training_flags(name: str, recipe: Recipe) -> list[str]:
    """The flags of a row's training beside places, seed and teacher."""
    row = ROWS[name]
    own = recipe.family if row.model in FAMILY else ()
    return ["--model", row.model, *recipe.shared, *own, *row.train]
