"""Tensor parallelism as transformers does it itself: `from_pretrained(tp_plan="auto")`, two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from neftune_transformers.tiny import make_tiny_model
from packaging.version import Version
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, __version__

from neftune_plugins import NoiseConfig, install

ROOT = Path(__file__).parents[2]
RANKS = 2
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 0, 0, 0]])
MASK = (IDS != 0).to(torch.int64)
# How the embedding is shared out: as the model's plan says, over the vocabulary, over the channels.
STYLES = (
    [None, "rowwise_rep", "colwise_rep"]
    if Version(__version__) < Version("5")
    else [
        None,
        "embedding_rowwise",
        "embedding_colwise",
    ]
)


def entered(model: PreTrainedModel) -> torch.Tensor:
    """What comes to the first layer in a step of training."""
    seen = []
    model.train().model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with install(model, NoiseConfig(alpha=5, seed=1)) as handle:
        handle.step = 4
        model(input_ids=IDS, attention_mask=MASK, labels=IDS).loss.backward()
    return seen[0].detach().clone()


def rank_main(folder: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    plan = dict(LlamaConfig.base_model_tp_plan or {})
    for style in STYLES:
        LlamaConfig.base_model_tp_plan = plan if style is None else plan | {"embed_tokens": style}
        model = AutoModelForCausalLM.from_pretrained(folder / "model", tp_plan="auto")
        torch.save(entered(model), folder / f"{style}-{os.environ['RANK']}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model, and of what the processes wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    make_tiny_model(folder / "model")
    subprocess.run(
        [
            sys.executable,
            *f"-m torch.distributed.run --standalone --nproc-per-node={RANKS} -m {__name__}".split(),
            folder,
        ],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        timeout=600,
        check=True,
    )
    return folder


@pytest.mark.parametrize("style", STYLES)
def test_each_process_has_the_noise_of_one(style, folder):
    want = entered(AutoModelForCausalLM.from_pretrained(folder / "model"))
    for rank in range(RANKS):
        assert torch.equal(torch.load(folder / f"{style}-{rank}.pt"), want)


if __name__ == "__main__":
    rank_main(Path(sys.argv[1]))
