"""The teacher's store: small, exact where it can be, whole after a kill, and read without the teacher."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyalign.config import read_recipe
from polyalign.errors import ConfigError, PolyalignError, TrainingError
from polyalign.objectives.base import FeedbackTensors
from polyalign.objectives.distillation import ADPA, DCKD, GKD
from polyalign.objectives.distillation_config import ADPAConfig, DCKDConfig, GKDConfig
from polyalign.policies.completion_mask import PromptResponseEncoder
from polyalign.policies.config import TokensConfig
from polyalign.policies.teacher_store import Header, Row, TeacherStore, row_key
from polyalign.policies.tiny_language import byte_tokenizer, tiny_llama
from polyalign.policies.tokens import TokenPolicy
from polyalign.records.jsonl import write_jsonl
from polyalign.records.samples import Edge, Example, Sample
from polyalign.records.schema import Candidate, Comparison, Message, Record, TextPart
from polyalign.training import run, self_samples, teaching

LIMITS = TokensConfig(max_length=120, max_response=40)
QUESTIONS = ("Name a red fruit.", "Say hello.", "Two plus three?", "Name a sea animal.", "Where is Rome?")
ANSWERS = (("Cherry.", "Lime."), ("Hello.", "Go away."), ("Five.", "Nine, I think."), ("Octopus.", "Goat."), ("In Italy.", "?"))


def policy_of(seed: int, hidden: int = 32, tokenizer: Any = None, spread: float = 0.2, **limits: Any) -> TokenPolicy:
    tokenizer = tokenizer or byte_tokenizer()
    model = tiny_llama(len(tokenizer), hidden=hidden, seed=seed, initializer_range=spread)
    return TokenPolicy(model, PromptResponseEncoder(tokenizer), LIMITS.model_copy(update=limits))


def pairs() -> list[Example]:
    found = []
    for question, answers in zip(QUESTIONS, ANSWERS, strict=True):
        prompt = (Message(role="user", parts=question),)  # type: ignore[arg-type]
        samples = tuple(Sample(f"{question}{n}", prompt, (TextPart(text=text),), question) for n, text in enumerate(answers))
        found.append(Example(question, samples, edges=(Edge(0, 1),)))
    return found


def samples_of(examples: Sequence[Example]) -> list[Sample]:
    return [sample for example in examples for sample in example.samples]


def store_in(folder: Path, teachers: teaching.Teachers, student: TokenPolicy, **settings: Any) -> TeacherStore:
    config = teaching.TeacherConfig.model_validate({"policy": "text", "store": str(folder), "top_k": 16, **settings} | BASE)
    return teaching.open_store(config, teachers, student)


BASE = {"policy": {"name": "text", "base": "unused"}}


def full_logits(policy: TokenPolicy, sample: Sample) -> torch.Tensor:
    """Logits ``[T, V]`` of one sample's response positions from the model's own forward, in float64."""
    row = policy.collator.encode(sample)
    with torch.no_grad():
        logits = policy.model(torch.tensor([row.prompt + row.response])).logits[0].double()
    return logits[len(row.prompt) - 1 : len(row.prompt) - 1 + len(row.response)]


def test_at_a_vocabulary_of_32000_the_store_is_below_2_percent_of_whole_distributions(tmp_path: Path) -> None:
    """A position of float32 distributions takes 128,000 bytes. The default 128 tokens: ids of 2 bytes, log-probabilities of 2."""
    vocabulary, top_k, positions = 32_000, teaching.TeacherConfig.model_validate(BASE).top_k, 600
    draw = np.random.default_rng(0)
    for reference, two_teachers in ((None, False), ("other", True)):
        header = Header("teacher", reference, "tokens", vocabulary, top_k, "float16")
        store = TeacherStore(tmp_path / str(two_teachers), header)
        rows = {}
        for number in range(10):
            ids = draw.integers(0, vocabulary, (positions // 10, top_k))
            said = np.log(draw.dirichlet(np.ones(top_k + 1), positions // 10))
            rows[f"row-{number}"] = Row(ids, said, said if two_teachers else None)
        store.add(rows)
        size = sum(path.stat().st_size for path in store.folder.iterdir())
        assert header.bytes_per_position == top_k * 2 + (top_k + 1) * 2 * (2 if two_teachers else 1)
        assert size == pytest.approx(positions * header.bytes_per_position, rel=0.02)  # keys and header are noise
        of_single, of_half = size / (positions * vocabulary * 4), size / (positions * vocabulary * 2)
        assert of_single < (0.0062 if two_teachers else 0.0041), "0.4 % for one teacher, 0.6 % for two"
        assert of_half < 0.0125


@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-5), ("float16", 2e-3)])
def test_with_all_tokens_kept_stored_losses_are_those_of_whole_distributions(tmp_path: Path, dtype: str, near: float) -> None:
    """Forward, reverse KL and the advantage from the models' full logits in float64. In half precision a log-probability near
    -5.5 is rounded by up to 0.002, which is what then is missing."""
    student, tuned, before = policy_of(1), policy_of(2, hidden=48), policy_of(3, hidden=48)
    examples, teachers = pairs(), teaching.Teachers(tuned, before)
    store = store_in(tmp_path, teachers, student, top_k=10_000, dtype=dtype, reference=BASE["policy"])
    assert store.header.top_k == student.vocabulary_size
    teaching.teach(teachers, student, samples_of(examples), store, batch_size=3, quiet=True)
    student.collator.taught = store
    batch, feedback = student.collate(samples_of(examples)), FeedbackTensors.of(examples)
    scores = student(batch, frozenset({"token_targets"}))

    forward, reverse, advantage = [], [], []
    for sample in batch.samples:
        q, p, r = (full_logits(policy, sample).log_softmax(-1) for policy in (student, tuned, before))
        forward.append((p.exp() * (p - q)).sum(-1))
        reverse.append((q.exp() * (q - p)).sum(-1))
        advantage.append((q.exp() * (p - r)).sum(-1))
    expected = {
        "forward": torch.cat(forward).mean(),
        "reverse": torch.cat(reverse).mean(),
        "better": torch.cat(forward[::2]).mean(),
        "worse": torch.cat(forward[1::2]).mean(),
        "advantage": -torch.cat(advantage[::2]).mean(),
    }

    def value(objective: Any, name: str) -> float:
        term = objective(scores, {}, feedback)[name]
        return float(term.sum / term.weight)

    adpa = ADPA(ADPAConfig(states="responses", floor=1e-30))
    found = {
        "forward": value(GKD(GKDConfig(beta=0.0)), "distillation"),
        "reverse": value(GKD(GKDConfig(beta=1.0)), "distillation"),
        "better": value(DCKD(DCKDConfig()), "better"),
        "worse": value(DCKD(DCKDConfig()), "worse"),
        "advantage": value(adpa, "advantage"),
    }
    for name, number in expected.items():
        assert found[name] == pytest.approx(number.item(), abs=near, rel=near), name


def test_what_is_read_back_is_a_distribution_and_its_ids_are_the_likeliest(tmp_path: Path) -> None:
    student, tuned = policy_of(1), policy_of(2)
    teachers, samples = teaching.Teachers(tuned), samples_of(pairs())
    store = store_in(tmp_path, teachers, student, top_k=5)
    teaching.teach(teachers, student, samples, store, batch_size=4, quiet=True)
    for sample in samples:
        row = store.read(row_key(student.collator.encode(sample)))
        whole = full_logits(tuned, sample).softmax(-1)
        largest = whole.topk(5, -1)
        np.testing.assert_array_equal(row.ids, largest.indices.numpy())
        np.testing.assert_allclose(np.exp(row.teacher[:, :5]), largest.values.numpy(), rtol=3e-3)
        np.testing.assert_allclose(np.exp(row.teacher).sum(-1), 1.0, rtol=1e-6)
        assert row.reference is None


class Counting(TokenPolicy):
    """Counts the rows that it reads, and can be killed after some."""

    read = 0
    dies_after: int | None = None

    def likeliest(self, batch: Any, count: int, ids: Any = None, within: Any = None) -> Any:
        if self.dies_after is not None and self.read + len(batch) > self.dies_after:
            raise KeyboardInterrupt
        self.read += len(batch)
        return super().likeliest(batch, count, ids, within)


def counting(seed: int) -> Counting:
    plain = policy_of(seed)
    return Counting(plain.model, plain.encoder, plain.config)  # type: ignore[arg-type]


def test_a_killed_teacher_goes_on_where_it_stopped_and_repeats_no_finished_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teaching, "ROWS_PER_FILE", 4)
    student, tuned = policy_of(1), counting(2)
    teachers, samples = teaching.Teachers(tuned), samples_of(pairs())
    tuned.dies_after = 7  # in the middle of the second file
    with pytest.raises(KeyboardInterrupt):
        teaching.teach(teachers, student, samples, store_in(tmp_path, teachers, student), batch_size=2, quiet=True)
    assert len(store_in(tmp_path, teachers, student)) == 4
    assert not list(tmp_path.glob(".*tmp"))
    tuned.read, tuned.dies_after = 0, None
    store = store_in(tmp_path, teachers, student)
    assert teaching.teach(teachers, student, samples, store, batch_size=2, quiet=True) == 6
    assert tuned.read == 6
    assert teaching.teach(teachers, student, samples, store_in(tmp_path, teachers, student), batch_size=2, quiet=True) == 0
    assert tuned.read == 6

    fresh = tmp_path / "fresh"  # and it is the same store as one written in one go
    uninterrupted = store_in(fresh, teachers, student)
    teaching.teach(teachers, student, samples, uninterrupted, batch_size=2, quiet=True)
    for sample in samples:
        key = row_key(student.collator.encode(sample))
        np.testing.assert_array_equal(store.read(key).teacher, uninterrupted.read(key).teacher)


def test_a_damaged_file_is_noticed_and_only_its_rows_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teaching, "ROWS_PER_FILE", 4)
    student, tuned = policy_of(1), counting(2)
    teachers, samples = teaching.Teachers(tuned), samples_of(pairs())
    teaching.teach(teachers, student, samples, store_in(tmp_path, teachers, student), batch_size=4, quiet=True)
    files = sorted(tmp_path.glob("*.safetensors"))
    content = bytearray(files[0].read_bytes())
    content[-1] ^= 1
    files[0].write_bytes(content)
    files[1].write_bytes(files[1].read_bytes()[:-40])  # cut short, as by a full disk
    tuned.read = 0
    store = store_in(tmp_path, teachers, student)
    damaged = sum(4 if path in files[:2] else 0 for path in files[:2])
    again = teaching.teach(teachers, student, samples, store, batch_size=4, quiet=True)
    assert 0 < again == tuned.read <= damaged
    assert all(row_key(student.collator.encode(sample)) in store for sample in samples)
    assert store.drop_damaged() == []


def test_a_store_can_be_pickled_for_loader_workers_and_carries_no_teacher(tmp_path: Path) -> None:
    student, tuned = policy_of(1), policy_of(2)
    teachers, samples = teaching.Teachers(tuned), samples_of(pairs())
    store = store_in(tmp_path, teachers, student)
    teaching.teach(teachers, student, samples, store, batch_size=4, quiet=True)
    student.collator.taught = store
    there = pickle.loads(pickle.dumps(student.collator))
    assert len(pickle.dumps(store)) < 10_000
    torch.testing.assert_close(there(samples).tensors["teacher_log_probs"], student.collate(samples).tensors["teacher_log_probs"])


def test_a_store_of_another_teacher_and_a_sample_it_lacks_are_refused(tmp_path: Path) -> None:
    student, tuned = policy_of(1), policy_of(2)
    teachers, samples = teaching.Teachers(tuned), samples_of(pairs())
    store = store_in(tmp_path, teachers, student)
    teaching.teach(teachers, student, samples[:4], store, batch_size=4, quiet=True)
    with pytest.raises(TrainingError, match=r"teacher is '\w+', here '\w+'"):
        store_in(tmp_path, teaching.Teachers(policy_of(3)), student)
    with pytest.raises(TrainingError, match="top_k is 16, here 8"):
        store_in(tmp_path, teachers, student, top_k=8)
    student.collator.taught = store
    with pytest.raises(TrainingError, match=r"has not read sample 'Two plus three\?0'.*polyalign teach"):
        student.collate(samples)


def test_teachers_of_another_tokenizer_or_a_shorter_context_are_refused() -> None:
    student = policy_of(1)
    with pytest.raises(
        ConfigError, match=r"share the student's tokenizer: 1 of 259 tokens differ, for example '<more>', id none"
    ):
        teaching.check_vocabulary(student, policy_of(2, tokenizer=byte_tokenizer(more=["<more>"])), "objective.teacher.policy")
    with pytest.raises(ConfigError, match=r"rows of 60 tokens, the student's may have 120; raise objective.teacher.policy"):
        teaching.check_vocabulary(student, policy_of(2, max_length=60), "objective.teacher.policy")


def test_a_padded_vocabulary_of_the_teacher_is_no_other_tokenizer(tmp_path: Path) -> None:
    """Some families pad larger models' vocabularies: entries without a token. They are left out before the softmax."""
    student, tokenizer = policy_of(1), byte_tokenizer()
    padded = TokenPolicy(tiny_llama(len(tokenizer) + 30, seed=2, initializer_range=0.2), PromptResponseEncoder(tokenizer), LIMITS)
    teaching.check_vocabulary(student, padded, "objective.teacher.policy")
    teachers, samples = teaching.Teachers(padded), samples_of(pairs())[:2]
    store = store_in(tmp_path, teachers, student, top_k=10_000, dtype="float32")
    teaching.teach(teachers, student, samples, store, batch_size=2, quiet=True)
    row = store.read(row_key(student.collator.encode(samples[0])))
    assert row.ids.shape[1] == len(tokenizer) and row.ids.max() < len(tokenizer)
    whole = full_logits(padded, samples[0])[:, : len(tokenizer)].log_softmax(-1)
    np.testing.assert_allclose(row.teacher[:, :-1], whole.gather(-1, torch.from_numpy(row.ids)).numpy(), atol=1e-5)


# a recipe, from start to end


def saved(folder: Path, seed: int) -> Path:
    policy_of(seed).save(folder)
    return folder


def recipe_of(folder: Path, objective: str, **teacher: Any) -> Any:
    records = [
        Record(
            id=example.record_id,
            prompt=example.samples[0].prompt,
            candidates=tuple(Candidate(parts=sample.response) for sample in example.samples),
            feedback=(Comparison(ranking=((0,), (1,))),),
        )
        for example in pairs()
    ]
    data = folder / "data.jsonl"
    if not data.is_file():
        write_jsonl(data, records)
    sizes = {"max_length": 120, "max_response": 40}
    tree = {
        "name": "taught",
        "policy": {"name": "text", "base": str(saved(folder / "student", 1)), **sizes},
        "data": {"train": [{"path": str(data)}]},
        "objective": {
            "name": objective,
            "teacher": {"policy": {"name": "text", "base": str(saved(folder / "teacher", 2)), **sizes}, "top_k": 16, **teacher},
        },
        "training": {"steps": 3, "batch_size": 4, "micro_batch_size": 2, "optimizer": {"learning_rate": 1e-3}},
        "report": {"prompts": 0},
    }
    return read_recipe(json.dumps(tree))


@pytest.fixture()
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_recipe_is_taught_first_and_then_trains_without_its_teacher(tmp_path: Path, cache: Path) -> None:
    resolved = recipe_of(tmp_path, "gkd")
    assert "the teacher read 5 responses, 5 are in" in run.teach(resolved)
    assert "the teacher read 0 responses, 5 are in" in run.teach(resolved)
    (tmp_path / "teacher" / "model.safetensors").unlink()  # whoever trains need not have the teacher
    finished = run.train(resolved, tmp_path / "run")
    assert finished.trained.steps == 3 and finished.trained.metrics["loss/distillation"] > 0


def test_training_teaches_what_is_missing(tmp_path: Path, cache: Path) -> None:
    finished = run.train(recipe_of(tmp_path, "dckd"), tmp_path / "run")
    assert {"loss/nll", "loss/better", "loss/worse"} <= set(finished.trained.metrics)


def test_adpa_learns_on_the_students_own_answers_which_are_sampled_once(tmp_path: Path, cache: Path) -> None:
    before = {"name": "text", "base": str(saved(tmp_path / "before", 3)), "max_length": 120, "max_response": 40}
    settings = {"reference": before, "self_samples": 2, "decoding": {"max_new_tokens": 6}}
    resolved = recipe_of(tmp_path, "adpa", **settings)
    line = run.teach(resolved)
    assert "the student answered 5 prompts anew; the teacher read" in line
    assert "the student answered" not in run.teach(resolved)
    policy, _ = run.build(resolved)
    train_set, _ = run.datasets(resolved)
    taught = teaching.prepare(resolved, policy, train_set)
    example = taught.data[0]
    assert [sample.role for sample in example.samples] == ["response", "self_sample", "self_sample"]
    expected = policy.generate([example.samples[0].prompt], samples_per_prompt=2, seed=0, max_new_tokens=6)
    assert [sample.response[0].text for sample in example.samples[1:]] == [rollout.output for rollout in expected]
    finished = run.train(resolved, tmp_path / "run")
    assert {"loss/nll", "loss/advantage"} <= set(finished.trained.metrics)


def test_killed_sampling_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_samples, "PROMPTS_PER_FILE", 2)
    student, asked = policy_of(1), []
    whole = student.generate

    def generate(prompts: Any, **settings: Any) -> Any:
        if len(asked) + len(prompts) > 4:
            raise KeyboardInterrupt
        asked.extend(prompts)
        return whole(prompts, **settings)

    samples = samples_of(pairs())
    monkeypatch.setattr(student, "generate", generate)
    with pytest.raises(KeyboardInterrupt):
        self_samples.SelfSamples(tmp_path, student, 1, 0, {"max_new_tokens": 3}).draw(samples)
    asked.clear()
    again = self_samples.SelfSamples(tmp_path, student, 1, 0, {"max_new_tokens": 3})
    assert again.draw(samples) == 1 and asked == [samples[-1].prompt]


def test_a_finished_store_must_fit_the_student_and_the_recipe(tmp_path: Path, cache: Path) -> None:
    resolved = recipe_of(tmp_path, "gkd")
    run.teach(resolved)
    config = resolved.objective_config.teacher
    held = next((cache / "teachers").iterdir())
    fixed = config.model_copy(update={"store": str(held)})
    samples = [Example(e.record_id, (e.samples[0],)).samples[0] for e in pairs()]
    assert teaching.finished_store(fixed, policy_of(1), samples) is not None
    with pytest.raises(ConfigError, match="written for another tokenizer"):
        teaching.finished_store(fixed, policy_of(1, tokenizer=byte_tokenizer(more=["<more>"])), samples)
    with pytest.raises(ConfigError, match=r"\(16, 'float16', False\), the recipe says \(8, 'float16', False\)"):
        teaching.finished_store(fixed.model_copy(update={"top_k": 8}), policy_of(1), samples)
    (held / "store.json").write_text((held / "store.json").read_text().replace('"vocabulary": 258', '"vocabulary": 300'))
    with pytest.raises(ConfigError, match="speaks of 300 token ids, the student knows 258"):
        teaching.finished_store(fixed, policy_of(1), samples)


def test_mistakes_about_teachers_are_told_before_anything_is_loaded(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"objective\.teacher\.self_samples is 0"):
        run.train(recipe_of(tmp_path, "adpa", reference=BASE["policy"]), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"objective\.teacher\.reference"):
        run.train(recipe_of(tmp_path, "adpa", self_samples=1), tmp_path / "run")
    with pytest.raises(PolyalignError, match="objective.teacher.top: unknown key. Did you mean 'top_k'"):
        recipe_of(tmp_path, "gkd", top=4)
    with pytest.raises(ConfigError, match=r"objective\.teacher is missing"):
        teaching.teacher_of(GKDConfig())
    assert not (tmp_path / "run").exists()


def test_several_processes_want_a_finished_store(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = recipe_of(tmp_path, "gkd")
    policy, _ = run.build(resolved)
    train_set, _ = run.datasets(resolved)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="polyalign teach"):
        teaching.prepare(resolved, policy, train_set)
    monkeypatch.delenv("WORLD_SIZE")
    run.teach(resolved)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert teaching.prepare(resolved, policy, train_set).rows == 0


def test_the_head_meets_a_few_positions_at_a_time_in_teaching_and_in_training(tmp_path: Path) -> None:
    """Memory of a step holds the logits of one chunk, whatever the length: here 3 positions, forward and, again, backward."""
    student, tuned = policy_of(1, head_chunk=3), policy_of(2, head_chunk=3)
    seen: dict[str, list[int]] = {"student": [], "teacher": []}
    for name, policy in (("student", student), ("teacher", tuned)):

        def head(states: torch.Tensor, name: str = name, policy: TokenPolicy = policy) -> torch.Tensor:
            seen[name].append(len(states))
            return TokenPolicy.head(policy, states)

        policy.head = head  # type: ignore[method-assign]
    teachers, samples = teaching.Teachers(tuned), samples_of(pairs())
    store = store_in(tmp_path, teachers, student)
    teaching.teach(teachers, student, samples, store, batch_size=16, quiet=True)
    student.collator.taught = store
    batch = student.collate(samples)
    positions = int(batch.mask.sum())
    assert sum(seen["teacher"]) == positions and max(seen["teacher"]) == 3
    scores = student(batch, frozenset({"token_targets"}))
    assert sum(seen["student"]) == positions
    assert max(value.numel() for value in scores.extras.values()) < positions * student.vocabulary_size / 4
    term = GKD()(scores, {}, FeedbackTensors.of(pairs()))["distillation"]
    (term.sum / term.weight).backward()
    assert sum(seen["student"]) == 2 * positions and max(seen["student"]) == 3


def test_the_command_teaches_and_refuses_what_learns_from_nobody(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from polyalign.cli.main import main

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_of(tmp_path, "gkd").to_yaml())
    assert main(["teach", str(recipe)]) == 0
    assert "the teacher read 5 responses" in capsys.readouterr().out
    assert main(["train", str(recipe), "--dry-run"]) == 0
    assert "teacher: text, read once into" in capsys.readouterr().out
    assert main(["teach", str(recipe), "objective=sft"]) == 2
    assert "the objective 'sft' learns from no teacher" in capsys.readouterr().err
