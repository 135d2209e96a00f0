"""Several processes: the noise of an example is that of one process, however model and batch are shared out, and
whenever the noise is installed."""

import math
import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neftune_plugins import NoiseConfig, NoiseNotAppliedError, install
from tests.support import specification
from tests.support.models import ToyModel, examples, padded

ROOT = Path(__file__).parents[2]
CONFIG = NoiseConfig(alpha=5.0, seed=3)
STEP = 7
LENGTHS = [5, 13, 8, 3, 9, 1, 11, 6]  # 13 tokens do not go evenly into 2 or 4 slices
TIMEOUT = 240  # seconds, for all cases of one number of processes

Wrap = Callable[[ToyModel, Any], nn.Module]


@dataclass(frozen=True)
class Layout:
    """How `processes` share the work.

    wrap: (model, mesh) -> the model to train.
    tensor_parallel: so many processes see the same examples.
    joined: dimension along which their embeddings are parts of one; None where each has all of it.
    micro_batches: an optimisation step takes so many forwards.
    has_gradient: every process has the embedding's whole gradient, where PyTorch keeps gradients.
    """

    wrap: Wrap
    tensor_parallel: int = 1
    joined: int | None = None
    micro_batches: int = 1
    has_gradient: bool = True


def alone(model: ToyModel, mesh: Any) -> nn.Module:
    return model


