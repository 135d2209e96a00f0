"""A training loop of torch alone, for `neftune probe`: python -m tests.support.probed_loop WHAT ...

native: noise by a hook like the frameworks'. evaluated: with that hook on in evaluation, too. ours: by this package.
reference: a second model, whose hook is always on. compiled: the model is compiled. workers: a process loads the data.
sharded: by FSDP2, in two processes of torchrun.
fails: with status 7, before it trains. Prints each loss to the bit, the random state at the end, and which modules of
this package are loaded.
"""

import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

ALPHA = 5.0
STEPS = 5


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.inner, self.drop = nn.LayerNorm(width), nn.Linear(width, width), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(torch.tanh(self.inner(self.norm(x))))


class Little(nn.Module):
    """An embedding, two blocks and an output layer."""

    def __init__(self, vocabulary: int = 97, width: int = 64) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, vocabulary)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(self.blocks(self.words(input_ids)))


def native(*, evaluated: bool) -> Callable[..., Tensor]:
    """The frameworks' hook."""

    def add(module: nn.Module, args: object, output: Tensor) -> Tensor:
        if not (module.training or evaluated):
            return output
        bound = ALPHA / (output.shape[1] * output.shape[2]) ** 0.5
        return output + torch.zeros_like(output).uniform_(-bound, bound)

    return add


def batch() -> tuple[Tensor, Tensor]:
    ids, mask = torch.randint(1, 97, (3, 40)), torch.ones(3, 40, dtype=torch.int64)
    for row, length in enumerate((40, 20, 10)):
        mask[row, length:] = 0
    return ids * mask, mask


def evaluate(model: nn.Module, ids: Tensor, mask: Tensor) -> None:
    model.eval()
    with torch.no_grad():
        model(ids, attention_mask=mask)
    model.train()


class Trainer:
    """Where a reference model is an attribute, as in trainers of preferences."""

    def __init__(self, what: list[str]) -> None:
        torch.manual_seed(0)
        self.what = what
        self.model, self.ref_model = Little(), Little()
        self.handle = None
        if "sharded" in what:
            torch.distributed.init_process_group("gloo")
            for block in (*self.model.blocks, self.model):
                fully_shard(block)
        if "ours" in what:
            from neftune_plugins import NoiseConfig, install

            self.handle = install(self.model, NoiseConfig(alpha=ALPHA), seed=1)
        if "native" in what:
            self.model.words.register_forward_hook(native(evaluated="evaluated" in what))
        if "reference" in what:
            self.ref_model.words.register_forward_hook(native(evaluated=True))
        if "compiled" in what:
            self.model.compile(backend="eager")
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        made = [batch() for _ in range(STEPS)]
        workers = int("workers" in self.what)
        return iter(DataLoader(made, batch_size=None, num_workers=workers))  # type: ignore[arg-type]

    def step(self, number: int, ids: Tensor, mask: Tensor) -> float:
        if self.handle is not None:
            self.handle.step = number
        loss = self.model(ids, attention_mask=mask).square().mean()
        if "reference" in self.what:
            with torch.no_grad():
                loss_of_reference = self.ref_model.eval()(ids, attention_mask=mask).mean()
            loss = loss + loss_of_reference
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        evaluate(self.model, ids, mask)
        return loss.item()

    def train(self) -> None:
        for number, (ids, mask) in enumerate(self.batches()):
            sys.stdout.write(f"loss {number} {self.step(number, ids, mask).hex()}\n")  # at once: processes share it
            sys.stdout.flush()
        if self.handle is not None:
            self.handle.end()


if __name__ == "__main__":
    if "fails" in sys.argv:
        sys.exit(7)
    Trainer(sys.argv[1:]).train()
    print("random state", torch.rand(()).item().hex())
    print("loaded", *sorted(name for name in sys.modules if name.startswith("neftune_plugins.")))
