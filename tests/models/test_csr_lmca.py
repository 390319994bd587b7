"""CSR-LMCA: its parts, its views and the whole equal the authors' code; quirks of the release behind flags.

Where `../shared` lies beside the checkout all log-probabilities are compared, else those of every eighth position.
"""

import json
import math
import re

import family
import numpy as np
import pytest
import torch
from conftest import SHARED
from PIL import Image
from stand_in import classifier_state, stand_in

from data.images import diagnosis_tensor
from data.views import enhanced, equalised, masked
from models import SYSTEMS
from models.csr_lmca import CSRLMCA, QUIRKS
from modules.checkpoint import load_checkpoint
from modules.decoding import DecodingSettings, decode
from modules.errors import InputError, Problems
from modules.flags import parse
from modules.nets.adm import gradcam, masks_of
from modules.nets.diagnosisbot import load_diagnosisbot
from modules.nets.query_gate import QueryGate
from modules.nets.region_attention import FLAT, cut, joined
from modules.nets.transformer import Attention
from modules.text.tokenizer import Tokenizer
from modules.trainer import Trainer

NAME = "csr_lmca"
RELEASED = (
    "--sr_output",
    "vector",
    "--region_sizes",
    "flat",
    "--no-sr_scale_learned",
    "--num_layers",
    "3",
    "--m_layer",
    "2",
)
EXPECTED = json.loads((family.FIXTURES / NAME / "expected.json").read_text())
NOISE = EXPECTED["noise_f32_vs_f64_max"]


def near(ours: torch.Tensor, name: str, noise: str | None = None) -> None:
    """Within ten times what the authors' float32 strays from their float64, at least 1e-6."""
    known = family.outputs(NAME)[name]
    limit = max(1e-6, 10 * NOISE[noise or name])
    assert np.abs(ours.detach().numpy() - known).max() <= limit, name


def flags(*more, dataset: str = "mimic_cxr", command: str = "train"):
    words = ["--model", NAME, "--dataset_name", dataset, "--extractor_weights", "none", "--device", "cpu", *more]
    return parse(words, command, systems=SYSTEMS)


def released(folder, *more, training: bool = False):
    """The system with the weights of a released file, loaded the way main_test.py loads it; its flags."""
    path = folder / "model_best.pth"
    torch.save(family.released_content(NAME, training=training), path)
    args = flags(*RELEASED, "--sr_scale", str(family.facts(NAME)["residual_scale_main"]), *more)
    words = Tokenizer(sorted(family.WORDS), cleaning="iu_xray", padding=0, bos=0, eos=0)
    system = CSRLMCA.build(args, words)
    system.load_start(load_checkpoint(path), str(path))
    path.unlink()
    return system.eval(), args


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    return released(tmp_path_factory.mktemp("released"))[0]


# -- the parts ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts():
    """The fixture's inputs: two sets of tokens, one of patches, queries."""
    draw = np.random.RandomState(family.facts(NAME)["parts_seed"])
    x49, x98, p49 = (draw.standard_normal(shape) for shape in ((2, 49, 512), (2, 98, 512), (2, 49, 2048)))
    queries = draw.standard_normal((2, 8, 12, 64))
    made = [torch.from_numpy(x.astype(np.float32)) for x in (x49, x98, np.abs(p49), queries)]
    np.testing.assert_allclose([x.double().sum() for x in made], EXPECTED["parts_checksum"], rtol=1e-9)
    return dict(zip((49, 98, "patches", "queries"), made))


@torch.no_grad()
@pytest.mark.parametrize("form", ["sequential", "parallel"])
def test_sr_mamba(system, parts, form):
    """One block at 49 tokens and at 98, where the rearrangement pads; f and its pool; x' of both weights."""
    branch, patches = system.branch, parts["patches"]
    for path in (branch.layers[0].ordered, branch.layers[0].rearranged):
        path.scan = form
    for length in (49, 98):
        near(branch.layers[0](parts[length])[:, ::7, ::8], f"sr_block_{length}")
    near(branch.seen(patches), "sr_branch_vector", "sr_branch_0")
    near(branch.pool(branch.tokens(patches)).softmax(1).mT, "sr_branch_attention", "sr_branch_1")
    near(branch.widen(branch.tokens(patches))[:, ::7, ::16], "sr_branch_tokens")
    main = branch.scale
    for scale in (0.001, 0.3):
        branch.scale = scale
        near(branch(patches)[:, ::7, ::16], f"fused_{scale}", "sr_branch_0")
    branch.scale = main


