"""A few original questions and answers, from which the drivers make their datasets."""

QUESTIONS = (
    "What did you see?",
    "Tell me about the harbour.",
    "Why was the train late this morning?",
    "Describe how bread is made.",
)
SENTENCES = (
    "The tide was out.",
    "Two gulls argued over a crust.",
    "A man in a green coat counted the boats twice.",
    "The lamp on the pier burned all night.",
    "Flour and water wait until the yeast is awake.",
    "Nobody knew that the bridge was open again.",
)


def question(i: int) -> str:
    return QUESTIONS[i % len(QUESTIONS)]


def answer(start: int, num_sentences: int) -> str:
    return " ".join(SENTENCES[(start + i) % len(SENTENCES)] for i in range(num_sentences))
