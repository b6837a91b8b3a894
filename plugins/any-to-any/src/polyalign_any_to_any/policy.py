"""The `any-to-any` policy: any causal language model over one stream of text and codes of media."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyalign.assets import resolve_model
from polyalign.errors import ConfigError, nearest
from polyalign.policies.base import Batch, Rollouts, evaluating
from polyalign.policies.completion_mask import Encoded
from polyalign.policies.pretrained import is_adapter, load, load_model, within_context
from polyalign.policies.token_collator import TokenCollator
from polyalign.policies.tokens import TokenPolicy
from polyalign.records.samples import Sample
from polyalign.records.schema import Message
from polyalign_any_to_any.config import AnyToAnyConfig
from polyalign_any_to_any.encoder import MixedCollator, MixedEncoder
from polyalign_any_to_any.extension import extended, spans_of
from polyalign_any_to_any.generation import MixedDecoding, generate
from polyalign_any_to_any.media.base import open_tokenizer
from polyalign_any_to_any.spans import Vocabulary

logger = logging.getLogger(__name__)
WHAT = "a causal language model"
MEDIA_FOLDER = "media"  # inside the model's folder: one tokenizer each


class MixedTokenPolicy(TokenPolicy):
    """A token policy whose prompts and responses mix text and media.

    A code is scored among the codes that could stand in its place, a word among everything that is no code: what decoding can
    choose from. Decisions that are codes are of kind "media".
    """

    collator_class: ClassVar[type[TokenCollator]] = MixedCollator
    encoder: MixedEncoder

    def __init__(self, model: Any, encoder: MixedEncoder, config: AnyToAnyConfig) -> None:
        self.vocabulary = encoder.vocabulary
        super().__init__(model, encoder, config)
        # Most of the vocabulary is out of reach at any place: a mean over it says nothing, and a teacher's likeliest ids are few.
        self.provides = self.provides - {"mean_logit", "token_targets"}
        self.inputs = self.outputs = frozenset({"text", *(span.modality for span in self.vocabulary.spans)})

    def _at(self, rows: Batch, row: Tensor, predictors: Tensor) -> tuple[Tensor, Any, Tensor]:
        hidden = self.states(rows)
        # The class of a position goes through the chunked head as one more column of its state.
        classes = self.vocabulary.follows.to(hidden.device)[rows.tensors["input_ids"][row, predictors]]  # [P]
        scored = torch.cat([hidden[row, predictors], classes[:, None].to(hidden.dtype)], 1)

        def head(states: Tensor) -> Tensor:
            return self.vocabulary.masked(self.head(states[:, :-1]), states[:, -1].long())

        return scored, head, hidden

    def embed(self, batch: Batch, media: Any) -> Tensor:
        return self.embed_ids(batch.tensors["input_ids"])

    def embed_ids(self, ids: Tensor) -> Tensor:
        """Return input embeddings ``[..., H]`` of ids, codes among them."""
        return self.model.get_input_embeddings()(ids)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _split_is_exact(self) -> bool:
        """Compare with the model's own forward on a few words, the only thing that every model's forward makes logits of
        (Chameleon hides its picture codes, Janus makes them by another head). There is no other way to score here."""
        probe, text = self.probe(1), self.vocabulary.allowed[0]
        with evaluating(self):
            _, expected = self.whole(probe)
            found = self.head(self.states(probe))[..., : expected.shape[-1]]
        shown = text[: expected.shape[-1]].to(found.device)
        if not torch.allclose(found[..., shown].float(), expected[..., shown].float(), rtol=1e-4, atol=1e-4):
            raise ConfigError(
                f"{type(self.model).__name__}: logits are more than a head over the decoder's states, so codes of media "
                "cannot be scored apart from words; this architecture needs a policy of its own"
            )
        return True

    def probe(self, samples: int) -> Batch:
        """Return a small batch of words. Media are ids like others; what follows them is masked."""
        draw = torch.Generator().manual_seed(0)
        heads = [token for span in self.vocabulary.spans for token in span.head]
        shown = self.vocabulary.allowed[0].clone()
        shown[heads] = False
        known = shown[: self.model.get_input_embeddings().num_embeddings].nonzero().flatten()
        ids = known[torch.randint(len(known), (6 + 4 * samples,), generator=draw)].tolist()
        rows = [Encoded(tuple(ids[:6]), tuple(ids[6 + 4 * n : 9 + 4 * n + n])) for n in range(samples)]
        return self.collator.layout((), rows, torch.ones(samples), None).to(self.model.device)

    def without_messages(self, row: Encoded) -> Encoded:
        """Return the prompt that guidance moves away from: only the tokens that give the conversation its form are left."""
        special = set(self.tokenizer.all_special_ids)
        shape = tuple(token for token in row.prompt if token in special and not self.vocabulary.hidden[token])
        return Encoded(shape or row.prompt[-1:], ())

    def generate(
        self, prompts: Sequence[tuple[Message, ...]], *, samples_per_prompt: int = 1, seed: int = 0, **decoding: Any
    ) -> Rollouts:
        """Return rollouts of text and media; ``decoding`` as `MixedDecoding`. ``output`` is the text, picture, clip ... that a
        response is, or a tuple of them in order; ``modalities`` says which."""
        known = set(MixedDecoding.__dataclass_fields__)
        for name in decoding:
            if name not in known:
                raise ConfigError(f"unknown decoding setting {name!r};{nearest(name, known)} known: {', '.join(sorted(known))}")
        decoding.setdefault("max_new_tokens", self.collator.max_response)
        return generate(self, prompts, samples_per_prompt, seed, MixedDecoding(**decoding))

    def prepare(self, samples: Sequence[Sample], cache: Path, progress: Any = None) -> None:
        """Encode the media of all samples, once for all runs that share the cache; see `TokenPolicy.prepare` for the rest."""
        path = cache / "media-codes" / f"{self.fingerprint()[:16]}.json"
        self.encoder.remember(path)
        super().prepare(samples, cache, progress)
        self.encoder.keep(path)

    def _write(self, folder: Path, model: Any) -> None:
        super()._write(folder, model)
        for span in self.vocabulary.spans:
            span.tokenizer.save(folder / MEDIA_FOLDER / span.modality)


def build(config: AnyToAnyConfig, *, device: str | torch.device = "cpu", seed: int = 0) -> MixedTokenPolicy:
    """Return the policy at its starting weights: the base with new rows for what it does not know yet. ``seed`` keys them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve_model(config.base)
    tokenizer = load(AutoTokenizer, WHAT, folder, config)
    model = load_model(AutoModelForCausalLM, WHAT, folder, config, device)
    places = {path.name: path for path in sorted((Path(folder) / MEDIA_FOLDER).glob("*")) if path.is_dir()}
    places |= {modality: Path(resolve_model(place)) for modality, place in config.media.items()}
    if not places:
        raise ConfigError(
            f"policy.base {config.base!r} comes with no media tokenizers; name some: policy.media: {{image: FOLDER}}"
        )
    media = [open_tokenizer(place) for place in places.values()]
    policy = assembled(model, tokenizer, media, config, seed)
    policy.merged_base = is_adapter(folder)
    return policy


def assembled(model: Any, tokenizer: Any, media: Sequence[Any], config: AnyToAnyConfig, seed: int = 0) -> MixedTokenPolicy:
    """Return the policy over a loaded model whose vocabulary is extended by what these media need."""
    config = within_context(config, model.config.get_text_config())
    extended(model, tokenizer, media, config.lora, seed)
    vocabulary = Vocabulary(model.config.get_text_config().vocab_size, spans_of(tokenizer, media))
    return MixedTokenPolicy(model, MixedEncoder(tokenizer, vocabulary, config.chat_template), config)
