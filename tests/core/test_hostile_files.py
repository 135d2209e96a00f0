"""`neftune check` takes any file: it ends soon, without a traceback, with a message that says what to do."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from neftune_plugins.commands import quick, reading
from neftune_plugins.commands.checked import Checked, report
from neftune_plugins.plugins.manager import frameworks_without_torch
from tests.support.commands import neftune

HEAD = "base_model: m\ndatasets: []\n"


def aliases(levels: int) -> str:
    """Each level repeats the one before nine times."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


# Each with the status, the line, the problem and the remedy.
CONTENTS: dict[str, tuple[bytes | str, int, int | None, str, str]] = {
    # Just above the limit: what is far above it is no different here, but hangs other readers.
    "aliases": (aliases(6), 1, 6, "aliases expanded", "take some out"),
    "aliases in merges": (
        "a0: &a0 {x: 1, y: 2}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 17)),
        1,
        15,
        "aliases expanded",
        "take some out",
    ),
    "deep aliases": (
        "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 101)),
        1,
        100,
        "levels of nesting",
        "take some out",
    ),
    "recursive": (HEAD + "x: &x [*x]\n", 1, 3, "is inside the value that it refers to", "write it out"),
    "recursive mapping": (
        HEAD + "x: &x\n  y: {z: *x}\n",
        1,
        4,
        "is inside the value that it refers to",
        "write it out",
    ),
    "no anchor": (HEAD + "path: *.json\n", 1, 3, "this is not YAML", "quote"),
    "no anchor by name": (HEAD + "path: *gone\n", 1, 3, "no anchor &gone", "quote the value"),
    "anchor twice": (HEAD + "x: &x 1\ny: &x 2\n", 1, 4, "anchor &x is defined twice", "rename one"),
    "nested lists": (HEAD + "x: " + "[" * 5000 + "]" * 5000, 1, 3, "levels of nesting", "take some out"),
    "nested mappings": (HEAD + "x: " + "{a: " * 500 + "}" * 500, 1, 3, "levels of nesting", "take some out"),
    "nested blocks": (HEAD + "x:\n  " + "- " * 5000 + "y", 1, 4, "levels of nesting", "take some out"),
    "list as key": (HEAD + "[a, b]: 1\n", 1, 3, "a list is used as a key", "write a name"),
    "mapping as key": (HEAD + "x:\n  ? {a: 1}\n  : 2\n", 1, 4, "a mapping is used as a key", "write a name"),
    "alias as key": (HEAD + "x: &x [1]\n*x : 2\n", 1, 3, "a list is used as a key", "write a name"),
    "braces": (HEAD + "x: {{ value }}\n", 1, 3, "a mapping is used as a key", "quote braces"),
    "NUL": (HEAD + "x: a\0b\n", 1, 3, "U+0000", "take it out"),
    "control character": (HEAD + "x: a\x1b[31m\n", 1, 3, "U+001B", "take it out"),
    "empty": ("", 2, None, "the file is empty", "has keys"),
    "blank": ("\n \n\t\n", 2, None, "the file is empty", "has keys"),
    "comments": ("# nothing\n", 2, None, "only comments", "write keys"),
    "UTF-16": (HEAD.encode("utf-16"), 1, None, "UTF-16", "save it as UTF-8"),
    "Latin-1": (HEAD.encode() + "x: é\n".encode("latin-1"), 1, 3, "not in UTF-8 (byte 0xe9)", "save it as UTF-8"),
    "binary": (bytes(range(128, 256)), 1, 1, "not in UTF-8", "save it as UTF-8"),
    "list": ("- a\n- b\n", 1, 1, "holds a list", "has keys"),
    "value": ("neftune_noise_alpha\n", 1, 1, "holds a single value", "has keys"),
    "two documents": (HEAD + "---\na: 1\n", 1, 3, "a second YAML document", "remove the ---"),
    "tag": (
        HEAD + "x: !!python/object:os.system {}\n",
        1,
        3,
        "tag:yaml.org,2002:python/object:os.system",
        "take it out",
    ),
    "tag of a scalar": (HEAD + "x: !env HOME\n", 1, 3, "the YAML tag !env", "take it out"),
    "no number": (HEAD + "x: !!int five\n", 1, 3, "'five' is not a valid int", "quote it"),
    "no date": (HEAD + "x: 2024-99-99\n", 1, 3, "'2024-99-99' is not a valid timestamp", "quote it"),
    "long number": (HEAD + f"x: {'9' * 5000}\n", 1, 3, "is not a valid int", "quote it"),
    "binary number": (HEAD + "x: 0b_\n", 1, 3, "'0b_' is not a valid int", "quote it"),
    "merge of a value": (HEAD + "<<: 5\n", 1, 3, "<< merges a value that is not a mapping", "give a mapping"),
    "huge": (HEAD + "#" * 10**7, 2, None, "larger than", "check the file's name"),
    "many values": (HEAD + "x: [" + "1," * 110_000 + "]", 1, 3, "more than 100000 values", "take some out"),
}


