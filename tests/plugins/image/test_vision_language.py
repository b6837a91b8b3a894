"""The vision-language policy as a user meets it: folders, parts that train, caches, and runs through the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from polyalign.cli.main import main
from polyalign.errors import ConfigError, RecordError, TrainingError
from polyalign.policies.adapters import trainable
from polyalign.policies.config import LoraConfig
from polyalign.policies.media_training import freeze
from polyalign.policies.reference import AdaptersOff, CachedScores, FrozenCopy, build_reference
from polyalign.records.convert import moved
from polyalign.records.jsonl import write_jsonl
from polyalign.records.samples import Sample
from polyalign.records.schema import Message, TextPart
from polyalign.records.store import MediaStore
from polyalign.records.views import VIEWS
from polyalign.training.config import OptimizerConfig, ReferenceConfig
from polyalign.training.optimizer import build_optimizer
from polyalign_image import fixture
from polyalign_image.config import VisionLanguageConfig
from polyalign_image.vision_language import build

RECORDS, MEDIA = fixture.records()
EXAMPLES = [example for record in RECORDS if not record.tags for example in VIEWS["pairs"](record, MEDIA)]
SAMPLES = [sample for example in EXAMPLES for sample in example.samples]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder as transformers writes it."""
    model, processor = fixture.tiny_llava()
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def loaded(base: Path, **settings: Any) -> Any:
    return build(VisionLanguageConfig(base=str(base), max_length=160, max_response=48, **settings))


def parts_that_train(policy: Any) -> set[str]:
    names = ("vision_tower", "multi_modal_projector", "lora_", "language_model", "lm_head")
    return {next(part for part in names if part in name) for name in trainable(policy)}


def test_a_folder_that_transformers_wrote_gives_the_scores_of_the_model_in_memory(base: Path) -> None:
    batch = fixture.policy(lora=None).collate(SAMPLES)
    torch.testing.assert_close(loaded(base)(batch).log_probs, fixture.policy(lora=None)(batch).log_probs)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"multi_modal_projector", "language_model", "lm_head"}),
        ({"lora": {"rank": 2}}, {"lora_"}),
        ({"lora": {"rank": 2}, "projector": "full"}, {"lora_", "multi_modal_projector"}),
        ({"language": "frozen"}, {"multi_modal_projector"}),
        ({"language": "norms"}, {"multi_modal_projector", "language_model"}),
        (
            {"tower": "full", "projector": "full", "language": "full"},
            {"vision_tower", "multi_modal_projector", "language_model", "lm_head"},
        ),
    ],
)
def test_parts_train_as_the_recipe_says(base: Path, settings: dict[str, Any], expected: set[str]) -> None:
    policy = loaded(base, **settings)
    assert parts_that_train(policy) == expected
    policy(policy.collate(SAMPLES[:2])).reduced().sum().backward()
    unused = ("encoder.layers.1", "post_layernorm")  # LLaVA reads the tower's layer before the last
    for name, parameter in policy.named_parameters():
        assert (parameter.grad is not None) == (parameter.requires_grad and not any(part in name for part in unused)), name


def test_contradicting_parts_are_refused(base: Path) -> None:
    with pytest.raises(ConfigError, match="contradict"):
        loaded(base, language="lora")
    with pytest.raises(ConfigError, match="contradict"):
        loaded(base, language="full", lora={"rank": 2})
    with pytest.raises(ConfigError, match="contradict"):
        loaded(base, language="norms", lora={"rank": 2})


def test_norms_are_all_that_trains_of_the_language_model_and_they_are_saved(base: Path, tmp_path: Path) -> None:
    """A Llama has two norms a layer and one at its end. The tower's norms stay frozen, and the reference is a copy."""
    policy = loaded(base, language="norms", projector="frozen")
    layers = range(policy.model.config.text_config.num_hidden_layers)
    inner = {f"layers.{layer}.{norm}" for layer in layers for norm in ("input_layernorm", "post_attention_layernorm")}
    assert {name.split("language_model.")[1].removesuffix(".weight") for name in trainable(policy)} == inner | {"norm"}
    batch = policy.collate(SAMPLES[:4])
    reference = build_reference(policy, ReferenceConfig(), tmp_path / "cache")
    before = policy(batch).log_probs.detach()
    with torch.no_grad():
        for parameter in trainable(policy).values():
            parameter.mul_(1.5)
    tuned = policy(policy.collate(SAMPLES[:4])).log_probs
    assert not torch.allclose(tuned, before)
    assert reference is not None
    torch.testing.assert_close(reference(policy.collate(SAMPLES[:4])).log_probs, before)
    policy.save(tmp_path / "model")
    again = loaded(tmp_path / "model")
    torch.testing.assert_close(again(again.collate(SAMPLES[:4])).log_probs, tuned, rtol=1e-4, atol=1e-4)


