"""Every system of the table, by the one contract: builds, trains, writes, saves, loads, says the same; and its ablations."""

import ast
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_MODEL, call
from tiny import NAMES, loader_of, prepare, read, two_steps

from data.batches import Batch, make_loader
from data.feature_cache import serve_features
from data.prepare import make_dataset
from knowledge.build_prototypes import cluster, kmeans, stand_in_text
from knowledge.from_scratch import steps
from models import SYSTEMS
from modules.checkpoint import CheckpointWriter, load_checkpoint
from modules.decoding import DecodingSettings, decode, generate_reports
from modules.errors import InputError
from modules.flags import parse
from modules.image_use import ImageUse
from modules.precision import Precision
from modules.text.labels import CHEXPERT_14, NO_FINDING
from modules.text.tokenizer import Tokenizer
from modules.trainer import monitor_parts

CPU = torch.device("cpu")
ABLATIONS = {
    "csr_lmca": [["--no-sr_mamba"], ["--no-r_msa"], ["--no-cr_msa"], ["--no-r_msa", "--no-cr_msa"], ["--no-sr_scale_learned"],
                 ["--query_gate", "encoder"], ["--release_quirks"], ["--views", "complete:0,enhanced:1"]],
    "r2gencmn": [["--mem_size", "0"], ["--mem_size", "8", "--topk", "2"], ["--extractor_freeze", "all"]],
    "r2gen": [["--no-relational_memory"], ["--no-mcln"], ["--rm_num_slots", "1"]],
    "sgrrg": [["--scene_graphs", "none"], ["--region_memory", "0"], ["--contrast", "0"], ["--oracle_graph"], ["--regions", "7"]],
    "xpronet": [["--prototypes", "none"], ["--img_con", "0", "--txt_con", "0"], ["--num_prototypes", "4", "--topk", "3"]],
}


@pytest.mark.parametrize("name", NAMES)
def test_every_system_keeps_the_contract(name, mini, tmp_path):
    args = read(name, mini)
    data, tokenizer, system, trainer = two_steps(args, mini, tmp_path)
    batch = next(iter(loader_of(args, data, tokenizer, system, "val")))
    settings = DecodingSettings.from_flags(args)
    written = generate_reports(system, batch, settings)
    assert len(written) == len(batch) and all(isinstance(tokenizer.decode(ids), str) for ids in written)
    with torch.no_grad():
        memory = system.encode(batch)
        assert all(len(column) == len(batch) for column in system.remarks(batch, memory).values())
        looks = system.attention(memory, torch.full((len(batch), 3), system.bos))
    assert looks.shape[:3] == (len(batch), 3, args.max_views)
    use = ImageUse(system)
    with torch.no_grad():
        tokens = torch.from_numpy(tokenizer.padded(data.corpora["val"], args.max_seq_length + 1)[: len(batch)]).long()
        use(dataclasses.replace(batch, tokens=tokens), memory, None)
    assert math.isfinite(use.value()) and use.value() != 0
    torch.testing.assert_close(looks.sum((2, 3, 4)), torch.ones(len(batch), 3))
    with CheckpointWriter() as writer:
        trainer.save(writer, won=True)
    content, kind = load_checkpoint(tmp_path / "best.pt"), SYSTEMS[name]
    again = parse(["--oracle_labels"], "test", systems=SYSTEMS, carried=content["flags"])
    loaded = kind.build(again, kind.tokenizer_kind.from_state_dict(content["tokenizer"]), content["parts"])
    loaded.load_start(content, "best.pt")
    assert DecodingSettings.from_flags(again) == settings
    assert generate_reports(loaded.eval(), batch, settings) == written


CACHED = ["--extractor_freeze", "all", "--augment", "none"]


@pytest.mark.parametrize(("name", "words"), [*((name, []) for name in NAMES), ("ekagen", ["--adm", "--student_view", "masked"])])
def test_cached_features_change_neither_losses_nor_reports(name, words, mini, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, *_, **__: x)  # it draws in the order of the memory
    for path in (mini / "data" / "images").glob("*/*.png"):
        mask = tmp_path / "masks" / path.relative_to(mini / "data" / "images").with_suffix(".npy")
        mask.parent.mkdir(parents=True, exist_ok=True)
        np.save(mask, np.arange(300 * 300).reshape(300, 300) % 3 > 0)
    more = ["--adm_masks", str(tmp_path / "masks")] if "--adm" in words else []
    args = read(name, mini, *CACHED, "--feature_cache", "float32", "--knowledge_dir", str(tmp_path), *words, *more)
    data, tokenizer, system = prepare(args)
    datasets = {split: make_dataset(args, data, split, system.needs(split == "train"), tokenizer, training=split == "train")
                for split in ("train", "val")}  # fmt: skip
    found = []
    for _ in range(2):
        loaders = {split: make_loader(dataset, batch_size=4, num_workers=0, shuffle=False) for split, dataset in datasets.items()}
        first = {split: system.prepare(next(iter(loader))) for split, loader in loaders.items()}
        torch.manual_seed(2)
        with torch.no_grad():
            losses = system.train().losses(first["train"])
        reports = generate_reports(system.eval(), first["val"], DecodingSettings(max_length=12))
        found.append((losses, reports))
        serve_features(args, system.extractors(), datasets, device=torch.device("cpu"), precision=Precision("float32", CPU))
    seen = first["train"].masked_images if words else first["train"].images
    assert seen.shape[2] == system.extractor.width
    for loss in found[0][0]:
        torch.testing.assert_close(found[1][0][loss], found[0][0][loss], rtol=1e-6, atol=1e-6)
    assert found[1][1] == found[0][1]


@pytest.mark.parametrize(("name", "words"), [(name, words) for name, rows in ABLATIONS.items() for words in rows],
                         ids=lambda value: " ".join(value) if isinstance(value, list) else value)  # fmt: skip
def test_each_ablation_is_one_flag(name, words, mini, tmp_path):
    args = read(name, mini, *words)
    data, tokenizer, system, _ = two_steps(args, mini, tmp_path)
    batch = next(iter(loader_of(args, data, tokenizer, system, "val")))
    for beams in (1, 2):
        settings = DecodingSettings(beam_size=beams, max_length=8, beam_search="released")
        assert len(generate_reports(system, batch, settings)) == len(batch)


def family(name: str, words: int = 12, **changes):
    """A small random system of the family whose reports end at different places."""
    flags = ["--model", name, "--dataset_name", "miniature", *TINY_MODEL, "--max_seq_length", "10", "--max_gen_length", "10"]
    extra = {"xpronet": ["--prototypes", "random", "--topk", "5", "--num_prototypes", "6"], "r2gencmn": ["--topk", "5"]}
    args = parse([*flags, *extra.get(name, [])], "train", systems=SYSTEMS)
    torch.manual_seed(5)
    tokenizer = Tokenizer([f"w{n:02d}" for n in range(words - 1)] + ["<unk>"], cleaning="iu_xray", padding=0, bos=0, eos=0)
    system = SYSTEMS[name].build(args, tokenizer)
    # spread the words and what is seen, by a seed with which studies differ and reports end at different places
    torch.manual_seed({"xpronet": 11}.get(name, 7))
    torch.nn.init.normal_(system.word.weight, std=0.2)
    torch.nn.init.normal_(system.head.weight, std=1.0)
    torch.nn.init.zeros_(system.head.bias)
    for layer in system.decoder:
        torch.nn.init.normal_(layer.cross_attention.in_proj_weight, std=0.2)
        torch.nn.init.normal_(layer.cross_attention.out_proj.weight, std=0.2)
    return system.eval()


def seen(batch) -> tuple[torch.Tensor, None]:
    """Stands in for the patches of untrained extractors, which are alike for all images: 2 views of 2 x 2."""
    draws = [torch.Generator().manual_seed(int(name[1:])) for name in batch.ids]
    return torch.stack([3 * torch.randn(8, 32, generator=draw) for draw in draws]), None


