"""torch.compile: one graph, compiled once, with the noise of eager mode."""

import pytest
import torch

from neftune_plugins import NoiseConfig, install
from neftune_plugins.plugins.manager import noise_types
from tests.support.models import ToyModel, examples, padded


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "bernoulli"])
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_one_graph_for_all_steps_with_the_noise_and_gradients_of_eager_mode(backend, kind):
    assert kind in noise_types()
    ids, mask = padded(examples([5, 12, 8]))
    torch.manual_seed(0)
    model = ToyModel().train()
    with install(model, NoiseConfig(alpha=5.0, type=kind)) as handle:
        torch._dynamo.utils.counters.clear()
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        for step in range(4):
            seen = []
            for module in (model, compiled):
                handle.step = step
                model.zero_grad()
                module(input_ids=ids, attention_mask=mask).logsumexp(-1).sum().backward()
                noise = (model.entered - torch.nn.functional.embedding(ids, model.embed_tokens.weight)).detach()
                seen.append((noise, model.embed_tokens.weight.grad))
            assert seen[0][0].any()
            assert torch.equal(seen[0][0], seen[1][0])
            torch.testing.assert_close(seen[0][1], seen[1][1])
        assert graphs() == 1
        assert not torch._dynamo.utils.counters["graph_break"]


def test_steps_that_are_counted_do_not_compile_again():
    ids, mask = padded(examples([5, 12]))
    model = ToyModel().train()
    with install(model, NoiseConfig(alpha=5.0)) as handle:
        torch._dynamo.utils.counters.clear()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        compiled(input_ids=ids, attention_mask=mask).sum().backward()
        first = graphs()
        for _ in range(3):
            compiled(input_ids=ids, attention_mask=mask).sum().backward()
        assert handle.step == 3
        assert graphs() == first


def test_what_changes_with_the_steps_stays_where_it_is_so_that_cuda_graphs_can_be_made():
    """There is a CUDA graph of code that writes to tensors only if their addresses are known to stay."""
    ids, mask = padded(examples([5, 12]))
    model, graphs_seen = ToyModel().train(), []

    def backend(graph, inputs):
        graphs_seen.append(graph.graph)
        return graph

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with install(model, NoiseConfig(alpha=5.0)) as handle:
        for handle.step in range(4):
            compiled(input_ids=ids, attention_mask=mask).sum().backward()
            handle.metrics()
    [graph] = graphs_seen
    inputs = {
        (tuple(node.meta["example_value"].shape), node.meta["example_value"].dtype): node.meta["tensor_dict"]
        for node in graph.nodes
        if node.op == "placeholder"
    }
    for state in ((), torch.int64), ((), torch.float32), ((3,), torch.float32):
        assert inputs[state].get("_dynamo_static_input_type"), state


def test_noise_comes_and_goes_in_a_model_that_was_compiled_before():
    ids, mask = padded(examples([5, 12]))
    model = ToyModel().train()
    compiled = torch.compile(model, backend="eager")
    clean = compiled(input_ids=ids, attention_mask=mask)
    with install(model, NoiseConfig(alpha=5.0)):
        assert not torch.equal(compiled(input_ids=ids, attention_mask=mask), clean)
    assert torch.equal(compiled(input_ids=ids, attention_mask=mask), clean)


@pytest.mark.parametrize("whole", [True, False], ids=["torch.compile", "module.compile"])
def test_a_compiled_model_is_noised_as_the_bare_one(whole):
    ids, mask = padded(examples([5, 12]))
    model, noises = ToyModel().train(), []
    with install(model, NoiseConfig(alpha=5.0)) as handle:
        handle.step = 0
        noises.append(model.noise(ids, attention_mask=mask))
    compiled = torch.compile(model, backend="eager") if whole else model
    if not whole:
        model.compile(backend="eager")
    with install(compiled, NoiseConfig(alpha=5.0)) as handle:
        handle.step = 0
        compiled(ids, attention_mask=mask).sum().backward()
    torch.testing.assert_close(model.entered - model.embed_tokens(ids), noises[0], rtol=0, atol=2e-6)


def test_evaluation_of_a_compiled_model_is_clean():
    ids, mask = padded(examples([5, 12]))
    model = ToyModel().train()
    clean = model(input_ids=ids, attention_mask=mask)
    with install(model, NoiseConfig(alpha=5.0)):
        compiled = torch.compile(model, backend="eager")
        assert not torch.equal(compiled(input_ids=ids, attention_mask=mask), clean)
        model.eval()
        torch.testing.assert_close(compiled(input_ids=ids, attention_mask=mask), clean)


def test_a_wide_embedding_has_the_noise_of_eager_mode():
    ids, mask = padded(examples([40, 64]))
    model = ToyModel(dim=2048).train()
    with install(model, NoiseConfig(alpha=5.0)) as handle:
        noises = []
        for module in (model, torch.compile(model, fullgraph=True)):
            handle.step = 0
            module(input_ids=ids, attention_mask=mask)
            noises.append(model.entered.detach())
    assert torch.equal(*noises)
