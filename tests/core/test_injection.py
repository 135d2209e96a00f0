"""Installing the noise in a model, the gates, and leaving nothing behind."""

import copy
import gc
import pickle
import subprocess
import sys
import threading
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from neftune_plugins import Layout, NoiseConfig, NoiseNotAppliedError, install
from tests.support import specification
from tests.support.installing import untrained
from tests.support.models import PAD, ToyModel, ToySeq2Seq, examples, padded

CONFIG = NoiseConfig(alpha=5.0, seed=11)
DIM = 48


@pytest.fixture
def model() -> ToyModel:
    torch.manual_seed(0)
    return ToyModel(dim=DIM).train()


def hooks_of(model: nn.Module) -> list[object]:
    return [
        hook
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        for hook in hooks.values()
    ]


@pytest.fixture
def batch():
    ids, mask = padded(examples([5, 12, 8]))
    return {"input_ids": ids, "attention_mask": mask}


def test_noise_is_on_real_tokens_with_the_papers_bound(model, batch):
    with install(model, CONFIG):
        noise = model.noise(**batch)
    for i, length in enumerate([5, 12, 8]):
        bound = 5 / (length * DIM) ** 0.5
        assert 0.9 * bound < noise[i, :length].abs().max() <= bound * 1.000001 + 1e-6
        assert not noise[i, length:].any()


def test_an_example_has_the_same_noise_in_every_layout(model):
    rows = examples([5, 12, 8])
    with install(model, CONFIG) as handle:
        handle.step = 3

        def per_example(noise, columns):
            return [noise[i, c] for i, c in columns]

        seen = []
        for side in ("left", "right"):
            ids, mask = padded(rows, side=side, width=16)
            noise = model.noise(input_ids=ids, attention_mask=mask)
            seen.append([noise[i][mask[i].bool()] for i in range(3)])
        ids, mask = padded(rows[::-1])
        noise = model.noise(input_ids=ids, attention_mask=mask)
        seen.append([noise[i][mask[i].bool()] for i in (2, 1, 0)])
        seen.append([model.noise(input_ids=torch.tensor([row]))[0] for row in rows])
        flat = torch.tensor([[t for row in rows for t in row]])
        positions = torch.tensor([[p for row in rows for p in range(len(row))]])
        noise = model.noise(input_ids=flat, position_ids=positions)[0]
        seen.append(list(noise.split([5, 12, 8])))
    # Read as (x + noise) - x, so equal bits of the noise need equal embeddings: they are.
    for other in seen[1:]:
        for a, b in zip(seen[0], other, strict=True):
            assert torch.equal(a, b)


def test_steps_draw_anew_and_replay(model, batch):
    with install(model, CONFIG) as handle:
        handle.step = 1
        one = model.noise(**batch)
        handle.step = 2
        two = model.noise(**batch)
        handle.step = 1
        again = model.noise(**batch)
    assert torch.equal(one, again)
    assert not torch.equal(one, two)


def test_without_a_step_every_training_forward_draws_anew(model, batch):
    with install(model, CONFIG) as handle:
        first, second = model.noise(**batch), model.noise(**batch)
        with torch.no_grad():
            model.noise(**batch)
        assert handle.step == 1
    assert not torch.equal(first, second)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_no_noise_without_gradients(model, batch, context):
    with untrained(model, CONFIG), context():
        assert not model.noise(**batch).any()


def test_no_noise_in_evaluation(model, batch):
    with untrained(model, CONFIG):
        assert not model.eval().noise(**batch).any()


class Outer(nn.Module):
    def __init__(self, inner: ToyModel, run) -> None:
        super().__init__()
        self.inner, self.run = inner, run

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def forward(self, input_ids, attention_mask=None):
        return self.run(self.inner, input_ids, attention_mask)


def test_the_outermost_module_decides(model, batch):
    outer = Outer(model, lambda inner, ids, mask: inner(ids, attention_mask=mask)).eval()
    model.train()
    with untrained(outer, CONFIG):
        outer(**batch)
        assert torch.equal(model.entered, model.embed_tokens(batch["input_ids"]))


