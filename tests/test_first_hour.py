"""The recipe of docs/first_hour.md is typed as it stands there, with fewer and smaller studies and fewer epochs."""

import json
import re

import pytest
from conftest import ROOT, SHARED, call

FEW = 12
SMALL = ["--d_model", "64", "--d_ff", "64", "--num_heads", "2", "--num_layers", "1", "--max_gen_length", "12"]


def commands() -> list[str]:
    text = (ROOT / "docs" / "first_hour.md").read_text(encoding="utf-8")
    return re.findall(r"^    python (main_\w+\.py .+)$", text, re.MULTILINE)


@pytest.mark.slow
def test_the_first_hour(request, tmp_path):
    """On the real IU X-Ray where it lies beside the repository, else on the miniature set."""
    real = (SHARED / "iu_xray" / "annotation.json").is_file()
    data = SHARED / "iu_xray" if real else request.getfixturevalue("mini") / "data"
    study = json.loads((data / "annotation.json").read_text(encoding="utf-8"))["test"][0]
    image = data / "images" / study["image_path"][0]
    lines = commands()
    assert len(lines) == 7
    for line in lines:
        line = line.replace("limit300", f"limit{FEW}").replace("--limit 300", f"--limit {FEW}")
        line = re.sub(r"(image_size|_epochs|--epochs) \d+", lambda m: f"{m[1]} {64 if 'size' in m[1] else 1}", line)
        line = (line if real else line.replace("iu_xray", "miniature")).replace("front.png", str(image))
        words = line.split()
        if "--compare" not in words:
            words += ["--device", "cpu"] + ([] if "--image" in words else ["--data_dir", data, "--num_workers", "0"])
        words += SMALL if words[0] == "main_train.py" else []
        done = call(*words, cwd=tmp_path)
        if "--dry_run" in words:
            assert "would not start" not in done.stdout and "DiagnosisBot" in done.stdout
            assert not (tmp_path / "knowledge" / f"iu_xray_limit{FEW}" / "base.pt").exists()
    name = "iu_xray" if real else "miniature"
    assert "report:" in done.stdout
    for model in ("r2gencmn", "ekagen"):
        folder = tmp_path / "results" / f"{model}_{name}_limit{FEW}"
        run, metrics = (json.loads((folder / f"{part}.json").read_text()) for part in ("run", "metrics_test"))
        assert run["data"]["limit"] == FEW and metrics["marks"] == [f"first {FEW} studies of each split"] == run["marks"]
        assert f"(first {FEW} studies of each split)" in call("main_test.py", "--table", folder, cwd=tmp_path).stdout
    assert (tmp_path / "knowledge" / f"{name}_limit{FEW}" / "base.pt").is_file()
