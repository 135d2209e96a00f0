"""The `neftune` command, and configuration files that it must refuse."""

import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "AXOLOTL_DO_NOT_TRACK": "1"}

ALPHA = "neftune_noise_alpha: 5"
# What replaces that line, by how many lines the error follows it, and the error's text.
BROKEN: dict[str, tuple[str, int, str]] = {
    "negative": ("neftune_noise_alpha: -1", 0, "neftune_noise_alpha: -1 must be finite and above 0, such as 5"),
    "text": ("neftune_noise_alpha: 5,5", 0, "neftune_noise_alpha: '5,5' must be a number, such as 5; it is text"),
    "misspelt": (f"{ALPHA}\nneftune_nois_type: gaussian", 1, "did you mean neftune_noise_type?"),
    "misspelt_value": (f"{ALPHA}\nneftune_noise_type: gausian", 1, "did you mean gaussian?"),
    "yes": ("neftune_noise_alpha: yes", 0, "neftune_noise_alpha: True must be a number"),
    "length": (f"{ALPHA}\nneftune_noise_length: packed", 1, "'packed' must be one of: sequence, padded"),
    "schedule": (f"{ALPHA}\nneftune_noise_schedule: cosin", 1, "did you mean cosine?"),
    "seed": (f"{ALPHA}\nneftune_noise_seed: -1", 1, "neftune_noise_seed: -1 must be an integer from 0 to 2^64 - 1"),
    "no_alpha": ("neftune_noise_type: gaussian", 0, "neftune_noise_type without neftune_noise_alpha has no effect"),
    "no_yaml": ("neftune_noise_alpha: 5: 5", 0, "this is not YAML: mapping values are not allowed here"),
}


def neftune(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command, with its output in pipes."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("neftune")), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def on_a_terminal(*arguments: str, columns: int = 120, **environment: str) -> str:
    """What the command shows where both of its outputs are a terminal."""
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (50, columns))
    command = [str(Path(sys.executable).with_name("neftune")), *arguments]
    inherited = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    variables = {**inherited, **ENVIRONMENT, **environment}
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal, env=variables)
    os.close(terminal)
    shown = b""
    try:
        while part := os.read(screen, 4096):
            shown += part
    except OSError:  # Linux: the other end is closed
        pass
    process.wait()
    os.close(screen)
    return shown.decode()


def line_of(text: str, start: str) -> int:
    """The number of the one line that begins so, behind its indentation."""
    [number] = [number for number, line in enumerate(text.splitlines(), 1) if line.lstrip().startswith(start)]
    return number


def checked(*files: Path) -> tuple[int, list[dict[str, Any]]]:
    """Exit status and result of `neftune check --json`."""
    result = neftune("check", "--json", *files)
    assert result.stdout, result.stderr
    return result.returncode, json.loads(result.stdout)


def assert_examples_are_right(results: list[dict[str, Any]], native: dict[str, bool]) -> None:
    """Each asks for alpha 5 in the line that has it.

    native: by the file's stem, whether the framework's own hook would have run; True where it is not said.
    """
    for result in results:
        path = Path(result["file"])
        assert (result["status"], result["problem"]) == (0, ""), result
        [model] = result["models"]
        line = line_of(path.read_text(), ALPHA)
        assert model["keys"]["neftune_noise_alpha"] == {"value": 5, "source": f"line {line}"}
        assert model["keys"]["neftune_noise_type"] == {"value": "uniform", "source": "default"}
        assert model["keys"]["neftune_noise_seed"]["value"] == 42
        assert model["alphas"] == [5] * 5
        assert model["model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
        for norm in model["lengths"]:
            # The paper's noise has the root mean square alpha / sqrt(3 L d), so one token of d numbers this norm.
            assert abs(norm["noise"] - 5 / (3 * norm["L"]) ** 0.5) < 1e-12
            expected = 5 / (3 * 512) ** 0.5 if native.get(path.stem, True) else None
            assert norm["native"] == expected or abs(norm["native"] - expected) < 1e-12


def break_each(good: str, folder: Path, suffix: str, others: dict[str, tuple[str, int, str]]) -> dict[Path, Any]:
    """Write the broken forms of a good file; each path with its error's line and message.

    others: more of them, each as its whole text, line and message.
    """
    alpha = line_of(good, ALPHA)
    indentation = good.splitlines()[alpha - 1].split("n")[0]
    forms = {
        name: (good.replace(ALPHA, text.replace("\n", f"\n{indentation}")), alpha + further, message)
        for name, (text, further, message) in BROKEN.items()
    }
    broken = {}
    for name, (text, line, message) in (forms | others).items():
        path = folder / f"{name}{suffix}"
        path.write_text(text)
        broken[path] = (line, message)
    return broken


def assert_they_are_refused(results: list[dict[str, Any]], broken: dict[Path, Any]) -> None:
    for result in results:
        line, message = broken[Path(result["file"])]
        assert message in result["problem"], result
        assert (result["status"], result["line"]) == (1, line), result
    assert len(results) == len(broken)


def assert_healthy(framework: str, distribution: str | None = None) -> dict[str, dict[str, Any]]:
    """`neftune doctor` finds nothing wrong in this environment, which has the framework; what it says of it."""
    result = neftune("doctor", "--json")
    report = json.loads(result.stdout)
    assert (result.returncode, report["status"]) == (0, 0), result.stdout
    found = {finding["what"]: finding for finding in report["findings"] if finding["about"] == framework}
    assert {found[what]["state"] for what in (distribution or framework, "import", "adapter")} == {"ok"}
    assert "turned off while the adapter adds its noise" in found["native hook"]["found"]
    return found
