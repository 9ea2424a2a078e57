"""A CLIP tokenizer with a small vocabulary, learned from the captions of the grid.

CLIP's own table has 49,408 rows, more than the whole of mini-SDXL. This one is the same algorithm
(lower-cased, byte-level BPE with an end-of-word mark) with about two thousand rows; every text can
be written in it, so unknown words fall into pieces as they do in CLIP.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def learn(captions: Iterable[str], vocabulary: int, max_tokens: int) -> CLIPTokenizer:
    """Learn a byte-pair vocabulary.

    Args:
        captions: texts to learn from; their order does not matter.
        vocabulary: number of rows, at least 514.
        max_tokens: length of a prompt, begin and end marks included.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=EOS))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.train_from_iterator(
        sorted(captions),
        trainers.BpeTrainer(
            vocab_size=vocabulary - 2 - len(letters),
            initial_alphabet=letters,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    pieces = letters + [f"{letter}</w>" for letter in letters] + ["".join(m) for m in merges]
    unique = dict.fromkeys(pieces)
    table = {piece: index for index, piece in enumerate([*unique, BOS, EOS])}
    return CLIPTokenizer(vocab=table, merges=merges, model_max_length=max_tokens)


def save(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the files that transformers, diffusers and open_clip read."""
    tokenizer.save_pretrained(folder)
