"""The fast paths of the draw have the bits of the plain path, and where there is none it is used and says why."""

import ctypes
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neftune_plugins.noise import Draw, Layout, NoiseType, add_noise_, kernels, keyed, read_layout
from neftune_plugins.noise.draw import plainly_keyed
from neftune_plugins.noise.kernels import build, loop, trials
from neftune_plugins.noise.layout import plainly_arranged
from neftune_plugins.noise.witnesses import plainly_before
from neftune_plugins.plugins import noise_types
from tests.support.documentation import ROOT

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
WITH_KERNEL = ("uniform", "bernoulli")
DIMS = (1, 3, 64, 576, 1000, 4096)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch, tmp_path):
    """Each test chooses anew, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels, "_choices", {})
    monkeypatch.setattr(kernels, "_warned", set())
    made = (loop.c_loop, loop.before, loop.arrange, loop.key)
    for function in made:
        function.cache_clear()
    yield
    for function in made:
        function.cache_clear()


def batch(dim: int, dtype: torch.dtype, rows: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(dim)
    keys = torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator)
    scales = torch.rand(rows, generator=generator) * torch.tensor([1e-6, 1, 30]).repeat(rows)[:rows]
    scales[rows // 2] = 0
    return (torch.randn(rows, dim, generator=generator) * 3).to(dtype), keys, scales


def plain(noise_type: NoiseType) -> NoiseType:
    return dataclasses.replace(noise_type, kernel=None)


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", kernels.DTYPES, ids=str)
@pytest.mark.parametrize("name", WITH_KERNEL)
def test_the_c_loop_has_the_bits_of_the_plain_path(name, dtype, threads, monkeypatch):
    noise_type = noise_types()[name]
    monkeypatch.setattr(loop, "_PER_THREAD", 64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for dim in DIMS:
            x, keys, scales = batch(dim, dtype)
            sums = torch.zeros(2, 3)
            one = add_noise_(x.clone(), keys, scales, noise_type, energy_3=sums[0])
            other = add_noise_(x.clone(), keys, scales, plain(noise_type), energy_3=sums[1])
            assert torch.equal(one, other)
            assert torch.equal(one[len(x) // 2], x[len(x) // 2]), "padding"
            torch.testing.assert_close(*sums, rtol=1e-4, atol=0)
    finally:
        torch.set_num_threads(before)
    assert {choice.path for choice in kernels.chosen().values()} == {"C loop"}


@needs_compiler
def test_the_c_loop_without_the_flags_of_this_processor(monkeypatch):
    monkeypatch.setattr(build, "_FLAGS", tuple(flag for flag in build._FLAGS if "native" not in flag))
    for name in WITH_KERNEL:
        for dtype in kernels.DTYPES:
            x, keys, scales = batch(576, dtype)
            noise_type = noise_types()[name]
            want = add_noise_(x.clone(), keys, scales, plain(noise_type))
            assert torch.equal(add_noise_(x.clone(), keys, scales, noise_type), want)


@needs_compiler
def test_special_values_and_empty_batches():
    noise_type = noise_types()["uniform"]
    for dtype in kernels.DTYPES:
        x, keys, scales = batch(64, dtype, rows=3)
        x[0, :4] = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])
        one, other = (add_noise_(x.clone(), keys, scales, kind) for kind in (noise_type, plain(noise_type)))
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        assert add_noise_(x[:0].clone(), keys[:0], scales[:0], noise_type).shape == (0, 64)
        nothing = torch.zeros_like(scales)
        assert torch.equal(add_noise_(x[1:].clone(), keys[1:], nothing[1:], noise_type), x[1:])


@needs_compiler
def test_what_the_loop_does_not_take_goes_the_plain_way():
    noise_type = noise_types()["uniform"]
    for x in (torch.zeros(4, 8, dtype=torch.float64), torch.zeros(8, 4).T):
        add_noise_(x, torch.arange(4), torch.ones(4), noise_type)
        assert x.any()
    assert kernels.chosen() == {}
    add_noise_(torch.zeros(4, 8), torch.arange(4), torch.ones(4), noise_types()["gaussian"])
    assert kernels.chosen() == {}


CPU = torch.device("cpu")


@needs_compiler
def test_the_c_loops_for_tokens_have_the_bits_of_the_plain_path(monkeypatch):
    for widths in ((1, 7, 60, 2100), range(2, 30)):
        monkeypatch.setattr(trials, "WIDTHS", widths)
        assert trials.of_before(loop.before(), plainly_before, CPU) == ""
        assert trials.of_arrange(loop.arrange(), plainly_arranged, CPU) == ""
        assert trials.of_key(loop.key(), plainly_keyed, CPU) == ""


def test_the_trials_find_each_wrong_tensor():
    def changed(plain, number):
        def function(*args):
            made = list(plain(*args))
            made[number] = ~made[number] if made[number].dtype == torch.bool else made[number] + 1
            return tuple(made)

        return function

    assert trials.of_before(lambda real: plainly_before(real) + 1, plainly_before, CPU)
    assert all(trials.of_arrange(changed(plainly_arranged, number), plainly_arranged, CPU) for number in range(4))
    assert all(trials.of_key(changed(plainly_keyed, number), plainly_keyed, CPU) for number in range(3))


def _draw(**changes) -> Draw:
    return Draw(7, torch.tensor(3), torch.tensor(5.0), 64, **changes)


@needs_compiler
def test_a_forward_has_the_same_layout_keys_and_scales_with_and_without_the_c_loops(monkeypatch):
    ids = torch.tensor([[5, 6, 2, 7, 8, 9, 2, 2], [4, 2, 2, 2, 2, 2, 2, 2]])
    batch = {"input_ids": ids, "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4], [*range(8)]]), "pad_token_id": 2}
    found = []
    for switch in ("1", "0"):
        monkeypatch.setenv(kernels.VARIABLE, switch)
        layout = read_layout(batch)
        found.append((layout.real_BL, *keyed(ids, layout, _draw(energy=2.0))))
    assert {name for _, name, _ in kernels.chosen()} == {"before", "arrange", "key"}
    assert {choice.path for choice in kernels.chosen().values()} == {"C loop"}
    (real, keys, scales, sums), (want_real, want_keys, want_scales, want_sums) = found
    assert torch.equal(real, want_real) and real.sum() == 7
    assert torch.equal(keys[real], want_keys[real]) and torch.equal(scales, want_scales)
    torch.testing.assert_close(sums, want_sums, rtol=1e-6, atol=0)


@needs_compiler
@pytest.mark.parametrize("number", [-1, 9])
def test_the_number_of_an_example_outside_of_its_row_is_an_error_and_nothing_is_overwritten(number):
    ids = torch.ones(2, 8, dtype=torch.int64)
    example = ids.clone()
    example[1, 3] = number
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        keyed(ids, Layout(ids.bool(), example, ids * 0, ids * 8), _draw())


@needs_compiler
def test_tensors_without_memory_of_their_own_go_the_plain_way():
    from torch._subclasses.fake_tensor import FakeTensorMode

    ids = torch.tensor([[5, 6, 2, 2]])

    def lengths(input_ids):
        layout = read_layout({"input_ids": input_ids, "pad_token_id": 2})
        return layout.length_BL * layout.real_BL

    want = lengths(ids)
    kernels._choices.clear()
    assert lengths(ids.to("meta")).device.type == "meta"
    with FakeTensorMode() as mode:
        assert lengths(mode.from_tensor(ids)).shape == (1, 4)
    assert torch.equal(torch.func.vmap(lengths)(ids[:, None])[:, 0], want)
    assert kernels.chosen() == {}


def test_nothing_is_compared_while_a_cuda_graph_is_captured(monkeypatch):
    monkeypatch.setattr(kernels, "is_capturing", lambda device: True)
    add_noise_(torch.zeros(4, 8), torch.arange(4), torch.ones(4), noise_types()["uniform"])
    assert kernels.chosen() == {}


FAULTS = {
    "no compiler": (lambda patch, tmp: patch.setattr(shutil, "which", lambda name: None), "no C compiler"),
    "the compiler fails": (lambda patch, tmp: patch.setenv("CC", "false"), "false failed"),
    "a cache that is a file": (
        lambda patch, tmp: (tmp / "neftune-plugins").write_text(""),
        "(?i)not a directory|exist",
    ),
    "a cache of others": (lambda patch, tmp: _open(tmp / "neftune-plugins" / "kernels"), "written by other users"),
    "another draw": (
        lambda patch, tmp: patch.setattr(build, "_FLAGS", (*build._FLAGS, "-Dbits=(bits^256)")),
        "the C loop differs from it: .* values of float32|failed",
    ),
}


def _open(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o777)


@needs_compiler
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_warning_and_the_plain_path(fault, monkeypatch, tmp_path, caplog):
    arrange, reason = FAULTS[fault]
    arrange(monkeypatch, tmp_path)
    x, keys, scales = batch(64, torch.float32)
    noise_type = noise_types()["uniform"]
    want = add_noise_(x.clone(), keys, scales, plain(noise_type))
    for _ in range(2):
        assert torch.equal(add_noise_(x.clone(), keys, scales, noise_type), want)
    [choice] = kernels.chosen().values()
    assert choice.path == "plain" and re.search(reason, choice.reason), choice.reason
    keyed(torch.ones(1, 3, dtype=torch.int64), read_layout({"input_ids": torch.ones(1, 3, dtype=torch.int64)}), _draw())
    # One warning for each reason.
    records = [record.getMessage() for record in caplog.records]
    reasons = {choice.reason for choice in kernels.chosen().values() if choice.path == "plain"}
    assert len(records) == len(reasons) and all(any(reason in record for record in records) for reason in reasons)


@needs_compiler
def test_a_loop_that_draws_something_else_is_not_used(caplog):
    wrong = kernels.KernelDraw("(float)(bits >> 9)")
    noise_type = dataclasses.replace(noise_types()["uniform"], kernel=wrong)
    x, keys, scales = batch(64, torch.float32)
    assert torch.equal(
        add_noise_(x.clone(), keys, scales, noise_type), add_noise_(x.clone(), keys, scales, plain(noise_type))
    )
    assert "the C loop differs from it: " in caplog.text


def test_the_kernels_can_be_switched_off(monkeypatch, caplog):
    monkeypatch.setenv(kernels.VARIABLE, "0")
    add_noise_(torch.zeros(4, 8), torch.arange(4), torch.ones(4), noise_types()["uniform"])
    assert kernels.chosen() == {} and not caplog.records


@needs_compiler
def test_the_library_is_built_once_into_a_folder_of_the_user_alone(tmp_path):
    add_noise_(torch.zeros(4, 8), torch.arange(4), torch.ones(4), noise_types()["uniform"])
    folder = tmp_path / "neftune-plugins" / "kernels"
    [file] = folder.iterdir()
    assert re.fullmatch(r"draw-[0-9a-f]{32}\.so", file.name)
    assert folder.stat().st_mode & 0o077 == 0
    built = file.stat().st_mtime_ns
    build.library("draw", f"DRAW(bits)=({noise_types()['uniform'].kernel.c})")
    assert file.stat().st_mtime_ns == built and isinstance(ctypes.CDLL(str(file)), ctypes.CDLL)


def _run(script: str, **environment: str) -> dict:
    if sys.version_info[:2] != (3, 12):
        pytest.skip("Triton is the same on every Python: one is enough")
    pytest.importorskip("triton")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_the_triton_kernel_has_the_bits_of_the_plain_path_in_the_interpreter():
    script = f"""
import json, torch
from neftune_plugins.noise.draw import _add_in_chunks, _all_codes
from neftune_plugins.noise.kernels import DTYPES
from neftune_plugins.noise.kernels.accelerator import triton_kernel
from neftune_plugins.plugins import noise_types
from tests.core.test_kernels import batch
different, sums = [], 0.0
for name in {WITH_KERNEL}:
    kind = noise_types()[name]
    add = triton_kernel(kind.kernel, kind.unit, kind.rms**2)
    for dtype in DTYPES:
        for dim in {DIMS}:
            x, keys, scales = batch(dim, dtype, rows=3)
            one, other, codes = x.clone(), x.clone(), _all_codes(dim, x.device)
            found = add(one, keys, scales, codes, True)
            want = _add_in_chunks(other, keys, scales, codes, kind, True)
            sums = max(sums, float(((found - want) / want).abs().max()))
            add(x, keys, scales, codes, False)
            if not (torch.equal(one, other) and torch.equal(x, other)):
                different.append(f"{{name}} {{dtype}} {{dim}}")
print(json.dumps({{"different": different, "sums": sums}}))
"""
    found = _run(script, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    assert found["different"] == []
    assert found["sums"] < 1e-4


def test_the_triton_kernels_for_tokens_have_the_bits_of_the_plain_path_in_the_interpreter():
    """With small blocks, because each element of a scan is Python there."""
    script = """
