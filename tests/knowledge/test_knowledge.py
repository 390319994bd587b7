"""The knowledge base: total look-up, expert reports, what is refused."""

import pickle

import numpy as np
import pytest
import torch

from data.studies import read_annotation
from knowledge import check_base
from knowledge.build_base import build, groups_of, show
from modules.errors import InputError
from modules.nets.knowledge_base import KnowledgeBase, embed, load_knowledge
from modules.text.labeler import label_report, positive_labels
from modules.text.labels import CHEXPERT_14, read_label_table

TWO = ("A", "B")


def layer(words=20, positions=6, width=8):
    torch.manual_seed(0)
    return {"word": torch.randn(words, width), "position": torch.randn(positions, width),
            "weight": torch.ones(width), "bias": torch.zeros(width)}  # fmt: skip


def base(kind="vector"):
    keys = torch.tensor([[0, 1], [1, 0]] if kind == "disease" else [[0, 0], [0, 1], [1, 1]])
    entries = torch.arange(len(keys)).float()[:, None, None].expand(-1, 6, 8)
    return KnowledgeBase(keys, entries=entries, sizes=[2, 7, 7][: len(keys)], kind=kind)


def test_look_up_is_total():
    """Exact key; else the nearest; ties go to the larger group, then to the smaller key."""
    knowledge = base()
    diagnosis = torch.tensor([[0, 0], [0, 1], [1, 1], [1, 0]])  # [1, 0] is one label from [0, 0] (2) and [1, 1] (7)
    assert knowledge(diagnosis)[:, 0, 0].tolist() == [0.0, 1.0, 2.0, 2.0]
    assert knowledge.fallbacks(diagnosis) == 1
    assert knowledge.nearest(diagnosis)[1].tolist() == [0, 0, 0, 1]


def test_disease_keys_are_averaged():
    knowledge = base("disease")
    found = knowledge(torch.tensor([[0, 1], [1, 0], [1, 1]]))[:, 0, 0].tolist()
    assert found == [0.0, 1.0, 0.5]


def test_expert_is_the_report_nearest_to_its_groups_mean():
    torch.manual_seed(1)
    ids = torch.randint(3, 20, (40, 6), dtype=torch.int32)
    vectors = [[number % 2, number % 3 == 0] for number in range(40)]
    vectors = [[int(bit) for bit in vector] for vector in vectors]
    found = build(ids, vectors, layer(), kind="vector", progress=False)
    embedded = embed(ids.long(), layer())
    for key, members in groups_of(vectors, "vector").items():
        mean = embedded[members].mean(0)
        distances = (embedded[members] - mean).flatten(1).norm(dim=1)
        order = distances.argsort()
        assert found[key]["report"] == members[order[0]] and found[key]["next"][0] == members[order[1]]
        assert found[key]["distance"] == pytest.approx(float(distances.min()), rel=1e-4)
        assert vectors[found[key]["report"]] == list(key) and found[key]["size"] == len(members)


def saved(tmp_path, **changes):
    keys = torch.zeros(2, 14, dtype=torch.long)
    keys[1, 1] = 1
    facts = {"labels": list(CHEXPERT_14), "split": "train"} | changes
    reports = [{"id": "s1", "report": "clear", "distance_to_mean": 1.0, "next_id": None, "next_distance": None}] * 2
    knowledge = KnowledgeBase(keys, ids=torch.ones(2, 6), layer=layer(), sizes=[3, 1], reports=reports, facts=facts)
    torch.save(knowledge.state(), tmp_path / "base.pt")
    return tmp_path / "base.pt"


def test_a_base_survives_its_file(tmp_path):
    loaded = load_knowledge(saved(tmp_path), labels=CHEXPERT_14, length=6, width=8)
    assert loaded.shape == (2, 6, 8)
    assert loaded.expert(torch.zeros(14, dtype=torch.long))["id"] == "s1"
    assert "s1" in show(loaded, ["Cardiomegaly"])
    with pytest.raises(InputError, match="Cardiomegali"):
        show(loaded, ["Cardiomegali"])


def test_what_is_refused(tmp_path):
    shape = {"length": 6, "width": 8}
    with pytest.raises(InputError, match="only training reports"):
        load_knowledge(saved(tmp_path, split="test"), labels=CHEXPERT_14, **shape)
    with pytest.raises(InputError, match="built for the labels"):
        load_knowledge(saved(tmp_path, labels=list(reversed(CHEXPERT_14))), labels=CHEXPERT_14, **shape)
    with pytest.raises(InputError, match="2 entries of 6 positions x width 8"):
        load_knowledge(saved(tmp_path), labels=CHEXPERT_14, length=128, width=256)
    with pytest.raises(InputError, match="no file"):
        load_knowledge(tmp_path / "none.pkl", labels=CHEXPERT_14, **shape)
    (tmp_path / "torn.pkl").write_bytes(pickle.dumps({(0,) * 14: np.zeros(3)})[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        load_knowledge(tmp_path / "torn.pkl", labels=CHEXPERT_14, **shape)


def test_the_expert_of_a_label_vector_has_exactly_that_vector(mini):
    """On the miniature set, where the truth is known: by the truth's labels and by what the labeler reads in its report."""
    base = load_knowledge(mini / "base.pt", labels=CHEXPERT_14, length=48, width=32)
    truth = read_label_table(mini / "data" / "labels.csv")
    studies = {study.id: study for study in read_annotation(mini / "data" / "annotation.json")["train"]}
    assert len(base.keys) == len({tuple(truth[name]) for name in studies}) > 3
    for key in base.keys:
        expert = base.expert(key)
        assert expert["distance"] == 0 and truth[expert["id"]] == key.tolist()
        assert expert["report"] == studies[expert["id"]].report
        assert positive_labels(label_report(expert["report"])) == key.tolist()


def test_who_has_no_entry_is_said(mini, capsys):
    """check_base: every study of a split against the base; one diagnosis is made to miss."""
    base = load_knowledge(mini / "base.pt", labels=CHEXPERT_14)
    table = read_label_table(mini / "data" / "labels.csv")
    words = ["--dataset_name", "miniature", "--data_dir", mini / "data", "--base", mini / "base.pt"]
    words += ["--diagnosis_path", mini / "data" / "labels.csv", "--split", "train"]
    check_base.main([str(word) for word in words])
    assert "(100.0%)  an entry of its own" in capsys.readouterr().out
    key = base.keys[0].tolist()
    name = CHEXPERT_14.index("Pleural Other")
    odd = [bit if number != name else 1 - bit for number, bit in enumerate(key)]
    said = check_base.text(base, {"a": key, "b": odd} | dict(list(table.items())[:2]))
    assert "1 ( 25.0%)  the nearest entry differs in 1 label(s)" in said
    assert f"1 x {check_base.names(odd)}  ->  {check_base.names(key)}" in said
