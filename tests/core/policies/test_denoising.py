from __future__ import annotations

import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toys.denoiser import SIZE, LinearDenoiser, grid, pair, sample

from polyalign.errors import TrainingError
from polyalign.objectives.base import FeedbackTensors
from polyalign.objectives.config import DPOConfig
from polyalign.objectives.pairwise import DPO
from polyalign.policies.base import Kind
from polyalign.policies.reference import CachedScores, FrozenCopy
from polyalign.records.samples import Example
from polyalign.training.batches import at_epoch

PREDICTIONS = ["epsilon", "v_prediction", "flow"]


def _margin(policy: LinearDenoiser, reference: LinearDenoiser, example: Example) -> torch.Tensor:
    batch = policy.collate(example.samples)
    return (policy(batch).log_probs - reference(batch).log_probs).flatten().diff()


def _moved(policy: LinearDenoiser) -> LinearDenoiser:
    """Return the same policy with other weights."""
    with torch.no_grad():
        policy.layer.weight.add_(0.1 * torch.eye(SIZE))
        policy.layer.bias.sub_(0.2)
    return policy


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_score_is_minus_half_the_mean_squared_error_of_the_draw(prediction: str) -> None:
    """Recomputed with nothing of the collator's sharing: one sample, one draw, plain loops."""
    policy = LinearDenoiser(prediction, seed=3, draws=2)
    chosen = sample("1 0 0 1")
    scores = policy(policy.collate([chosen]))
    assert scores.log_probs.shape == (1, 2, 1) and scores.log_probs.dtype == torch.float32
    assert scores.kind.tolist() == [[int(Kind.DENOISING)]] and scores.mask.all()
    schedule, clean = policy.schedule, torch.tensor([1.0, 0, 0, 1])
    for d, draw in enumerate([("epoch 0", 0), ("epoch 0", 1)]):
        level, noise = policy.collator.level("set", draw), policy.collator.noise("set", draw, (SIZE,))
        signal, amount = schedule.signal[level], schedule.noise[level]
        target = {"epsilon": noise, "v_prediction": signal * noise - amount * clean, "flow": noise - clean}[prediction]
        predicted = policy.layer(signal * clean + amount * noise) + schedule.timesteps[level] / 100 + len("draw") / 10
        expected = -0.5 * (target - predicted).square().mean()
        torch.testing.assert_close(scores.log_probs[0, d, 0], expected)


def test_sum_reduction_is_mean_times_dimensions() -> None:
    """So beta_sum = beta_mean / dimensions gives the same loss."""
    mean, total = LinearDenoiser(), LinearDenoiser(reduction="sum")
    batch = mean.collate(pair().samples)
    torch.testing.assert_close(total(batch).log_probs, SIZE * mean(batch).log_probs)
    feedback = FeedbackTensors.of([pair()])
    losses = []
    for policy, beta in ((mean, 40.0), (total, 40.0 / SIZE)):
        reference, moved = policy(batch).detach(), _moved(policy)(batch)
        losses.append(DPO(DPOConfig(beta=beta))(moved, {"reference": reference}, feedback)["preference"].sum)
    assert abs(losses[0].item() - math.log(2)) > 1e-3
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_dpo_on_scores_is_diffusion_dpo_on_raw_errors(prediction: str) -> None:
    """-log sigma(-beta/2 * ((e_w - ref_w) - (e_l - ref_l))), Wallace et al.'s published code, averaged over draws."""
    beta, draws = 30.0, 3
    policy, reference = LinearDenoiser(prediction, draws=draws), LinearDenoiser(prediction, draws=draws)
    _moved(policy)
    batch = policy.collate(pair().samples)

    def errors(model: LinearDenoiser) -> torch.Tensor:
        extras = model(batch, frozenset({"predictions"})).extras
        return (extras["targets"] - extras["predictions"]).square().mean(-1)  # [2, D]

    model_diff, ref_diff = (errors(model)[0] - errors(model)[1] for model in (policy, reference))
    expected = torch.nn.functional.softplus(0.5 * beta * (model_diff - ref_diff)).mean()
    objective = DPO(DPOConfig(beta=beta))
    term = objective(policy(batch), {"reference": reference(batch)}, FeedbackTensors.of([pair()]))["preference"]
    torch.testing.assert_close(term.sum / term.weight, expected)


