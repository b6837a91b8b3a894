"""The `text-to-audio-tokens` policy: MusicGen-like models, whose responses are the codes of a neural codec.

Every code is a decision of its own. A step of the decoder says up to K codes, one per codebook, independent given the steps
before; so the log-probability of a step is the sum over its codebooks either way (the same DPO margin, the same sum), while
ratios and clips of policy-gradient objectives, entropies and values are those of single softmaxes, as token objectives take
them to be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polyalign.assets import resolve_model
from polyalign.errors import ConfigError, TrainingError
from polyalign.policies.adapters import add_lora
from polyalign.policies.base import Batch, Rollouts, Scores
from polyalign.policies.config import decoding_of
from polyalign.policies.feature_cache import FeatureCache, Features
from polyalign.policies.fingerprint import weights_fingerprint
from polyalign.policies.logprobs import in_chunks, reduce_logits, scatter
from polyalign.policies.pipelines.collator import caption_of, open_media
from polyalign.policies.prepared import PreparedPolicy
from polyalign.policies.pretrained import merged_copy, plain_weights
from polyalign.policies.tokens import VALUE_HEAD_FILE, silence_dropout
from polyalign.records.samples import Sample
from polyalign.records.schema import Message
from polyalign_audio import codec_sampling
from polyalign_audio.codec_collator import CodecCollator
from polyalign_audio.generation_config import CodecDecodingConfig, CodecTokensConfig
from polyalign_audio.musicgen import FrozenParts

PROVIDED = frozenset({"log_probs", "entropy", "mean_logit", "log_sum_squares", "hidden", "prompt_hidden", "states"})


class CodecTokenPolicy(PreparedPolicy):
    """The decoder of a MusicGen and the projection of its texts; text encoder and codec stay outside, frozen, their outputs
    cached.

    Extras of `forward` as of `polyalign.policies.tokens.TokenPolicy`, with a code for a token; ``states`` have heard the whole
    step that a code belongs to, and ``step_ends`` are the last codes of steps.
    """

    family = "tokens"
    inputs = frozenset({"text"})
    outputs = frozenset({"audio"})
    collator: CodecCollator

    def __init__(self, model: Any, tokenizer: Any, config: CodecTokensConfig, seed: int = 0) -> None:
        super().__init__()
        self.frozen = FrozenParts(model, tokenizer)
        self.config, self.encode_batch = config, config.encode_batch  # type: ignore[misc]
        self.model, self.projection = model.decoder, getattr(model, "enc_to_dec_proj", None)
        silence_dropout(self.model)
        self.books: int = self.model.num_codebooks
        self.most_frames = self.frozen.frames(config.max_seconds)
        fingerprints = self.frozen.codec_fingerprint(config.max_seconds, self.books), self.frozen.text_fingerprint()
        start = self.model.config.pad_token_id
        self.collator = CodecCollator(self.books, start, self.most_frames * self.books, fingerprints)
        self.base_fingerprint = weights_fingerprint(self._plain_weights(), *fingerprints)
        self.model.requires_grad_(True)
        if self.projection is not None:
            self.projection.requires_grad_(config.lora is None)
        if config.lora is not None:
            add_lora(self.model, config.lora, seed, within=self.model.model)
        self.value_head = nn.Linear(self.width, 1) if config.value_head else None
        if self.value_head is not None:  # starts at 0 for every state
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
        self.provides = PROVIDED | ({"values"} if config.value_head else set())

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def feature_sizes(self) -> dict[str, int]:
        return dict.fromkeys(("hidden", "prompt_hidden", "states"), self.width)

    # scoring

    def forward(self, batch: Batch, want: frozenset[str] = frozenset()) -> Scores:
        if unknown := sorted(want - self.provides):
            raise TrainingError(
                f"{type(self).__name__} cannot give {', '.join(unknown)}; it provides {', '.join(sorted(self.provides))}"
            )
        tensors, mask = batch.tensors, batch.mask[:, 0]  # [N, T]
        hidden = self.hear(tensors["inputs"], *self.texts(tensors))  # [N, S + 1, H]
        rows, columns = mask.nonzero(as_tuple=True)  # P decisions
        place = tensors["steps"][rows, columns]
        guided = bool((tensors["guidance"] != 1).any())
        reduced = in_chunks(
            self._reducer(want),
            self.config.head_chunk,
            hidden[rows, place],
            tensors["books"][rows, columns],
            tensors["targets"][rows, columns],
            tensors["temperature"][rows],
            tensors["guidance"][rows],
            self.hear(tensors["inputs"], *self.no_text(len(mask)))[rows, place] if guided else None,
        )
        if self.value_head is not None:
            with torch.autocast(hidden.device.type, enabled=False):
                reduced["values"] = self.value_head(hidden[rows, place].float()).squeeze(-1)
        log_probs = scatter(reduced.pop("log_probs"), mask)[:, None]
        extras: dict[str, Any] = {name: scatter(value, mask) for name, value in reduced.items()}
        if "hidden" in want:
            extras["hidden"] = hidden[torch.arange(len(mask)), tensors["last"]].float()
        if "prompt_hidden" in want:
            extras["prompt_hidden"] = hidden[:, 0].float()
        if "states" in want:
            extras |= {"states": scatter(hidden[rows, place + 1].float(), mask), "step_ends": tensors["step_ends"]}
        return Scores(log_probs, batch.mask, batch.kind, extras)

    def _reducer(self, want: frozenset[str]) -> Any:
        def reduce(states: Tensor, books: Any, targets: Any, temperature: Any, guidance: Any, blank: Any) -> dict[str, Tensor]:
            logits = self.logits(states, books)
            if blank is not None:
                logits = guide(logits, self.logits(blank, books), guidance[:, None])
            with torch.autocast(logits.device.type, enabled=False):
                return reduce_logits(
                    logits, targets, temperature,
                    entropy="entropy" in want, mean_logit="mean_logit" in want, log_sum_squares="log_sum_squares" in want,
                )  # fmt: skip

        return reduce

    def texts(self, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return (what the decoder reads of each sample's prompt ``[N, L, H]``, its mask ``[N, L]``)."""
        text = tensors["text"].to(self.model.dtype)
        if self.projection is not None:
            text = self.projection(text)
        mask = tensors["text_mask"]
        return (text * mask[..., None])[tensors["row_text"]], mask[tensors["row_text"]]

    def no_text(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the empty prompt of so many rows: one vector of zeros, which is what MusicGen is trained to read as none."""
        width = self.model.config.cross_attention_hidden_size or self.width
        return (
            torch.zeros(count, 1, width, dtype=self.model.dtype, device=self.device),
            torch.ones(count, 1, dtype=torch.long, device=self.device),
        )

    def hear(self, inputs: Tensor, text: Tensor, text_mask: Tensor, past: Any = None) -> Tensor:
        """Return last-layer hidden states ``[N, L, H]`` after columns of codes ``[N, K, L]``. ``past``: a cache to go on from."""
        output = self.model.model(
            input_ids=inputs.flatten(0, 1),
            encoder_hidden_states=text,
            encoder_attention_mask=text_mask,
            past_key_values=past,
            use_cache=past is not None,
            return_dict=True,
        )
        return output.last_hidden_state  # type: ignore[no-any-return]

    def logits(self, states: Tensor, books: Tensor) -> Tensor:
        """Return logits ``[P, V]`` of states ``[P, H]``, each by the head of its codebook."""
        places = [(books == book).nonzero()[:, 0] for book in range(self.books)]
        made = torch.cat([head(states[place]) for head, place in zip(self.model.lm_heads, places)])
        return made[torch.cat(places).argsort()]

    # frozen encoders

    @property
    def features(self) -> FeatureCache:
        return self.collator.features

    def encode_missing(self, samples: Sequence[Sample], progress: Any = None) -> None:
        answered = [sample for sample in samples if sample.response]
        self.encode_each(answered, "codes", self.collator.code_key, self._encode_clips, progress)
        self.encode_each(samples, "prompt embeddings", self.collator.text_key, self._encode_texts, progress)

    def _encode_clips(self, samples: Sequence[Sample]) -> list[Features]:
        clips = [open_media(sample, "audio") for sample in samples]
        return [self.frozen.encode_clip(clip, self.most_frames, self.books, self.device) for clip in clips]

    def _encode_texts(self, samples: Sequence[Sample]) -> list[Features]:
        return self.frozen.encode_texts([caption_of(sample.prompt) for sample in samples], self.device)

    @contextmanager
    def encoders(self) -> Iterator[None]:
        """Have text encoder and codec on the policy's device inside; elsewhere they leave its memory to training."""
        for module in self.frozen.modules():
            module.to(self.device)
        try:
            yield
        finally:
            for module in self.frozen.modules():
                module.to("cpu")

    # drawing clips

    def generate(
        self, prompts: Sequence[tuple[Message, ...]], *, samples_per_prompt: int = 1, seed: int = 0, **decoding: Any
    ) -> Rollouts:
        """Return clips (`polyalign_audio.modality.Clip`); ``decoding``: fields of `CodecDecodingConfig`. What a prompt gets
        depends on (seed, prompt, sample number) and not on the other prompts of the call. ``old_log_probs`` are scored by
        `forward` at the decoding temperature and guidance, over the whole vocabulary (before top_p)."""
        return codec_sampling.generate(self, prompts, samples_per_prompt, seed, decoding_of(CodecDecodingConfig, decoding))

    # files, and the frozen twin

    def _plain_weights(self) -> list[tuple[str, Tensor]]:
        projection = self.projection.state_dict() if self.projection is not None else {}
        return [
            *plain_weights(self.model, tuned=False).items(),
            *((f"projection.{name}", value) for name, value in projection.items()),
        ]

    def fingerprint(self) -> str:
        return self.base_fingerprint

    @property
    def adapted(self) -> Any:
        return self.model if self.config.lora is not None else None

    def enable_gradient_checkpointing(self) -> None:
        self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def save(self, folder: Path) -> None:
        """Write a folder that transformers loads as a MusicGen; with LoRA an adapter that its ``decoder.load_adapter`` takes."""
        self._write(folder, self.model if self.has_adapters else self.frozen.assemble(self.model, self.projection))

    def save_merged(self, folder: Path) -> None:
        decoder = merged_copy(self.model) if self.has_adapters else self.model
        self._write(folder, self.frozen.assemble(decoder, self.projection))

    def _write(self, folder: Path, model: Any) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder)
        self.frozen.save(folder)
        if self.value_head is not None:
            save_file(
                {name: value.detach().cpu() for name, value in self.value_head.state_dict().items()}, folder / VALUE_HEAD_FILE
            )


def guide(logits: Tensor, blank: Tensor, guidance: Any) -> Tensor:
    """Return logits pushed away from those of the empty prompt: classifier-free guidance as MusicGen samples with it."""
    return blank + guidance * (logits - blank)


def build(config: CodecTokensConfig, *, device: str | torch.device = "cpu", seed: int = 0) -> CodecTokenPolicy:
    """Return the policy at its starting weights. ``seed`` keys the first LoRA weights."""
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, MusicgenForConditionalGeneration

    folder = resolve_model(config.base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = MusicgenForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, config.dtype))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"policy.base {config.base!r} cannot be loaded as a MusicGen from {folder!r}: {error}. Give a folder written by "
            "transformers, a hub id that can be reached, zoo:NAME or asset:NAME"
        ) from error
    policy = CodecTokenPolicy(model, tokenizer, config, seed)
    if policy.value_head is not None and (Path(folder) / VALUE_HEAD_FILE).is_file():
        policy.value_head.load_state_dict(load_file(Path(folder) / VALUE_HEAD_FILE))
    return policy.to(device)
