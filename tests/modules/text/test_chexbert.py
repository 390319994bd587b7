"""CheXbert's layout and BERT's words, on made files: what loads, what is refused, and that batches change nothing."""

import json
import random

import numpy as np
import pytest
import torch

import main_test
from modules.errors import InputError
from modules.scoring import metrics
from modules.scoring.clinical import STATES
from modules.scoring.predictions import R2GenReferences, write_predictions
from modules.scoring.score_all import make_labelers
from modules.text import chexbert
from modules.text.chexbert import CLASSES, HEADS, CheXbert, CheXbertLabeler, WordPiece, load_chexbert
from modules.text.labels import CHEXPERT_14

TINY = {"words": 60, "positions": 512, "kinds": 2, "width": 128, "hidden": 96, "layers": 2}
PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "the",
    "heart",
    "##s",
    "no",
    "effusion",
    "e",
    "##ff",
    "##us",
    ".",
    "|",
    "<",
    ">",
]


def known_weights(state: dict) -> dict:
    """The same weights everywhere, of a formula instead of a file: 0.15 sin(1.7 i + n), n the place in the alphabet."""
    for number, (name, value) in enumerate(sorted(state.items())):
        wave = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 1.7 + number) * 0.15
        state[name] = wave.reshape(value.shape).float() + (1 if name.endswith("LayerNorm.weight") else 0)
    return state


