"""Train `zoo:tiny-musicgen`: a MusicgenForConditionalGeneration that plays tunes of a few notes as its prompt asks.

    python3 tools/dev.py zoo tiny-musicgen                        # all stages, about a minute on one core
    python3 tools/dev.py zoo tiny-musicgen decoder --steps 2000   # goes on from the checkpoint in --work
    python3 tools/dev.py zoo tiny-musicgen export

The codec is an EnCodec that nobody trained: its convolutions cut sound into frames of 160 samples and put them together again,
and its two codebooks are the k-means of the frames of tunes, and of what the first one misses. The decoder, with its text
encoder, learns by cross-entropy; prompts leave out words now and then, and all of them in one case of ten, for guidance.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import scipy.cluster.vq
import torch
import torch.nn.functional as F
from tiny_musicgen_tunes import FRAME, RATE, Ask, all_asks, tune
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    EncodecConfig,
    EncodecFeatureExtractor,
    EncodecModel,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    MusicgenForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from polyalign.records.atomic import atomic_write
from polyalign_audio.delay_pattern import delayed

ROOT = Path(__file__).resolve().parents[2]
MODEL_DIR = ROOT / "packages/polyalign-zoo/src/polyalign_zoo/models/tiny-musicgen"
BOOKS, CODES = 2, 64
TUNES = 100  # of each of the 16 ways to play one
BATCH, RATE_OF_LEARNING, WARM_UP_STEPS = 32, 2e-3, 60
SHIFT = 8.0  # added to samples inside the codec, so that its ELUs pass them unchanged
WORDS = "a tune on pipe flute reed low high rising falling slow fast".split()


def new_codec(frames: np.ndarray) -> EncodecModel:
    """Return an EnCodec at 25 frames a second, with codebooks for frames ``[N, FRAME]``."""
    codec = EncodecModel(
        EncodecConfig(
            sampling_rate=RATE,
            target_bandwidths=[BOOKS * np.log2(CODES) * RATE / FRAME / 1000],  # kbit/s
            hidden_size=FRAME,
            num_filters=FRAME // 2,
            num_residual_layers=0,
            upsampling_ratios=[FRAME],
            kernel_size=1,
            last_kernel_size=1,
            codebook_size=CODES,
            num_lstm_layers=1,
            use_causal_conv=False,
        )
    )
    write_framing(codec)
    learn_codebooks(codec, frames)
    return codec.eval()


@torch.no_grad()
def write_framing(codec: EncodecModel) -> None:
    """Make the encoder cut sound into frames, a channel per sample, and the decoder put frames together. LSTMs of zeros add
    nothing to what they read; a shift by ``SHIFT`` on the way in, and back on the way out, keeps samples above the ELUs' bend."""
    sample = torch.arange(FRAME)
    place = FRAME // 2 + sample  # kernels are two frames long and centred on the frame
    first, cut, last = (layer.conv for layer in codec.encoder.layers if hasattr(layer, "conv"))
    start, join, end = (layer.conv for layer in codec.decoder.layers if hasattr(layer, "conv"))
    identity = torch.eye(FRAME)[..., None]
    weights = {conv: torch.zeros(conv.weight.shape) for conv in (cut, join, end)}
    weights[cut][sample, 0, place] = 1.0
    weights[join][sample, 0, place] = 1.0
    weights[end][0, 0] = 1.0
    weights |= {first: torch.ones(first.weight.shape), last: identity, start: identity}
    for conv, weight in weights.items():
        conv.weight = weight  # goes through the weight norm's parametrization
        conv.bias.zero_()
    for conv, shift in ((first, SHIFT), (last, -SHIFT), (start, SHIFT), (end, -SHIFT)):
        conv.bias.fill_(shift)
    for weight in [*codec.encoder.layers[3].parameters(), *codec.decoder.layers[1].parameters()]:
        weight.zero_()


@torch.no_grad()
def learn_codebooks(codec: EncodecModel, frames: np.ndarray) -> None:
    """Put k-means of the distinct frames into the first codebook, and of what it misses of them into the next."""
    left = np.stack(list({frame.tobytes(): frame for frame in frames.round(4)}.values()))  # np.unique(axis=0) takes minutes
    for number, layer in enumerate(codec.quantizer.layers):
        centres, nearest = scipy.cluster.vq.kmeans2(left.astype(np.float64), CODES, minit="++", rng=np.random.default_rng(number))
        layer.codebook.embed.copy_(torch.from_numpy(centres))
        left = left - centres[nearest]
    print(f"codec: {len(left)} distinct frames, mean squared error {np.square(left).mean():.1e}", flush=True)


def new_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    words = ["<pad>", "</s>", "<unk>", *WORDS]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=16
    )


