"""The measurements of answers in sections 5.1 and 5.2 of the NEFTune paper (arXiv 2310.05914).

Words are separated by spaces, as in the paper's Table 4. Each character of Chinese and Japanese counts as a word,
because these are written without spaces.
"""

import math
import re
from collections.abc import Sequence

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

CHUNK = 50
"""Number of words at the beginning of an answer in which repetition is measured: the paper's number for Alpaca."""

# The log-diversity of a text without repetition, which would be infinite otherwise.
LARGEST = 20.0

_WITHOUT_SPACES = re.compile(r"([\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return _WITHOUT_SPACES.sub(r" \1 ", text).split()


def repetition(text: Sequence[str], n: int) -> float:
    """Return 1 - (different n-grams) / (all n-grams), which is 0 without repetition. Needs at least n words."""
    found = [tuple(text[start : start + n]) for start in range(len(text) - n + 1)]
    return 1 - len(set(found)) / len(found)


def log_diversity(text: Sequence[str]) -> float:
    """-log(1 - (1 - r_2) (1 - r_3) (1 - r_4)) with r_n the repetition of n-grams, at most 20.

    Kirchenbauer et al. 2023, "On the Reliability of Watermarks for Large Language Models" (arXiv 2306.04634), which the
    paper's section 5.2 cites. Their code (jwkirchenbauer/lm-watermarking, metrics/repetition_diversity.py) has the
    bound of 20, passes over the last n-gram, and divides each r_n, which is a fraction, by 100 as if it were a
    percentage: its numbers, for texts that repeat, are larger by some log(100) = 4.6.
    """
    diversity = math.prod(1 - repetition(text, n) for n in (2, 3, 4))
    return -math.log(max(1 - diversity, math.exp(-LARGEST)))


def diversity(answers: Sequence[str], chunk: int = CHUNK) -> dict[str, float]:
    """Measure repetition in the first `chunk` words, 4 or more, of each answer, and return the means.

    Shorter answers are left out, as in section 5.2, because n-grams recur more often in a longer text. Returns
    `chunked`, the share of answers that are long enough, and, if there are any, `two_gram_repetition`, from 0 to 1, and
    `log_diversity`.
    """
    chunks = [text[:chunk] for text in map(words, answers) if len(text) >= chunk]
    values = {"chunked": len(chunks) / len(answers)}
    if chunks:
        values["two_gram_repetition"] = math.fsum(repetition(text, 2) for text in chunks) / len(chunks)
        values["log_diversity"] = math.fsum(map(log_diversity, chunks)) / len(chunks)
    return values


class _Words:
    """Return the words that ROUGE-L compares: in lower case, without punctuation. For English they equal those of
    rouge-score, which keeps only the letters a to z."""

    def tokenize(self, text: str) -> list[str]:
        return [word for part in words(text.lower()) for word in re.findall(r"[^\W_]+", part)]


def similarity(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Measure how much of the references' wording the answers contain (section 5.1).

    Returns `rouge_l`, the mean F1 of rouge-score from 0 to 1, without stemming, and `bleu`, sacreBLEU's of the whole
    corpus, from 0 to 100, up to 4-grams, with its tokenizer 13a.
    """
    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    rouge = [
        scorer.score(reference, answer)["rougeL"].fmeasure
        for answer, reference in zip(answers, references, strict=True)
    ]
    spaced = [[" ".join(words(text)) for text in texts] for texts in (answers, references)]
    bleu = BLEU(tokenize="13a", max_ngram_order=4).corpus_score(spaced[0], [spaced[1]])
    return {"rouge_l": math.fsum(rouge) / len(rouge), "bleu": bleu.score}
