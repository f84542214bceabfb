"""The demonstration's translation task: a few sentences of our own in six languages, in all thirty directions."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from itertools import permutations
from pathlib import Path
from typing import Any

import sentencepiece

SENTENCES_FILE = Path(__file__).resolve().parent.parent / "examples" / "data" / "flores.jsonl"
VOCABULARY = 200

TASK = {
    "name": "Flores MT evaluation (small task 1)",
    "purpose": "Translate between Croatian, Hungarian, Estonian, Serbian, Macedonian and English.",
    "description": (
        "Eight short sentences in six languages, each to be translated into the other five: thirty directions, which "
        "count the same. They are not the Flores-101 sentences, and their sp-BLEU is over the pieces of a small "
        "SentencePiece model trained on them: the numbers compare with nothing else. The set proves only that the path "
        "from an upload to a score works.\n\n"
        "Written for this project; MIT licence."
    ),
    "io_yaml": """\
context:
  - {name: sourceLanguage, type: string, placeholder: The language of the text}
  - {name: targetLanguage, type: string, placeholder: The language to translate into}
input:
  - {name: sourceText, type: string, placeholder: Enter a text}
  - {name: translatedText, type: string}
output:
  - {name: translatedText}
""",
}
BUILD_CONFIG: dict[str, Any] = {
    "aws_region": "us-west-2",
    "batch_strategy": "MultiRecord",
    "max_payload_mb": 1,
    "torchserve_config": {
        "default_response_timeout": 1200,
        "decode_input_request": False,
        "max_request_size": 12853500,
        "max_response_size": 12853500,
    },
}


def sentences() -> list[dict[str, str]]:
    """Each sentence by language."""
    return [json.loads(line) for line in SENTENCES_FILE.read_text(encoding="utf-8").splitlines()]


def flores_dataset() -> list[dict[str, Any]]:
    """Each sentence in each direction as dataset records."""
    return [
        {
            "uid": f"{number}-{source}-{target}-own",
            "sourceLanguage": source,
            "targetLanguage": target,
            "sourceText": sentence[source],
            "targetText": sentence[target],
        }
        for number, sentence in enumerate(sentences())
        for source, target in permutations(sentence, 2)
    ]


def train_sentencepiece(texts: Iterable[str], vocabulary: int = VOCABULARY) -> bytes:
    """A SentencePiece model of these texts: the same bytes every time."""
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(1)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=vocabulary,
        hard_vocab_limit=False,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def make_model(path: Path) -> None:
    """The model that cuts the set into pieces lies there."""
    if not path.exists():
        path.write_bytes(train_sentencepiece(text for sentence in sentences() for text in sentence.values()))