import json, torch
from neftune_plugins.noise.draw import plainly_keyed
from neftune_plugins.noise.kernels import scans, trials
from neftune_plugins.noise.layout import plainly_arranged
from neftune_plugins.noise.witnesses import plainly_before
scans.BLOCK, trials.WIDTHS, cpu = 8, (1, 20), torch.device("cpu")
print(json.dumps([
    trials.of_before(scans.before(), plainly_before, cpu),
    trials.of_arrange(scans.arrange(), plainly_arranged, cpu),
    trials.of_key(scans.key(), plainly_keyed, cpu),
]))
"""
    assert _run(script, TRITON_INTERPRET="1", OMP_NUM_THREADS="1") == ["", "", ""]


WIDE = r"mul\.(?:wide|lo)\.s64|mad\.lo\.s64|mul\.wide|v_mad_[iu]64|s_mul_hi|v_mul_hi|s_mul_u64"  # products of 64 bits
TARGETS = ["sm_80", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950"]


# Of the kernels' arguments, those that are not *i64.
TYPES = {
    **dict.fromkeys(["real_ptr", "start_ptr", "untrained_ptr", "is_real_ptr"], "*i8"),
    **dict.fromkeys(["scales_ptr", "alpha_ptr", "sums_ptr"], "*fp32"),
    **dict.fromkeys(["cut_ptr", "words_ptr", "codes_ptr"], "*i32"),
    **dict.fromkeys(["unit", "expected", "energy"], "fp32"),
    **dict.fromkeys("width dim tokens pad starts tails zeros labels ends has_ids cuts".split(), "i32"),  # noqa: SIM905
    "stream": "i64",
}


def test_the_triton_kernels_build_for_every_target_with_one_rounding_an_operation():
    """Without a GPU: no product is fused with a sum, nothing is spilled to memory, and offsets have 64 bits."""
    script = f"""