def test_chosen_and_rejected_share_level_and_noise() -> None:
    policy = LinearDenoiser(draws=2)
    group = policy.collate(pair().samples).tensors["groups"][0]
    assert group["level"].shape == (1, 2) and group["noise"].shape == (1, 2, SIZE)
    assert group["noised_draw"].tolist() == [0, 0]
    assert group["noised_clean"].tolist() == [0, 1]


def test_other_draw_keys_epochs_seeds_and_draws_give_other_noise() -> None:
    collators = [LinearDenoiser(seed=seed).collator for seed in (0, 1)]
    noises = [
        collator.noise(key, draw, (SIZE,))
        for collator in collators
        for key in ("a", "b")
        for draw in (("epoch 0", 0), ("epoch 0", 1), ("epoch 1", 0), ("bank", 0))
    ]
    assert len({tuple(noise.tolist()) for noise in noises}) == 16


def test_draws_do_not_depend_on_the_batch() -> None:
    policy = LinearDenoiser(draws=2)
    samples = [*pair(draw_key="a").samples, *pair("2 2 2 2", "3 3 3 3", draw_key="b").samples]
    together = policy(policy.collate(samples)).log_probs
    reverse = policy(policy.collate(samples[::-1])).log_probs
    alone = torch.cat([policy(policy.collate([one])).log_probs for one in samples])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(reverse.flip(0), alone, rtol=0, atol=1e-6)


def test_swapping_chosen_and_rejected_flips_the_margin() -> None:
    policy, reference = _moved(LinearDenoiser()), LinearDenoiser()
    there, back = (_margin(policy, reference, pair(*sides)) for sides in (("1 0 0 1", "0 1 1 0"), ("0 1 1 0", "1 0 0 1")))
    assert there.abs() > 1e-4
    torch.testing.assert_close(there, -back)


def test_a_grid_noises_each_response_once_and_loads_each_prompt_once() -> None:
    policy = LinearDenoiser()
    group = policy.collate(grid().samples).tensors["groups"][0]
    assert group["clean"].shape[0] == 2 and group["noised_clean"].tolist() == [0, 1]
    assert group["conditions"]["prompt"].shape[0] == 2
    assert group["row_noised"].tolist() == [0, 1, 0, 1] and group["row_condition"].tolist() == [0, 0, 1, 1]


def test_latents_of_unequal_shape_share_the_level_only() -> None:
    policy = LinearDenoiser()
    samples = [sample("1 0 0 1"), sample("1 0"), sample("0 1 1 0")]
    batch = policy.collate(samples)
    first, second = batch.tensors["groups"]
    assert first["rows"].tolist() == [0, 2] and second["rows"].tolist() == [1]
    assert torch.equal(first["level"], second["level"])
    assert not torch.equal(first["noise"][0, 0, :2], second["noise"][0, 0])
    alone = torch.cat([policy(policy.collate([one])).log_probs for one in samples])
    torch.testing.assert_close(policy(batch).log_probs, alone)
    with pytest.raises(TrainingError, match="several shapes"):
        policy(batch, frozenset({"predictions"}))


def test_predictions_keep_their_gradient_and_one_row_per_sample_and_draw() -> None:
    policy = LinearDenoiser(draws=3)
    extras = policy(policy.collate(pair().samples), frozenset({"predictions"})).extras
    assert extras["predictions"].shape == extras["targets"].shape == (2, 3, SIZE)
    extras["predictions"].sum().backward()
    assert policy.layer.weight.grad is not None


def test_posterior_samples_are_keyed_and_change_with_the_draw() -> None:
    policy = LinearDenoiser(latents="sample", draws=2)
    first, again = (policy.collate([sample("1 0 0 1")]).tensors["groups"][0]["clean"] for _ in range(2))
    assert torch.equal(first, again) and first.shape == (1, 2, SIZE)
    assert not torch.equal(first[0, 0], first[0, 1])
    later = policy.collate([sample("1 0 0 1", epoch=1)]).tensors["groups"][0]["clean"]
    assert not torch.equal(first, later)


# the bank


def test_bank_goes_round_and_ignores_the_epoch() -> None:
    collator = LinearDenoiser(draws=2, bank=3).collator
    assert [[entry for _, entry in collator.draws(epoch)] for epoch in range(4)] == [[0, 1], [2, 0], [1, 2], [0, 1]]


def test_without_a_bank_epochs_differ_and_nothing_can_be_cached() -> None:
    policy = LinearDenoiser()
    batches = [policy.collate(pair(epoch=epoch).samples) for epoch in (0, 1)]
    assert not torch.equal(policy(batches[0]).log_probs, policy(batches[1]).log_probs)
    assert batches[0].cache_keys is None


