"""The measurement of docs/results.md: that it runs, on a tiny model, and that its record agrees with itself."""

import json
from pathlib import Path

import pytest
from neftune_transformers.tiny import make_tiny_model

from benchmarks import alpha
from neftune_plugins.commands.cli import main
from neftune_plugins.sweep.page import _summary
from neftune_plugins.sweep.results import Results
from neftune_plugins.sweep.study import Study, Trial
from tests.support.documentation import ROOT, shown
from tests.support.shell import commands
from tests.support.texts import answer, question

FEWER = {
    "--alpha": "0,5",
    "--seeds": "1",
    "--measure": "--train train.jsonl --instructions chat --answers 2 --max-new-tokens 8 --chunk 4",
    "--num_train_epochs": "1",
    "--logging_steps": "1",
}


def test_the_page_is_what_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [split, sweep, record, _] = commands(shown("docs/results.md", "bash"))
    model = sweep[sweep.index("--model") + 1]
    make_tiny_model(tmp_path / model, num_layers=1)
    rows = [
        {"instruction": question(number), "input": "", "output": answer(number, 1 + number // 7)}
        for number in range(40)
    ]
    Path("alpaca_en_demo.json").write_text(json.dumps(rows))

    def run(words: list[str]) -> None:
        monkeypatch.setattr("sys.argv", words[2:])
        alpha.main()

    assert split[:4] == ["python", "-m", "benchmarks.alpha", "split"]
    run([*split, "--train", "16", "--held-out", "8"])
    train, held_out = (Path(f"{name}.jsonl").read_text().splitlines() for name in ("train", "held_out"))
    assert (len(train), len(held_out), len(set(train) & set(held_out))) == (16, 8, 0)

    words = [str(ROOT / word) if word.endswith(".py") else word for word in sweep[1:]]
    for option, value in FEWER.items():
        words[words.index(option) + 1] = value
    with pytest.raises(SystemExit) as end:
        main(words)
    logs = "".join(path.read_text() for path in tmp_path.glob("neftune-sweep/trials/*/log.txt"))
    assert end.value.code == 0, logs

    run([*record, "--json", "alpha.json"])
    monkeypatch.setattr(alpha, "RECORD", tmp_path / "alpha.json")
    text = alpha.recorded()
    found = json.loads(alpha.RECORD.read_text())
    shares = {one["length"]: one["norm"] / (5 / 3**0.5) for one in found["noise"]}
    # The norm of each of 16 examples has a relative spread of sqrt(1 / (5 n)), n the numbers drawn for it, 64 a token.
    assert abs(shares["sequence"] - 1) < 5 * (1 / (5 * 64 * 10 * 16)) ** 0.5
    assert shares["padded"] < 0.97
    assert "\n| alpha 5, sequence |" in text
    assert str(tmp_path) not in alpha.RECORD.read_text()


def test_the_record_agrees_with_itself():
    found = json.loads(alpha.RECORD.read_text())
    trials = [
        Trial(number=number, state="complete", type="uniform" if one["alpha"] else "none", seconds=seconds, **one)
        for number, (one, seconds) in enumerate(zip(found["trials"], found["seconds"], strict=True))
    ]
    again = _summary(Results(Study(config="instruct.py", framework="python", trials=trials)))
    assert again == found["summary"]


def test_what_the_page_concludes_is_in_the_record():
    found = json.loads(alpha.RECORD.read_text())
    assert found["summary"]["finding"].startswith(
        "With 4 seeds, no alpha gives a significantly better held-out loss than no noise."
    )
    settings = {(one["alpha"], one["length"]): one["metrics"] for one in found["summary"]["settings"]}
    for setting, metrics in settings.items():
        losses = (metrics["held_out_loss"], metrics["trained_on_loss"])
        assert [one["supported"] for one in losses] == ([None] * 2 if setting[0] == 0 else [setting[0] == 15] * 2)
    held_out, trained_on = (settings[15, "sequence"][name] for name in ("held_out_loss", "trained_on_loss"))
    shares = [one["difference"] / (one["mean"] - one["difference"]) for one in (held_out, trained_on)]
    assert [f"{share:.1%}" for share in shares] == ["0.4%", "4.2%"]
    padded = settings[15, "padded"]["trained_on_loss"]
    assert round(padded["difference"] / trained_on["difference"], 2) == 0.55
    noise = {(one["alpha"], one["length"]): one for one in found["noise"]}
    assert [round(noise[alpha, "sequence"]["signal_to_noise_db"]) for alpha in (5, 15)] == [20, 10]
    assert round(noise[15, "padded"]["norm"] / noise[15, "sequence"]["norm"], 2) == 0.79
