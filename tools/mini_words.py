"""The tokenizers of mini: byte-level BPE in which every word of the training text is one token."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, IMAGE, EOS = (
    "<pad>",
    "<s>",
    "<image>",
    "</s>",
)  # ids 0, 1, 2, 3: CLIP reads an eos of 2 as "take the largest id"


def build_tokenizer(corpus: list[str], vocabulary: int, *, lowercase: bool, eos: bool) -> PreTrainedTokenizerFast:
    """A tokenizer that takes any text; `eos` closes every text with the end token, as CLIP's does."""
    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    words = pre_tokenizers.Split(Regex(r" ?[^\s\p{P}]+| ?\p{P}+|\s"), "isolated")  # 'a1', a cell, is one word
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=lowercase, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, IMAGE, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    template = f"{BOS} $A {EOS}" if eos else f"{BOS} $A"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="right" if eos else "left",
        clean_up_tokenization_spaces=False,
        model_max_length=64 if eos else 2048,
    )
