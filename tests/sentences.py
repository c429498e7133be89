"""Sentence encoders of a few thousand random weights, in folders as transformers saves them."""

import json
import string

import torch
import transformers

WORDS = ("push", "pull", "go", "move", "drive", "reach", "to", "the", "do", "it", "disc", "one", "circle", "target",
         "green", "yellow", "purple", "black")  # fmt: skip
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def minilm(folder, seed=0):
    """A BERT and its tokenizer."""
    torch.manual_seed(seed)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=32, initializer_range=0.5, **SIZES)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def clip(folder, whole=False):
    """The text tower of a CLIP, or the `whole` of it, and its tokenizer: one token a letter."""
    torch.manual_seed(0)
    letters = [letter + end for letter in string.ascii_lowercase for end in ("", "</w>")]
    vocabulary = {token: number for number, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    ends = {"bos_token_id": len(letters), "eos_token_id": len(letters) + 1}
    text = {"vocab_size": len(vocabulary), "projection_dim": 8, "max_position_embeddings": 24, **ends, **SIZES}
    if whole:
        pixels = {**SIZES, "image_size": 32, "patch_size": 8}
        made = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=pixels, projection_dim=8))
    else:
        made = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**text))
    made.save_pretrained(folder)
    return folder
