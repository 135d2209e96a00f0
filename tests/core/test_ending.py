"""Commands whose output cannot be written, or that are interrupted, and what they say of wrong arguments."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neftune_plugins.commands import cli
from tests.support.commands import neftune
from tests.support.documentation import ROOT

CONFIG = str(ROOT / "example_configs" / "axolotl" / "full.yml")
# What each sub-command writes, without a framework.
COMMANDS = {
    "help": ["--help"],
    "check for programs": ["check", "--json", "--quick", *[CONFIG] * 200],
    "quick": ["check", "--quick", CONFIG],
    "schema": ["schema", "ludwig"],
    "noise types": ["noise-types"],
}


def run(arguments: list[str], **options: object) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).with_name("neftune")), *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, **options)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("buffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_output_that_nobody_reads(name, buffered):
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONUNBUFFERED": buffered}
    result = run(COMMANDS[name], stdout=writer, env=environment)
    os.close(writer)
    assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("buffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_output_on_a_full_disk(name, buffered):
    with open("/dev/full", "w") as full:
        result = run(COMMANDS[name], stdout=full, env={**os.environ, "PYTHONUNBUFFERED": buffered})
    assert result.returncode == 2
    problem = "neftune: the output cannot be written: No space left on device; free space, or write it elsewhere\n"
    assert result.stderr == problem


@pytest.mark.parametrize("name", COMMANDS)
def test_outputs_that_are_closed(name):
    """The command does the same, and nobody sees it."""
    plain = neftune(*COMMANDS[name])
    words = " ".join(f"'{word}'" for word in [str(Path(sys.executable).with_name("neftune")), *COMMANDS[name]])
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        result = subprocess.run(["sh", "-c", f"{words} {closed}"], capture_output=True, text=True, check=False)
        assert result.returncode == plain.returncode
        assert "Traceback" not in result.stdout + result.stderr


def test_standard_error_on_a_full_disk(tmp_path):
    command = [str(Path(sys.executable).with_name("neftune")), "schema", "gone"]
    with open("/dev/full", "w") as full:
        assert subprocess.run(command, stdout=subprocess.PIPE, stderr=full, check=False).returncode == 1


def test_characters_that_the_output_does_not_have(tmp_path):
    file = tmp_path / "übung.yml"
    file.write_text("base_model: m\ndatasets: []\nneftune_noise_alpha: ü\n")
    result = neftune("check", "--quick", file, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (1, "")
    assert r"\xfcbung.yml:3: neftune_noise_alpha: '\xfc' must be a number" in result.stdout


SLOW = """
import os, pathlib, time
pathlib.Path(os.environ["STARTED"]).write_text(str(os.getpid()))
time.sleep(300)
"""


@pytest.mark.parametrize("arguments", [["doctor"], ["check", "config.yaml"]], ids=" ".join)
def test_ctrl_c(arguments, little, tmp_path):
    """Sent to the command alone: it takes the processes that import frameworks with it."""
    started = tmp_path / "started"
    (tmp_path / "config.yaml").write_text("little_model: m\nnoise: {}\n")
    environment = {**os.environ, **little(SLOW), "STARTED": str(started)}
    command = [str(Path(sys.executable).with_name("neftune")), *arguments]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True)
    deadline = time.monotonic() + 120
    while not (started.exists() and started.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=300)
    assert (process.returncode, stdout, stderr) == (128 + signal.SIGINT, "", "neftune: stopped\n")
    for _ in range(100):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(started.read_text()), 0)
            time.sleep(0.1)
            continue
        return
    pytest.fail("the process that imports the framework is left behind")


# --- Arguments -------------------------------------------------------------------------------------------------------

WRONG = {
    "demo --steps x": "argument --steps: 'x' is not a count; give a whole number of 1 or more, such as 4",
    "demo --steps 0": "argument --steps: '0' is not a count",
    "demo --steps 1.5": "argument --steps: '1.5' is not a count",
    f"demo --steps {'9' * 5000}": "argument --steps: '999",
    "demo --alpha x": "argument --alpha: 'x' is not a number; give a finite number, such as 5",
    "demo --alpha nan": "argument --alpha: 'nan' is not a number",
    "check f --lengths x": "argument --lengths: 'x' is not a list of counts; give whole numbers of 1 or more, such as",
    "check f --lengths 1,,2": "argument --lengths: '1,,2' is not a list of counts",
    "check f --lengths 0": "argument --lengths: '0' is not a list of counts",
    "check": "the following arguments are required: CONFIG",
    "schema": "the following arguments are required: FRAMEWORK",
}


@pytest.mark.parametrize("line", WRONG, ids=lambda line: line[:40])
def test_wrong_arguments(line, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(line.split())
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert WRONG[line] in shown
    last = shown.splitlines()[-1]
    assert shown.startswith("usage: neftune") and len(last) < 250
    assert "_" not in last.replace("_noise", "")


WORDS = [
    "check",
    "schema",
    "--quick",
    "--json",
    "--lengths",
    "--framework",
    "--ignore-others",
    "--",
    "-",
    "axolotl",
    "5",
    "a,b",
]
words = st.one_of(st.sampled_from(WORDS), st.sampled_from([CONFIG, "/", "/dev/null", "gone.yml"]), st.text(max_size=12))
RUNS = int(os.environ.get("FUZZ_EXAMPLES", "300"))


@settings(max_examples=RUNS, deadline=5000)
@given(st.sampled_from(["check", "schema", "noise-types", "frameworks", ""]), st.lists(words, max_size=6))
def test_fuzzed_arguments_end_with_a_status(command, arguments):
    """And with a line. Without a framework: `check` looks at files alone, `--quick` or not."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        cli.main([*filter(None, [command]), *arguments])
    assert ended.value.code in (None, 0, 1, 2)
    assert "Traceback" not in out.getvalue() + err.getvalue()
    if ended.value.code in (None, 0):
        assert out.getvalue()
