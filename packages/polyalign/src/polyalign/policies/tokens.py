"""The token family: any transformers causal model over the tokens of prompts and responses.

Scoring is split ``encode_media -> embed -> backbone -> head`` so that a subclass changes one stage and keeps the rest. Rows
are plain (one per sample) or shared (all responses to a prompt behind it, `shared_prefix`); the stages see either alike.
"""

from __future__ import annotations

import inspect
import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polyalign.errors import ConfigError, TrainingError, nearest
from polyalign.policies import attention_by_parts, generation
from polyalign.policies.attention_by_parts import BY_PARTS, with_parts
from polyalign.policies.base import Batch, Policy, Rollouts, Scores, evaluating
from polyalign.policies.completion_mask import Encoded, PromptResponseEncoder
from polyalign.policies.config import TokensConfig
from polyalign.policies.fingerprint import vocabulary_text, weights_fingerprint
from polyalign.policies.logprobs import CHUNK_LOGITS, in_chunks, reduce_logits, reduce_to_likeliest, scatter
from polyalign.policies.pretrained import merged_copy, plain_weights
from polyalign.policies.shared_prefix import block_mask, costs_of, flex_mask, in_shared_rows
from polyalign.policies.token_collator import TARGETS_GIVEN, TokenCollator
from polyalign.policies.token_features import FEATURES, Lines, line_tokens, token_features
from polyalign.records.samples import Sample
from polyalign.records.schema import Message

logger = logging.getLogger(__name__)
VALUE_HEAD_FILE = "value_head.safetensors"
PROVIDED = {"log_probs", "entropy", "mean_logit", "log_sum_squares", "token_targets"} | FEATURES
LAYERS_MASKED = {"full_attention", "sliding_attention"}  # kinds of layers that a mask over earlier tokens describes


