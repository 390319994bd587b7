"""Any data set to an annotation: your own table, CheXpert Plus, ReXGradient-160K, PadChest-GR.

    python -m data.prepare_table --table studies.csv --images DIR --out data/mine [--columns patient=PatientID ...]
    python -m data.prepare_table --format chexpert_plus --table df_chexpert_plus_240401.csv --images DIR --out DIR
    python -m data.prepare_table --format rexgradient --table DIR_WITH_metadata --images DIR_WITH_deid_png --out DIR
    python -m data.prepare_table --format padchest_gr --table grounded_reports_20240819.json --master_table master_table.csv
        --images Padchest_GR_files --out DIR

A table has a row per study or image: id, images (in a CSV `;` between), report, and optionally study, patient, split, views,
time and further sections. See docs/data.md.
"""

from collections.abc import Sequence
from pathlib import Path

from data.preparation.chexpert_plus import read_chexpert_plus
from data.preparation.command import Preset, check_flags, command_flags, run
from data.preparation.padchest_gr import read_padchest_gr
from data.preparation.rexgradient import read_rexgradient
from data.preparation.source import Source
from data.preparation.table import read_any_table
from modules.errors import InputError, entry

PRESETS = {
    "table": Preset({}),
    "chexpert_plus": Preset(
        {}, {"val": 62}, note="The official splits are train and valid; --own_validation N makes valid the test split."
    ),
    "rexgradient": Preset({}),
    "padchest_gr": Preset({}),
}


@entry
def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the head of this file."""
    flags = command_flags("data.prepare_table", __doc__)
    flags.add_argument("--table", required=True, help="CSV or JSON lines; the file or folder a --format names")
    flags.add_argument("--images", help="folder of the images (of your own table also an archive)")
    flags.add_argument("--format", choices=PRESETS, default="table")
    flags.add_argument("--columns", nargs="+", default=[], metavar="OURS=THEIRS", help="names of the table's columns")
    flags.add_argument("--master_table", help="PadChest-GR's master_table.csv (default: beside --table)")
    flags.add_argument("--language", choices=("en", "es"), default="en", help="of PadChest-GR's sentences")
    args = flags.parse_args(argv)
    check_flags(args)
    if not args.images and not args.no_images:
        raise InputError("--images: give the folder of the images, or --no_images")
    if args.columns and args.format != "table":
        raise InputError(f"--columns goes with a table of your own; {args.format} has its own columns")
    settings = {"format": args.format, "columns": args.columns, "language": args.language}
    run(args, read(args), PRESETS[args.format], settings)


def read(args) -> Source:
    """The source that --format names."""
    images = None if args.no_images else args.images
    if args.format == "chexpert_plus":
        return read_chexpert_plus(args.table, images)
    if args.format == "rexgradient":
        return read_rexgradient(args.table, images)
    if args.format == "padchest_gr":
        beside = Path(args.table).with_name("master_table.csv")
        return read_padchest_gr(args.table, args.master_table or beside, images, language=args.language)
    pairs = [pair.partition("=") for pair in args.columns]
    wrong = [ours for ours, mark, theirs in pairs if not mark or not theirs]
    if wrong:
        raise InputError(f"--columns {wrong[0]}: give pairs such as patient=PatientID")
    return read_any_table(args.table, images, {ours: theirs for ours, _, theirs in pairs})


if __name__ == "__main__":
    main()
