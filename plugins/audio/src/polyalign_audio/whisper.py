"""The `whisper` policy: a speech recogniser whose decisions are the tokens of its transcript.

The encoder reads a window of fixed length (30 s; `policy.seconds` cuts it, see `cut_window`), and the decoder attends to what it
makes of it from outside the row: no token stands for the clip. A frozen encoder runs once per distinct clip for policy and
reference together, and its states can be kept on disk. Several transcripts of one clip share its row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polyalign.assets import resolve_model
from polyalign.errors import ConfigError, RecordError
from polyalign.policies.base import Batch
from polyalign.policies.completion_mask import Encoded, Medium, Piece, PromptResponseEncoder
from polyalign.policies.media_features import MediaEncoder, MediaFeatures
from polyalign.policies.media_tokens import MediaTokenPolicy
from polyalign.policies.media_training import freeze
from polyalign.policies.pretrained import is_adapter, load, load_model, within_context
from polyalign.records.samples import MediaSource
from polyalign.records.schema import MediaPart, MediaRef, Message, TextPart
from polyalign_audio.clips import Ears, chirp
from polyalign_audio.config import WhisperConfig

WHAT = "a Whisper speech recogniser"
FRAMES_PER_STATE = 2  # the second convolution halves the spectrogram


class TranscriptEncoder(PromptResponseEncoder):
    """A clip and its transcript as Whisper's decoder meets them: start tokens, then the words with a space in front.

    A prompt holds one clip. Its text is not read: the model takes no instructions, so "What is said?" may stand there or not.
    """

    def __init__(self, processor: Any, start: Sequence[int]) -> None:
        super().__init__(processor.tokenizer, "none")
        self.processor, self.start, self.ears = processor, tuple(start), Ears(processor.feature_extractor)
        self.ids_by_modality = {"audio": -1}  # no token stands for a clip
        described = json.dumps([processor.feature_extractor.to_dict(), self.start], sort_keys=True, default=str)
        self.settings = hashlib.blake2b(described.encode(), digest_size=8).hexdigest()

    def prompt(self, prompt: tuple[Message, ...], media: MediaSource | None) -> Piece:
        refs = [part.media for message in prompt for part in message.parts if isinstance(part, MediaPart)]
        if len(refs) != 1 or refs[0].modality != "audio":
            found = ", ".join(ref.modality for ref in refs) or "no medium"
            raise RecordError(f"a prompt holds {found}, but this policy hears one clip per prompt; leave it out with data.tags")
        if media is None:
            raise RecordError(f"clip {refs[0].sha256[:12]} cannot be opened: the prompt came without its media source")
        self.ears.samples(media.read(refs[0]))  # too long a clip is found before training
        return Piece(self.start, (self._medium(f"{refs[0].sha256}-{self.settings}", partial(self._load, refs[0], media)),))

    def response(self, response: Sequence[TextPart | MediaPart], media: MediaSource | None) -> Piece:
        text = self.text(response, "response")
        spaced = text if text[:1].isspace() else f" {text}"
        ids = self.tokenizer(spaced, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return Piece((*ids, *self.end_ids))

    def probe_media(self) -> list[tuple[Medium, tuple[int, ...]]]:
        """Return a made-up clip to try a model on, and the ids that stand for it: none."""
        return [(self._medium("probe", lambda: self._heard(chirp(0.4, self.ears.rate).samples)), ())]

    def _medium(self, key: str, read: Any) -> Medium:
        states = self.processor.feature_extractor.nb_max_frames // FRAMES_PER_STATE
        return Medium(key, states, read, modality="audio", placed=False)

    def _load(self, ref: MediaRef, media: MediaSource) -> Mapping[str, Tensor]:
        return self._heard(self.ears.open(media.read(ref)))

    def _heard(self, samples: Any) -> dict[str, Tensor]:
        """Return the log-mel spectrogram of the whole window, ``[1, mels, frames]``."""
        extracted = self.processor.feature_extractor(samples, sampling_rate=self.ears.rate, return_tensors="pt")
        return {"input_features": extracted["input_features"]}


class EncoderStates(MediaEncoder):
    """Runs Whisper's encoder on the clips of a batch."""

    def _call(self, media: Sequence[Mapping[str, Any]], tokens: int) -> tuple[list[Tensor], Mapping[str, Any]]:
        heard = torch.cat([medium["input_features"] for medium in media]).to(self.model.dtype)
        return [self.model.model.encoder(heard).last_hidden_state.flatten(0, 1)], {}  # [tokens, H]