def test_cache_keys_tell_apart_whatever_changes_a_score() -> None:
    policy = LinearDenoiser(bank=2)
    base = sample("1 0 0 1")
    variants = [base, sample("0 1 1 0"), sample("1 0 0 1", prompt="paint"), replace(base, draw_key="x"), replace(base, epoch=1)]
    keys = [policy.collate([variant]).cache_keys[0] for variant in variants]
    keys.append(LinearDenoiser(bank=2, seed=1).collate([base]).cache_keys[0])
    assert len(set(keys)) == 6
    assert policy.collate([replace(base, id="other", epoch=2)]).cache_keys[0] == keys[0]


def test_cached_bank_reference_equals_the_live_one_and_stops_calling_it(tmp_path: Path) -> None:
    """Two draws of a bank of four: every entry has been seen after two epochs."""
    policy = LinearDenoiser(draws=2, bank=4)
    live = FrozenCopy(policy)
    cached = CachedScores(FrozenCopy(policy), tmp_path, policy.fingerprint())
    _moved(policy)
    for epoch in range(6):
        batch = policy.collate([s for key in "ab" for s in pair(draw_key=key, epoch=epoch).samples])
        assert torch.equal(cached(batch).log_probs, live(batch).log_probs)
    assert (cached.misses, cached.hits) == (2, 4)


def test_score_description_names_what_the_reference_depends_on() -> None:
    policies = [LinearDenoiser(), LinearDenoiser("flow"), LinearDenoiser(reduction="sum"), LinearDenoiser(latents="sample")]
    policies.append(LinearDenoiser(timesteps="logit_normal"))
    assert len({policy.fingerprint() for policy in policies}) == 5


# the feature cache


def test_each_distinct_response_and_prompt_is_encoded_once(tmp_path: Path) -> None:
    policy = LinearDenoiser()
    samples = [at.samples for epoch in range(3) for at in (at_epoch(pair(), epoch), at_epoch(grid(), epoch))]
    policy.prepare([one for group in samples for one in group], tmp_path)
    assert (policy.latents_encoded, policy.prompts_encoded) == (2, 3)
    for group in samples:
        policy(policy.collator(group))
    assert (policy.latents_encoded, policy.prompts_encoded) == (2, 3)


def test_cached_scores_equal_uncached_ones_bitwise(tmp_path: Path) -> None:
    prepared, fresh = LinearDenoiser(), LinearDenoiser()
    prepared.prepare(grid().samples, tmp_path)
    from_disk = pickle.loads(pickle.dumps(prepared.collator))(grid().samples)
    assert torch.equal(prepared(from_disk).log_probs, fresh(fresh.collate(grid().samples)).log_probs)


def test_an_interrupted_fill_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Responses are encoded two at a time; the third pass dies, so four of six are kept and two are left to do."""
    samples = [sample(f"{number} 0 0 1", draw_key=str(number)) for number in range(6)]

    class Dies(LinearDenoiser):
        def encode_latents(self, samples):  # type: ignore[no-untyped-def]
            if self.latents_encoded == 4:
                raise KeyboardInterrupt
            return super().encode_latents(samples)

    with pytest.raises(KeyboardInterrupt):
        Dies().prepare(samples, tmp_path)
    policy = LinearDenoiser()
    policy.prepare(samples, tmp_path)
    assert policy.latents_encoded == 2
    assert len(policy.collator(samples)) == 6


def test_progress_reaches_the_number_of_distinct_items(tmp_path: Path) -> None:
    from rich.progress import Progress

    bar = Progress(disable=True)
    LinearDenoiser().prepare([*grid().samples, *grid().samples], tmp_path, bar)
    assert [(task.description, task.completed, task.total) for task in bar.tasks] == [
        ("encoding latents", 2, 2),
        ("encoding prompt embeddings", 2, 2),
    ]


def test_a_collator_without_features_says_what_to_call(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"latents of sample 'draw/1 0 0 1' are not in the cache .*policy\.prepare"):
        LinearDenoiser().collator(pair().samples)


def test_bfloat16_autocast_leaves_the_error_in_float32() -> None:
    policy = LinearDenoiser()
    batch = policy.collate(pair().samples)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = policy(batch)
    assert low.log_probs.dtype == torch.float32
    torch.testing.assert_close(low.log_probs, policy(batch).log_probs, rtol=0.05, atol=0.02)