@pytest.mark.parametrize("step", [0, None])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_recomputes_the_same_noise_and_the_same_gradients(batch, use_reentrant, step):
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        inner = ToyModel(dim=DIM).train()
        entered = []
        inner.lm_head.register_forward_pre_hook(lambda m, a, inner=inner, to=entered: to.append(inner.entered.detach()))

        def body(inner, ids, mask, checkpointed=checkpointed):
            dummy = torch.zeros((), requires_grad=True)

            def part(ids, mask, dummy):
                return inner(ids, attention_mask=mask) + dummy

            if checkpointed:
                return checkpoint(part, ids, mask, dummy, use_reentrant=use_reentrant)
            return part(ids, mask, dummy)

        outer = Outer(inner, body).train()
        with install(outer, CONFIG) as handle:
            if step is not None:
                handle.step = step
            outer(**batch).logsumexp(-1).sum().backward()
            assert handle.step == 0
        gradients.append(inner.embed_tokens.weight.grad)
        clean = inner.embed_tokens(batch["input_ids"])
        assert len(entered) == 1 + checkpointed
        for x in entered:
            assert not torch.equal(x, clean)
            assert torch.equal(x, entered[0])
    assert torch.equal(*gradients)


def test_checkpointing_of_the_embedding_alone_recomputes_its_noise(model, batch):
    model.embed_tokens.register_forward_hook(lambda m, a, out: out)  # somebody else's hook, harmless
    entered = []

    class Embeds(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed_tokens = model.embed_tokens

        def get_input_embeddings(self):
            return self.embed_tokens

        def forward(self, input_ids, attention_mask=None):
            def part(ids):
                x = self.embed_tokens(ids)
                entered.append(x.detach().clone())
                return x.tanh() ** 2

            return checkpoint(part, input_ids, use_reentrant=False)

    outer = Embeds().train()
    with install(outer, CONFIG) as handle:
        handle.step = 1
        outer(**batch).sum().backward()
    assert len(entered) == 2
    assert torch.equal(*entered)
    assert not torch.equal(entered[0], model.embed_tokens(batch["input_ids"]))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_an_inner_model_that_is_given_embeddings_can_be_recomputed(batch, use_reentrant):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = ToyModel(dim=DIM)

        def forward(self, input_ids, attention_mask):
            embeds = self.inner.embed_tokens(input_ids)
            return checkpoint(self.inner, None, attention_mask, None, embeds, use_reentrant=use_reentrant)

    outer = Outer().train()
    with install(outer, CONFIG):
        outer(**batch).sum().backward()
    assert outer.inner.embed_tokens.weight.grad.any()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("foreign_hook", [False, True])
def test_gradients_are_those_of_the_out_of_place_sum(batch, frozen, foreign_hook):
    gradients, losses = [], []
    for ours in (True, False):
        torch.manual_seed(0)
        model = ToyModel(dim=DIM).train()
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        model.embed_tokens.weight.requires_grad_(not frozen)
        if foreign_hook:  # what gradient checkpointing with LoRA does
            model.embed_tokens.register_forward_hook(lambda m, a, out: out.requires_grad_(True) if frozen else out * 1)
        if ours:
            with install(model, CONFIG) as handle:
                handle.step = 4
                logits = model(**batch)
                noise = (
                    model.entered - nn.functional.embedding(batch["input_ids"], model.embed_tokens.weight)
                ).detach()
        else:
            model.embed_tokens.register_forward_hook(lambda m, a, out, noise=noise: out + noise)
            logits = model(**batch)
        loss = logits.logsumexp(-1).sum()
        loss.backward()
        losses.append(loss)
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(losses[0], losses[1])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_somebody_elses_hook_keeps_the_clean_output(model, batch):
    kept = []
    model.embed_tokens.register_forward_hook(lambda m, a, out: kept.append(out))
    with install(model, CONFIG):
        noise = model.noise(**batch)
    assert noise.any()
    assert torch.equal(kept[0], nn.functional.embedding(batch["input_ids"], model.embed_tokens.weight))


def test_a_layer_of_embeddings_that_is_given_no_mask_does_not_hide_it(batch):
    class Embeddings(nn.Module):
        def __init__(self):
            super().__init__()
            self.word_embeddings = nn.Embedding(97, DIM)

        def forward(self, input_ids=None, position_ids=None):
            return self.word_embeddings(input_ids)

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embeddings = Embeddings()

        def get_input_embeddings(self):
            return self.embeddings.word_embeddings

        def forward(self, input_ids=None, attention_mask=None):
            return self.embeddings(input_ids=input_ids)

    encoder = Encoder().train()
    with install(encoder, CONFIG):
        noise = encoder(**batch) - encoder.embeddings.word_embeddings.weight[batch["input_ids"]]
    real = batch["attention_mask"].bool()
    assert noise[real].all()
    assert not noise[~real].any()


def test_a_mask_that_an_inner_model_is_not_given_is_known(model, batch):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, input_ids=None, attention_mask=None):
            return self.inner(input_ids=input_ids)

    outer = Outer().train()
    with install(outer, CONFIG) as handle:
        handle.step = 0
        outer(**batch)
        without_inner_mask = model.entered
        model.noise(**batch)
    assert torch.equal(without_inner_mask, model.entered)


def test_the_tied_output_layer_stays_clean(model):
    with untrained(model, CONFIG) as handle:
        assert handle.embeddings == ["embed_tokens"]


def test_installing_twice_is_installing_once(model, batch):
    before = hooks_of(model)
    first = install(model, NoiseConfig(alpha=500.0))
    second = install(model, CONFIG)
    assert not first.installed
    assert model.noise(**batch).abs().max() <= 5 / (5 * DIM) ** 0.5 + 1e-6
    first.remove()
    assert second.installed
    second.remove()
    second.remove()
    assert hooks_of(model) == before
    assert not model.noise(**batch).any()


def test_an_exception_in_the_forward_leaves_neither_hooks_nor_open_gates(model, batch):
    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    interrupt = model.lm_head.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt), install(model, CONFIG):
        model(**batch)
    interrupt.remove()
    assert hooks_of(model) == []

    handle = install(model, CONFIG)
    interrupt = model.lm_head.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        model(**batch)
    interrupt.remove()
    with torch.no_grad():
        assert not model.noise(**batch).any()
    handle.remove()


def test_a_lookup_outside_of_every_forward_is_clean(model, batch):
    with install(model, CONFIG):
        model(**batch).sum().backward()
        for mode in (True, False):
            embedded = model.train(mode).get_input_embeddings()(batch["input_ids"])
            assert torch.equal(embedded, nn.functional.embedding(batch["input_ids"], model.embed_tokens.weight))


def test_a_foreign_pre_hook_that_raises_leaves_the_calls_around_it(batch):
    def run(inner, ids, mask):
        hook = inner.register_forward_pre_hook(lambda *a: 1 / 0, prepend=True)
        with pytest.raises(ZeroDivisionError):
            inner(ids, attention_mask=mask)
        hook.remove()
        return inner(ids, attention_mask=mask)

    inner = ToyModel(dim=DIM)
    with install(Outer(inner, run).train(), CONFIG) as handle:
        handle.model(**batch)
    assert not torch.equal(inner.entered, nn.functional.embedding(batch["input_ids"], inner.embed_tokens.weight))