class WhisperPolicy(MediaTokenPolicy):
    """Prompts of one clip to text."""

    inputs = frozenset({"audio", "text"})
    media_encoder: ClassVar[type[MediaEncoder]] = EncoderStates
    encoder: TranscriptEncoder

    def embed(self, batch: Batch, media: MediaFeatures | None) -> Tensor:
        """Return embeddings of the transcripts ``[R, L, H]``; what each row's decoder attends to goes into the batch."""
        assert media is not None, "every prompt holds a clip"
        tensors = batch.tensors
        clips = torch.tensor([number for (number,) in tensors["row_media"]], device=tensors["row"].device)  # [N]
        of_row = clips.new_zeros(len(tensors["input_ids"])).index_put((tensors["row"],), clips)  # [R]
        tensors["heard"] = media.rows.unflatten(0, (len(tensors["media"]), -1))[of_row]  # [R, S, H]
        return self.model.get_input_embeddings()(tensors["input_ids"])  # type: ignore[no-any-return]

    def _row_inputs(self, module: nn.Module, batch: Batch) -> dict[str, Any]:
        return super()._row_inputs(module, batch) | {"encoder_hidden_states": batch.tensors["heard"]}

    def _own_logits(self, batch: Batch) -> Tensor:
        (medium,) = batch.tensors["media"]
        heard = medium["input_features"].to(self.model.dtype)
        logits: Tensor = self.model(input_features=heard, decoder_input_ids=batch.tensors["input_ids"], use_cache=False).logits
        return logits

    def continued(self, rows: Sequence[Encoded], input_ids: Tensor, attention_mask: Tensor, **how: Any) -> Tensor:
        """As in the base class, by transformers' plain ``generate``: Whisper's own cuts long recordings and suppresses tokens,
        which would draw from another distribution than is scored."""
        from transformers import GenerationMixin
        from transformers.modeling_outputs import BaseModelOutput

        batch = self.collator.layout((), rows, torch.ones(len(rows)), None).to(input_ids.device)
        plain = Batch((), {name: value for name, value in batch.tensors.items() if name != "shared"}, batch.mask, batch.kind)
        self.embed(plain, self.encode_media(plain))
        heard = BaseModelOutput(last_hidden_state=plain.tensors["heard"])
        given = {"decoder_input_ids": input_ids, "decoder_attention_mask": attention_mask}
        whole = attention_mask.new_ones(heard.last_hidden_state.shape[:2])  # every state of the window is attended to
        found: Tensor = GenerationMixin.generate(self.model, encoder_outputs=heard, attention_mask=whole, **given, **how)
        return found

    def _write(self, folder: Path, model: Any) -> None:
        super()._write(folder, model)
        self.encoder.processor.save_pretrained(folder)


def build(config: WhisperConfig, *, device: str | torch.device = "cpu", seed: int = 0) -> WhisperPolicy:
    """Return the policy at its starting weights. ``seed`` keys the initialisation of LoRA layers."""
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    folder = resolve_model(config.base)
    processor = load(WhisperProcessor, WHAT, folder, config)
    if config.spoken is not None:
        processor.tokenizer.set_prefix_tokens(language=config.spoken, task="transcribe", predict_timestamps=False)
    model = load_model(WhisperForConditionalGeneration, WHAT, folder, config, device)
    if config.seconds is not None:
        cut_window(model, processor, config.seconds)
    config = within_context(config, model.config)
    freeze(model, config, ("audio",), seed)
    policy = WhisperPolicy(model, TranscriptEncoder(processor, processor.tokenizer.prefix_tokens), config)
    policy.merged_base = is_adapter(folder)
    return policy


def cut_window(model: Any, processor: Any, seconds: int) -> None:
    """Let the encoder read ``seconds`` instead of 30: fewer positions, all else as it was. Work falls with the window, and so do
    the states on disk. What a clip's states are changes, since less silence follows it; docs/audio.md has the measured cost.

    Raises `ConfigError` for a window longer than the model's.
    """
    extractor, encoder = processor.feature_extractor, model.model.encoder
    if seconds > extractor.chunk_length:
        raise ConfigError(f"policy.seconds={seconds} is longer than the {extractor.chunk_length} s that the base hears; lower it")
    processor.feature_extractor = type(extractor)(**{**extractor.to_dict(), "chunk_length": seconds})
    states = processor.feature_extractor.nb_max_frames // FRAMES_PER_STATE
    positions = nn.Embedding(states, model.config.d_model).to(encoder.embed_positions.weight)
    positions.weight = nn.Parameter(encoder.embed_positions.weight[:states].detach().clone(), requires_grad=False)
    encoder.embed_positions = positions
    model.config.max_source_positions = encoder.config.max_source_positions = states
