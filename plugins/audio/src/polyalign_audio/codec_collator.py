"""Batches of codec tokens: which codes a clip is, and which decision of the decoder each of them was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyalign.policies.base import Batch, Collator, Kind, Rollout, Tokens
from polyalign.policies.feature_cache import FeatureCache, Features
from polyalign.policies.pipelines.collator import caption_of, hash_of, media_ref
from polyalign.policies.prepared import prepared
from polyalign.policies.transitions import rollout_sample
from polyalign.records.samples import Sample
from polyalign_audio.delay_pattern import delayed, gathered, order


class CodecCollator(Collator):
    """Reads cached codes and text embeddings; holds no model and can be pickled.

    With N samples, K codebooks, S decoder steps of the longest and T its decisions, ``Batch.tensors`` holds

    - ``inputs`` ``[N, K, S + 1]`` long: a column of start tokens, then the columns that were said (`delay_pattern.delayed`);
    - ``steps``, ``books``, ``targets`` ``[N, T]`` long: at which step and of which codebook a decision is, and what was said;
    - ``step_ends`` ``[N, T]`` bool: the last decision of each step; ``last`` ``[N]``: the input that has heard everything;
    - ``temperature``, ``guidance`` ``[N]`` float32;
    - ``text`` ``[C, L, E]`` and ``text_mask`` ``[C, L]`` of the distinct prompts, and ``row_text`` ``[N]``: which a sample has.
    """

    pads: ClassVar[bool] = True

    def __init__(self, books: int, start: int, most_codes: int, fingerprints: tuple[str, str]) -> None:
        self.features = FeatureCache()
        self.books, self.start, self.most_codes = books, start, most_codes
        self.codec_fingerprint, self.text_fingerprint = fingerprints

    def code_key(self, sample: Sample) -> str:
        return hash_of("codes", media_ref(sample, "audio").sha256, self.codec_fingerprint)

    def text_key(self, sample: Sample) -> str:
        return hash_of("caption", caption_of(sample.prompt), self.text_fingerprint)

    def cost(self, sample: Sample) -> int:
        """Return how many codes the response is, once it has been encoded; before, and for a prompt, the most that it may be."""
        if not sample.response or (key := self.code_key(sample)) not in self.features:
            return self.most_codes
        return self.features.load(key)["codes"].numel()

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        codes = [prepared(self.features, self.code_key(sample), sample, "codes")["codes"] for sample in samples]
        plain = torch.ones(len(samples))
        return self._laid_out(samples, codes, plain, plain, tuple(sample.content_key() for sample in samples))

    def of_rollouts(self, rollouts: Sequence[Rollout]) -> Batch:
        """Return a batch that scores exactly the codes drawn, at their temperature and guidance. Greedy rollouts (temperature
        0) are scored at temperature 1."""
        samples = [rollout_sample(rollout, number) for number, rollout in enumerate(rollouts)]
        codes = []
        for rollout in rollouts:
            (decision,) = (decision for decision in rollout.decisions if isinstance(decision, Tokens))
            codes.append(gathered(decision.ids, self.books))
        temperature = torch.tensor([float(rollout.decoding["temperature"]) or 1.0 for rollout in rollouts])
        guidance = torch.tensor([float(rollout.decoding["guidance"]) for rollout in rollouts])
        return self._laid_out(samples, codes, temperature, guidance, None)

    def _laid_out(
        self,
        samples: Sequence[Sample],
        codes: Sequence[Tensor],
        temperature: Tensor,
        guidance: Tensor,
        keys: tuple[str, ...] | None,
    ) -> Batch:
        count, frames = len(codes), [one.shape[1] for one in codes]
        longest = self.books * max(frames)
        inputs = torch.full((count, self.books, max(frames) + self.books), self.start)
        steps, books, targets = (torch.zeros(count, longest, dtype=torch.long) for _ in range(3))
        mask, ends = torch.zeros(count, 1, longest, dtype=torch.bool), torch.zeros(count, longest, dtype=torch.bool)
        for row, one in enumerate(codes):
            columns, (step, book) = delayed(one, self.start), order(*one.shape)
            inputs[row, :, 1 : 1 + columns.shape[1]] = columns
            steps[row, : len(step)], books[row, : len(step)] = step, book
            targets[row, : len(step)] = one[book, step - book]
            mask[row, 0, : len(step)] = True
            ends[row, : len(step)] = torch.cat([step[1:] != step[:-1], torch.ones(1, dtype=torch.bool)])
        tensors: dict[str, Any] = {
            "inputs": inputs, "steps": steps, "books": books, "targets": targets, "step_ends": ends,
            "last": torch.tensor(frames) + self.books - 1,
            "temperature": temperature.float(), "guidance": guidance.float(),
        }  # fmt: skip
        tensors |= self.texts(samples)
        kind = torch.full((count, longest), int(Kind.TOKEN))
        return Batch(tuple(samples), tensors, mask, kind, keys)  # type: ignore[arg-type]

    def texts(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return the embeddings of each distinct prompt once, padded with zeros."""
        numbers: dict[str, int] = {}
        found: list[Features] = []
        for sample in samples:
            if (key := self.text_key(sample)) not in numbers:
                numbers[key] = len(found)
                found.append(prepared(self.features, key, sample, "prompt embeddings"))
        lengths = torch.tensor([len(entry["text"]) for entry in found])
        return {
            "text": torch.nn.utils.rnn.pad_sequence([entry["text"] for entry in found], batch_first=True),
            "text_mask": (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long(),
            "row_text": torch.tensor([numbers[self.text_key(sample)] for sample in samples]),
        }