import json, re, triton
from tests.core.test_kernels import TYPES, WIDE
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from neftune_plugins.noise.kernels import accelerator, scans
draw = {{"DRAW": accelerator.uniform, "BLOCK": accelerator.BLOCK}}
block = {{"BLOCK": scans.BLOCK}}
jobs = [
    ("bf16", accelerator.add_noise_kernel, draw | {{"MEASURES": False}}),
    ("fp32", accelerator.add_noise_kernel, draw | {{"MEASURES": True}}),
    ("before", scans.before_kernel, block),
    ("cut", scans.cut_kernel, block),
    ("arrange", scans.arrange_kernel, block),
    ("hash", scans.hash_kernel, block),
    ("key", scans.key_kernel, block | {{"PADDED": False, "MEASURES": True}}),
]
found = {{}}
for name in {TARGETS}:
    kind = ("cuda", int(name[3:]), 32) if name.startswith("sm") else ("hip", name, 64)
    for about, kernel, constants in jobs:
        types = TYPES | {{"x_ptr": "*" + about}}
        types = {{name: types.get(name, "*i64") for name in kernel.arg_names if name not in constants}}
        source = ASTSource(
            fn=kernel,
            signature=types | dict.fromkeys(constants, "constexpr"),
            constexprs=constants,
            attrs={{(i,): [["tt.divisibility", 16]] for i, kind_ in enumerate(types.values()) if kind_[0] == "*"}},
        )
        options = {{"num_warps": accelerator.WARPS, "enable_fp_fusion": False}}
        built = triton.compile(source, target=GPUTarget(*kind), options=options)
        code = built.asm.get("ptx") or built.asm["amdgcn"]
        found[f"{{name}} {{about}}"] = {{
            "fused": len(re.findall(r"\\bfma|v_fma|v_pk_fma|v_fmac", code)),
            "spilled": sum(map(int, re.findall(r"spill_count: +(\\d+)", code))) + code.count(".local "),
            "wide": len(re.findall(WIDE, code)),
        }}
print(json.dumps(found))
"""
    found = _run(script, OMP_NUM_THREADS="1")
    assert len(found) == 7 * len(TARGETS)
    for name, counts in found.items():
        # AMD's division of integers is made of fused products.
        assert counts["spilled"] == 0, (name, counts)
        assert counts["fused"] == 0 or (name.startswith("gfx") and name.endswith("key")), (name, counts)
        assert counts["wide"] > 0, (name, counts)
