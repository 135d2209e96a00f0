"""Two processes: the noise of an example is that of one process, however the model is wrapped, and whenever."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neftune_plugins import NoiseConfig, install
from tests.support.models import ToyModel, examples, padded

RANKS = 2
CONFIG = NoiseConfig(alpha=5.0, seed=3)
CASES = [("ddp", "before"), ("ddp", "after"), ("fsdp2", "before"), ("fsdp2", "after")]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return padded(examples([5, 12, 8, 3]))


def model() -> ToyModel:
    torch.manual_seed(0)
    made = ToyModel().train()
    made.lm_head.weight = torch.nn.Parameter(made.lm_head.weight.detach().clone())  # sharded apart
    return made


def rank_main(rank: int, folder: Path) -> None:
    """What each process does: for each case a training step on its half of the batch."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    mesh = dist.device_mesh.init_device_mesh("cpu", (RANKS,))
    for wrapper, when in CASES:
        inner = model()
        wrapped: torch.nn.Module = inner
        if when == "before":
            handle = install(inner, CONFIG)
        if wrapper == "ddp":
            wrapped = torch.nn.parallel.DistributedDataParallel(inner)
        else:
            fully_shard(inner.embed_tokens, mesh=mesh)
            fully_shard(inner, mesh=mesh)
        if when == "after":
            handle = install(wrapped, CONFIG)
        handle.step = 7
        ids, mask = (tensor.chunk(RANKS)[rank] for tensor in batch())
        wrapped(input_ids=ids, attention_mask=mask).mean().backward()
        assert inner.entered is not None
        torch.save(inner.entered.detach().clone(), folder / f"{wrapper}-{when}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def entered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what came out of the embedding, for each case and rank."""
    folder = tmp_path_factory.mktemp("ranks")
    script = (
        "import sys; from pathlib import Path; from tests.core.test_parallel import rank_main;"
        "rank_main(int(sys.argv[1]), Path(sys.argv[2]))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, str(rank), str(folder)]) for rank in range(RANKS)]
    assert [process.wait(timeout=240) for process in processes] == [0] * RANKS
    return folder


@pytest.mark.parametrize(("wrapper", "when"), CASES)
def test_each_example_has_the_noise_of_one_process(wrapper, when, entered):
    alone = model()
    ids, mask = batch()
    with install(alone, CONFIG) as handle:
        handle.step = 7
        alone(ids, attention_mask=mask)
    assert alone.entered is not None
    ranks = [torch.load(entered / f"{wrapper}-{when}-{rank}.pt") for rank in range(RANKS)]
    assert torch.equal(torch.cat(ranks), alone.entered.detach())
