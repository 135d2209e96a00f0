"""The support matrix of README.md, from `tox.ini`, `pyproject.toml` and the modes of the conformance suite."""

import ast
import configparser
import re
import tomllib
from collections.abc import Iterator
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[2]

NAMES = {
    "transformers": "Hugging Face Trainer, TRL",
    "axolotl": "Axolotl",
    "ludwig": "Ludwig",
    "llamafactory": "LLaMA-Factory",
    "swift": "ms-swift",
}
# The words of which the modes in tests/<framework> are named, in the order of the table. Words without a label say how
# a batch is laid out or how much of a method is trained; `v1` is LLaMA-Factory's other trainer.
LABELS = {
    "sft": "SFT",
    "trainer": "SFT",
    "full": "SFT",
    "packed": "packing",
    "packing": "packing",
    "pt": "pre-training",
    "infonce": "embedding models",
    "rm": "reward models",
    "dpo": "DPO",
    "online": "online DPO",
    "orpo": "ORPO",
    "simpo": "SimPO",
    "cpo": "CPO",
    "kto": "KTO",
    "grpo": "GRPO",
    "gkd": "GKD",
    "ecd": "text encoders",
    "lora": "LoRA",
    "4bit": "QLoRA",
    "checkpointing": "gradient checkpointing",
    "accumulation": "gradient accumulation",
    "compile": "torch.compile",
    "v1": "V1",
}
UNLABELLED = {
    "8bit",
    "batch1",
    "dynamic",
    "eager",
    "embedding",
    "eos",
    "left",
    "neat",
    "pad",
    "reentrant",
    "saved",
    "sdpa",
}
UNLABELLED |= {"stored", "uneven", "unk", "words", "zero"}
# tests/llamafactory/driver.py leaves these out before 0.9.5.
LEFT_OUT = {"llamafactory094": {"v1", "neat"}}


def environments() -> Iterator[tuple[str, str]]:
    """Each environment of the matrix that has a framework or is the core's, with its factor: ("py311-axolotl019",
    "axolotl019")."""
    for pattern in tox()["tox"]["env_list"].split("\n"):
        parts = [part.split(",") for part in re.split(r"[{}]", pattern)]
        for name in map("".join, product(*parts)):
            if found := re.fullmatch(r"py3\d+-(\w+)", name):
                yield name, found[1]


def tox() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "tox.ini")
    return parser


def versions(factor: str) -> dict[str, str]:
    """The packages that an environment with this factor pins, with their versions."""
    pins = re.findall(r"^(\w+): ([\w-]+)(?:\[\w+\])?==(\S+)$", tox()["testenv"]["deps"], re.MULTILINE)
    return {package: version for name, package, version in pins if name == factor}


def allowed(package: str) -> str:
    """The versions of a framework that its extra allows, or those of torch for this package without an extra, such as
    `transformers >=4.51,<6`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = project["dependencies"] + project["optional-dependencies"].get(package, [])
    [requirement] = [one for one in listed if re.match(rf"(ms-)?{package}\W", one)]
    return re.sub(r"^([\w-]+)(\[\w+\])?", r"\1 ", requirement)


def python(environment: str) -> str:
    """The version in an environment's name: `py312-core` is 3.12."""
    return f"3.{environment.removeprefix('py3').split('-')[0]}"


def modes(framework: str) -> list[str]:
    """Those that the conformance suite trains with this framework, read without importing it."""
    found: list[str] = []
    for path in sorted((ROOT / "tests" / framework).glob("[cd]*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).endswith("MODES"):
                found += ast.literal_eval(node.value)
    return found


def training_methods(framework: str, factor: str) -> str:
    """What is trained in the tests of an environment."""
    trained = [set(mode.split("_")) for mode in modes(framework)]
    words = set().union(*(mode for mode in trained if not mode & LEFT_OUT.get(factor, set())))
    if unknown := words - LABELS.keys() - UNLABELLED:
        raise ValueError(f"{framework}: modes with the words {unknown}, which neither LABELS nor UNLABELLED has")
    return ", ".join(dict.fromkeys(label for word, label in LABELS.items() if word in words))


def table() -> str:
    """One row for each environment of a framework, and one for the core's."""
    rows = [("framework", "supported", "tested", "Python", "training methods tested", "environment"), ("---",) * 6]
    for framework, name in NAMES.items():
        for environment, factor in sorted(environments()):
            if factor.rstrip("0123456789") == framework:
                tested = ", ".join(f"{package} {version}" for package, version in versions(factor).items())
                methods = training_methods(framework, factor)
                rows.append((name, allowed(framework), tested, python(environment), methods, f"`{environment}`"))
    core = [environment for environment, factor in environments() if factor == "core"]
    methods = "`install` in a loop, torch.compile, DDP, FSDP, tensor parallelism"
    names = ", ".join(f"`{environment}`" for environment in core)
    rows.append(("Your own loop", allowed("torch"), "newest torch", ", ".join(map(python, core)), methods, names))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