def ddp(model: ToyModel, mesh: Any) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def fsdp2(model: ToyModel, mesh: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    fully_shard(model.embed_tokens, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def fsdp1(*, use_orig_params: bool) -> Wrap:
    def wrap(model: ToyModel, mesh: Any) -> nn.Module:
        from torch.distributed.fsdp import FullyShardedDataParallel

        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=use_orig_params)

    return wrap


def tensor_parallel(style: str, **options: Any) -> Wrap:
    """The embedding in one of PyTorch's styles; `output_shard` is a dimension, or absent for all of the output."""

    def wrap(model: ToyModel, mesh: Any) -> nn.Module:
        from torch.distributed.tensor import DTensor, Replicate, Shard, parallel

        shard = options.get("output_shard")
        made = getattr(parallel, style)(
            input_layouts=Replicate(),
            output_layouts=Replicate() if shard is None else Shard(shard),
            use_local_output=options.get("use_local_output", True),
        )
        plan: dict[str, Any] = {"embed_tokens": made}
        if shard == -1:
            plan["lm_head"] = parallel.RowwiseParallel()
        parallel.parallelize_module(model, mesh, plan)
        # The rest of the model is not parallel: bring a DTensor together.
        model.embed_tokens.register_forward_hook(
            lambda module, args, output: output.full_tensor() if isinstance(output, DTensor) else output
        )
        return model

    return wrap


def replicated(model: ToyModel, mesh: Any) -> nn.Module:
    """The embedding's weight a DTensor that every process has all of, in a model that is given DTensors."""
    from torch.distributed.tensor import DTensor, Replicate, distribute_module

    def share(module: nn.Module, inputs: tuple[Any, ...], mesh: Any) -> tuple[Any, ...]:
        return tuple(DTensor.from_local(ids, mesh, [Replicate()], run_check=False) for ids in inputs)

    distribute_module(
        model.embed_tokens, mesh, input_fn=share, output_fn=lambda module, output, mesh: output.to_local()
    )
    return model


def shared_batch(model: ToyModel, mesh: Any) -> nn.Module:
    """As `tensor_parallel("RowwiseParallel")`, and ids and mask are DTensors cut along the sequence."""
    from torch.distributed.tensor import Replicate, Shard, parallel

    tensor_parallel("RowwiseParallel", use_local_output=False)(model, mesh)
    names = ("input_ids", "attention_mask")
    prepare = parallel.PrepareModuleInput(
        input_kwarg_layouts=dict.fromkeys(names, Replicate()),
        desired_input_kwarg_layouts=dict.fromkeys(names, Shard(1)),
        use_local_output=False,
    )
    parallel.parallelize_module(model, mesh, prepare)
    return model


def both(outer: Wrap, inner: Wrap) -> Wrap:
    """Data parallel over the first dimension of the mesh, tensor parallel over the second."""

    def wrap(model: ToyModel, mesh: Any) -> nn.Module:
        inner(model, mesh["tp"])
        return outer(model, mesh["dp"])

    return wrap


def ddp_of_dtensors(model: ToyModel, mesh: Any) -> nn.Module:
    from torch.distributed.tensor.parallel.ddp import _pre_dp_module_transform

    _pre_dp_module_transform(model)
    return nn.parallel.DistributedDataParallel(model, process_group=mesh.get_group())


ROWWISE = tensor_parallel("RowwiseParallel")
COLWISE = tensor_parallel("ColwiseParallel")


def layouts(processes: int) -> dict[str, Layout]:
    found = {
        "ddp": Layout(ddp),
        "ddp, gradient accumulation": Layout(ddp, micro_batches=2),
        "fsdp1": Layout(fsdp1(use_orig_params=True), has_gradient=False),
        "fsdp1, flat parameters": Layout(fsdp1(use_orig_params=False), has_gradient=False),
        "fsdp2": Layout(fsdp2),
        "fsdp2, gradient accumulation": Layout(fsdp2, micro_batches=2),
        "replicated": Layout(replicated, processes),
        "tp rowwise": Layout(ROWWISE, processes),
        "tp rowwise, DTensors": Layout(tensor_parallel("RowwiseParallel", use_local_output=False), processes),
        "tp rowwise, gradient accumulation": Layout(ROWWISE, processes, micro_batches=8),
        "tp rowwise, batch of DTensors": Layout(shared_batch, processes),
        "tp colwise": Layout(COLWISE, processes),
        "tp colwise, slices": Layout(tensor_parallel("ColwiseParallel", output_shard=-1), processes, joined=2),
        "sequence parallel": Layout(tensor_parallel("RowwiseParallel", output_shard=1), processes, joined=1),
        "sequence parallel, DTensors": Layout(
            tensor_parallel("RowwiseParallel", output_shard=1, use_local_output=False), processes
        ),
    }
    if processes == 4:
        found |= {
            "ddp x tp rowwise": Layout(both(ddp_of_dtensors, ROWWISE), 2, has_gradient=False),
            "fsdp2 x tp rowwise": Layout(both(fsdp2, ROWWISE), 2),
            "fsdp2 x sequence parallel": Layout(
                both(fsdp2, tensor_parallel("RowwiseParallel", output_shard=1)), 2, joined=1
            ),
        }
    return found


LAYOUTS = {processes: layouts(processes) for processes in (2, 4)}
CASES = [
    (processes, name, when) for processes in LAYOUTS for name in LAYOUTS[processes] for when in ("before", "after")
]


def batch() -> tuple[Tensor, Tensor]:
    return padded(examples(LENGTHS))


def model() -> ToyModel:
    torch.manual_seed(0)
    made = ToyModel().train()
    made.lm_head.weight = nn.Parameter(made.lm_head.weight.detach().clone())  # sharded apart
    return made


def train(layout: Layout, when: str, rank: int, processes: int, meshes: dict[int, Any]) -> dict[str, Any]:
    """One optimisation step on this process's examples; gives what came out of the embedding, the gradient of its
    weight as this process has it, and the metrics."""
    inner = model()
    if when == "before":
        handle = install(inner, CONFIG)
    wrapped = layout.wrap(inner, meshes[layout.tensor_parallel])
    if when == "after":
        handle = install(wrapped, CONFIG)
    handle.step = STEP
    parts = processes // layout.tensor_parallel
    ids, mask = (tensor.chunk(parts)[rank // layout.tensor_parallel] for tensor in batch())
    entered = []
    for micro_ids, micro_mask in zip(ids.chunk(layout.micro_batches), mask.chunk(layout.micro_batches), strict=True):
        wrapped(input_ids=micro_ids, attention_mask=micro_mask).mean().backward()
        assert inner.entered is not None
        entered.append(inner.entered.detach().clone())
    gradient: Any = inner.embed_tokens.weight.grad if layout.has_gradient else None
    if hasattr(gradient, "full_tensor"):
        gradient = gradient.full_tensor()
    return {"entered": torch.cat(entered), "gradient": gradient, "metrics": handle.metrics()}


def rank_main(rank: int, processes: int, folder: Path) -> None:
    """What each process does: every layout of that many processes."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    flat = init_device_mesh("cpu", (processes,))
    meshes = {1: flat, processes: flat}
    if processes == 4:
        meshes[2] = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    for name, layout in LAYOUTS[processes].items():
        for when in ("before", "after"):
            torch.save(train(layout, when, rank, processes, meshes), folder / f"{name}-{when}-{rank}.pt")
    if processes == 2:
        for check in (recomputed, compiled, refused, clean_losses):
            torch.save(check(flat), folder / f"{check.__name__}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def recomputed(mesh: Any) -> Tensor:
    """What the embedding gave in two micro-batches, and gave again when backward came to their checkpoints."""
    seen = []

    class Checkpointed(ToyModel):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
            def part(ids: Tensor) -> Tensor:
                x = self.embed_tokens(ids)
                seen.append(x.detach().clone())
                return x.tanh() ** 2

            return checkpoint(part, input_ids, use_reentrant=False)

    made = Checkpointed().train()
    ROWWISE(made, mesh)
    with install(made, CONFIG):
        losses = [made(*half).sum() for half in zip(*(tensor.chunk(2) for tensor in batch()), strict=True)]
        for loss in losses:
            loss.backward()
    return torch.stack(seen)


def compiled(mesh: Any) -> list[Tensor]:
    """What the embedding gives in one graph, each process with its slice of the sequence."""

    class Embeds(ToyModel):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
            return self.embed_tokens(input_ids)

    torch.manual_seed(0)
    made = Embeds().train()
    tensor_parallel("RowwiseParallel", output_shard=1)(made, mesh)
    with install(made, CONFIG) as handle:
        graph = torch.compile(made, fullgraph=True, backend="aot_eager")
        outputs = []
        for handle.step in (STEP - 1, STEP):
            outputs.append(graph(*batch()))
            outputs[-1].sum().backward()
    return [output.detach().clone() for output in outputs]


def refused(mesh: Any) -> list[str]:
    """What is said where a module of somebody's gives a slice and does not say of what."""

    class Wrapper(nn.Module):
        def __init__(self, embedding: nn.Module) -> None:
            super().__init__()
            self.embedding = embedding

        @property
        def weight(self) -> Any:
            return self.embedding.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.embedding(ids)

    messages = []
    for style, shard in (("RowwiseParallel", 1), ("ColwiseParallel", -1)):
        made = model()
        tensor_parallel(style, output_shard=shard)(made, mesh)
        made.embed_tokens = Wrapper(made.embed_tokens)  # type: ignore[assignment]
        with install(made, CONFIG), pytest.raises(NoiseNotAppliedError) as caught:
            made(*batch())
        messages.append(str(caught.value))
    return messages


def clean_losses(mesh: Any) -> dict[str, float]:
    """The metrics of a step in which each process has two micro-batches of its own."""
    made, rank = model(), mesh.get_rank()
    with install(made, NoiseConfig(alpha=5.0, clean_loss_steps=1, metrics=False)) as handle:
        handle.step = 0
        for weight in (1, 3):
            handle.clean_loss.beside(
                lambda weight=weight: torch.tensor(2.0 * weight * rank),
                without_noise=lambda weight=weight: torch.tensor(1.0 * weight * (rank + weight)),
                loss=lambda loss: loss,
                weight=weight,
            )
        made(*batch())
        handle.step = 1
        return handle.metrics()


def all_ranks(folder: Path) -> None:
    """Everything that several processes do, in forks of this one: imports take longer than all the rest."""

    fork = multiprocessing.get_context("fork")
    for processes in LAYOUTS:
        (folder / str(processes)).mkdir()
        arguments = [(rank, processes, folder / str(processes)) for rank in range(processes)]
        started = [fork.Process(target=rank_main, args=of_rank) for of_rank in arguments]
        for process in started:
            process.start()
        for process in started:
            process.join()
        if any(process.exitcode for process in started):
            sys.exit(f"{processes} processes ended with {[process.exitcode for process in started]}")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """For each number of processes the folder that they wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    subprocess.run([sys.executable, "-m", __name__, str(folder)], cwd=ROOT, timeout=TIMEOUT, check=True)
    return {processes: folder / str(processes) for processes in LAYOUTS}


def one_process() -> dict[str, Any]:
    return train(Layout(alone), "after", 0, 1, {1: None})


@pytest.mark.parametrize(("processes", "name", "when"), CASES)
def test_each_example_has_the_noise_of_one_process(processes, name, when, ranks):
    layout = LAYOUTS[processes][name]
    made = [torch.load(ranks[processes] / f"{name}-{when}-{rank}.pt") for rank in range(processes)]
    together = []
    for first in range(0, processes, layout.tensor_parallel):
        group = [of_rank["entered"] for of_rank in made[first : first + layout.tensor_parallel]]
        if layout.joined is None:
            assert all(torch.equal(part, group[0]) for part in group)
            group = group[:1]
        together.append(torch.cat(group, dim=layout.joined or 0))
    want = one_process()
    assert torch.equal(torch.cat(together), want["entered"])
    if layout.has_gradient and layout.joined != 1:  # with a slice of the sequence the toy is another model
        for of_rank in made:
            torch.testing.assert_close(of_rank["gradient"] / layout.micro_batches, want["gradient"])


@pytest.mark.parametrize(("processes", "name", "when"), CASES)
def test_each_process_measures_the_noise_that_it_holds(processes, name, when, ranks):
    layout = LAYOUTS[processes][name]
    parts = processes // layout.tensor_parallel
    clean = nn.functional.embedding(batch()[0], model().embed_tokens.weight).detach()
    noise = (one_process()["entered"] - clean).double()
    for rank in range(processes):
        mine = slice(*(len(LENGTHS) // parts * (rank // layout.tensor_parallel + end) for end in (0, 1)))
        metrics = torch.load(ranks[processes] / f"{name}-{when}-{rank}.pt")["metrics"]
        assert metrics["neftune/sequences"] == len(LENGTHS[mine])
        assert metrics["neftune/mean_length"] == pytest.approx(sum(LENGTHS[mine]) / len(LENGTHS[mine]))
        assert metrics["neftune/noise_norm_expected"] == pytest.approx(5 / math.sqrt(3))
        norm = math.sqrt(noise[mine].square().sum() / len(LENGTHS[mine]))
        # Of a slice it is an estimate: one token's 48 values, if it has no more, have this standard error.
        error = 1e-4 if layout.tensor_parallel == 1 else 5 * math.sqrt(9 / 5 - 1) / (2 * math.sqrt(48))
        assert metrics["neftune/noise_norm"] == pytest.approx(norm, rel=error)


def test_the_loss_without_noise_is_the_weighted_mean_over_all_processes(ranks):
    for rank in range(2):
        metrics = torch.load(ranks[2] / f"clean_losses-{rank}.pt")
        assert metrics == {"neftune/clean_loss": (1 * 1 + 3 * 3 + 1 * 2 + 3 * 4) / 8, "neftune/noisy_loss": 1.0}


def test_the_page_shows_this_matrix():
    lines = ["| | 2 processes | 4 processes |", "|---|---|---|"]
    for name in LAYOUTS[4]:
        lines.append(f"| {name} | {'✓' if name in LAYOUTS[2] else 'needs 4'} | ✓ |")
    assert "\n".join(lines) in (ROOT / "docs" / "distributed.md").read_text(), "\n".join(lines)


def test_gradient_accumulation_in_one_process():
    micro = train(Layout(alone, micro_batches=4), "after", 0, 1, {1: None})
    assert torch.equal(micro["entered"], one_process()["entered"])


def test_the_noise_of_one_process_is_the_specified():
    ids, entered = batch()[0], one_process()["entered"]
    want = nn.functional.embedding(ids, model().embed_tokens.weight).detach()
    for row, length in enumerate(LENGTHS):
        noise = specification.noise(
            ids[row, :length].tolist(), want.shape[-1], alpha=CONFIG.alpha, seed=CONFIG.seed, step=STEP
        )
        want[row, :length] += torch.tensor(noise)
    assert torch.equal(entered, want)


def test_tensor_parallel_checkpoints_recompute_their_noise(ranks):
    for rank in range(2):
        first, second, first_again, second_again = torch.load(ranks[2] / f"recomputed-{rank}.pt")
        assert not torch.equal(first, second)
        assert torch.equal(first, first_again)
        assert torch.equal(second, second_again)


def test_sequence_parallel_is_one_compiled_graph(ranks):
    before, now = (
        torch.cat(slices, dim=1)
        for slices in zip(*(torch.load(ranks[2] / f"compiled-{rank}.pt") for rank in range(2)), strict=True)
    )
    assert not torch.equal(before, now)
    assert torch.equal(now, one_process()["entered"])


def test_a_slice_of_unknown_place_is_refused(ranks):
    for rank, length in enumerate((7, 6)):
        sequence, channels = torch.load(ranks[2] / f"refused-{rank}.pt")
        assert f"Wrapper returned a tensor of shape (8, {length}, 48), a slice of (8, 13, 48)." in sequence
        assert "Wrapper returned a tensor of shape (8, 13, 24), a slice of (8, 13, 48)." in channels


if __name__ == "__main__":
    all_ranks(Path(sys.argv[1]))