@torch.no_grad()
@pytest.mark.parametrize("length", [49, 98])
def test_regions(system, parts, length):
    lmca, x = system.lmca, parts[length]
    side = FLAT * math.ceil(math.sqrt(length) / FLAT)
    regions = cut(torch.nn.functional.pad(x, (0, 0, 0, side**2 - length)).view(2, 1, side, side, -1), side // FLAT)

    def slice_of(answer):
        return joined(answer, (1, side, side), side // FLAT).flatten(1, 3)[:, :length][:, ::7, ::8]

    near(slice_of(lmca.regions[0](regions)), f"r_msa_{length}")
    near(slice_of(lmca.cross([regions])[0]), f"cr_msa_{length}")
    lmca.cross.scope = "batch"
    near(slice_of(lmca.cross([regions])[0]), f"cr_msa_joint_{length}")
    lmca.cross.scope = "study"
    near(lmca(x, torch.zeros(2, length // 49, 7, 7, dtype=torch.bool))[:, ::7, ::8], f"lmca_{length}")
    assert length != 49 or not slice_of(lmca.cross([regions])[0]).any(), "one position a region: exactly nothing"


@torch.no_grad()
def test_query_gate(parts):
    gate = QueryGate()
    for convolution, name in zip(gate.convolutions, ("cw", "hc", "hw")):
        weight = stand_in(f"triplet.{name}.conv.conv.weight", (1, 2, 7, 7), family.facts(NAME)["seed"], 3)
        convolution.weight.copy_(weight)
    io = family.outputs(NAME)
    fresh = {name: value.clone() for name, value in gate.state_dict().items()}
    for training, name in ((True, "training"), (False, "evaluation")):
        gate.load_state_dict(fresh)
        ours = gate.train(training)(parts["queries"])[..., ::8]
        np.testing.assert_allclose(ours, io[f"triplet_batchnorm_{name}"], atol=2e-6)


# -- the views ---------------------------------------------------------------------------------------------------------


def views() -> dict:
    with np.load(family.FIXTURES / NAME / "views.npz") as file:
        return dict(file)


@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_enhanced_view(kind):
    """Every pixel, before and after sharpening."""
    known = views()
    image = Image.fromarray(known[f"enhance_{kind}_in"]).convert("RGB")
    np.testing.assert_array_equal(equalised(image), known[f"enhance_{kind}_equalised"])
    np.testing.assert_array_equal(enhanced(image), known[f"enhance_{kind}_out"])


def test_sdam_masks_and_masked_view(tmp_path):
    """Every pixel of 14 masks, of the joined mask, and of the masked image."""
    torch.save(classifier_state("adm.json"), tmp_path / "MIMIC_best_weight.pth")
    bot = load_diagnosisbot(tmp_path / "MIMIC_best_weight.pth", side=300)
    with np.load(family.FIXTURES / "ekagen" / "adm.npz") as adm:
        image = Image.fromarray(adm["image"]).convert("RGB")
    known = views()
    maps, probabilities = gradcam(bot, diagnosis_tensor(image, 300)[None])
    masks = masks_of(maps, "sdam")[0].numpy()
    expected = np.unpackbits(known["sdam_class_masks"], count=14 * 300 * 300).reshape(14, 300, 300).astype(bool)
    np.testing.assert_array_equal(masks, expected)
    diagnosed = bot.diagnose(probabilities)[0].nonzero().flatten().numpy()
    np.testing.assert_array_equal(diagnosed, known["sdam_diagnosed"])
    joined_mask = np.unpackbits(known["sdam_joined"], count=300 * 300).reshape(300, 300).astype(bool)
    np.testing.assert_array_equal(masks[diagnosed].any(0), joined_mask)
    one = expected[int(known["sdam_masked_image_of_label"])]
    np.testing.assert_array_equal(masked(image, one), known["sdam_masked_image"])
    np.testing.assert_array_equal(masked(image, np.zeros_like(one)), image.convert("L"))  # released: black


# -- the whole ---------------------------------------------------------------------------------------------------------


def io() -> dict:
    """The fixture's arrays: all log-probabilities where the shared files lie beside the checkout."""
    file = SHARED / "parity" / NAME / "io.npz"
    known = family.outputs(NAME)
    if file.is_file():
        with np.load(file) as whole:
            known = {**known, "logp": whole["logp"], "logp_positions": np.arange(59)}
    return known


@torch.no_grad()
def log_probabilities(system, batch) -> np.ndarray:
    tokens, _ = system.report(batch.tokens)
    memory = system.encode(batch, sampling=False)
    return system.logits(memory, tokens[:, :-1]).log_softmax(-1).numpy()


def check_tokens(system, prefix: str = "") -> None:
    """Greedy, with the trigram block, and published beam search."""
    batch, known = family.batch_of(NAME), family.outputs(NAME)
    ways = {
        "greedy": {},
        "greedy_trigram": {"block_trigrams": True},
        "beam3": {"beam_size": 3, "beam_search": "released"},
    }
    with torch.no_grad():
        memory = system.encode(batch)
        for key, settings in ways.items():
            if prefix + key in known:
                rows = [[*row, 0] for row in known[prefix + key].tolist()]
                found = decode(system, memory, DecodingSettings(max_length=60, **settings), batch.ids)
                assert found == [row[: row.index(0)] for row in rows], key


def test_on_the_way(system):
    known, batch, seen = family.outputs(NAME), family.batch_of(NAME), {}
    handles = [
        system.extractor.register_forward_hook(
            lambda module, inputs, output: seen.setdefault("features", []).append(output)
        ),
        system.project.register_forward_hook(lambda module, inputs, output: seen.update(embedded=output.relu())),
        system.lmca.register_forward_hook(lambda module, inputs, output: seen.update(lmca=output)),
    ]
    with torch.no_grad():
        memory = system.encode(batch)
    for handle in handles:
        handle.remove()
    np.testing.assert_allclose(
        torch.cat([view.flatten(2) for view in seen["features"]], 2).mean(1), known["patch_features_mean"], atol=1e-5
    )
    for name, value in (("embedded", seen["embedded"]), ("lmca", seen["lmca"]), ("memory", memory["patches"])):
        np.testing.assert_allclose(value[:, ::7, ::8], known[f"{name}_slice"], atol=3e-5)


def test_log_probabilities_loss_and_tokens(system):
    known, batch = io(), family.batch_of(NAME)
    found = log_probabilities(system, batch)
    assert np.abs(found[:, known["logp_positions"]] - known["logp"]).max() <= 10 * NOISE["logp"]
    np.testing.assert_array_equal(system.report(batch.tokens)[1], known["report_mask"][:, 1:].astype(bool))
    assert system.losses(batch)["ce"].item() == pytest.approx(EXPECTED["loss_eval"], rel=1e-6)
    check_tokens(system)


VARIANTS = {
    "logp_tokens": ("--sr_output", "tokens"),
    "logp_scale_released": ("--sr_scale", "0.001"),
    "logp_released_without_gate": ("--sr_scale", "0.001", "--crmsa_scope", "batch", "--lmca_again", "sampling"),
    "logp_released": ("--sr_scale", "0.001", "--crmsa_scope", "batch", "--query_gate", "random"),
    "logp_single_view": ("--no-sr_mamba", "--views", "complete:0"),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if "released" in name else ()) for name in VARIANTS])
def test_variants(name, tmp_path):
    """Tokens for vectors, the released weight, the released scope, the random gate of a seeded generator, one view."""
    seed = str(family.facts(NAME)["triplet_seed"])
    variant, _ = released(tmp_path, *VARIANTS[name], "--seed", seed)
    batch = family.batch_of(NAME)
    if name == "logp_single_view":
        batch.images = batch.images[:, :1]
    found = log_probabilities(variant, batch)[:, ::6, ::8]
    noise = NOISE.get(name, NOISE["logp"])
    assert np.abs(found - family.outputs(NAME)[name]).max() <= 10 * noise
    if name == "logp_released_without_gate":
        check_tokens(variant, "released_")


@pytest.mark.slow
def test_gradients(system):
    """Of every parameter, by its norm; names and order of the authors."""
    names = family.facts(NAME)["grad_param_order"]
    system.zero_grad(set_to_none=True)
    system.losses(family.batch_of(NAME))["ce"].backward()
    ours = {name: parameter.grad for name, parameter in system.named_parameters()}
    assert all(grad is not None for grad in ours.values())
    key_of, known = target_keys(), dict(zip(names, family.outputs(NAME)["grad_param_norms"]))
    total = math.sqrt(sum(float(grad.double().square().sum()) for grad in ours.values()))
    assert total == pytest.approx(EXPECTED["grad_norm_eval"]["total"], rel=1e-5)
    worst = 0.0
    for name, norm in known.items():
        key, rows = key_of[name]
        if key is None:
            assert name in EXPECTED["grad_norm_eval"]["no_grad"]
            continue
        grad = ours[key]
        found = float((grad if rows is None else grad.chunk(3)[rows]).double().norm())
        worst = max(worst, abs(found - norm) / (norm + 1e-5 * total))
    assert worst <= 5e-3  # a batch norm of the extractor, .002; key biases and EPEG's are 0 up to rounding
    system.zero_grad(set_to_none=True)


def target_keys() -> dict:
    """The authors' parameter -> ours, and which third of a stacked projection it is (None: the whole)."""
    found = {}
    for name in family.facts(NAME)["grad_param_order"]:
        match = re.match(r"^(.+\.linears\.)([012])\.(weight|bias)$", name)
        one = (
            {name: torch.zeros(1)} if match is None else {f"{match[1]}{n}.{match[3]}": torch.zeros(1) for n in range(3)}
        )
        keys = list(CSRLMCA.released_state(one))
        found[name] = (keys[0] if keys else None, None if match is None else int(match[2]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_training_steps(mode, tmp_path):
    """Three updates of the published optimiser under the cosine schedule; batch norm fixed, or as in training."""
    no_dropout = [
        word
        for name in ("dropout", "feature_dropout", "sr_dropout", "attention_dropout")
        for word in (f"--{name}", "0")
    ]
    steps = str(family.facts(NAME)["cosine_steps"])
    system, args = released(tmp_path, *no_dropout, "--epochs", steps, training=True)
    trainer = Trainer(
        system, [None], None, args=args, device=torch.device("cpu"), folder=tmp_path, log=None, carried={}
    )
    system.train(mode == "train")
    batch, rows, far = family.batch_of(NAME), EXPECTED[f"steps_{mode}_mode"], []
    for step, row in enumerate(rows[:-1]):
        assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx(row["lr"], rel=1e-9)
        values = trainer.update([batch])
        first = 1e-5 if mode == "eval" else 1e-4  # batch norm of three images amplifies float32's rounding: 1.1e-5 found
        loss, norm = (first, 3e-4) if step == 0 else (2e-3, 1e-2)
        assert values["ce"] == pytest.approx(row["ce"], rel=loss), step
        near = values["grad_norm"] == pytest.approx(row["grad_norm"], rel=norm if mode == "eval" else 1e-2)
        assert near or (mode == "train" and step > 0), (step, values["grad_norm"])
        far += [] if near else [(step, values["grad_norm"])]
    with torch.no_grad():
        assert system.losses(batch)["ce"].item() == pytest.approx(rows[-1]["ce"], rel=2e-3)
    state = system.state_dict()
    for name, known in EXPECTED[f"steps_{mode}_mode_sums"].items():
        key = next(iter(CSRLMCA.released_state({name: torch.zeros(1)})))
        total = state[key].double().sum().item()
        near = total == pytest.approx(known, rel=2e-3, abs=2e-2)
        assert near or mode == "train", name
        far += [] if near else [(name, total)]
    if far:  # 52.8 by one thread, 53.7 by two, 53.3 in float64, 54.4 in the fixture: rounding moves it by more than 1%
        pytest.xfail(f"open: what follows the first step with batch norm in training mode is not met: {far}")


# -- flags, quirks and what must not matter ----------------------------------------------------------------------------


@pytest.mark.slow
def test_neighbours(system):
    """By default a study does not depend on its batch; with the release's scope or gate it does."""
    batch, alone = family.batch_of(NAME), family.batch_of(NAME)
    alone.images, alone.tokens, alone.ids = alone.images[:1], alone.tokens[:1], alone.ids[:1]

    def change() -> float:
        return float(np.abs(log_probabilities(system, batch)[:1] - log_probabilities(system, alone)).max())

    assert change() < 10 * NOISE["logp"]
    system.lmca.cross.scope = "batch"
    assert 1 < change() < 20
    system.lmca.cross.scope = "study"


@pytest.mark.slow
def test_random_gates_differ_by_seed_and_are_repeatable(tmp_path):
    system, _ = released(tmp_path, "--query_gate", "random")
    batch = family.batch_of(NAME)
    first = log_probabilities(system, batch)
    assert np.array_equal(first, log_probabilities(system, batch))
    system.gate_seed += 1
    assert np.abs(first - log_probabilities(system, batch)).max() > 10


def test_released_quirks_are_nine_flags():
    args = flags("--release_quirks", dataset="iu_xray")
    assert {name: getattr(args, name) for name in QUIRKS} == QUIRKS and len(QUIRKS) == 9
    assert CSRLMCA.marks(args) == ("release quirks",) and CSRLMCA.marks(flags(dataset="iu_xray")) == ()
    one = flags("--release_quirks", "--query_gate", "none", dataset="iu_xray")
    assert one.query_gate == "none" and one.crmsa_scope == "batch"
    assert CSRLMCA.marks(flags("--crmsa_scope", "batch")) == ("as released: crmsa_scope",)
    assert flags("--release_quirks").views == "enhanced:0,masked:0"  # MIMIC-CXR: as ours


def test_presets_are_the_published_numbers():
    both = {"batch_size": 14, "max_seq_length": 60, "threshold": 3, "d_model": 512, "d_ff": 512, "mem_size": 2048, "topk": 32,
            "beam_size": 3, "optimizer": "adam", "amsgrad": True, "adam_beta2": 0.98, "adam_eps": 1e-9, "clip_norm": 0.0,
            "early_stop": 50, "attention_dropout": 0.1, "views": "enhanced:0,masked:0", "max_views": 1}  # fmt: skip
    mimic = {"num_layers": 3, "m_layer": 2, "dropout": 0.1, "lr_ve": 5e-5, "lr_ed": 7e-4, "weight_decay": 5e-5,
             "lr_schedule": "cosine", "epochs": 80, "seed": 9233}  # fmt: skip
    iu = {"num_layers": 5, "m_layer": 1, "dropout": 0.35, "lr_ve": 6e-5, "lr_ed": 3e-5, "weight_decay": 1e-6,
          "lr_schedule": "step", "step_size": 50, "lr_gamma": 0.1, "epochs": 100, "seed": 20000107}  # fmt: skip
    for dataset, numbers in (("mimic_cxr", both | mimic), ("iu_xray", both | iu)):
        for command in ("train", "test"):
            args = flags(dataset=dataset) if command == "train" else parse(
                ["--model", NAME, "--dataset_name", dataset], "test", systems=SYSTEMS)  # fmt: skip
            assert {name: getattr(args, name) for name in numbers} == numbers


def test_rates_of_two_groups(system):
    """SR-Mamba learns at the extractor's rate; dropout of attention and memory does not follow --dropout."""
    groups = system.parameter_groups()
    branch = set(system.branch.parameters())
    assert branch <= set(groups["extractor"]) and not branch & set(groups["rest"])
    assert set(system.lmca.parameters()) <= set(groups["rest"])
    assert sum(p.numel() for group in groups.values() for p in group) == 69_072_580 - 2_111_498
    assert {part.dropout for part in system.modules() if isinstance(part, Attention)} == {0.1}


@pytest.mark.parametrize(("words", "message"), [
    (("--views", "sharp:0"), "--views sharp:0: write complete:0, enhanced:0, masked:0"),
    (("--views", "masked"), "--views masked: write"),
    (("--max_views", "2"), "--max_views 2: --views .* asks for 1"),
    (("--region_sizes", "2,0"), "--region_sizes 2,0: give sides in patches"),
])  # fmt: skip
def test_wrong_flags(words, message):
    with pytest.raises(InputError, match=message):
        problems = Problems()
        CSRLMCA.check(flags(*words), problems, training=False)


def test_a_released_file_has_one_scale(tmp_path):
    content = family.released_content(NAME, training=False)
    words = Tokenizer(sorted(family.WORDS), cleaning="iu_xray", padding=0, bos=0, eos=0)
    system = CSRLMCA.build(flags(), words)
    with pytest.raises(InputError, match="one scale of regions; load it with --region_sizes flat"):
        system.load_start(content, "model.pth")
    content["state_dict"]["enhanced_feats.feature_enhancer.norm.bias"] += 1  # the copy of a shared layer must be one
    with pytest.raises(InputError, match="not CSR-LMCA's released layout: 1 unknown keys"):
        CSRLMCA.released_state(content["state_dict"])
