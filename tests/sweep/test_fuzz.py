"""Whatever the sweep's arguments and files are: it says in a line what is wrong, and no traceback is seen."""

import io
import json
import os
import shutil
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from neftune_axolotl.training import TRAINING as AXOLOTL
from neftune_llamafactory.training import TRAINING as LLAMAFACTORY
from neftune_ludwig.training import TRAINING as LUDWIG
from neftune_swift.training import TRAINING as SWIFT

from neftune_plugins import NEFTuneError
from neftune_plugins.commands.cli import main
from neftune_plugins.sweep import curve, page, rows, runs
from neftune_plugins.sweep.study import Trial
from tests.sweep.results import study
from tests.sweep.workers import TRAINING

FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ", 100)),
    deadline=None,
    derandomize="CI" in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# fmt: off
OPTIONS = (
    "alpha", "type", "length", "seeds", "trials", "sampler", "pruner", "held-out", "measure", "metric", "objective",
    "direction", "output", "storage", "study", "heartbeat", "stop-after", "framework",
)
TELLING = (
    "0", "5", "1..9", "9..1", "1..inf", "1..2..3", "nan", "-1", "1e400", "5,5", ",,", "99999999999999999999", "\u0661",
    "uniform", "gaussian,uniform", "none", "padded", "minimize", "sqlite:///x.db", "sqlite://", "a=b", "a='b", "=b",
    "TPESampler", "GridSampler", "CmaEsSampler", "MedianPruner", ".", "..", "/", "/dev/null", "\x00", "\udcff",
)
# fmt: on
VALUES = st.one_of(st.text(max_size=20), st.from_regex(r"[-+0-9.,e_ ]{1,12}", fullmatch=True), st.sampled_from(TELLING))
WORDS = st.text("abc: -[]{}&*!|>'\"%@`#,?\n\t0", max_size=60)
NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
LUDWIG_LIKE = st.fixed_dictionaries(
    {},
    optional={
        "model_type": st.sampled_from(["llm", "ecd"]) | NESTED,
        "input_features": st.lists(st.dictionaries(st.sampled_from(["encoder", "type", "name"]), NESTED)) | NESTED,
        "model_parameters": NESTED,
        "defaults": NESTED,
        "seed": NESTED,
        "neftune_noise_type": NESTED,
    },
)


def ends(*arguments: str) -> str:
    """Run the command; what it said is returned, and that it ended is asserted."""
    shown, problem = io.StringIO(), io.StringIO()
    with redirect_stdout(shown), redirect_stderr(problem), pytest.raises(SystemExit) as end:
        main(["sweep", *arguments])
    assert "Traceback" not in problem.getvalue()
    assert end.value.code in (0, 1, 2) or str(end.value.code).startswith("neftune: ")
    return shown.getvalue() + problem.getvalue()


@given(st.lists(st.tuples(st.sampled_from(OPTIONS), VALUES), max_size=5))
@FUZZ
def test_any_arguments(tmp_path, given):
    """None of them runs or writes anything."""
    os.chdir(tmp_path)
    ends(str(TRAINING), "--alpha", "0,5", "--dry-run", *(f"--{name}={value}" for name, value in given))
    assert list(tmp_path.iterdir()) == []


def source(folder: Path, content: bytes, training: object) -> runs.ConfigFile | None:
    file = folder / "any.yaml"
    file.write_bytes(content)
    with pytest.MonkeyPatch.context() as patched:
        found = SimpleNamespace(name="any", training=training)
        patched.setattr(runs, "framework_of", lambda *_: found)
        try:
            return runs.ConfigFile(file, None, ())
        except NEFTuneError:
            return None


@given(
    st.one_of(
        st.binary(max_size=60),
        WORDS.map(str.encode),
        NESTED.map(lambda data: yaml.safe_dump(data).encode()),
        LUDWIG_LIKE.map(lambda data: yaml.safe_dump(data).encode()),
    ),
    st.sampled_from([AXOLOTL, LLAMAFACTORY, LUDWIG, SWIFT]),
)
@FUZZ
def test_any_configuration(tmp_path, content, training):
    """It is refused, or a trial's configuration is what it was with other keys."""
    found = source(tmp_path, content, training)
    if found is not None:
        found.run({"neftune_noise_alpha": 5.0}, 3, tmp_path)
        assert "neftune_noise_alpha: 5.0" in (tmp_path / "config.yaml").read_text()


@given(st.one_of(st.binary(max_size=60), st.lists(NESTED, max_size=3).map(lambda data: json.dumps(data).encode())))
@FUZZ
def test_any_rows_losses_and_answers(tmp_path, content):
    file = tmp_path / page.MEASURED
    file.write_bytes(content)
    with suppress(NEFTuneError):
        assert rows.read(file)
    curve.read(file, noisy=True)
    about = {"alpha": 0, "type": "none", "length": "none", "seed": 0, "seconds": 1, "number": 0}
    page._answers(Trial(state="complete", log=str(tmp_path / "log.txt"), **about))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two trials."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("LEDGER", str(folder / "ledger.jsonl"))
        ends(str(TRAINING), "--alpha", "0,5")
    assert len(study(folder)["trials"]) == 2
    return folder / "neftune-sweep"


@given(st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=40), st.floats(0, 1))
@FUZZ
def test_any_damage_to_a_database(finished, tmp_path, changes, kept):
    """Bytes that are others, and an end that is missing."""
    folder = tmp_path / "out"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    content = bytearray((finished / "study.db").read_bytes())
    for place, value in changes:
        content[int(place * len(content))] = value
    (folder / "study.db").write_bytes(content[: int((1 if kept > 0.3 else kept) * len(content))])
    ends(str(TRAINING), "--alpha", "0,5,7", "--dry-run", "--output", str(folder))
