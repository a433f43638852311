"""A small byte-level tokenizer, learnt from a data set's own questions.

For runs that start from random weights: any text can be encoded, and what the set asks about comes
out as few tokens. A run that starts from a checkpoint keeps the checkpoint's tokenizer.
"""

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, marks: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Learns byte-pair merges from texts.

    Args:
        texts: What to learn from; the order does not matter.
        vocab_size: Most tokens, at least the 256 bytes and the end of text.
        marks: Words that are tokens by themselves.

    Raises:
        ValueError: `vocab_size` is below 257.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size <= len(alphabet):
        raise ValueError(f"vocab_size must be > {len(alphabet)}, got {vocab_size}")
    tokenizer = Tokenizer(BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(alphabet),
        special_tokens=[END_OF_TEXT, *marks],
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(texts)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )
