"""DeepSpeed's ZeRO-3, where DeepSpeed is installed: no process holds the embedding's weight outside of its forward."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neftune_plugins import install
from tests.core.test_parallel import CONFIG, ROOT, STEP, batch, model, one_process

pytest.importorskip("deepspeed")
RANKS = 2


def rank_main(folder: Path) -> None:
    """What each process does: a training step on its half of the batch."""
    import deepspeed

    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo")
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    for when in ("before", "after"):
        inner = model()
        if when == "before":
            handle = install(inner, CONFIG)
        optimizer = torch.optim.SGD(inner.parameters(), lr=0.0)
        engine, *_ = deepspeed.initialize(model=inner, optimizer=optimizer, config=config)
        if when == "after":
            handle = install(engine, CONFIG)
        assert inner.embed_tokens.weight.numel() == 0
        handle.step = STEP
        ids, mask = (tensor.chunk(RANKS)[rank] for tensor in batch())
        engine.backward(engine(input_ids=ids, attention_mask=mask).mean())
        engine.step()
        assert inner.entered is not None
        torch.save(inner.entered.detach().clone(), folder / f"{when}-{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the processes wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    subprocess.run(
        [
            sys.executable,
            *f"-m torch.distributed.run --standalone --nproc-per-node={RANKS} -m {__name__}".split(),
            folder,
        ],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"},
        timeout=600,  # its first start compiles its communication
        check=True,
    )
    return folder


@pytest.mark.parametrize("when", ["before", "after"])
def test_each_example_has_the_noise_of_one_process(when, ranks):
    entered = [torch.load(ranks / f"{when}-{rank}.pt") for rank in range(RANKS)]
    assert torch.equal(torch.cat(entered), one_process()["entered"])


if __name__ == "__main__":
    rank_main(Path(sys.argv[1]))
