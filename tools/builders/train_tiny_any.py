"""Train `zoo:tiny-any`: one small model that turns words, 32x32 emoji and spoken words into each other.

    python3 tools/dev.py zoo tiny-any [--steps 3000]     # continues from the checkpoint in --work; wants espeak-ng
    python3 tools/dev.py zoo tiny-any export

First its two tokenizers and the judge of speech (`tiny_any_codecs.py`), then a language model over their codes. In the last third
of its steps `WRONG` of the answers are of another thing, drawn anew each time: noise as found data have, which the model imitates
and preferences mend. (With noise from the start nothing was learnt in 1,000 steps but how things look and sound.)
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import time
from pathlib import Path

import torch
from emoji_any import ANSWERING, DIRECTIONS, THINGS, VOICES, WANTED, as_png, asked, centred, drawings, placed
from tiny_any_codecs import PLAINLY, WAYS, clips, picture_tokenizer, speech_judge, speech_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from polyalign.policies.completion_mask import Piece
from polyalign.records.schema import MediaPart, TextPart
from polyalign.records.store import MemoryMedia
from polyalign_any_to_any.config import AnyToAnyConfig
from polyalign_any_to_any.media.base import open_tokenizer
from polyalign_any_to_any.policy import MEDIA_FOLDER, MixedTokenPolicy, assembled
from polyalign_any_to_any.speech_judge import SpeechJudge
from polyalign_audio.modality import AudioModality, Clip

ROOT = Path(__file__).resolve().parents[2]
MODEL_DIR = ROOT / "packages/polyalign-zoo/src/polyalign_zoo/models/tiny-any"
ROWS, RATE, WARM_UP, EMA_DECAY = 32, 2.5e-3, 100, 0.98
WRONG, RIGHT_UNTIL = 0.35, 2 / 3  # of the answers are of another thing, after this share of the steps
DISTURBED = 0.08  # of the codes of a prompt's medium are another code, so that no single one is relied on
TEMPLATE = (
    "<s>{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
END = "<|end|>"


def new_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", END, "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([*THINGS, *(f"{name}. {wanted}" for name in THINGS for wanted in WANTED.values())], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token=END, pad_token=END, additional_special_tokens=special[2:]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def new_policy(work: Path) -> MixedTokenPolicy:
    tokenizer = new_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=320, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    media = [open_tokenizer(work / MEDIA_FOLDER / modality) for modality in ("image", "audio")]
    settings = AnyToAnyConfig(base="zoo:tiny-any", max_length=128, max_response=48, rows="plain")
    return assembled(LlamaForCausalLM(config), tokenizer, media, settings)


class Rows:
    """Prompts and answers about every thing as token ids, from media that are not among those held out."""

    def __init__(self, work: Path, policy: MixedTokenPolicy) -> None:
        encoder, media = policy.encoder, MemoryMedia()
        self.vocabulary = policy.vocabulary
        asked_by, answered_by = clips(work, VOICES, WAYS), clips(work, {name: VOICES[name] for name in ANSWERING}, PLAINLY)
        self.prompts: dict[tuple[str, str], list[Piece]] = {}
        self.answers: dict[tuple[str, str], list[Piece]] = {}
        for name in THINGS:
            draw = random.Random(f"pre-training {name}")
            pictures = {
                "moved": [placed(one, draw) for _ in range(40) for one in drawings()[name]],
                "centred": [centred(one) for one in drawings()[name]],
            }
            shown = {how: [media.add(as_png(one), "image", "image/png") for one in made] for how, made in pictures.items()}
            heard = {
                how: [media.add(as_flac(one), "audio", "audio/flac") for voice in voices for one in said[name, voice]]
                for how, said, voices in (("asked", asked_by, VOICES), ("answered", answered_by, ANSWERING))
            }
            asked_with = {"image": shown["moved"], "audio": heard["asked"]}
            for direction in DIRECTIONS:
                refs = asked_with.get(direction.split("-to-")[0])
                prompts = [asked(name, direction, (ref,) if ref is not None else None, draw) for ref in refs or [None]]
                self.prompts[name, direction] = [encoder.prompt(prompt, media) for prompt in prompts]
            self.answers[name, "text"] = [encoder.response((TextPart(text=name),), media)]
            for modality, refs in (("image", shown["centred"]), ("audio", heard["answered"])):
                self.answers[name, modality] = [encoder.response((MediaPart(media=ref),), media) for ref in refs]

    def batch(self, step: int, wrong: float) -> list[tuple[Piece, Piece]]:
        draw = random.Random(step)
        found = []
        for _ in range(ROWS):
            name, direction = draw.choice(THINGS), draw.choice(DIRECTIONS)
            answered = draw.choice(THINGS) if draw.random() < wrong else name
            prompt = draw.choice(self.prompts[name, direction])
            found.append((self.disturbed(prompt, draw), draw.choice(self.answers[answered, direction.split("-to-")[1]])))
        return found

    def disturbed(self, prompt: Piece, draw: random.Random) -> Piece:
        ids = list(prompt.ids)
        for place, token in enumerate(ids):
            if self.vocabulary.codes[token] and draw.random() < DISTURBED:
                span = next(span for span in self.vocabulary.spans if token in span.ids)
                ids[place] = draw.choice(span.ids)
        return Piece(tuple(ids))


def train(work: Path, steps: int) -> None:
    policy = new_policy(work)
    average = copy.deepcopy(policy.model).requires_grad_(False)
    weights = list(policy.model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=RATE, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
    step, checkpoint = 0, work / "checkpoint.pt"
    parts = {"model": policy.model, "average": average, "optimizer": optimizer}
    if checkpoint.exists():
        state = torch.load(checkpoint)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        step = state["step"]
    rows = Rows(work, policy)
    encoder, collator, losses = policy.encoder, policy.collator, []
    print(f"{sum(weight.numel() for weight in weights)} parameters, from step {step}", flush=True)
    while step < steps:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM_UP) * (1 - step / steps)
        made = [
            encoder.fit(prompt, answer, collator.max_length, collator.max_response, "a row")
            for prompt, answer in rows.batch(step, WRONG if step >= RIGHT_UNTIL * steps else 0.0)
        ]
        batch = collator.layout((), made, torch.ones(len(made)), None)
        decisions = batch.mask[:, 0].sum(1)  # [N]: by their root, so that a picture's 33 do not drown a word's two
        loss = -(policy(batch).log_probs[:, 0].sum(1) / decisions.sqrt()).sum() / decisions.sqrt().sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), weights, 1 - min(EMA_DECAY, (1 + step) / (10 + step)))
        losses.append(loss.item())
        if step % 25 == 0:
            print(f"step {step} loss {sum(losses[-25:]) / 25:.3f} {time.process_time():.0f} s of processor", flush=True)
        if step % 50 == 0 or step == steps:
            torch.save({name: part.state_dict() for name, part in parts.items()} | {"step": step}, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)


def export(work: Path, target: Path) -> None:
    """Write the averaged weights as a folder that the `any-to-any` policy loads, in half precision, with the judge beside it."""
    policy = new_policy(work)
    policy.model.load_state_dict(torch.load(work / "checkpoint.pt")["average"])
    policy.model.to(torch.float16)
    policy.save(target)
    SpeechJudge.load(work / "judge").save(target / "judge")
    print(f"exported {sum(weight.numel() for weight in policy.model.parameters())} parameters", flush=True)


def as_flac(clip: Clip) -> bytes:
    return AudioModality().encode(clip, "audio/flac")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("all", "picture", "speech", "judge", "train", "export"), nargs="?", default="all")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--work", type=Path, default=ROOT / ".cache/tiny-any")
    parser.add_argument("--target", type=Path, default=MODEL_DIR)
    arguments = parser.parse_args()
    work, everything = arguments.work, arguments.stage == "all"
    if arguments.stage == "picture" or everything:
        picture_tokenizer(2400).save(work / MEDIA_FOLDER / "image")
    if arguments.stage == "speech" or everything:
        speech_tokenizer(work, 2500).save(work / MEDIA_FOLDER / "audio")
    if arguments.stage == "judge" or everything:
        judge, accuracy = speech_judge(work, 1500)
        judge.save(work / "judge")
        print(f"the judge of speech names {accuracy:.1%} of real clips in unheard voices")
    if arguments.stage == "train" or everything:
        train(work, arguments.steps)
    if arguments.stage == "export" or everything:
        export(work, arguments.target)


if __name__ == "__main__":
    main()
