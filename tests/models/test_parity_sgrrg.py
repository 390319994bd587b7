"""SGRRG equals the authors' code at full size: a file as a user has it, loaded the way main_test.py loads it.

Where `../shared` lies beside the checkout all log-probabilities are compared, else those of every eighth position.
"""

import json

import family
import numpy as np
import pytest
import torch
from conftest import SHARED
from torchvision.ops import StochasticDepth

from data.batches import Batch
from models import SYSTEMS
from modules.artefact import manifest_path, write_json
from modules.checkpoint import load_checkpoint
from modules.decoding import DecodingSettings, decode
from modules.errors import InputError
from modules.flags import parse
from modules.text.regions import GraphLayout
from modules.text.tokenizer import Tokenizer
from modules.trainer import Trainer

NAME = "sgrrg"
EXPECTED = json.loads((family.FIXTURES / NAME / "expected.json").read_text())
NOISE = 1e-4  # asked of everything but log-probabilities, whose float32 noise is 9e-5


def flags(folder, *more):
    """The published flags; the names of the attributes are not part of the fixture."""
    facts = family.facts(NAME)
    names = tuple(tuple(f"attribute {n}" for n in range(size)) for size in facts["heads"])
    graphs = folder / "scene_graphs.jsonl"
    write_json(manifest_path(graphs), GraphLayout(tuple(facts["regions"]), names).state())
    words = [
        "--model",
        NAME,
        "--dataset_name",
        "mimic_cxr",
        "--extractor_weights",
        "none",
        "--scene_graphs",
        str(graphs),
    ]
    return parse([*words, "--precision", "float32", "--device", "cpu", *more], "train", systems=SYSTEMS)


def released(folder, *more, training: bool = False):
    """The system with the weights of a released file, and its flags."""
    path = folder / "sgrrg.pth"
    torch.save(family.released_content(NAME, training=training), path)
    args = flags(folder, *more)
    words = Tokenizer(sorted(family.WORDS), cleaning="mimic_cxr", padding=0, bos=0, eos=0)
    system = SYSTEMS[NAME].build(args, words)
    system.load_start(load_checkpoint(path), str(path))
    path.unlink()
    for module in system.modules():
        if isinstance(module, StochasticDepth):
            module.p = 0.0
    return system, args


NO_DROPOUT = ("--dropout", "0", "--feature_dropout", "0")


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    return released(tmp_path_factory.mktemp("released"), *NO_DROPOUT)[0]


def batch_of(prefix: str = "") -> Batch:
    """The fixture's three studies with the boxes of the true graph, or ("det_") those of a detector."""
    io, facts = family.outputs(NAME), family.facts(NAME)
    images = family.made_images(facts["data_seed"], (3,))
    np.testing.assert_allclose(images.double().sum((1, 2, 3)), io["images_checksum"], rtol=1e-6)
    tokens = torch.from_numpy(io["report_ids"].astype(np.int64))
    boxes, regions = io[f"{prefix}boxes"], io[f"{prefix}box_labels" if not prefix else "det_labels"].astype(int)
    study = boxes[:, 0].astype(int)
    most = np.bincount(study).max()
    row = np.concatenate([np.arange(count) for count in np.bincount(study)])  # boxes stand study after study
    batch = Batch(
        ["a", "b", "c"], images=images[:, None], tokens=torch.cat([tokens, torch.zeros(3, 1, dtype=torch.long)], 1)
    )
    batch.boxes, batch.box_regions = torch.zeros(3, most, 4), torch.full((3, most), -1)
    batch.boxes[study, row], batch.box_regions[study, row] = torch.from_numpy(boxes[:, 1:]), torch.from_numpy(regions)
    batch.labels = torch.from_numpy(io["disease_labels"]).long()
    batch.region_labels = torch.from_numpy(io["region_labels"]) > 0
    if not prefix:
        batch.box_chosen, batch.box_abnormal = (torch.zeros(3, most, dtype=torch.bool) for _ in range(2))
        batch.box_chosen[study, row] = torch.from_numpy(io["box_masks"])
        batch.box_abnormal[study, row] = torch.from_numpy(io["box_abnormal_labels"]) > 0
        batch.attributes = attributes(io, facts, batch)
    return batch