def test_a_language_model_without_norms_has_none_to_train() -> None:
    model, _ = fixture.tiny_llava()
    for name, module in list(model.named_modules()):
        if "Norm" in type(module).__name__ and "language_model" in name:
            model.set_submodule(name, torch.nn.Identity())
    with pytest.raises(ConfigError, match="policy.language is 'norms', but no module"):
        freeze(model, VisionLanguageConfig(base="unused", language="norms"), ["image"])


def test_each_part_may_have_its_own_learning_rate(base: Path) -> None:
    policy = loaded(base, tower="full", learning_rate_scale={"tower": 0.1, "projector": 5.0})
    scales = policy.learning_rate_scales()
    groups = build_optimizer(
        [(parameter, scales.get(name, 1.0)) for name, parameter in trainable(policy).items()], OptimizerConfig(learning_rate=1.0)
    ).param_groups
    assert {group["scale"]: len(group["params"]) for group in groups} == {
        0.1: sum("vision_tower" in name for name in trainable(policy)),
        5.0: 4,
        1.0: sum("vision_tower" not in name and "projector" not in name for name in trainable(policy)),
    }


def test_a_projector_that_trains_beside_lora_is_put_back_for_the_reference_and_saved(base: Path, tmp_path: Path) -> None:
    policy = loaded(base, lora={"rank": 2}, projector="full")
    batch = policy.collate(SAMPLES[:4])
    before = AdaptersOff(policy)(batch).log_probs
    with torch.no_grad():
        for parameter in trainable(policy).values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    tuned = policy(policy.collate(SAMPLES[:4])).log_probs
    assert not torch.allclose(tuned, before)
    torch.testing.assert_close(AdaptersOff(policy)(policy.collate(SAMPLES[:4])).log_probs, before)
    assert policy.fingerprint() == loaded(base).fingerprint()
    policy.save(tmp_path / "adapter")
    again = loaded(tmp_path / "adapter")
    torch.testing.assert_close(again(again.collate(SAMPLES[:4])).log_probs, tuned, rtol=1e-4, atol=1e-4)
    policy.save_merged(tmp_path / "merged")
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    merged = loaded(tmp_path / "merged")
    torch.testing.assert_close(merged(merged.collate(SAMPLES[:4])).log_probs, tuned, rtol=1e-4, atol=1e-4)


class Passes:
    """Counts pictures that go through the tower."""

    def __init__(self, policy: Any) -> None:
        self.pictures = 0
        layer = policy.tower_layer
        layer.register_forward_hook(lambda _, inputs, __: setattr(self, "pictures", self.pictures + len(inputs[0])))


def counted(policy: Any) -> Passes:
    policy.tower_layer = policy.model.get_encoder(modality="image").get_input_embeddings()
    return Passes(policy)


