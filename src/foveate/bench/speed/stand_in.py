"""The question that is asked, and a tokenizer of its words for models that have none.

A model with random weights has no tokenizer. What finds the question's nouns and looks up their embeddings costs
here what it costs anywhere; what the embeddings say of the image means nothing.
"""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION = "What colour is the umbrella beside the red car in the photograph?"
WORDS = range(100, 1000)  # ids of text that says nothing
FIRST = 1000  # id of the question's first word
_SPLIT = QUESTION.replace("?", " ?").split()
VOCABULARY = {word: FIRST + number for number, word in enumerate(dict.fromkeys(_SPLIT))}
QUESTION_IDS = [VOCABULARY[word] for word in _SPLIT]


@cache
def stand_in() -> "PreTrainedTokenizerBase":
    """A fast tokenizer that knows the question's words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({**VOCABULARY, "[UNK]": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    return tokenizer