def attributes(io, facts, batch) -> torch.Tensor:
    """The targets of the selected boxes' heads, one after another -> bool [3, N, 67]; they say the same as the ids."""
    table = torch.zeros(*batch.box_regions.shape, max(facts["heads"]), dtype=torch.bool)
    values, starts = io["attribute_labels"][0], np.cumsum([0, *facts["heads"]])
    for (study, box), ids in zip(batch.box_chosen.nonzero().tolist(), io["attribute_ids"]):
        region = int(batch.box_regions[study, box])
        own, values = values[: facts["heads"][region]], values[facts["heads"][region] :]
        assert np.array_equal(np.flatnonzero(own) + starts[region], ids[ids >= 0])
        table[study, box, : len(own)] = torch.from_numpy(own > 0)
    assert not len(values)
    return table


def teacher_forced(system, memory, batch) -> np.ndarray:
    tokens, counted = system.report(batch.tokens)
    np.testing.assert_array_equal(counted, family.outputs(NAME)["report_mask"][:, 1:] > 0)
    return system.logits(memory, tokens[:, :-1]).log_softmax(-1).numpy()


def close(ours, theirs, limit=NOISE):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit)


def test_sizes(system):
    facts = family.facts(NAME)
    assert sum(p.numel() for p in system.parameters()) == facts["parameters"]
    assert sum(p.numel() for p in system.extractor.parameters()) == facts["extractor_parameters"]


@torch.no_grad()
def test_true_graph(system):
    """Every step of the training pass."""
    io, batch = family.outputs(NAME), batch_of()
    system.train()
    features, _ = system.features(batch)
    close(features[:, ::7, ::32], io["patch_features_slice"])
    close(features.mean(2), io["patch_features_mean"])
    close(features.std(2, correction=0), io["patch_features_std"], 1e-3)
    pooled = features.mean(1)
    bank = system.select.respond.rows(system.select.project_memory(system.select.memory)[None])
    close(system.select.respond(system.select.project(pooled)[:, None], *bank)[:, 0, ::16], io["region_response_slice"])
    study, box = batch.box_chosen.nonzero(as_tuple=True)
    grid = features.mT.unflatten(-1, (7, 7))
    close(system.box_features(grid, study, batch.boxes[study, box], 224)[:, ::32], io["box_features_slice"])
    memory = system.encode(batch)
    close(memory["diseases"], io["disease_logits"])
    close(memory["regions"], io["region_logits"])
    close(memory["logits"], io["attribute_logits"])
    close(memory["patches"][:, ::7, ::8], io["encoder_memory_slice"])
    counts = batch.box_chosen.sum(1).tolist()
    assert counts == memory["graph_mask"][:, 0, 0].sum(1).tolist() and counts[2] == 0
    for row, part in enumerate(memory["graphs"].split(counts)):
        close(part[:, ::8], io["subgraphs_slice"][row, : len(part)])
    logp, (positions, known) = teacher_forced(system, memory, batch), known_logp()
    assert np.abs(logp[:, positions] - known).max() <= 3e-4


def known_logp():
    """(positions, log-probabilities [3, positions, 761]) of the fixture."""
    file = SHARED / "parity" / NAME / "io.npz"
    if file.is_file():
        return np.arange(59), np.load(file)["logp"]
    io = family.outputs(NAME)
    return io["logp_positions"], io["logp"]


@torch.no_grad()
def test_predicted_graph(system):
    """Regions and attributes chosen from the detector's boxes, and what the decoder makes of them."""
    io, batch = family.outputs(NAME), batch_of("det_")
    memory = system.eval().encode(batch)
    close(memory["regions"].sigmoid(), io["region_probs"])
    chosen = memory["chosen"]
    np.testing.assert_array_equal(batch.box_regions[chosen], io["det_selected_labels"])
    np.testing.assert_array_equal(batch.boxes[chosen], io["det_selected_boxes"][:, 1:])
    close(memory["attributes"][chosen], io["attribute_probs"])
    names = [len(graph["attributes"]) for row in system.sub_graphs(batch, memory) for graph in row]
    assert names == EXPECTED["predicted"]["attributes_per_sub_graph"]
    logp = teacher_forced(system, memory, batch)
    assert np.abs(logp[:, ::6] - io["logp_predicted_slice"]).max() <= 3e-4