def special(folder: Path, kind: str) -> Path:
    path = folder / kind.replace(" ", "_")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path)[-100:] if len(str(path)) > 100 else str(path))
        listening.close()
    elif kind == "device":
        return Path("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling link":
        path.symlink_to(folder / "gone")
    elif kind == "under a file":
        (folder / "file").touch()
        return folder / "file" / "config.yml"
    elif kind == "long name":
        return folder / ("x" * 300)
    return path


SPECIAL = {
    "folder": "this is a folder",
    "pipe": "not a regular file",
    "socket": "not a regular file",
    "device": "not a regular file",
    "missing": "there is no such file",
    "dangling link": "there is no such file",
    "loop": "cannot be read",
    "under a file": "cannot be read",
    "long name": "cannot be read",
}


def one(result: "subprocess.CompletedProcess[str]") -> str:
    assert result.stderr == ""
    assert result.stdout.count("\n") == 1, result.stdout
    return result.stdout


@pytest.mark.parametrize("name", CONTENTS)
def test_any_content(name, tmp_path):
    content, status, line, problem, remedy = CONTENTS[name]
    path = tmp_path / "config.yml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    begin = time.process_time()
    with pytest.raises(reading.CannotReadError) as caught:
        reading.read(path)
    assert time.process_time() - begin < 20  # seconds
    message = str(caught.value)
    assert (caught.value.status, caught.value.line) == (status, line), message
    assert problem in message and remedy in message
    assert "\n" not in message and len(message) < 250


def test_the_command_with_any_content(tmp_path):
    for name, (content, *_) in CONTENTS.items():
        path = tmp_path / f"{name}.yml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    files = [tmp_path / f"{name}.yml" for name in CONTENTS]
    for options in ((), ("--quick",)):
        result = neftune("check", *options, *files)
        assert (result.returncode, result.stderr) == (2, "")
        shown = result.stdout.rstrip("\n").split("\n\n")
        assert len(shown) == len(CONTENTS)
        for text, (name, (_, _, line, problem, remedy)) in zip(shown, CONTENTS.items(), strict=True):
            place = f"{tmp_path}/{name}.yml" + ("" if line is None else f":{line}")
            assert text.startswith(f"{place}: ") and problem in text and remedy in text


@pytest.mark.parametrize("kind", SPECIAL)
def test_any_kind_of_file(kind, tmp_path):
    path = special(tmp_path, kind)
    result = neftune("check", "--quick", path)
    assert result.returncode == 2
    assert SPECIAL[kind] in one(result)
    assert "; " in result.stdout


def test_all_kinds_of_files_with_the_frameworks(tmp_path):
    paths = [special(tmp_path, kind) for kind in SPECIAL]
    result = neftune("check", *paths)
    assert (result.returncode, result.stderr) == (2, "")
    for text, problem in zip(result.stdout.split("\n\n"), SPECIAL.values(), strict=True):
        assert problem in text


def test_a_file_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    """Told in this way because root, as which tests may run, may read everything."""
    monkeypatch.setattr(Path, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    (tmp_path / "config.yml").touch()
    with pytest.raises(reading.CannotReadError, match=r"chmod u\+r"):
        reading.read(tmp_path / "config.yml")


def test_names_of_files_that_are_no_text(tmp_path):
    """They are shown as escapes: a terminal would obey them, and a pipe may not have them."""
    names = [b"\xff.yml", b"a\x1b[31m.yml", b"two\nlines.yml", "ä.yml".encode()]
    paths = [os.fsencode(tmp_path) + b"/" + name for name in names]
    for path in paths:
        Path(os.fsdecode(path)).write_text(HEAD + "neftune_noise_alpha: 5\n")
    for encoding in ("utf-8", "ascii"):
        command = [os.fsencode(Path(sys.executable).with_name("neftune")), b"check", b"--quick", *paths]
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        result = subprocess.run(command, capture_output=True, env=environment, check=False)
        assert (result.returncode, result.stderr) == (0, b"")
        assert result.stdout.count(b": right, for axolotl") == 4
        assert not set(result.stdout) & {0x1B, 0xFF}
        assert b"two\\nlines.yml: right" in result.stdout


@pytest.mark.parametrize("text", ["\ufeff" + HEAD, HEAD.replace("\n", "\r\n"), "--- \n" + HEAD + "...\n", HEAD.strip()])
def test_text_that_is_right(text, tmp_path):
    path = tmp_path / "config.yml"
    path.write_bytes(text.encode())
    assert set(reading.read(path).config) == {"base_model", "datasets"}


def test_json_may_have_tabs(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{\n\t"base_model": "m",\n\t"neftune_noise_alpha": 5\n}')
    source = reading.read(path)
    assert source.config == {"base_model": "m", "neftune_noise_alpha": 5}
    assert source.lines["neftune_noise_alpha",] == 3


# --- Fuzz ------------------------------------------------------------------------------------------------------------

OURS = [
    "neftune_noise_alpha",
    "neftune_noise_type",
    "neftune_noise_seed",
    "neftune_noise_tipe",
    "noisy_embedding_alpha",
    "neft_alpha",
]
SIGNS = ["base_model", "datasets", "model_name_or_path", "stage", "do_train", "input_features", "output_features"]
NAMES = [
    *OURS,
    *SIGNS,
    "model_type",
    "model_parameters",
    "encoder",
    "trainer",
    "trl",
    "<<",
    "x",
    "type",
    "~",
    "yes",
    "1",
]
WORDS = [
    "5",
    "0",
    "-1",
    "1e1",
    "llm",
    "none",
    "uniform",
    "gausian",
    ".nan",
    "0b_",
    "2024-99-99",
    "*x",
    "!!int a",
    "''",
    "~",
]

scalars = st.one_of(st.sampled_from(WORDS), st.text(max_size=8), st.integers().map(str))
lines = st.builds(
    lambda indent, anchor, name, colon, value: f"{' ' * indent}{name}{colon}{anchor}{value}",
    st.integers(0, 6),
    st.sampled_from(["", "", "&x ", "&y ", "*x", "!t ", "? ", "- "]),
    st.sampled_from(NAMES),
    st.sampled_from([": ", ": ", ":\n  ", ": [", ": {", "", ": |\n"]),
    scalars,
)
texts = st.lists(st.one_of(lines, lines, st.text(max_size=20)), max_size=14).map("\n".join)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(WORDS)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=6)), inner)
    ),
    max_leaves=20,
)
dumped = st.dictionaries(st.sampled_from(NAMES), values).map(yaml.safe_dump)
contents = st.one_of(
    st.binary(max_size=200), texts.map(lambda text: text.encode("utf-8", "replace")), dumped.map(str.encode)
)
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], Path]:
    path = tmp_path_factory.mktemp("fuzz") / "config.yml"

    def write(content: bytes) -> Path:
        path.write_bytes(content)
        return path

    return write


