"""MIMIC-CXR from PhysioNet's files to an annotation.

    python -m data.prepare_mimic --cxr DIR --jpg DIR --out data/mimic_cxr [--preset r2gen] [--resize 512]

--cxr holds mimic-cxr-reports.zip (or the unpacked reports), --jpg the tables and files/ of MIMIC-CXR-JPG. See docs/data.md.
"""

from collections.abc import Sequence

from data.preparation.command import Preset, check_flags, command_flags, run
from data.preparation.mimic import read_mimic
from modules.errors import InputError, entry

_STUDY = {"unit": "study"}
PRESETS = {
    "r2gen": Preset(
        {"unit": "image"},
        {"train": 270_790, "val": 2_130, "test": 3_858},
        note="R2Gen's set: the test ids are known to be these; that train and val follow the same rule is taken from their "
        "counts. --from_annotation compares with a file of theirs.",
    ),
    "r2gen_study": Preset(_STUDY, {"test": 2_347}, note="The test studies of ReXrank."),
    "cxrmate": Preset({**_STUDY, "section": "findings+impression"}, {"test": 1_624}),
    "all_studies": Preset({**_STUDY, "section": "any"}, {"test": 3_269}),
    "rrg24": Preset(
        {**_STUDY, "own_validation": 3_799},
        {"train+val": 152_173},
        note="RRG24 cut its own validation (3,799 studies) out of train; which ones is not published, so this cut is another.",
    ),
    "rrg24_impression": Preset(
        {**_STUDY, "section": "impression", "own_validation": 4_650},
        {"train+val": 185_816},
        note="RRG24 cut its own validation (4,650 studies) out of train; which ones is not published, so this cut is another.",
    ),
    "mlrg": Preset(
        {"unit": "image"},
        {"test": 3_852},
        note="MLRG's published outputs lack 6 images of 4 studies whose findings have 8 to 12 words; its filter is not known.",
    ),
    "frontal": Preset(
        {"unit": "image", "views": "frontal"},
        note="One image a study. LLaVA-Rad's and CXR-PRO's texts are others: give them with --sections_csv.",
    ),
}


@entry
def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the head of this file."""
    flags = command_flags("data.prepare_mimic", __doc__)
    flags.add_argument("--cxr", help="folder of MIMIC-CXR: mimic-cxr-reports.zip, or the unpacked reports")
    flags.add_argument("--jpg", help="folder of MIMIC-CXR-JPG: tables, files/ (.jpg, .png or .dcm of any size)")
    flags.add_argument("--preset", choices=PRESETS, default="r2gen", help="a published preparation")
    flags.add_argument(
        "--custom_rules", choices=("skip", "use"), default="skip", help="the 54 studies with rules of their own"
    )
    flags.add_argument("--sections_csv", help="CSV of study_id, findings, impression to take instead of the reports")
    args = flags.parse_args(argv)
    check_flags(args)
    if not args.jpg and not args.no_images:
        raise InputError("--jpg: give the folder of MIMIC-CXR-JPG, or --no_images with the tables in --cxr")
    if not args.cxr and not args.sections_csv:
        raise InputError("--cxr: give the folder of the reports (or --sections_csv)")
    source = read_mimic(
        args.cxr,
        args.jpg,
        with_images=not args.no_images,
        sections_csv=args.sections_csv,
        custom_rules=args.custom_rules,
        workers=args.workers,
    )
    run(args, source, PRESETS[args.preset], {"preset": args.preset, "custom_rules": args.custom_rules})


if __name__ == "__main__":
    main()