def new_model(codec: EncodecModel, vocabulary: int) -> MusicgenForConditionalGeneration:
    text_encoder = T5EncoderModel(
        T5Config(vocab_size=vocabulary, d_model=48, d_ff=96, d_kv=12, num_heads=4, num_layers=1, dropout_rate=0.0)
    )
    decoder = MusicgenForCausalLM(
        MusicgenDecoderConfig(
            vocab_size=CODES,
            hidden_size=96,
            ffn_dim=288,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_codebooks=BOOKS,
            max_position_embeddings=128,
            dropout=0.0,
            pad_token_id=CODES,
            bos_token_id=CODES,
        )
    )
    model = MusicgenForConditionalGeneration(text_encoder=text_encoder, audio_encoder=codec, decoder=decoder)
    decoder.set_attn_implementation("sdpa")  # a decoder made by itself has none, and then no causal mask either
    model.generation_config.decoder_start_token_id = model.generation_config.pad_token_id = CODES
    return model


def train(model: MusicgenForConditionalGeneration, tunes: list[tuple[Ask, np.ndarray]], work: Path, steps: int) -> None:
    """Take ``steps`` steps in all, with a checkpoint every minute; the learning rate falls linearly to zero."""
    tokenizer = new_tokenizer()
    trained = learner(model)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=RATE_OF_LEARNING, betas=(0.9, 0.98), weight_decay=0.01)
    checkpoint, first = work / "decoder.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        trained.load_state_dict(state["trained"])
        model.audio_encoder.load_state_dict(state["codec"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]

    frames = torch.from_numpy(np.stack([sound for _, sound in tunes])).view(len(tunes), -1, FRAME)
    codes = model.audio_encoder.quantizer.encode(frames.transpose(1, 2)).transpose(
        0, 1
    )  # [N, K, F]: the encoder only cuts frames

    def save(step: int) -> None:
        state = {"trained": trained.state_dict(), "codec": model.audio_encoder.state_dict(), "optimizer": optimizer.state_dict()}
        with atomic_write(checkpoint) as file:
            torch.save(state | {"step": step}, file)

    saved, losses = time.time(), []
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE_OF_LEARNING * min(1.0, (step + 1) / WARM_UP_STEPS) * (1 - step / steps)
        chosen = torch.randint(len(tunes), (BATCH,)).tolist()
        read = tokenizer([forgetful(tunes[number][0]).prompt for number in chosen], padding=True, return_tensors="pt")
        hidden = model.text_encoder(**{name: read[name] for name in ("input_ids", "attention_mask")}).last_hidden_state
        columns = nn.functional.pad(delayed(codes[chosen], CODES), (1, 0), value=CODES)  # [B, K, 1 + S]
        logits = model(
            encoder_outputs=(hidden,),
            attention_mask=read["attention_mask"] * (torch.rand(BATCH, 1) < 0.9),
            decoder_input_ids=columns[..., :-1].flatten(0, 1),
        ).logits
        loss = F.cross_entropy(logits.flatten(0, 1), columns[..., 1:].flatten(), ignore_index=CODES)
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 50 == 49:
            print(f"step {step + 1} loss {np.mean(losses[-50:]):.4f}", flush=True)
        if time.time() - saved > 60:
            saved = time.time()
            save(step + 1)
    save(steps)


def learner(model: MusicgenForConditionalGeneration) -> nn.ModuleList:
    """Return what trains: all but the codec."""
    return nn.ModuleList([model.text_encoder, model.enc_to_dec_proj, model.decoder])


def forgetful(ask: Ask) -> Ask:
    """Return what a prompt says of the tune: each word is left out in one case of five."""
    kept = [word if torch.rand(()) < 0.8 else None for word in (ask.direction, ask.instrument, ask.register, ask.pace)]
    return Ask(*kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("all", "decoder", "export"), nargs="?", default="all")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--work", type=Path, default=ROOT / ".cache/tiny-musicgen", help="the checkpoint")
    parser.add_argument("--target", type=Path, default=MODEL_DIR)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    tunes = [(ask, tune(ask, draw)) for ask in all_asks() for _ in range(TUNES)]
    model = new_model(new_codec(np.concatenate([sound for _, sound in tunes]).reshape(-1, FRAME)), len(new_tokenizer()))
    if arguments.stage in ("all", "decoder"):
        train(model, tunes, arguments.work, arguments.steps)
    if arguments.stage in ("all", "export"):
        state = torch.load(arguments.work / "decoder.pt")
        learner(model).load_state_dict(state["trained"])
        model.audio_encoder.load_state_dict(state["codec"])  # codes mean something only with the codebooks they were numbered by
        model.half().save_pretrained(arguments.target)
        new_tokenizer().save_pretrained(arguments.target)
        EncodecFeatureExtractor(feature_size=1, sampling_rate=RATE).save_pretrained(arguments.target)
        print(f"exported {sum(weight.numel() for weight in model.parameters())} weights", flush=True)


if __name__ == "__main__":
    main()
