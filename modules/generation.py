"""A split's reports, written by any system."""

import torch

from modules import processes
from modules.decoding import DecodingSettings, decode
from modules.progress import tracked


@torch.no_grad()
def write_split(
    system, loader, tokenizer, settings: DecodingSettings, *, precision, device, progress=True, watch=None
) -> dict:
    """{study id: {"prediction": text, further columns}} for every study of the split; none is lost, whatever the batch.

    With several processes each writes its share; every one returns the whole. watch: function (batch, memory, word ids of
    each report), called after each batch; for the results page.
    """
    was_training = system.training
    system.eval()
    written = {}
    bar = tracked(loader, desc="writing reports", hidden=not progress)
    with precision.generation(system):
        for batch in bar:
            batch = system.prepare(batch)
            with precision.region():
                memory = system.encode(batch.to(device))
                reports = decode(system, memory, settings, batch.ids)
                if watch is not None:
                    watch(batch, memory, reports)
            texts = [tokenizer.decode(ids) for ids in reports]
            columns = {"prediction": texts, **system.remarks(batch, memory)}
            for row, name in enumerate(batch.ids):
                written[name] = {column: values[row] for column, values in columns.items()}
    system.train(was_training)
    return processes.gather(written)