def assert_in_order(result: Checked) -> None:
    assert result.status in (0, 1, 2)
    assert bool(result.problem) == bool(result.status)
    text = report([result])
    assert "Traceback" not in text
    if result.status:
        assert "\n" not in text.removesuffix("\n"), text


@settings(max_examples=EXAMPLES, deadline=5000)
@given(contents, st.sampled_from([None, "axolotl", "llamafactory", "ludwig"]), st.booleans())
@example(b"? [a]\n: 1", None, False)
@example(b"a: &a [*a]", "ludwig", False)
@example(b"neftune_noise_alpha:\n  ? '\n\n'\n  : neftune_noi: f", "axolotl", False)
@example(b"neftune_noise_alpha: ~\n~: 1\n1: 2\ntrue: 3", "axolotl", True)
def test_fuzzed_files_are_read_or_refused(file, content, framework, ignore_others):
    [result] = quick.quick([file(content)], frameworks_without_torch(), framework, ignore_others=ignore_others)
    assert_in_order(result)


@settings(max_examples=EXAMPLES, deadline=5000)
@given(st.dictionaries(st.sampled_from(NAMES), values, min_size=1))
def test_what_is_read_is_what_yaml_says(file, config):
    """Of all files that PyYAML itself writes and reads."""
    text = yaml.safe_dump(config)
    path = file(text.encode())
    source = reading.read(path)
    again = yaml.safe_load(text)
    assert repr(source.config) == repr(again)  # NaN is not NaN
    written = text.splitlines()
    for place, line in source.lines.items():
        assert line <= len(written)
        if isinstance(place[-1], str) and place[-1] in NAMES:
            assert place[-1] in written[line - 1]
