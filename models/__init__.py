"""The published systems. A new one is one file beside this and one row here.

A system's module gives four functions:
    check(args, problems, released)       note what is missing or wrong before anything is built
    make_tokenizer(reports, args)         the system's vocabulary from the training reports
    build(args, tokenizer)                the system (an nn.Module, see CONTRIBUTING.md), random or pretrained weights
    released_state(state)                 the authors' state_dict -> ours, every key accounted for
"""

from importlib import import_module

SYSTEMS = {
    "ekagen": "models.ekagen",
    "r2gen": "models.r2gen",
    "r2gencmn": "models.r2gencmn",
    "xpronet": "models.xpronet",
}


def system_module(name: str):
    """The module of a system, imported on demand."""
    return import_module(SYSTEMS[name])