def studies(*numbers: int, views: int = 2) -> Batch:
    images = torch.stack([torch.randn(views, 3, 32, 32, generator=torch.Generator().manual_seed(n)) for n in numbers])
    diagnosis = torch.tensor([[(n >> k) % 2 for k in range(14)] for n in numbers])
    mask = torch.ones(len(numbers), views, dtype=torch.bool)
    return Batch([f"s{n}" for n in numbers], images=images, view_mask=mask, diagnosis=diagnosis)


FAMILY = ("r2gen", "r2gencmn", "xpronet")
ALL = tuple(range(12))


@torch.no_grad()
def published_search(system, memory, beams: int, steps: int) -> list[int]:
    """The released beam search as it is described, on one study, without a cache: full passes over the written words."""
    beam, stored = [((), 0.0)], []
    for step in range(steps):
        options = []
        for words, total in beam:
            inputs = torch.tensor([[system.bos, *words]])
            x = system.embed(inputs, system.places[: inputs.shape[1]])
            logp = plain_logits(system, memory, inputs, x)[0, -1].log_softmax(-1)
            options += [(words + (word,), total + float(logp[word])) for word in range(len(logp))]
        options.sort(key=lambda row: -row[1])
        beam = []
        for words, total in options[:beams]:
            if words[-1] == system.eos or step == steps - 1:
                stored.append((words, total))
            beam.append((words, total - 1000 * (words[-1] == system.eos or step == steps - 1)))
    best = max(stored, key=lambda row: row[1])[0]
    return list(best[: best.index(0)] if 0 in best else best)


def plain_logits(system, memory, tokens, x):
    """The teacher-forced pass of decoding: unlike training it looks at every word written, 0 among them."""
    condition = system.condition(tokens)
    past = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()[None, None]
    x = system.read_words(x, memory, system.bank())
    for number, layer in enumerate(system.decoder):
        keys, values = memory[f"keys.{number}"], memory[f"values.{number}"]
        x = layer(x, None, keys, values, memory.get("mask"), past, condition if system.conditional else ())
    return system.say(system.decoder_norm(x), condition)


@pytest.mark.parametrize("name", FAMILY)
def test_released_beam_search_without_cache(name):
    """Cached, batched and stopped early, against the description; reports end at different places."""
    system = family(name)
    system.patches = seen
    with torch.no_grad():
        memory = system.encode(system.prepare(studies(*ALL)))
    found = decode(system, memory, DecodingSettings(beam_size=3, max_length=10, beam_search="released"), [str(n) for n in ALL])
    for row, number in enumerate(ALL):
        with torch.no_grad():
            alone = system.encode(system.prepare(studies(number)))
        assert found[row] == published_search(system, alone, 3, 10), number
    assert len({len(words) for words in found}) > 1, "the case is too easy: all end at once"


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("way", [{}, {"block_trigrams": True}, {"beam_size": 3, "beam_search": "released"}, {"beam_size": 3}])
def test_a_report_ignores_its_batch(name, way):
    system, settings = family(name), DecodingSettings(max_length=9, **way)
    system.patches = seen
    alone = [generate_reports(system, studies(n), settings)[0] for n in ALL]
    assert generate_reports(system, studies(*ALL), settings) == alone