@pytest.mark.parametrize(
    ("key", "settings"),
    [("greedy", {}), ("beam3_released", {"beam_size": 3, "beam_search": "released"}),
     ("beam3_frozen", {"beam_size": 3, "beam_search": "mean"})],
)  # fmt: skip
@torch.no_grad()
def test_tokens(system, key, settings):
    memory = system.eval().encode(batch_of("det_"))
    length = family.facts(NAME)["decode_max_seq_length"] - 1
    written = decode(system, memory, DecodingSettings(max_length=length, **settings), ["a", "b", "c"])
    rows = [list(row) for row in family.outputs(NAME)[key]]
    assert written == [row[: row.index(0)] if 0 in row else row for row in rows]


def test_losses_and_gradients(system):
    """All five losses, and the gradient's norm over extractor and rest."""
    losses = system.train().losses(batch_of())
    for name, value in losses.items():
        assert value.item() == pytest.approx(EXPECTED["loss_eval"][name], rel=NOISE), name
    total = sum(system.loss_weights[name] * value for name, value in losses.items())
    assert total.item() == pytest.approx(EXPECTED["loss_eval"]["total"], rel=NOISE)
    total.backward()
    norms = {name: norm(group) for name, group in system.parameter_groups().items()}
    system.zero_grad(set_to_none=True)
    for name in norms:
        assert norms[name] == pytest.approx(EXPECTED["grad_norm_eval"][name], rel=NOISE), name


def norm(parameters) -> float:
    return torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm().item()


@pytest.mark.slow
def test_training_steps(tmp_path):
    """Three steps of the published optimiser without the warm-up; a head without a box is left alone."""
    system, args = released(tmp_path, *NO_DROPOUT, "--warmup_epochs", "0", training=True)
    trainer = Trainer(
        system.train(), [], None, args=args, device=torch.device("cpu"), folder=tmp_path, log=None, carried={}
    )
    batch = batch_of()
    for row in EXPECTED["steps"][:-1]:
        values = trainer.update([batch])
        for name in ("ce", "disease", "region", "attribute", "contrast", "grad_norm"):
            assert values[name] == pytest.approx(row[name], rel=NOISE), (row["step"], name)
        assert values["loss"] == pytest.approx(row["total"], rel=NOISE)
        assert norm(trainer.parameters) == pytest.approx(row["grad_norm_after_clip"], rel=NOISE)
        silent = {name for name, parameter in system.named_parameters() if parameter.grad is None}
        assert {name.split(".")[2] for name in silent} == absent_regions(batch)
        assert all(name.startswith("attribute_heads.") for name in silent)
    with torch.no_grad():
        last = system.losses(batch)
    assert {name: value.item() for name, value in last.items()} == pytest.approx(
        {name: EXPECTED["steps"][-1][name] for name in last}, rel=NOISE
    )
    sums = {"rrg_head.bias": "head.bias", "rrg_head.weight": "head.weight", "region_selector.memory": "select.memory"}
    for theirs, ours in sums.items():
        assert system.state_dict()[ours].double().sum().item() == pytest.approx(
            EXPECTED["steps_sums"][theirs], abs=1e-3
        )


def absent_regions(batch) -> set[str]:
    return {str(n) for n in range(29)} - {str(n) for n in batch.box_regions[batch.box_chosen].tolist()}


def test_misfits_are_explained(system, tmp_path):
    content = family.released_content(NAME, training=False)
    state = content["state_dict"]
    with pytest.raises(InputError, match=r"attributes of --scene_graphs: the weights have 851, this run 850"):
        key = "scene_graph_encoder.att_embedding.weight"
        system.load_start({"state_dict": state | {key: torch.zeros(851, 512)}}, "model.pth")
    with pytest.raises(InputError, match="not SGRRG's released layout: 1 unknown keys, such as neck.weight"):
        system.load_start({"state_dict": state | {"neck.weight": torch.zeros(1)}}, "model.pth")
    with pytest.raises(InputError, match="not SGRRG's released layout: unknown key visual_extractor.model.neck"):
        system.load_start({"state_dict": state | {"visual_extractor.model.neck": torch.zeros(1)}}, "model.pth")