def write_file(path, sizes: dict, prefix: str = "module.", **more):
    """A file of CheXbert's layout; a value None takes a key out."""
    state = CheXbert(**sizes).state_dict()
    bert = known_weights({k.removeprefix("bert."): v for k, v in state.items() if k.startswith("bert.")})
    heads = known_weights(
        {k.removeprefix("linear_heads."): v for k, v in state.items() if k.startswith("linear_heads.")}
    )
    full = {
        **{f"{prefix}bert.{k}": v for k, v in bert.items()},
        **{f"{prefix}linear_heads.{k}": v for k, v in heads.items()},
    }
    full = {name: value for name, value in {**full, **more}.items() if value is not None}
    torch.save({"epoch": 3, "model_state_dict": full}, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chexbert")
    pieces = PIECES + [f"[unused{number}]" for number in range(TINY["words"] - len(PIECES))]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return write_file(folder / "chexbert.pth", TINY), folder / "vocab.txt"


def test_logits_are_those_of_transformers(files):
    """Pinned with transformers 5.23.0 (BertModel and 14 linear layers, the same weights, ids 2 to 13)."""
    with torch.no_grad():
        logits = load_chexbert(files[0])(torch.arange(2, 14)[None], torch.tensor([12]))
    told = [round(float(value), 5) for value in torch.cat(logits, 1)[0, :8]]
    assert told == pytest.approx(
        [-0.280011, -1.625762, 2.63655, -1.974363, 2.672111, -1.161386, -1.191492, 2.642848], abs=2e-5
    )
    assert logits[13][0].tolist() == pytest.approx([-1.294025, 2.463747], abs=2e-5)


def test_the_true_layout_has_199_tensors_and_14_heads(tmp_path):
    sizes = {"words": 200, "positions": 512, "kinds": 2, "width": 768, "hidden": 3072, "layers": 12}
    with torch.device("meta"):
        state = CheXbert(**{**sizes, "words": 30522}).state_dict()
    assert sum(name.startswith("bert.") for name in state) == 199
    assert [list(state[f"linear_heads.{i}.weight"].shape) for i in range(14)] == [[count, 768] for count in CLASSES]
    assert set(HEADS) == set(CHEXPERT_14) and len(STATES) == 4
    assert "bert.encoder.layer.11.attention.self.query.weight" in state and "bert.pooler.dense.bias" in state
    stray = {"module.bert.embeddings.position_ids": torch.arange(512)[None]}
    model = load_chexbert(write_file(tmp_path / "whole.pth", {**sizes, "layers": 2}, **stray))
    assert model.bert.encoder.layer[0].heads == 12


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_prefix_and_bare_state(files, tmp_path, prefix):
    path = write_file(tmp_path / "c.pth", TINY, prefix=prefix)
    torch.save(torch.load(path)["model_state_dict"], tmp_path / "bare.pth")
    ours, theirs = load_chexbert(path).state_dict(), load_chexbert(tmp_path / "bare.pth").state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"module.linear_heads.3.bias": None}, "1 missing: linear_heads.3.bias"),
        ({"module.linear_heads.14.bias": torch.zeros(4)}, "1 unknown: linear_heads.14.bias"),
        ({"module.linear_heads.13.bias": torch.zeros(4)}, r"linear_heads.13.bias: \[4\], expected \[2\]"),
        ({"module.bert.embeddings.word_embeddings.weight": None}, "1 missing: bert.embeddings.word_embeddings.weight"),
    ],
)
def test_keys_that_differ_are_named(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        load_chexbert(write_file(tmp_path / "c.pth", TINY, **change))


def test_other_files_are_refused(files, tmp_path):
    torch.save({"state_dict": {"visual_extractor.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="no model_state_dict of tensors"):
        load_chexbert(tmp_path / "other.pth")
    torch.save({"model_state_dict": {"decoder.weight": torch.zeros(3)}}, tmp_path / "decoder.pth")
    with pytest.raises(InputError, match="227 missing: .*\n.*1 unknown: decoder.weight"):
        load_chexbert(tmp_path / "decoder.pth")
    with pytest.raises(InputError, match="no file"):
        load_chexbert(tmp_path / "none.pth")
    (tmp_path / "vocab.txt").write_text("the\nheart\n")
    with pytest.raises(InputError, match="lacks .PAD.*no BERT vocabulary"):
        CheXbertLabeler(files[0], tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES))
    with pytest.raises(InputError, match="has 16 pieces, .* 60 embeddings"):
        CheXbertLabeler(files[0], tmp_path / "vocab.txt")
    with pytest.raises(InputError, match="goes with --chexbert_path"):
        make_labelers(None, "vocab.txt")
    assert list(make_labelers(str(files[0]), None)) == ["rules-2", "chexbert"]  # vocab.txt lies beside it


def test_words_and_pieces(files):
    """Compared once with tokenizers 0.23.3 on 5,008 texts of letters, signs and controls: equal in all."""
    words = WordPiece(files[1])
    assert words.words("No\tEFFUSION|<the>\x00 é2.4") == ["no", "effusion", "|", "<", "the", ">", "e2", ".", "4"]
    assert words.words("心heart\u200b $5") == ["心", "heart", "$", "5"]
    assert words.encode("the hearts, \n no") == [2, 4, 5, 6, 1, 7, 3]
    assert words.encode("effus efusion " + "x" * 101) == [2, 9, 10, 11, 1, 1, 3]
    assert words.encode("") == [2, 3] and words.encode(" \n ") == [2, 3]
    long = words.encode("the " * 5000)
    assert len(long) == 512 and (long[0], long[-1]) == (2, 3)


def test_batches_do_not_change_a_label(files, monkeypatch, tmp_path):
    torch.manual_seed(0)
    state = CheXbert(**TINY).state_dict()  # random, so that labels differ from text to text
    torch.save(
        {"model_state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "random.pth"
    )
    draw = random.Random(0)
    texts = [" ".join(draw.choices(PIECES[4:], k=draw.randrange(40))).replace("##", "") for _ in range(60)]
    texts += [texts[0], "", "|||", "<script>alert(1)</script>", '😀 "quoted"\n', "the heart " * 2500]
    labeler = CheXbertLabeler(tmp_path / "random.pth", files[1])
    together = labeler(texts)
    assert together.shape == (66, 14) and together.min() >= 0 and len(np.unique(together[:60], axis=0)) > 5
    assert set(np.unique(together[:, CHEXPERT_14.index("No Finding")])) <= {0, 1}
    alone = np.concatenate([labeler([text]) for text in texts])
    assert (alone == together).all()
    monkeypatch.setattr(chexbert, "BATCH_TOKENS", 100)
    assert (labeler(texts[::-1])[::-1] == together).all()
    with torch.no_grad():
        tokens = torch.tensor([[2, 4, 5, 3, 0, 0], [2, 7, 8, 4, 5, 3]])
        padded = labeler.model(tokens, torch.tensor([4, 6]))
        exact = labeler.model(tokens[:1, :4], torch.tensor([4]))
    assert all(torch.allclose(a[:1], b, atol=1e-5) for a, b in zip(padded, exact))
    assert labeler([]).shape == (0, 14)


def test_a_users_file_is_scored_beside_the_rules(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(metrics, "METRICS", ("BLEU_1", "BLEU_4"))
    references = R2GenReferences(["The heart is normal."], "iu_xray", threshold=1)
    rows = [references.row(f"s{n}", "No effusion.", "the hearts .", constant="no effusion .") for n in range(3)]
    path = write_predictions(tmp_path / "predictions_test.csv", rows)
    main_test.main(
        ["--score", str(path), "--protocols", "clean", "--chexbert_path", str(files[0]), "--bootstrap", "20"]
    )
    found = json.loads((tmp_path / "metrics_test.json").read_text())
    for key in ("ce/chexbert/14/micro/u1/f1", "constant/ce/chexbert/5/macro/u0/recall", "ce/rules-2/14/example/u0/f1"):
        assert 0 <= found["metrics"][key] <= 1, key
    assert set(found["metrics"]["by_label"]) == {"rules-2", "chexbert"}
    assert len(found["scoring"]["inputs"]["chexbert_path"]["sha256"]) == 64
    assert "chexbert u1" in capsys.readouterr().out
    lines = (tmp_path / "labels_test.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 2 * 3 and sum(",chexbert," in line for line in lines) == 6
    with pytest.raises(SystemExit):
        main_test.main(["--score", str(path), "--chexbert_path", str(tmp_path / "none.pth")])
    assert "no file" in capsys.readouterr().err
