"""Patching modules after their import: what every `import torch` of an environment runs, so what may never break it."""

import importlib
import importlib.util
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

import neftune_plugins.autoload
from neftune_plugins.autoload import after_import, unpatched

PATCH = "patches_for_a_test.first:patch"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of modules, with a patch that counts; imports and finders are as before afterwards."""
    (tmp_path / "patches_for_a_test").mkdir()
    (tmp_path / "patches_for_a_test" / "first.py").write_text(
        "patched = []\n"
        "def patch(module):\n"
        "    patched.append((module.__name__, module.value))\n"
        "    module.value = 'patched'\n"
        "def broken(module):\n"
        "    raise KeyError('no such thing')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        sys, "meta_path", [finder for finder in sys.meta_path if finder is not neftune_plugins.autoload._finder]
    )
    monkeypatch.setattr(neftune_plugins.autoload, "_finder", neftune_plugins.autoload._Finder())
    monkeypatch.setattr(neftune_plugins.autoload, "_failures", {})
    monkeypatch.delenv(neftune_plugins.autoload.VARIABLE, raising=False)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    importlib.invalidate_caches()


def write(place: Path, name: str, text: str) -> None:
    path = place / f"{name.replace('.', '/')}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    importlib.invalidate_caches()


def test_a_module_is_patched_right_after_its_import(place):
    write(place, "framework.part", "value = 'own'")
    write(place, "framework.user", "from framework.part import value")
    after_import({"framework.part": PATCH})
    assert "patches_for_a_test" not in sys.modules  # nothing of ours is imported before it is needed
    user = importlib.import_module("framework.user")
    assert user.value == "patched"
    assert importlib.import_module("patches_for_a_test.first").patched == [("framework.part", "own")]


def test_a_patched_module_is_otherwise_as_it_was(place):
    write(place, "framework", "value = 'own'\ndef f(): return 1")
    after_import({"framework": PATCH})
    module = importlib.import_module("framework")
    plain = importlib.util.spec_from_file_location("framework", place / "framework.py")
    assert type(module.__loader__).__name__ == type(plain.loader).__name__
    assert module.__spec__.loader is module.__loader__
    assert "exec_module" not in vars(module.__loader__)
    assert module.__file__ == str(place / "framework.py")
    import inspect

    assert inspect.getsource(module.f).strip() == "def f(): return 1"


def test_a_module_that_is_there_already_is_patched_at_once(place):
    write(place, "framework", "value = 'own'")
    module = importlib.import_module("framework")
    after_import({"framework": PATCH})
    assert module.value == "patched"


def test_looking_for_a_module_does_not_patch_it_and_importing_it_again_does(place):
    write(place, "framework", "value = 'own'")
    after_import({"framework": PATCH})
    assert importlib.util.find_spec("framework") is not None
    assert importlib.import_module("framework").value == "patched"
    assert importlib.reload(sys.modules["framework"]).value == "patched"


def test_several_adapters_do_not_meet(place):
    write(place, "one", "value = 1")
    write(place, "two", "value = 2")
    after_import({"one": PATCH})
    after_import({"two": PATCH, "three": PATCH})
    assert [importlib.import_module(name).value for name in ("one", "two")] == ["patched", "patched"]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("three")


def test_several_patches_of_one_module_each_once(place):
    """Of adapters that know nothing of each other, and of an adapter that is registered again."""
    write(place, "framework", "value = 'own'\nothers = []")
    write(place, "stranger", "def patch(module): module.others.append('stranger')")
    for patch in (PATCH, "stranger:patch", PATCH, "stranger:patch"):
        after_import({"framework": patch})
    module = importlib.import_module("framework")
    assert (module.value, module.others) == ("patched", ["stranger"])
    assert importlib.import_module("patches_for_a_test.first").patched == [("framework", "own")]


def test_the_switch(place, monkeypatch):
    monkeypatch.setenv("NEFTUNE_PLUGINS", "0")
    write(place, "framework", "value = 'own'")
    finders = list(sys.meta_path)
    after_import({"framework": PATCH})
    assert sys.meta_path == finders
    assert importlib.import_module("framework").value == "own"


@pytest.mark.parametrize(
    ("source", "patch", "problem"),
    [
        ("value = 1", "patches_for_a_test.first:broken", "KeyError: 'no such thing'"),
        ("value = 1", "patches_for_a_test.first:nothing", "AttributeError"),
        ("value = 1", "no_such_module:patch", "ModuleNotFoundError"),
        ("value = 1", "not a reference", "ValueError"),
        ("other = 1", PATCH, "has no attribute 'value'"),
        ("del __loader__, __spec__; value = 1", "patches_for_a_test.first:broken", "KeyError"),
    ],
)
@pytest.mark.parametrize("imported_before", [False, True])
def test_a_patch_that_fails_is_an_error_in_the_log_and_no_more(place, caplog, source, patch, problem, imported_before):
    write(place, "framework", source)
    caplog.set_level(logging.ERROR)
    if imported_before:
        importlib.import_module("framework")
    after_import({"framework": patch})
    importlib.import_module("framework")
    assert [problem in record.getMessage() for record in caplog.records] == [True]
    assert "framework could not be patched" in caplog.text
    assert "NEFTUNE_PLUGINS=0" in caplog.text
    assert problem in unpatched(patch.split(".")[0])
    assert unpatched("another") == ""


@pytest.mark.parametrize("source", ["raise ValueError('its own error')", "import no_such_module", "value = = 1"])
def test_a_module_that_cannot_be_imported_says_so_itself(place, caplog, source):
    write(place, "framework", source)
    with pytest.raises((ValueError, ImportError, SyntaxError)) as alone:
        importlib.import_module("framework")
    after_import({"framework": PATCH})
    with pytest.raises(type(alone.value)) as patched:
        importlib.import_module("framework")
    assert str(patched.value) == str(alone.value)
    assert not caplog.records


def test_a_module_whose_import_has_begun_is_left_alone_with_an_error(place, caplog):
    """As when a module of a framework is the first to import torch."""
    write(
        place,
        "framework",
        f"from neftune_plugins.autoload import after_import\nafter_import({{'framework': '{PATCH}'}})\nvalue = 'own'",
    )
    assert importlib.import_module("framework").value == "own"
    assert "its import had begun before that of torch; import torch first" in caplog.text


@pytest.mark.parametrize("thing", [None, 0, object()])
def test_things_that_are_no_modules(place, caplog, monkeypatch, thing):
    monkeypatch.setitem(sys.modules, "framework", thing)
    after_import({"framework": PATCH})
    assert len(caplog.records) == (thing is not None)


def test_other_peoples_finders_and_loaders(place, caplog):
    """Loaders of the old protocol, that serve many modules, that have slots, and finders that know nothing."""
    from importlib.machinery import ModuleSpec

    class Shared:
        __slots__ = ()

        def create_module(self, spec):
            return None

        def exec_module(self, module):
            module.value = "own"

    class Finder:
        def find_spec(self, name, path=None, target=None):
            return ModuleSpec(name, loader) if name in {"virtual", "neighbour"} else None

    loader = Shared()
    knows_nothing = SimpleNamespace(find_module=lambda name, path=None: None)  # of the protocol before Python 3.12
    sys.meta_path[:0] = [knows_nothing, Finder()]
    after_import({"virtual": PATCH})
    assert importlib.import_module("virtual").value == "own"
    assert "virtual could not be patched (AttributeError" in caplog.text
    loader = type("Plain", (Shared,), {})()
    del sys.modules["virtual"]
    assert importlib.import_module("virtual").value == "patched"
    assert importlib.import_module("neighbour").value == "own"
    assert vars(loader) == {}


def test_import_torch_survives_whatever_the_framework_is(tmp_path):
    """With the adapters' real entry points, in a process of a sweep whose frameworks are broken in every part."""
    names = subprocess.run(
        [
            sys.executable,
            "-c",
            "import torch, sys;"
            "print(*(n for f in sys.meta_path if type(f).__module__ == 'neftune_plugins.autoload' for n in f.patches))",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert {name.split(".")[0] for name in names} >= {"ludwig"}
    for source in ("", "raise RuntimeError", "value = 1"):
        for name in names:
            path = tmp_path / Path(*name.split("."))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".py").write_text(source)
            for folder in [*path.relative_to(tmp_path).parents][:-1]:  # before an installed package of that name
                (tmp_path / folder / "__init__.py").touch()
        script = (
            "import sys; sys.path.insert(0, sys.argv[1]); import torch, importlib\n"
            "for name in sys.argv[2:]:\n"
            "    try: importlib.import_module(name)\n"
            "    except RuntimeError: print('own error')\n"
            "print(torch.zeros(1))"
        )
        result = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), *names],
            env={**os.environ, "NEFTUNE_CURVE": str(tmp_path / "curve")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("own error") == (len(names) if "raise" in source else 0)
        told = {name for name in names if f"{name} could not be patched" in result.stderr}
        assert told == (set() if "raise" in source else set(names))
