"""The whole check in its order."""

from collections.abc import Sequence

from data.check.annotation import check_annotation
from data.check.artefacts import check_artefacts
from data.check.findings import Findings
from data.check.images import check_images
from data.check.raw import check_raw
from data.check.weights import check_machine, check_weights
from modules.errors import InputError


def check_run(args, system, *, depth: str, raw: Sequence[str] = ()) -> Findings:
    """Everything that a training with the flags `args` of `system` (a class of models/) would meet, in one list."""
    found = Findings()
    if raw:
        check_raw(found, args.dataset_name, raw)
    rows = check_annotation(found, args)
    if rows is not None:
        check_images(found, args, rows, depth)
        wanted = system.inputs(args, training=True) | system.inputs(args, training=False)
        check_artefacts(found, args, rows, wanted)
    check_weights(found, args, system.released_files.get(args.dataset_name, {}))
    check_machine(found, args, rows or {})
    return found


def stop_unless_ready(args, system) -> None:
    """Print the check of a training, --check_data; InputError when something is missing or wrong."""
    found = check_run(args, system, depth=args.image_check)
    print("\n".join(found.lines()))
    if found.exit_code() == 1:
        raise InputError("--check_data: something is missing or wrong, see the lines above")
