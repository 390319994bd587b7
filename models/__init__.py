"""The published systems. A new one is one file beside this and one row here.

A system's module gives these functions:
    inputs(args, training=...)            what a run reads beside images and reports: of "masks", "diagnosis", "labels" the
                                          data, of "knowledge", "prototypes" the file; training=False: the studies written for
    check(args, problems, training=..., carried=...)   note what is missing or wrong before anything is built
    make_tokenizer(reports, args)         the system's vocabulary from the training reports
    build(args, tokenizer, parts=None)    the system (an nn.Module, see CONTRIBUTING.md) with random weights
    load_pretrained(system, args)         start what begins from pretrained weights or a file
    load_start(system, content, source, args)   weights of a checkpoint of ours or of the authors
    released_state(state)                 the authors' state_dict -> ours, every key accounted for
    parts(system)                         what a checkpoint holds beside the weights
One that distils also gives rounds(args), teacher_flags(args) and attach_teacher(system, args, tokenizer, path).
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
