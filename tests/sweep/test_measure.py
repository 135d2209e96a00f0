"""What is measured of a trained model, against computations of its own."""

import json
import math
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from neftune_transformers.tiny import make_tiny_model
from peft import LoraConfig, get_peft_model
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoModelForCausalLM, AutoTokenizer

from neftune_plugins import NEFTuneError
from neftune_plugins.sweep import measure, rows, text
from tests.support.documentation import ROOT, snippets

QUESTIONS = {
    "Say one word.": "Ferry",
    "What needs a garden, and who knows it better than all of the children of the village?": "water, patience, shade",
    "Why does bread rise?": "Because yeast eats sugar and breathes out gas.",
    "How long?": "eight minutes",
    "Who wound the station clock, which each Monday was right again, and each Friday late?": "Nobody could say who.",
}


def chat(question, answer=None):
    given = [] if answer is None else [{"role": "assistant", "content": answer}]
    return [{"role": "user", "content": question}, *given]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that has learnt the answers to some of the questions, so that its own answers end by themselves."""
    folder = make_tiny_model(tmp_path_factory.mktemp("model"), num_layers=1)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    learnt = list(QUESTIONS.items())[:4]
    texts = [tokenizer.apply_chat_template(chat(*row), tokenize=False) for row in learnt]
    texts += [f"{question}\n{answer}{tokenizer.eos_token}" for question, answer in learnt]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return measure.load_model(folder)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return measure.load_tokenizer(folder)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": chat(*row)}) + "\n" for row in QUESTIONS.items()))
    return path


def greedy(model, prompt, end, most):
    """The answer by the definition: the likeliest token each time, where the logit of one that the text already has is
    divided by 1.2 if it is positive, and multiplied if it is negative (arXiv 1909.05858, section 4.1)."""
    ids = list(prompt)
    while len(ids) < len(prompt) + most:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].tolist()
        penalised = [
            (logit / 1.2 if logit > 0 else logit * 1.2) if token in ids else logit for token, logit in enumerate(logits)
        ]
        ids.append(penalised.index(max(penalised)))
        if ids[-1] == end:
            break
    return ids[len(prompt) :]


def test_the_loss_is_that_of_all_answer_tokens(model, tokenizer, data):
    total, tokens = 0.0, 0
    for question, answer in QUESTIONS.items():
        prompt = tokenizer.apply_chat_template(chat(question), tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt + answer + tokenizer.eos_token, add_special_tokens=False).input_ids
        own = len(tokenizer(answer + tokenizer.eos_token, add_special_tokens=False).input_ids)
        labels = [-100] * (len(ids) - own) + ids[-own:]
        total += model(torch.tensor([ids]), labels=torch.tensor([labels])).loss.item() * own
        tokens += own
    encoded = [row.encode(tokenizer) for row in rows.read(data)]
    for batch_size in (1, 2, 5):
        assert math.isclose(measure.loss(model, encoded, batch_size), total / tokens, rel_tol=1e-5)


def test_answers_are_greedy_with_the_penalty_however_they_are_batched(folder, tokenizer):
    """Padding is not to be taken for text: its token is often the one that ends an answer, which the penalty would put
    off in the padded rows. These prompts have none, unlike those of chats; and with a constant added to all logits,
    which says the same, the penalty is the stronger."""
    model = measure.load_model(folder)
    model.lm_head.bias = torch.nn.Parameter(torch.full((len(tokenizer),), 300.0))
    end = tokenizer.eos_token_id
    prompts = [rows.Row(f"{question}\n", "").encode(tokenizer)[0] for question in QUESTIONS]
    assert len(set(map(len, prompts))) == len(prompts)
    alone = [greedy(model, prompt, end, 24) for prompt in prompts]
    assert all(answer[-1] == end for answer in alone) and len(set(map(len, alone))) > 2
    for batch_size in (1, 2, 5):
        assert measure.generate(model, prompts, {end}, 24, batch_size) == alone


def test_the_model_may_have_settings_of_its_own_for_generation(folder, tokenizer, data):
    model = measure.load_model(folder)
    prompts = [row.encode(tokenizer)[0] for row in rows.read(data)]
    plain = measure.generate(model, prompts, {tokenizer.eos_token_id}, 16)
    model = measure.load_model(folder)
    model.generation_config.update(do_sample=True, temperature=2.0, repetition_penalty=3.0, num_beams=3, min_length=60)
    assert measure.generate(model, prompts, {tokenizer.eos_token_id}, 16) == plain


def test_lengths_and_ends(model, tokenizer, data):
    values, answers = measure.measure(model, tokenizer, rows.read(data), "held_out", max_new_tokens=6)
    assert {answer.finished for answer in answers} == {True, False}
    for answer in answers:
        assert answer.length == 6 or answer.finished
        assert answer.length == len(tokenizer(answer.answer, add_special_tokens=False).input_ids)
    assert values["held_out_length"] == sum(answer.length for answer in answers) / 5
    assert values["held_out_unfinished"] == sum(not answer.finished for answer in answers) / 5
    assert [answer.prompt for answer in answers] == list(QUESTIONS)
    assert [answer.reference for answer in answers] == list(QUESTIONS.values())


def test_an_adapter_is_measured_with_its_model(folder, tmp_path, data):
    torch.manual_seed(0)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    results = {}
    for name in ("adapter", "merged"):
        arguments = [tmp_path / name, data, tmp_path / "result.json", "--tokenizer", folder, "--max-new-tokens", 12]
        measure.main(list(map(str, arguments)))
        results[name] = json.loads((tmp_path / "result.json").read_text())
    assert results["adapter"].pop("answers") == results["merged"].pop("answers")
    assert results["adapter"] == pytest.approx(results["merged"], rel=1e-4)
    assert measure.load_tokenizer(tmp_path / "adapter").get_vocab() == measure.load_tokenizer(folder).get_vocab()


def test_the_documented_command_writes_the_documented_values(folder, data, tmp_path, monkeypatch, capsys):
    page = ROOT / "docs" / "sweep-report.md"
    [command] = snippets(page, "bash")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(folder)
    for name in ("held_out", "train"):
        shutil.copy(data, f"{name}.jsonl")
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "neftune_plugins.sweep.measure"]
    measure.main([*words[3:], "--max-new-tokens", "24", "--chunk", "4", "--limit", "4"])
    found = json.loads(Path("measured.json").read_text())
    assert len(found.pop("answers")) == 8
    documented = re.findall(r"^\| `(\w+)` \|", page.read_text(), re.MULTILINE)
    assert list(found) == [f"{rows}_{name}" for rows in ("held_out", "trained_on") for name in documented]
    assert all(isinstance(value, float) for value in found.values())
    assert found["trained_on_loss"] == found["held_out_loss"]
    assert "held_out_rouge_l" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        measure.main(["--help"])
    shown = capsys.readouterr().out
    assert all(option in shown for option in re.findall(r"--[a-z][a-z-]+", page.read_text()))
    assert "default: 256" in shown and "default: 50" in shown


def test_the_loss_may_be_of_more_rows_than_the_answers(model, tokenizer, data):
    own = rows.read(data, "chat")
    options = {"max_new_tokens": 4, "chunk": 4}
    whole, answers = measure.measure(model, tokenizer, own, "held_out", **options)
    values, first = measure.measure(model, tokenizer, own, "held_out", answered=2, **options)
    assert first == answers[:2]
    assert values["held_out_loss"] == whole["held_out_loss"]
    few, _ = measure.measure(model, tokenizer, own[:2], "held_out", **options)
    assert few.pop("held_out_loss") != values.pop("held_out_loss")
    assert values == few


def test_a_number_that_is_too_small_is_refused(capsys):
    with pytest.raises(SystemExit):
        measure.main(["model", "rows", "result", "--chunk", "3"])
    assert "argument --chunk: 3 is less than 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--max-new-tokens", "2048"],
            r"row 1 takes \d+ tokens .* but the model has 2048 positions",
        ),
        (
            ["--tokenizer", "no_tokenizer"],
            "no_tokenizer: there is no tokenizer in it; name",
        ),
        (["--train", "missing.jsonl"], "missing.jsonl: there is no such file"),
    ],
)
def test_what_cannot_be_measured_is_told(folder, data, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no_tokenizer").mkdir()
    with pytest.raises(SystemExit, match=f"^neftune: {message}"):
        measure.main([str(folder), str(data), str(tmp_path / "result.json"), *options])


def test_a_folder_without_a_model_is_told(tmp_path, data):
    with pytest.raises(SystemExit, match=r"there is neither config.json nor adapter_config.json in it"):
        measure.main([str(tmp_path), str(data), str(tmp_path / "result.json")])


def test_a_model_that_has_diverged_is_an_error(folder, tokenizer, data):
    model = measure.load_model(folder)
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    with pytest.raises(NEFTuneError, match="the held_out loss of the model is nan: its training has diverged"):
        measure.measure(model, tokenizer, rows.read(data), "held_out")


# Rows


def read(tmp_path, *found, **options):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in found))
    return rows.read(path, **options)


def test_rows_of_each_form(tmp_path, tokenizer):
    instruction = {"instruction": "Add.", "input": "1, 2", "output": "3"}
    forms = [
        {"messages": [{"role": "system", "content": "Be brief."}, *chat("Hi", "Hello")]},
        instruction,
        instruction | {"input": ""},
        {"prompt": "Q: 1\nA:", "completion": " one"},
        {"prompt": chat("Hi"), "completion": [{"role": "assistant", "content": "Hello"}]},
    ]
    found = read(tmp_path, *forms, "")
    begins = [tokenizer.decode(row.encode(tokenizer)[0]) for row in found]
    assert begins[0] == "<s>system\nBe brief.</s>\n<s>user\nHi</s>\n<s>assistant\n"
    assert begins[1].endswith("\n\n### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n")
    assert begins[2].endswith("\n\n### Instruction:\nAdd.\n\n### Response:\n")
    assert "paired with an input" in begins[1] and "paired" not in begins[2]
    assert begins[3] == "Q: 1\nA:"
    assert begins[4] == "<s>user\nHi</s>\n<s>assistant\n"
    answers = [tokenizer.decode(row.encode(tokenizer)[1]) for row in found]
    assert answers == ["Hello</s>", "3</s>", "3</s>", " one</s>", "Hello</s>"]
    [row] = read(tmp_path, instruction, instructions="chat")
    assert tokenizer.decode(row.encode(tokenizer)[0]) == "<s>user\nAdd.\n\n1, 2</s>\n<s>assistant\n"
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(forms, indent=2))
    assert rows.read(path) == found


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"question": "Hi", "answer": "Hello"}, "none of these are there as texts or messages: messages; instruction"),
        ({"messages": chat("Hi")}, "the last of the messages is the answer and needs role assistant"),
        ({"messages": chat("Hi", "Hello")[1:]}, "there is no message before the answer"),
        ({"messages": [{"from": "human"}, *chat("Hi", "Hello")]}, "a message needs role and content, both texts"),
        ({"prompt": "", "completion": "Hello"}, "the prompt is empty"),
        ('{"prompt": "Hi",', "Expecting"),
    ],
)
def test_rows_that_cannot_be_read_are_told_by_their_number(tmp_path, second, message):
    with pytest.raises(NEFTuneError, match=rf"rows.jsonl, row 2: {message}"):
        read(tmp_path, {"prompt": "Hi", "completion": "Hello"}, second)


def test_no_rows_are_an_error(tmp_path):
    with pytest.raises(NEFTuneError, match="there are no rows in it"):
        read(tmp_path, "")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "the rows are chats, but the tokenizer has no chat template"),
        ("{{ messages | length }}", "the chat template writes the prompt otherwise when the answer follows"),
    ],
)
def test_chats_that_the_tokenizer_cannot_write_are_told(folder, template, message):
    tokenizer = measure.load_tokenizer(folder)
    tokenizer.chat_template = template
    with pytest.raises(NEFTuneError, match=message):
        rows.Row(tuple(chat("Hi")), "Hello").encode(tokenizer)


# Texts


def test_repetition_of_n_grams():
    words = ["a", "b", "a", "b", "c", "a", "b"]  # ab ba ab bc ca ab; aba bab abc bca cab; abab babc abca bcab
    assert text.repetition(words, 2) == pytest.approx(1 - 4 / 6)
    assert text.repetition(words, 3) == 0
    assert text.log_diversity(words) == pytest.approx(-math.log(1 - 4 / 6))
    assert text.log_diversity(["a", "a", "a", "a", "a"]) == pytest.approx(-math.log(1 - 1 / 4 * 1 / 3 * 1 / 2))
    assert text.log_diversity(["a", "b", "c", "d", "e"]) == 20


def test_repetition_is_looked_for_in_the_beginning_of_long_answers():
    values = text.diversity(["a b a b c a b a b a b a b", "a b c d e f g", "a a a a a a"], chunk=7)
    assert values["chunked"] == pytest.approx(2 / 3)
    assert values["two_gram_repetition"] == pytest.approx((2 / 6 + 0) / 2)
    assert values["log_diversity"] == pytest.approx((-math.log(1 / 3) + 20) / 2)
    assert text.diversity(["a b"], chunk=7) == {"chunked": 0}


def test_words_of_writing_without_spaces():
    assert text.words("日本の bread") == ["日", "本", "の", "bread"]
    assert text.similarity(["我喜欢面包"], ["我喜欢面包"]) == pytest.approx({"rouge_l": 1, "bleu": 100})
    assert 0 < text.similarity(["我喜欢水"], ["我喜欢面包"])["rouge_l"] < 1


def test_similarity_by_hand():
    """Of 6 words 5 are the reference's, in its order; it has 7."""
    answer, reference = "the cat sat on a mat", "the black cat sat on the mat"
    values = text.similarity([answer, answer], [reference, answer])
    recall, precision = 5 / 7, 5 / 6
    assert values["rouge_l"] == pytest.approx((2 * precision * recall / (precision + recall) + 1) / 2)
    matches = [(5 + 6) / 12, (2 + 5) / 10, (1 + 4) / 8, (0 + 3) / 6]  # of 1- to 4-grams
    brevity = math.exp(1 - 13 / 12)
    assert values["bleu"] == pytest.approx(100 * brevity * math.prod(matches) ** (1 / 4))


def test_rouge_l_of_english_is_rouge_scores_own():
    answer, reference = "It's 5 p.m.: the Ferry_boat leaves, don't wait!", "The ferry boat (at 5) leaves; do not wait."
    own = RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure
    assert text.similarity([answer], [reference])["rouge_l"] == own