@pytest.mark.parametrize("name", FAMILY)
def test_an_absent_view_changes_nothing(name):
    """One image, and the same image beside an absent second one, next to a study that has both."""
    system = family(name)
    one, two = studies(3, views=1), studies(4, 3)
    two.images[1, 0], two.images[1, 1] = one.images[0, 0], 7.0
    two.view_mask[1, 1] = False
    tokens = torch.tensor([[0, 5, 6]])
    with torch.no_grad():
        expected = system.logits(system.encode(one), tokens)
        found = system.logits(system.encode(two), tokens.expand(2, -1))[1:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_a_study_without_a_label_counts_as_normal():
    system = family("xpronet")
    batch = studies(0, 3)
    assert not batch.diagnosis[0].any()
    labels = system.labels(batch)
    assert [CHEXPERT_14[k] for k in labels[0].nonzero()[:, 0].tolist()] == [NO_FINDING]
    numbers, mask = system.rows(labels)
    rows = system.gather(numbers, mask)
    assert mask.sum(1).tolist() == [6, 12] and not rows[0, 6:].any()
    assert system.remarks(batch, {})["labels"][0] == NO_FINDING


def test_contrastive_loss_of_known_pairs():
    from models.xpronet import contrastive_loss

    features = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    labels = torch.tensor([[1, 0, 1], [1, 0, 0], [0, 1, 0]]) == 1
    alike = 1.5 ** -(1 / 3) - 0.0  # studies 0 and 1 share a label, are at right angles, differ in one of three
    apart = math.sqrt(0.5) - 0.4  # study 2 shares none: both its cosines are sqrt(1/2)
    assert contrastive_loss(features, labels, 0.4).item() == pytest.approx((2 * alike + 4 * apart) / 9, abs=1e-6)


# -- prototypes --------------------------------------------------------------------------------------------------------


def test_kmeans_finds_clusters_and_takes_too_few_points():
    draw = torch.Generator().manual_seed(2)
    centres = 10 * torch.randn(4, 5, generator=draw)
    points = (centres[:, None] + 0.1 * torch.randn(4, 30, 5, generator=draw)).flatten(0, 1)
    found = kmeans(points, 4, seed=0)
    assert torch.cdist(centres, found).min(1).values.max() < 0.2
    assert torch.equal(kmeans(points, 4, seed=0), found)
    assert torch.equal(kmeans(points[:3], 4, seed=0), points[[0, 1, 2, 0]])
    same = kmeans(points[:1].expand(9, -1), 4, seed=0)
    assert torch.isfinite(same).all() and torch.allclose(same, points[:1].expand(4, -1))


def test_prototypes_come_from_the_studies_of_their_label():
    labels = torch.zeros(40, 14, dtype=torch.long)
    labels[:20, 1] = 1  # the other twenty have none: No Finding
    features = torch.cat([torch.full((20, 3), 5.0), torch.full((20, 3), -5.0)]) + 0.1 * torch.randn(40, 3)
    rows = cluster([features, features + 100], labels, 4, seed=0).view(14, 4, 3)
    assert (rows[1, :2] > 4).all() and (rows[1, 2:] > 104).all(), "half from the mirror images"
    assert (rows[CHEXPERT_14.index(NO_FINDING), :2] < -4).all()
    assert torch.isfinite(rows).all(), "a label without a study has prototypes too"


def test_stand_in_text_features_follow_the_words():
    reports = ["clear lungs", "clear lungs", "large effusion on the left", "large effusion on the right", "normal heart"]
    rows = stand_in_text(reports, "iu_xray", 256, seed=0)
    nearness = rows @ rows.T
    assert nearness[0, 1] == pytest.approx(1.0) and nearness[2, 3] > nearness[2, 0] + 0.2


@pytest.fixture(scope="module")
def scratch(mini, tmp_path_factory):
    """XProNet with everything built first."""
    folder = tmp_path_factory.mktemp("xpronet")
    words = ["--model", "xpronet", "--dataset_name", "miniature", "--data_dir", mini / "data", "--knowledge_dir", folder / "made",
             *TINY_MODEL, "--epochs", "1"]  # fmt: skip
    bot = ["--bot_backbone", "resnet18", "--bot_backbone_weights", "none"]
    done = call("main_train.py", *words, "--from_scratch", *bot, "--save_dir", folder / "run")
    return folder, words, done


@pytest.mark.slow
def test_one_command_builds_labels_bot_and_prototypes(scratch):
    folder, words, done = scratch
    assert "== 3/3 prototypes" in done.stdout and "not CheXbert" in done.stdout
    manifest = json.loads((folder / "made" / "prototypes.pt.json").read_text())
    assert manifest["split"] == "train" and "not CheXbert" in manifest["text_features"]["source"]
    again = call("-m", "knowledge.build_prototypes", *words[2:6], "--knowledge_dir", folder / "made", *TINY_MODEL[:-2])
    assert "kept" in again.stdout
    missing = call("main_train.py", *words, "--knowledge_dir", folder / "none", "--save_dir", folder / "x", code=2)
    assert "--prototypes: no file" in missing.stderr and "knowledge.build_prototypes" in missing.stderr
    other = call("main_train.py", *words, "--d_txt_ebd", "10", "--save_dir", folder / "x", code=2)
    assert "prototypes.pt has [280, 1280], this run [280, 522]" in other.stderr


@pytest.mark.slow
def test_labels_are_predicted_unless_the_oracle_is_asked_for(scratch, mini):
    folder, _, _ = scratch
    best = folder / "run" / "best.pt"
    call("main_test.py", "--load", best, "--protocols", "r2gen", "--save_dir", folder / "predicted")
    assert json.loads((folder / "predicted" / "metrics_test.json").read_text())["oracle_labels"] is False
    done = call("main_test.py", "--load", best, "--protocols", "r2gen", "--oracle_labels", "--save_dir", folder / "oracle")
    assert json.loads((folder / "oracle" / "metrics_test.json").read_text())["oracle_labels"] is True
    assert "ORACLE" in done.stdout
    image = next((mini / "data" / "images").glob("*/0.png"))
    said = call("main_test.py", "--load", best, "--image", image, "--out", folder / "study").stdout
    assert "report:" in said and "warning:" not in said and (folder / "study" / "index.html").is_file()


def test_chexberts_bert_reads_the_reports(tmp_path):
    """A synthetic file of CheXbert's layout: features have its width and depend on the text."""
    from knowledge.build_prototypes import chexbert_text
    from modules.text.chexbert import CheXbert

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "clear", "lungs", "heart"]
    model = CheXbert(words=len(words), positions=32, kinds=2, width=64, hidden=32, layers=1)
    torch.save({"model_state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "chexbert.pth")
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    files = (str(tmp_path / "chexbert.pth"), str(tmp_path / "vocab.txt"))
    rows = chexbert_text(["clear lungs", "heart", "clear lungs"], *files, torch.device("cpu"), batch_size=2)
    assert rows.shape == (3, 64) and torch.allclose(rows[0], rows[2], atol=1e-5) and not torch.allclose(rows[0], rows[1])


# -- the table, flags and trainer --------------------------------------------------------------------------------------


def test_presets_are_the_published_numbers():
    published = {
        ("r2gen", "iu_xray"): {"lr_ve": 5e-5, "lr_ed": 1e-4, "step_size": 50, "lr_gamma": 0.1, "clip_value": 0.1, "seed": 9223,
                               "epochs": 100, "adam_beta2": 0.999, "adam_eps": 1e-8, "max_views": 2, "batch_size": 16},
        ("r2gen", "mimic_cxr"): {"step_size": 1, "lr_gamma": 0.8, "seed": 456789, "epochs": 30, "max_views": 1, "threshold": 10},
        ("r2gencmn", "iu_xray"): {"lr_ve": 1e-4, "lr_ed": 5e-4, "step_size": 10, "lr_gamma": 0.8, "seed": 7580, "topk": 32,
                                  "mem_size": 2048, "adam_beta2": 0.98, "adam_eps": 1e-9, "clip_value": 0.0},
        ("r2gencmn", "mimic_cxr"): {"step_size": 3, "seed": 9153, "max_seq_length": 100, "cleaning": "mimic_cxr"},
        ("xpronet", "iu_xray"): {"lr_ve": 1e-3, "lr_ed": 2e-3, "epochs": 30, "topk": 15, "drop_last": True, "augment": "crop",
                                 "monitor_metric": "r2gen/xsum", "img_con": 1.0, "txt_con": 0.1},
        ("xpronet", "mimic_cxr"): {"lr_ve": 5e-5, "lr_ed": 1e-4, "batch_size": 64, "step_size": 3, "precision": "fp16"},
    }  # fmt: skip
    family = {"optimizer": "adam", "amsgrad": True, "weight_decay": 5e-5, "beam_size": 3, "beam_search": "released",
              "visual_extractor": "resnet101", "dilate": False, "extractor_freeze": "none", "image_size": 224, "d_model": 512,
              "d_ff": 512, "num_layers": 3, "num_heads": 8, "dropout": 0.1, "feature_dropout": 0.5, "early_stop": 50,
              "resize_filter": "bilinear"}  # fmt: skip
    for (model, dataset), numbers in published.items():
        args = parse(["--model", model, "--dataset_name", dataset], "train", systems=SYSTEMS)
        assert {name: getattr(args, name) for name in (family | numbers)} == family | numbers, (model, dataset)


def test_trigram_block_is_on_for_beam_one_alone():
    for words, expected in ((["--beam_size", "1"], True), ([], False), (["--beam_size", "1", "--no-block_trigrams"], False)):
        args = parse(["--model", "r2gen", *words], "test", systems=SYSTEMS)
        assert DecodingSettings.from_flags(args).block_trigrams is expected
    with pytest.raises(ValueError, match="greedy"):
        DecodingSettings.from_flags(parse(["--model", "r2gen", "--block_trigrams"], "test", systems=SYSTEMS))


def test_a_flag_of_another_system_is_refused():
    text = r"--theta: read by ekagen\n.*--mem_size: read by .*r2gencmn"
    with pytest.raises(InputError, match=text):
        parse(["--model", "r2gen", "--theta", "0.2", "--mem_size", "8"], "train", systems=SYSTEMS)


def test_from_scratch_builds_what_the_system_reads():
    def made(*words):
        return [step.what.split(":")[0] for step in steps(parse(["--model", *words], "train", systems=SYSTEMS))]

    assert made("r2gen") == made("r2gencmn") == made("xpronet", "--prototypes", "none") == []
    assert made("xpronet") == ["labels of the reports, by rules", "DiagnosisBot", "prototypes"]
    assert made("xpronet", "--oracle_labels", "--prototypes", "random") == ["labels of the reports, by rules"]


def test_the_monitored_sum():
    metrics = {"r2gen/BLEU_4": 0.1, "r2gen/BLEU_1": 0.4, "r2gen/METEOR": 0.2}
    total = sum(weight * metrics[name] for name, weight in monitor_parts("r2gen/xsum").items())
    assert total == pytest.approx(0.1 + 0.33 * 0.4 + 0.67 * 0.2)
    assert monitor_parts("r2gen/CIDEr") == {"r2gen/CIDEr": 1.0}


def test_gradients_are_clipped_by_value(mini, tmp_path):
    args = read("r2gen", mini, "--clip_norm", "0", "--clip_value", "0.001")
    _, _, system, _ = two_steps(args, mini, tmp_path)
    assert max(float(p.grad.abs().max()) for p in system.parameters() if p.grad is not None) == pytest.approx(0.001)


def test_the_last_batch_is_dropped_on_request(mini):
    args = read("r2gencmn", mini)
    data, tokenizer, system = prepare(args)
    dataset = make_dataset(args, data, "train", {"tokens", "images"}, tokenizer, training=True)
    count = len(dataset)
    sizes = [len(batch) for batch in make_loader(dataset, batch_size=count - 1, num_workers=0, shuffle=True, drop_last=True)]
    assert sizes == [count - 1]
    with pytest.raises(InputError, match="--drop_last leaves nothing"):
        make_loader(dataset, batch_size=count + 1, num_workers=0, shuffle=True, drop_last=True)


def test_modules_know_no_system():
    """modules/ imports no model, and names no system outside the one table of flags and presets."""
    names = set(SYSTEMS) - {"r2gen"}  # also the name of a scoring protocol
    for path in sorted((ROOT / "modules").rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                imported = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                assert not any(name.split(".")[0] == "models" for name in imported), path
            if isinstance(node, ast.Constant) and path.name != "flags.py":
                assert node.value not in names, f"{path}:{node.lineno}"
