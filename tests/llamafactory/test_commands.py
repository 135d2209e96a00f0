"""`neftune doctor` and `neftune check` beside LLaMA-Factory."""

from pathlib import Path

from tests.llamafactory.runs import HAS_V1
from tests.support.commands import (
    assert_examples_are_right,
    assert_healthy,
    assert_they_are_refused,
    break_each,
    checked,
    line_of,
)
from tests.support.shell import arguments_of

FOLDER = Path(__file__).parents[2] / "example_configs" / "llamafactory"
NEEDS_095 = ("neat_packing", "v1")


def test_the_doctor_finds_it_healthy():
    assert_healthy("llamafactory")


def test_check_knows_the_right_and_the_wrong(tmp_path):
    examples = [path for path in sorted(FOLDER.glob("*.yaml")) if path.stem != "v1_dataset"]
    right = [path for path in examples if HAS_V1 or path.stem not in NEEDS_095]
    good = (FOLDER / "full.yaml").read_text()
    others = {
        "unknown_key": (
            good.replace("cutoff_len:", "cutoff_length:"),
            line_of(good, "cutoff_len"),
            "cutoff_length",
        ),
    }
    broken = break_each(good, tmp_path, ".yaml", others)
    status, results = checked(*right, *broken)
    assert status == 1
    assert_examples_are_right(results[: len(right)], {"v1": False})
    assert_they_are_refused(results[len(right) :], broken)


# What needs a device, a launcher, a file or a package that this machine does not have.
ELSEWHERE = {
    "pure_bf16": "pure_bf16: true",
    "bf16": "bf16: true",
    "fp16": "fp16: true",
    "tf32": "tf32: true",
    "deepspeed": "bf16: true\ndeepspeed: examples/deepspeed/ds_z3_config.json",
    "fsdp": "fsdp: full_shard auto_wrap\nfsdp_config: fsdp.json",
    "accelerator": "accelerator_config: accelerator.json",
    "nccl": "ddp_backend: nccl",
    "flash attention": "flash_attn: fa2",
    "quantization": "finetuning_type: lora\nquantization_bit: 4",
    "liger": "enable_liger_kernel: true",
    "unsloth": "finetuning_type: lora\nuse_unsloth: true",
    "galore": "use_galore: true\npure_bf16: true",
    "a folder that is full": "output_dir: full",
}
REFUSED = {
    "both": ("bf16: true\nfp16: true", "At most one of fp16 and bf16"),
    "quantization": ("quantization_bit: 4", "Quantization is only compatible with the LoRA"),
}


def with_settings(text: str, settings: str) -> str:
    """Settings in the place of those of the same names."""
    names = {line.split(":")[0] for line in settings.splitlines()}
    kept = [line for line in text.splitlines() if line.split(":")[0] not in names]
    return "\n".join([*kept, settings, ""])


def test_check_does_not_judge_by_what_this_machine_has(tmp_path):
    good = (FOLDER / "full.yaml").read_text()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "trainer_log.jsonl").touch()
    files = []
    texts = ELSEWHERE | {f"refused {name}": settings for name, (settings, _) in REFUSED.items()}
    for name, settings in texts.items():
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(with_settings(good, settings.replace(": full", f": {tmp_path}/full")))
    _, results = checked(*files)
    for result in results[: len(ELSEWHERE)]:
        assert (result["status"], result["problem"]) == (0, ""), result
        assert result["models"][0]["alphas"] == [5] * 5
    for result, (_, problem) in zip(results[len(ELSEWHERE) :], REFUSED.values(), strict=True):
        assert result["status"] == 1 and problem in result["problem"], result


def test_check_promises_noise_only_for_what_trains(tmp_path):
    good = (FOLDER / "full.yaml").read_text()
    idle = {
        "false": good.replace("do_train: true", "do_train: false"),
        "left out": good.replace("do_train: true\n", ""),
    }
    quiet = good.replace("do_train: true", "do_train: false").replace("neftune_noise_alpha: 5\n", "")
    for name, text in (idle | {"quiet": quiet}).items():
        (tmp_path / f"{name}.yaml").write_text(text)
    _, results = checked(*(tmp_path / f"{name}.yaml" for name in (*idle, "quiet")))
    for result, name in zip(results, idle, strict=False):
        assert result["status"] == 1 and result["models"] == []
        assert f"no effect, because nothing trains: do_train is {name}" in result["problem"]
        assert result["line"] == line_of(good, "neftune_noise_alpha")
    assert (results[-1]["status"], results[-1]["models"][0]["keys"]) == (0, {})


def test_the_command_lines_that_the_pages_show_are_those_that_train_the_examples():
    """`test_examples_train_with_noise` runs `llamafactory-cli train FILE`."""
    for command, *files in arguments_of("llamafactory-cli"):
        assert (command, len(files)) == ("train", 1)