class TokenPolicy(Policy):
    """A transformers causal model whose decisions are the tokens of the response.

    Extras of `forward`, with N samples and T scored tokens in the longest response (0 where nothing is scored):

    - ``entropy`` ``[N, T]``, nats; ``mean_logit`` ``[N, T]``, over the vocabulary; ``log_sum_squares`` ``[N, T]``,
      the log of the probability that two tokens drawn there are the same, without gradient;
    - ``values`` ``[N, T]``, the value head's view of the state before each token;
    - ``hidden`` and ``prompt_hidden`` ``[N, H]``, ``states`` ``[N, T, H]`` with ``step_ends`` ``[N, T]``: last-layer hidden
      states as `token_features.token_features` reads them;
    - ``token_targets`` and ``target_rest`` ``[N, T]``, ``target_log_probs`` ``[N, T, K]`` for a batch made by
      `with_token_targets`, along with what that put in: what a distillation loss needs of the vocabulary, and no more.

    Dropout of the base model is off in training too, so that the policy equals its reference before the first step; LoRA
    keeps the dropout of its own configuration.
    """

    family: ClassVar[str] = "tokens"
    inputs = frozenset({"text"})
    outputs = frozenset({"text"})
    by_token: ClassVar[tuple[str, ...]] = ("input_ids", "position_ids", "media_index")  # tensors with an entry per token
    collator_class: ClassVar[type[TokenCollator]] = TokenCollator
    merged_base = False  # the base was made by merging a LoRA folder, so it lies nowhere on disk

    def __init__(self, model: Any, encoder: PromptResponseEncoder, config: TokensConfig, *, value_head: bool = False) -> None:
        super().__init__()
        silence_dropout(model)
        self.model = model
        self.encoder = encoder
        self.tokenizer = encoder.tokenizer
        self.collator = self.collator_class(encoder, config)
        self.value_head = nn.Linear(model.config.get_text_config().hidden_size, 1, device=model.device) if value_head else None
        if self.value_head is not None:  # starts at 0 for every state
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
        self.provides = frozenset(PROVIDED | ({"values"} if value_head else set()))
        self.config = config
        self._fingerprint: str | None = None
        self._line_tokens: Lines | None = None
        self.splits = self._split_is_exact()
        if self.splits and config.rows != "plain":
            attention_by_parts.take(model.config.get_text_config())
        if self.splits and config.rows == "auto":
            self.collator.costs = costs_of(model)
        self.shares = self.splits and config.rows != "plain" and self._sharing_is_exact()

    # scoring

    def forward(self, batch: Batch, want: frozenset[str] = frozenset()) -> Scores:
        self._check(batch, want)
        rows, mask = self.rows(batch), batch.mask[:, 0]  # [N, T]
        tensors = rows.tensors
        samples, columns = mask.nonzero(as_tuple=True)  # P scored positions
        row, predictors = tensors["row"][samples], tensors["predictors"][samples, columns]
        scored, head, hidden = self._at(rows, row, predictors)
        targeted = "token_targets" in want
        reduced = in_chunks(
            self._reducer(head, want),
            self._head_chunk,
            scored,
            tensors["targets"][samples, columns],
            tensors["temperature"][samples],
            tensors["target_ids"][samples, columns] if targeted else None,
            tensors["target_values"][samples, columns] if targeted else None,
        )
        if self.value_head is not None:  # always run, so that its gradient exists on every process
            with torch.autocast(scored.device.type, enabled=False):
                reduced["values"] = self.value_head(hidden[row, predictors].float()).squeeze(-1)
        log_probs = scatter(reduced.pop("log_probs"), mask)[:, None]  # [N, 1, T]
        extras = {name: scatter(value, mask) for name, value in reduced.items()}
        if targeted:
            extras |= {name: tensors[name] for name in TARGETS_GIVEN if name in tensors}
        extras |= token_features(want, hidden, tensors, mask, lambda: self._lines(mask.device))
        return Scores(log_probs, batch.mask, batch.kind, extras)

    @torch.no_grad()
    def likeliest(self, batch: Batch, count: int, ids: Tensor | None = None, within: int | None = None) -> tuple[Tensor, Tensor]:
        """Return (ids ``[P, K]``, log-probabilities ``[P, K + 1]``) at the P scored positions of the batch, row by row.

        The ``count`` likeliest ids of each position, likeliest first, or the given ``ids`` ``[P, K]``; the last column is the
        log of what all other ids hold. ``within``: only the first so many ids exist; some models pad their vocabulary.
        """
        rows = self.rows(batch)
        samples, columns = batch.mask[:, 0].nonzero(as_tuple=True)
        scored, head, _ = self._at(rows, rows.tensors["row"][samples], rows.tensors["predictors"][samples, columns])

        def reduce(states: Tensor, given: Any = None) -> dict[str, Tensor]:
            logits = (states if head is None else head(states))[:, :within]
            with torch.autocast(logits.device.type, enabled=False):
                return reduce_to_likeliest(logits, given, min(count, logits.shape[1]))

        found = in_chunks(reduce, self._head_chunk, scored, ids)
        return found["ids"], found["log_probs"]

    def _at(self, rows: Batch, row: Tensor, predictors: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor] | None, Tensor]:
        """Return (what stands at P positions, the head that makes logits of it, hidden states ``[R, L, H]``). The first is
        ``[P, H]``, so that prompt and padding never meet the vocabulary; without a split it is the logits, and head is None."""
        if self.splits:
            hidden = self.states(rows)
            return hidden[row, predictors], self.head, hidden
        hidden, logits = self.whole(rows)
        return logits[row, predictors], None, hidden

    @property
    def _head_chunk(self) -> int:
        return self.config.head_chunk or max(1, CHUNK_LOGITS // self.vocabulary_size)

    def rows(self, batch: Batch) -> Batch:
        """Return the batch as the model will see it: ``input_ids``, ``position_ids`` and ``attention_mask`` of R rows, which
        is a 2-D mask of padding for plain rows and a mask of (query, key) pairs for shared ones."""
        if not self.shares or "shared" not in batch.tensors:
            return batch
        moved = in_shared_rows(batch, [name for name in self.by_token if name in batch.tensors])
        moved.tensors["attention_mask"] = self._attention_mask(moved.tensors)
        return moved

    def _attention_mask(self, tensors: dict[str, Tensor]) -> Any:
        """Return the block mask in the form that the model's layers take: one, or one per kind of layer."""
        config = self.model.config.get_text_config()
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        kind = config._attn_implementation

        def form(window: int | None) -> Any:
            if kind == "flex_attention":
                return flex_mask(tensors, window)
            seen = block_mask(tensors, window)
            if kind == BY_PARTS and window is None:
                return with_parts(seen, tensors["owner"], tensors["prefix"])
            if kind != "eager":
                return seen
            added = torch.zeros(seen.shape, device=seen.device, dtype=self.model.dtype)
            return added.masked_fill(~seen, torch.finfo(added.dtype).min)

        kinds = set(getattr(config, "layer_types", None) or ())
        if "sliding_attention" not in kinds:
            return form(None if kinds else window)
        return {kind: form(window if kind == "sliding_attention" else None) for kind in sorted(kinds)}

    def _reducer(self, head: Callable[[Tensor], Tensor] | None, want: frozenset[str]) -> Callable[..., dict[str, Tensor]]:
        def reduce(states: Tensor, targets: Any, temperature: Tensor, ids: Any = None, values: Any = None) -> dict[str, Tensor]:
            logits = states if head is None else head(states)  # [P, V]
            with torch.autocast(logits.device.type, enabled=False):
                return reduce_logits(
                    logits,
                    targets,
                    temperature,
                    entropy="entropy" in want,
                    mean_logit="mean_logit" in want,
                    log_sum_squares="log_sum_squares" in want,
                    target_ids=ids,
                    target_values=values,
                )

        return reduce

    def _lines(self, device: torch.device) -> Lines:
        if self._line_tokens is None:
            self._line_tokens = line_tokens(self.tokenizer, self.vocabulary_size)
        newline, content = self._line_tokens
        return newline.to(device), content.to(device)

    @property
    def feature_sizes(self) -> dict[str, int]:
        return dict.fromkeys(sorted(FEATURES), int(self.model.config.get_text_config().hidden_size))

    @property
    def vocabulary_size(self) -> int:
        return int(self.model.config.get_text_config().vocab_size)

    def states(self, batch: Batch) -> Tensor:
        """Return last-layer hidden states ``[R, L, H]`` of rows."""
        return self.backbone(self.embed(batch, self.encode_media(batch)), batch)

    def encode_media(self, batch: Batch) -> Any:
        """Return features of the batch's media, each distinct medium once; None where a policy reads text only."""
        return None

    def embed(self, batch: Batch, media: Any) -> Tensor:
        """Return input embeddings ``[R, L, H]``. ``media`` is what `encode_media` returned."""
        return self.model.get_input_embeddings()(batch.tensors["input_ids"])  # type: ignore[no-any-return]

    def backbone(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """Return last-layer hidden states ``[R, L, H]``, after the final norm."""
        decoder = self.model.get_decoder()
        output = decoder(inputs_embeds=embeddings, use_cache=False, return_dict=True, **self._row_inputs(decoder, batch))
        return output.last_hidden_state  # type: ignore[no-any-return]

    def head(self, states: Tensor) -> Tensor:
        """Return logits ``[P, V]`` of hidden states ``[P, H]``, with the scaling and soft cap of the architecture."""
        config = self.model.config.get_text_config()
        logits = self.model.get_output_embeddings()(states)
        if getattr(config, "logit_scale", None):  # Cohere
            logits = logits * config.logit_scale
        if getattr(config, "logits_scaling", None):  # Granite
            logits = logits / config.logits_scaling
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma
        return cap * torch.tanh(logits / cap) if cap else logits  # type: ignore[no-any-return]

    def whole(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return (hidden states ``[R, L, H]``, logits ``[R, L, V]``) from the model's own forward: the path of
        architectures whose logits are more than a head over the decoder's states. Costs memory by length x vocabulary."""
        output = self.model(
            input_ids=batch.tensors["input_ids"],
            output_hidden_states=True,
            use_cache=False,
            return_dict=True,
            **self._row_inputs(self.model, batch),
        )
        return output.hidden_states[-1], output.logits

    def media_inputs(self, rows: Sequence[Encoded], input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
        """Return what transformers' ``generate`` takes for the media of left-padded rows. Nothing, where text is all."""
        return {}

    def continued(self, rows: Sequence[Encoded], input_ids: Tensor, attention_mask: Tensor, **how: Any) -> Tensor:
        """Return left-padded rows with what follows them, ``[R, L + new]``; ``how``: for transformers' ``generate``."""
        media = self.media_inputs(rows, input_ids, attention_mask)
        return self.model.generate(**media, input_ids=input_ids, attention_mask=attention_mask, **how)  # type: ignore[no-any-return]

    def _row_inputs(self, module: nn.Module, batch: Batch) -> dict[str, Any]:
        accepted = inspect.signature(module.forward).parameters
        return {name: batch.tensors[name] for name in ("attention_mask", "position_ids") if name in accepted}

    def _check(self, batch: Batch, want: frozenset[str]) -> None:
        unknown = sorted(want - self.provides)
        if unknown:
            way = "set policy.value_head: true" if unknown == ["values"] else f"it provides {', '.join(sorted(self.provides))}"
            raise TrainingError(f"{type(self).__name__} cannot give {', '.join(map(repr, unknown))}; {way}")
        if "token_targets" in want and "target_ids" not in batch.tensors:
            raise TrainingError(
                "token_targets were asked for, but the batch has none; add them: with_token_targets(batch, ids, values)"
            )

    # what the model allows, found out by trying

    @torch.no_grad()
    def _split_is_exact(self) -> bool:
        """Compare the split path with the model's own forward on a few tokens. A wrong split would train on wrong scores."""
        probe = self.probe(1)
        with evaluating(self):
            _, expected = self.whole(probe)
            try:
                found = self.head(self.states(probe))
                exact = torch.allclose(found.float(), expected.float(), rtol=1e-4, atol=1e-5)
            except (AttributeError, TypeError, ValueError, RuntimeError) as error:
                logger.info("%s cannot be split into backbone and head: %s", type(self.model).__name__, error)
                exact = False
        if not exact:
            logger.warning(
                "%s: logits are more than a head over the decoder's states; scoring through the model's own forward, "
                "which needs memory for every position x vocabulary",
                type(self.model).__name__,
            )
        return exact

    @torch.no_grad()
    def _sharing_is_exact(self) -> bool:
        """Score two random responses to one prompt in plain rows and in a shared row; say so once where they differ."""
        name, config = type(self.model).__name__, self.model.config.get_text_config()
        odd = sorted(set(getattr(config, "layer_types", None) or ()) - LAYERS_MASKED)
        try:
            if odd:
                raise ValueError(f"it has layers of kind {', '.join(odd)}")
            if config._attn_implementation not in (BY_PARTS, "sdpa", "eager", "flex_attention"):
                raise ValueError(f"attention {config._attn_implementation!r} takes no mask of its own")
            if config._attn_implementation == "flex_attention" and self.model.device.type == "cpu":
                raise ValueError("FlexAttention trains on GPUs only")
            probe = self.probe(2)
            with evaluating(self):
                self.shares = False
                plain = self(probe).log_probs
                self.shares = True
                shared = self(probe).log_probs
            exact_enough = 2e-4 if self.model.dtype == torch.float32 else 0.1
            difference = float((plain - shared).abs().max())
            if not math.isfinite(difference) or difference > exact_enough:
                raise ValueError(f"scores of the two layouts differ by {difference:.1e}")
        except (AttributeError, TypeError, ValueError, RuntimeError, KeyError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            if self.config.rows in ("shared", "packed"):
                raise ConfigError(
                    f"policy.rows={self.config.rows!r} does not work with {name}: {reason}; use auto or plain"
                ) from error
            logger.warning("%s: one row per response, since responses cannot share their prompt's row: %s", name, reason)
            return False
        return True

    def probe(self, samples: int) -> Batch:
        """Return a small batch of random tokens under one prompt, and of no samples, to try the model on."""
        draw = torch.Generator().manual_seed(0)
        vocabulary = min(self.model.get_input_embeddings().num_embeddings, self.vocabulary_size)
        ids = torch.randint(vocabulary, (6 + 4 * samples,), generator=draw).tolist()
        rows = [Encoded(tuple(ids[:6]), tuple(ids[6 + 4 * n : 9 + 4 * n + n])) for n in range(samples)]
        return self.collator.layout((), rows, torch.ones(samples), None).to(self.model.device)

    # generating, saving, and the frozen twin

    def generate(
        self, prompts: Sequence[tuple[Message, ...]], *, samples_per_prompt: int = 1, seed: int = 0, **decoding: Any
    ) -> Rollouts:
        """Return text rollouts; ``decoding`` as `generation.Decoding`: temperature, top_p, max_new_tokens, batch_size.

        What a prompt gets depends on (seed, prompt, sample number) and not on the other prompts of the call.
        ``old_log_probs`` are scored by `forward` at the decoding temperature, over the whole vocabulary (before top_p).
        """
        known = set(generation.Decoding.__dataclass_fields__)
        for name in decoding:
            if name not in known:
                raise ConfigError(f"unknown decoding setting {name!r};{nearest(name, known)} known: {', '.join(sorted(known))}")
        decoding.setdefault("max_new_tokens", self.collator.max_response)
        return generation.generate(self, prompts, samples_per_prompt, seed, generation.Decoding(**decoding))

    collator: TokenCollator

    def prepare(self, samples: Sequence[Sample], cache: Path, progress: Any = None) -> None:
        """Say once what the length limits take from the data. Nothing is written to ``cache``."""
        lost = self.collator.truncation(samples)
        if lost.prompts:
            logger.warning(
                "%d of %d samples are longer than policy.max_length=%d: their prompts lose %d oldest tokens in all",
                lost.prompts,
                lost.samples,
                self.collator.max_length,
                lost.prompt_tokens,
            )
        if lost.responses:
            logger.warning(
                "%d of %d responses are longer than policy.max_response=%d: they lose %d last tokens in all",
                lost.responses,
                lost.samples,
                self.collator.max_response,
                lost.response_tokens,
            )

    def save(self, folder: Path) -> None:
        """Write a folder that transformers loads by itself (with LoRA: an adapter that peft and transformers load). Over a
        merged base an adapter could not be loaded, so it is merged too."""
        self._write(folder, merged_copy(self.model) if self.merged_base and self.has_adapters else self.model)

    def save_merged(self, folder: Path) -> None:
        self._write(folder, merged_copy(self.model) if self.has_adapters else self.model)

    def _write(self, folder: Path, model: Any) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.value_head is not None:
            weights = {name: value.detach().cpu().contiguous() for name, value in self.value_head.state_dict().items()}
            save_file(weights, folder / VALUE_HEAD_FILE)

    def fingerprint(self) -> str:
        """Return a hash of the base weights, tokenizer, template and length limits; adapters do not enter. Computed once,
        so ask before training changes the weights."""
        if self._fingerprint is None:
            encoder, collator = self.encoder, self.collator
            layout = [
                encoder.uses_template,
                self.tokenizer.chat_template,
                encoder.end_ids,
                collator.max_length,
                collator.max_response,
                encoder.settings,
            ]
            weights = list(plain_weights(self.model, tuned=False).items())
            self._fingerprint = weights_fingerprint(weights, vocabulary_text(self.tokenizer), json.dumps(layout))
        return self._fingerprint

    @property
    def adapted(self) -> Any:
        return self.model if getattr(self.model, "_hf_peft_config_loaded", False) else None

    def enable_gradient_checkpointing(self) -> None:
        if not self.model.supports_gradient_checkpointing:
            raise TrainingError(
                f"{type(self.model).__name__} has no gradient checkpointing; set training.gradient_checkpointing: false"
            )
        self.model.gradient_checkpointing_enable({"use_reentrant": False})


def silence_dropout(model: nn.Module) -> None:
    """Set every dropout rate inside the model to 0, except LoRA's. Modules and plain attributes are changed; the model's
    configuration, which `save` writes out, is left as it is."""
    for path, module in model.named_modules():
        if ".lora_dropout" in path:
            continue
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and "drop" in name:
                setattr(module, name, 0.0)
