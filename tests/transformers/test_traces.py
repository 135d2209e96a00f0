"""The loss without noise changes no number of anybody else's, whatever a trainer counts in."""

import array
import collections
import copy
import functools
import itertools
import random
import types

import numpy
import pytest
import torch
from datasets import Dataset
from neftune_transformers import NEFTuneCallback, traces
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from neftune_plugins import NoiseConfigError
from tests.transformers.driver import make_driver

IN_MODULE = 0
LIST_IN_MODULE: list[int] = []


class Meter:
    def __init__(self) -> None:
        self.seen = 0
        self.inner = {"all": [0]}

    def count(self) -> None:
        self.seen += 1
        self.inner["all"][0] += 1


class Slots:
    __slots__ = ("seen",)

    def __init__(self) -> None:
        self.seen = 0


def closure():
    calls, kept = 0, []

    def count() -> int:
        nonlocal calls
        calls += 1
        kept.append(calls)
        return calls

    return count


class Counting(Trainer):
    """Counts its losses in every way that one can."""

    in_class = 0

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.number = 0
        self.text = ""
        self.list, self.pair = [0], ([0], 0)
        self.dict = {"a": {"b": [0]}}
        self.ordered = collections.OrderedDict(a=0)
        self.counter, self.default = collections.Counter(), collections.defaultdict(int)
        self.set, self.deque = set(), collections.deque(maxlen=2)
        self.bytes, self.array = bytearray(1), array.array("q", [0])
        self.tensor, self.by_data = torch.zeros(2), torch.zeros(())
        self.rebound = torch.zeros(())
        self.numpy = numpy.zeros(1)
        self.meter, self.slots = Meter(), Slots()
        self.space, self.user = types.SimpleNamespace(seen=0), collections.UserDict(seen=0)
        self.closure, self.partial = closure(), functools.partial(Meter.count, Meter())
        self.bound = Meter().count
        self.iterator = itertools.count(3, 2)
        self.random, self.generator = random.Random(0), torch.Generator()
        self.numpy_generator = numpy.random.default_rng(0)
        self.model.register_buffer("rebound_buffer", torch.zeros(()))
        self.model.register_buffer("buffer", torch.zeros(3))
        self.model.seen, self.model.experts = 0, {"load": [0]}
        self.aliases = [self.list, self.dict["a"], self.tensor]
        self.drawn = []
        self.again = self

    def compute_loss(self, model, inputs, *args, **kwargs):
        global IN_MODULE
        IN_MODULE += 1
        LIST_IN_MODULE.append(IN_MODULE)
        type(self).in_class += 1
        self.number += 1
        self.text += "x"
        self.list[0] += 1
        self.pair[0][0] += 1
        self.pair = (self.pair[0], self.pair[1] + 1)
        self.dict["a"]["b"].append(1)
        self.ordered.move_to_end("a")
        self.ordered[self.number] = 1
        self.counter["a"] += 1
        self.default["a"] += 1
        self.set.add(self.number)
        self.deque.append(self.number)
        self.bytes[0] += 1
        self.array[0] += 1
        self.tensor += 1
        self.by_data.data += 1
        self.rebound = self.rebound + 1
        self.numpy += 1
        self.meter.count()
        self.slots.seen += 1
        self.space.seen += 1
        self.user["seen"] += 1
        self.closure()
        self.partial()
        self.bound()
        if not hasattr(self.state, "tokens"):
            self.state.tokens = {"seen": torch.zeros(()), "list": [0]}
        self.state.tokens["seen"] += 1
        self.state.tokens["list"][0] += 1
        self.made_late = getattr(self, "made_late", 0) + 1
        model.rebound_buffer = model.rebound_buffer + 1
        model.buffer += 1
        model.seen += 1
        model.made_late = getattr(model, "made_late", 0) + 1
        model.experts["load"][0] += 1
        inputs["labels"] += 1  # in the batch
        self.drawn.append(
            (
                *(next(self.iterator), self.random.random(), random.random(), numpy.random.rand()),
                *(
                    torch.rand((), generator=self.generator).item(),
                    self.numpy_generator.random(),
                    torch.rand(()).item(),
                ),
                inputs["labels"].sum().item(),
            )
        )
        return super().compute_loss(model, inputs, *args, **kwargs)

    def counted(self):
        model = {name: vars(self.model)[name] for name in ("seen", "made_late", "experts")}
        mine = {name: copy.deepcopy(vars(self)[name]) for name in NAMES}
        return mine | {
            "model": copy.deepcopy(model),
            "buffers": {name: buffer.clone() for name, buffer in self.model.named_buffers()},
            "tokens": copy.deepcopy(self.state.tokens),
            "objects": [copy.deepcopy(vars(self.meter)), self.slots.seen, self.closure(), self.partial.args[0].seen],
            "bound": self.bound.__self__.seen,
            "classes": (Counting.in_class, IN_MODULE, list(LIST_IN_MODULE)),
        }


NAMES = (
    *("number", "text", "list", "pair", "dict", "ordered", "counter", "default", "set", "deque", "bytes", "array"),
    *("tensor", "by_data", "rebound", "numpy", "space", "user", "drawn", "made_late"),
)


@pytest.fixture(scope="module")
def driver():
    torch.set_num_threads(1)
    return make_driver()


def trainer(driver, folder, **keys) -> Counting:
    global IN_MODULE
    IN_MODULE = Counting.in_class = 0
    LIST_IN_MODULE.clear()
    random.seed(0)
    numpy.random.seed(0)
    rows = [{"input_ids": list(range(4, 12)), "labels": list(range(4, 12))}] * 16
    arguments = TrainingArguments(
        str(folder), max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2, report_to="none",
        use_cpu=True, save_strategy="no", logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(driver.model)
    callback = NEFTuneCallback(alpha=5, **keys)
    return Counting(model=model, args=arguments, train_dataset=Dataset.from_list(rows), callbacks=[callback])


def test_a_trainer_that_counts_in_every_way_counts_the_same(driver, tmp_path):
    counted = []
    for keys in ({}, {"clean_loss_steps": 1}):
        counting = trainer(driver, tmp_path, **keys)
        aliases = [*counting.aliases]
        counting.train()
        assert counting.aliases[0] is counting.list is aliases[0]
        assert counting.aliases[2] is counting.tensor is aliases[2]
        assert [*counting.list, len(counting.aliases[1]["b"]), *counting.tensor.tolist()] == [6, 7, 6.0, 6.0]
        counted.append((counting.counted(), [log["loss"] for log in counting.state.log_history if "loss" in log]))
    assert "neftune/clean_loss" in counting.state.log_history[0]
    (one, losses), (other, others) = counted
    assert losses == others
    for name, value in one.items():
        assert str(other[name]) == str(value), name


def test_a_large_tensor_that_changes_in_place_is_an_error(driver, tmp_path):
    counting = trainer(driver, tmp_path, clean_loss_steps=1)
    counting.tensor = torch.zeros(traces.LARGEST)
    with pytest.raises(NoiseConfigError, match="neftune_clean_loss_steps: computing the loss changes a tensor"):
        counting.train()