@pytest.mark.parametrize(
    "settings", [{"lora": LoraConfig(rank=4)}, {"lora": None}, {"lora": LoraConfig(rank=4), "projector": "full"}]
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_policy_and_reference_encode_each_picture_once_between_them(settings: dict[str, Any], checkpointing: bool) -> None:
    """Two pairs about one picture and one about another: 2 pictures, whatever trains behind the tower."""
    policy = fixture.policy(**settings)
    if checkpointing:
        policy.enable_gradient_checkpointing()
    policy.train()
    passes = counted(policy)
    reference = AdaptersOff(policy) if policy.has_adapters else FrozenCopy(policy)
    passes.pictures = 0
    batch = policy.collate([*SAMPLES[:4], *SAMPLES[:2]]).to("cpu")
    frozen = reference(batch).log_probs
    scores = policy(batch)
    torch.testing.assert_close(scores.log_probs.detach(), frozen)
    scores.log_probs.sum().backward()
    assert passes.pictures == 2
    policy(policy.collate(SAMPLES[:2]).to("cpu"))
    assert passes.pictures == 3  # another batch, another look


def test_a_frozen_copy_shares_the_weights_that_do_not_train() -> None:
    policy = fixture.policy(lora=None)
    reference = FrozenCopy(policy).policy
    mine, its = (dict(p.named_parameters()) for p in (policy, reference))
    assert all((its[name] is parameter) == (not parameter.requires_grad) for name, parameter in mine.items() if name in its)
    assert any(its[name] is mine[name] for name in mine) and any(its[name] is not mine[name] for name in mine)


def test_features_on_disk_give_the_same_scores_without_the_tower(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, cached = fixture.policy(), fixture.policy(cache_features=True)
    with caplog.at_level("WARNING"):
        cached.prepare(SAMPLES, tmp_path)
    assert "caching features of 4 media: 0 MB" in caplog.text
    passes = counted(cached)
    found = cached(cached.collate(SAMPLES)).log_probs
    assert passes.pictures == 0
    torch.testing.assert_close(found, plain(plain.collate(SAMPLES)).log_probs, rtol=1e-5, atol=1e-5)
    again = fixture.policy(cache_features=True)
    passes = counted(again)
    again.prepare(SAMPLES, tmp_path)
    assert passes.pictures == 0
    with pytest.raises(TrainingError, match="cache_features"):
        fixture.policy(cache_features=True, projector="full").prepare(SAMPLES, tmp_path)


def test_reference_scores_of_pictures_are_cached_by_content_processor_and_weights(tmp_path: Path) -> None:
    policy = fixture.policy()
    cached = CachedScores(AdaptersOff(policy), tmp_path, policy.fingerprint())
    first = cached(policy.collate(SAMPLES)).log_probs
    cached.save()
    stored = CachedScores(None, tmp_path, policy.fingerprint())  # type: ignore[arg-type]
    torch.testing.assert_close(stored(policy.collate(SAMPLES)).log_probs, first)
    model, processor = fixture.tiny_llava()
    processor.image_processor.image_mean = [0.1, 0.1, 0.1]
    assert fixture.policy((model, processor)).fingerprint() != policy.fingerprint()


def test_pictures_that_do_not_fit_are_found_before_training_and_named() -> None:
    policy = fixture.policy(max_length=16, max_response=15)
    with pytest.raises(RecordError, match=r"sample 'pair-red#0'.* 4 tokens for its 1 pictures .*max_pixels"):
        policy.prepare(SAMPLES, Path("unused"))


def test_long_prompts_lose_words_and_no_picture_tokens() -> None:
    policy = fixture.policy(max_length=90)
    first = SAMPLES[0]
    parts = (TextPart(text="word " * 20), *first.prompt[0].parts)
    item = Sample("long", (Message(role="user", parts=parts),), first.response, "long", MEDIA)
    encoded = policy.collator.encode(item)
    assert len(encoded) == 90 and encoded.dropped > 0
    assert sum(token in policy.encoder.media_ids for token in encoded.prompt) == 4
    special = policy.tokenizer.convert_tokens_to_ids("<|start|>")
    assert encoded.prompt.count(special) == policy.collator.encode(first).prompt.count(special)


def data_set(folder: Path) -> Path:
    store = MediaStore(folder)
    write_jsonl(folder / "train.jsonl", (moved(record, MEDIA, store) for record in RECORDS if not record.tags))
    return folder


def recipe(base: Path, data: Path, **more: Any) -> dict[str, Any]:
    return {
        "name": "image/tiny",
        "policy": {"name": "vision-language", "base": str(base), "max_length": 160, "max_response": 48, "lora": {"rank": 2}},
        "data": {"train": [{"path": str(data)}], "eval": [{"path": str(data)}]},
        "objective": {"name": "dpo"},
        "reference": {"cache": True},
        "training": {"steps": 2, "batch_size": 2, "micro_batch_budget": 400, "optimizer": {"learning_rate": 1e-2}},
        "report": {"prompts": 2, "decoding": {"max_new_tokens": 4}},
        **more,
    }


def test_a_run_through_the_command_line_reports_merges_and_answers_about_a_file(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = data_set(tmp_path / "data")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(base, data)))
    run = tmp_path / "run"
    assert main(["train", str(tmp_path / "recipe.yaml"), "--out", str(run)]) == 0
    report = (run / "report.html").read_text()
    assert report.count('class="media"') == 2 and "data:image/png;base64," in report.split('class="media"')[1]
    assert main(["merge", str(run), str(tmp_path / "merged")]) == 0
    tuned, merged = loaded(run / "model"), loaded(tmp_path / "merged")
    torch.testing.assert_close(
        merged(merged.collate(SAMPLES)).log_probs, tuned(tuned.collate(SAMPLES)).log_probs, rtol=1e-4, atol=1e-4
    )
    picture = tmp_path / "picture.png"
    picture.write_bytes(fixture.drawing("red"))
    capsys.readouterr()
    asked = ["sample", str(run), "--prompt", "What is this?", "--media", str(picture), "--out", str(tmp_path / "answers")]
    assert main(asked) == 0
    assert capsys.readouterr().out.startswith("'What is this?': ")
    picture.write_bytes(b"nothing")
    assert main([*asked[:-1], str(tmp_path / "more")]) == 2
    assert "is of no installed modality" in capsys.readouterr().err


def test_quantized_weights_want_lora_and_say_what_to_install(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="quantized weights do not train; add lora"):
        VisionLanguageConfig(base="x", quantize="nf4")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs bitsandbytes"):
        loaded(base, quantize="nf4", lora={"rank": 2})
