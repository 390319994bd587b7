"""IU X-Ray from OpenI's files to R2Gen's annotation, proven by two hashes.

    python -m data.prepare_iu --reports NLMCXR_reports.tgz --images NLMCXR_png.tgz --out data/iu_xray
    python -m data.prepare_iu --reports indiana_reports.csv --images images_normalized --out data/iu_xray

Archives or folders; --no_images writes the annotation alone. See docs/data.md.
"""

from collections.abc import Sequence

from data.preparation.command import Preset, check_flags, command_flags, run
from data.preparation.iu import IDS_SHA256, REPORTS_SHA256, read_iu
from modules.errors import InputError, entry

_IU = {"unit": "study", "priors": False, "views_key": False, "layout": "r2gen"}
PRESETS = {
    "r2gen": Preset(
        {**_IU, "views": "two", "split": "official"},
        {"train": 2_069, "val": 296, "test": 590},
        {"ids_sha256": IDS_SHA256, "reports_sha256": REPORTS_SHA256},
        note="split: R2Gen's (no official one exists)",
    ),
    "all_studies": Preset(
        {**_IU, "views": "all", "split": "7:1:2"},
        note="split: cut here (no official one exists; OpenI names no patients)",
    ),
}


@entry
def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the head of this file."""
    flags = command_flags("data.prepare_iu", __doc__)
    flags.add_argument(
        "--reports", required=True, help="NLMCXR_reports.tgz, a folder of its XML, or indiana_reports.csv"
    )
    flags.add_argument("--images", help="NLMCXR_png.tgz, a folder of its PNG or Kaggle's, or R2Gen's folders")
    flags.add_argument("--projections", help="indiana_projections.csv, for the views of images")
    flags.add_argument("--layout", choices=("r2gen", "source"), help="<id>/0.png, <id>/1.png, or the files' own names")
    flags.add_argument("--preset", choices=PRESETS, default="r2gen")
    flags.add_argument("--all_studies", dest="preset", action="store_const", const="all_studies", help="every report "
                       "with findings and an image, split by shares")  # fmt: skip
    args = flags.parse_args(argv)
    check_flags(args)
    if not args.images and not args.no_images:
        raise InputError("--images: give NLMCXR_png.tgz or a folder, or --no_images")
    if not args.projections and (args.order == "frontal_first" or args.views == "frontal"):
        raise InputError("--order frontal_first and --views frontal need --projections: OpenI's reports name no views")
    args.views_key = True if args.projections else None
    images = None if args.no_images else args.images
    source = read_iu(args.reports, images, projections=args.projections, r2gen_split=args.preset == "r2gen")
    run(args, source, PRESETS[args.preset], {"preset": args.preset})


if __name__ == "__main__":
    main()