def test_copies_and_pickles_are_clean_and_need_no_package(model, batch, tmp_path):
    with untrained(model, CONFIG):
        assert not copy.deepcopy(model).noise(**batch).any()
        assert not pickle.loads(pickle.dumps(model)).noise(**batch).any()
        state = model.state_dict()
        # A model of the standard library's and torch's classes alone, to be loaded where neftune_plugins is absent.
        embedding = nn.Sequential(model.embed_tokens)
        embedding.get_input_embeddings = None
        del embedding.get_input_embeddings
        torch.save(embedding, tmp_path / "model.pt")
    assert set(state) == {"embed_tokens.weight", "lm_head.weight"}
    script = (
        "import sys, torch; sys.modules['neftune_plugins'] = None; "
        f"m = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False); "
        "x = torch.arange(5)[None]; assert torch.equal(m(x), torch.nn.functional.embedding(x, m[0].weight))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_global_random_state_is_untouched(model, batch):
    state = torch.get_rng_state()
    with install(model, CONFIG):
        model(**batch).sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


def test_an_installed_model_can_be_freed(batch):
    model = ToyModel()
    install(model, CONFIG)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_threads_do_not_see_each_others_batches(model):
    rows = examples([5, 12])
    with install(model, CONFIG) as handle:
        handle.step = 1
        want = [model.noise(input_ids=torch.tensor([row])) for row in rows]
        wrong = []

        def work(i: int) -> None:
            ids = torch.tensor([rows[i]])
            clean = nn.functional.embedding(ids, model.embed_tokens.weight)
            embedded: dict[int, torch.Tensor] = {}
            hook = model.embed_tokens.register_forward_hook(
                lambda m, a, out: embedded.__setitem__(threading.get_ident(), out.detach())
            )
            for _ in range(50):
                model(input_ids=ids)
                if not torch.equal(embedded[threading.get_ident()] - clean, want[i]):
                    wrong.append(i)
            hook.remove()

        threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_model_without_an_embedding_is_refused():
    with pytest.raises(NoiseNotAppliedError, match=r"no embedding of tokens found in Linear.*neftune_embeddings"):
        install(nn.Linear(2, 2), CONFIG)


@pytest.mark.parametrize("by_name", [True, False])
def test_embeddings_that_were_looked_up_before_the_forward_are_noised_as_the_ids_are(model, batch, by_name):
    with install(model, CONFIG) as handle:
        handle.step = 0
        noise = model.noise(**batch)
        embeds = model.embed_tokens(batch["input_ids"])
        clean = embeds.detach().clone()
        mask = batch["attention_mask"]
        if by_name:
            model(inputs_embeds=embeds, attention_mask=mask).sum().backward()
        else:
            model(None, mask, None, embeds).sum().backward()
    assert torch.equal(embeds, clean)
    assert torch.equal(model.entered, clean + noise)
    assert model.embed_tokens.weight.grad.any()


def test_embeddings_that_somebody_made_are_an_error_that_says_what_was_given(model, batch):
    message = r"ToyModel had no noise.*\(embed_tokens\).*given inputs_embeds\..*neftune_embeddings"
    with untrained(model, CONFIG), pytest.raises(NoiseNotAppliedError, match=message):
        model(inputs_embeds=model.embed_tokens(batch["input_ids"]) * 2)


def seq2seq(batch, **others):
    """A batch for `ToySeq2Seq`: the targets are shorter and have no mask."""
    ids, _ = padded(examples([4, 7, 3], seed=1))
    return {**batch, "decoder_input_ids": ids, **others}


@pytest.mark.parametrize("tied", [True, False])
def test_encoder_and_decoder_are_noised_with_their_own_lengths(batch, tied):
    model = ToySeq2Seq(tied=tied).train()
    batch = seq2seq(batch)
    with install(model, CONFIG) as handle:
        handle.step = 0
        model(**batch)
    assert {"encoder.embed_tokens", "decoder.embed_tokens"} <= set(handle.embeddings)
    for stack, ids in ((model.encoder, batch["input_ids"]), (model.decoder, batch["decoder_input_ids"])):
        entered = stack.entered - nn.functional.embedding(ids, stack.embed_tokens.weight)
        for row, tokens in zip(entered.detach(), ids, strict=True):
            real = [int(token) for token in tokens if token != PAD]
            expected = specification.noise(real, DIM, alpha=5, seed=11, step=0, stream=int(stack is model.decoder))
            torch.testing.assert_close(row[: len(real)], torch.tensor(expected), rtol=0, atol=2e-6)
            assert not row[len(real) :].any()


def test_a_decoder_may_be_said_to_be_a_whole_encoder_decoder(batch):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = SimpleNamespace(is_encoder_decoder=True, pad_token_id=PAD)
            self.inner = ToySeq2Seq()

        def get_decoder(self):
            return self.inner

        def forward(self, input_ids=None, attention_mask=None, decoder_input_ids=None):
            embeds = self.inner.shared(input_ids)
            return self.inner(attention_mask=attention_mask, inputs_embeds=embeds, decoder_input_ids=decoder_input_ids)

    outer = Outer().train()
    with install(outer, CONFIG) as handle:
        handle.step = 0
        outer(**seq2seq(batch))
        entered = outer.inner.encoder.entered
        outer.inner(**seq2seq(batch))
    assert torch.equal(entered, outer.inner.encoder.entered)


def test_an_encoder_may_have_been_run_before(batch):
    model = ToySeq2Seq().train()
    with install(model, CONFIG):
        encoded = model.encoder(batch["input_ids"], batch["attention_mask"])
        assert not torch.equal(encoded, model.encoder.embed_tokens(batch["input_ids"]))
        model(**seq2seq(batch, input_ids=None, encoder_outputs=encoded))


@pytest.mark.parametrize(
    ("part", "name"), [("ToyStack", "decoder_inputs_embeds"), ("ToyStack", "inputs_embeds")], ids=["decoder", "encoder"]
)
def test_one_stack_without_noise_is_an_error(batch, part, name):
    model = ToySeq2Seq().train()
    batch = seq2seq(batch)
    ids = batch.pop(name.replace("inputs_embeds", "input_ids"))
    batch[name] = torch.zeros(*ids.shape, DIM)
    message = f"{part} had no noise.*given .*inputs_embeds"
    with untrained(model, CONFIG), pytest.raises(NoiseNotAppliedError, match=message):
        model(**batch)


def test_what_embeds_images_is_not_taken_for_an_embedding_of_tokens(model):
    class Patches(nn.Module):
        def __init__(self, text):
            super().__init__()
            self.patches = nn.Conv2d(3, DIM, 2)
            self.text = text

        def get_input_embeddings(self):
            return self.patches

    with untrained(Patches(model), CONFIG) as handle:
        assert handle.embeddings == ["text.embed_tokens"]


def test_evaluation_may_pass_embeddings(model, batch):
    with untrained(model, CONFIG), torch.no_grad():
        model(inputs_embeds=model.embed_tokens(batch["input_ids"]))


def test_seed_of_the_configuration_wins(model, batch):
    noises = []
    for config, seed in ((NoiseConfig(alpha=5, seed=3), 9), (NoiseConfig(alpha=5), 3), (NoiseConfig(alpha=5), 9)):
        with install(model, config, seed=seed) as handle:
            handle.step = 0
            noises.append(model.noise(**batch))
    assert torch.equal(noises[0], noises[1])
    assert not torch.equal(noises[0], noises[2])


def test_pad_token_id_can_be_given(model):
    ids = torch.tensor([[7, 8, 9, 96, 96]])
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    with install(model, CONFIG, pad_token_id=96):
        assert not model.noise(input_ids=ids, position_ids=positions)[0, 3:].any()
    assert PAD != 96


def test_a_layout_reader_can_be_given_and_may_leave_a_batch_to_the_others(model):
    ids, mask = padded(examples([5, 12]), side="left")
    asked = []

    def last_three(batch):
        asked.append(batch["pad_token_id"])
        if len(asked) > 1:
            return None
        real_BL = torch.arange(batch["input_ids"].shape[1]) >= batch["input_ids"].shape[1] - 3
        return Layout.from_starts(real_BL.expand_as(ids), torch.zeros_like(ids, dtype=torch.bool))

    with install(model, CONFIG, layout_reader=last_three) as handle:
        handle.step = 0
        first, second = model.noise(ids, attention_mask=mask), model.noise(ids, attention_mask=mask)
        assert torch.equal(handle.layout({"input_ids": ids, "attention_mask": mask}).real_BL, mask.bool())
    assert asked == [PAD] * 3
    assert torch.equal(first.any(-1), (torch.arange(12) >= 9).expand(2, -1))
    assert torch.equal(second.any(-1), mask.bool())
    with install(model, CONFIG) as handle:
        handle.step = 0
        assert torch.equal(model.noise(ids, attention_mask=mask), second)


def test_what_is_installed_says_so(model):
    with untrained(model, CONFIG) as handle:
        assert str(handle).startswith("neftune_noise_alpha: 5 is applied by neftune-plugins")
        assert "noise in embed_tokens, NoiseConfig(alpha=5.0" in str(handle)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(batch, dtype):
    torch.manual_seed(0)
    full = ToyModel(dim=DIM).train()
    half = copy.deepcopy(full).to(dtype)
    full.load_state_dict(half.state_dict())
    entered = []
    for model in (full, half):
        with install(model, CONFIG) as handle:
            handle.step = 1
            model(**batch)
        entered.append(model.entered.detach())
    assert torch.equal(entered[0].to(dtype), entered[1])


def test_a_wide_row_in_float16_has_its_noise():
    """Length times width is above the largest number of float16, of which NeMo Automodel 0.7.0 makes a bound of 0
    (findings/automodel-noise-float16.sh)."""
    ids = torch.randint(1, 97, (2, 40))
    model = ToyModel(dim=2048).to(torch.float16).train()
    with torch.no_grad():
        model.embed_tokens.weight.zero_()  # so that nothing is rounded but the noise
    with install(model, CONFIG) as handle:
        handle.step = 0
        noise = model.noise(ids, attention_mask=torch.ones_like(ids)).float()
    paper = CONFIG.alpha / (40 * 2048 * 3) ** 0.5
    assert torch.allclose(noise.square().mean((1, 2)).sqrt(), torch.tensor(paper), rtol=0.02)
