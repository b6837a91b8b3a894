"""The built-in rewards, declared. Light: no torch here."""

from __future__ import annotations

from polyalign.plugins.specs import RewardSpec

COMBINED: tuple[RewardSpec, ...] = (
    RewardSpec(
        name="weighted",
        summary="Weighted sum of rewards; a negative weight is a penalty",
        target="polyalign.rewards.combine:Weighted",
        config="polyalign.rewards.config:WeightedConfig",
    ),
    RewardSpec(
        name="product",
        summary="Product of rewards of at least 0, weights as exponents: one that is 0 makes the whole 0",
        target="polyalign.rewards.combine:Product",
        config="polyalign.rewards.config:ProductConfig",
    ),
    RewardSpec(
        name="minimum",
        summary="The least of several weighted rewards",
        target="polyalign.rewards.combine:Minimum",
        config="polyalign.rewards.config:MinimumConfig",
    ),
    RewardSpec(
        name="threshold",
        summary="One value where a reward reaches a limit, another below it",
        target="polyalign.rewards.combine:Threshold",
        config="polyalign.rewards.config:ThresholdConfig",
    ),
    RewardSpec(
        name="normalised",
        summary="A reward on its own scale: z-score among the responses to one prompt, running, or fixed",
        target="polyalign.rewards.combine:Normalised",
        config="polyalign.rewards.config:NormalisedConfig",
    ),
    RewardSpec(
        name="ensemble",
        summary="Mean of rewards less a penalty on their disagreement: mean - penalty * std",
        target="polyalign.rewards.combine:Ensemble",
        config="polyalign.rewards.config:EnsembleConfig",
    ),
)

RULES: tuple[RewardSpec, ...] = (
    RewardSpec(
        name="constraints",
        summary="Share of what is asked that is kept: rules of the recipe, of the record, and sentences of the prompt",
        target="polyalign.rewards.rules.constraints:ConstraintsReward",
        config="polyalign.rewards.rules.config:ConstraintsConfig",
    ),
    RewardSpec(
        name="text_length",
        summary="A text's words, characters, sentences, lines or bullet points are within a range",
        target="polyalign.rewards.rules.text:TextLength",
        config="polyalign.rewards.rules.config:TextLengthConfig",
        inputs=("text",),
        rule=True,
    ),
    RewardSpec(
        name="keywords",
        summary="Words that are there, or are not there, as they should be",
        target="polyalign.rewards.rules.text:Keywords",
        config="polyalign.rewards.rules.config:KeywordsConfig",
        inputs=("text",),
        rule=True,
    ),
    RewardSpec(
        name="letter_case",
        summary="A text in small letters or in capitals throughout",
        target="polyalign.rewards.rules.text:LetterCase",
        config="polyalign.rewards.rules.config:LetterCaseConfig",
        inputs=("text",),
        rule=True,
    ),
    RewardSpec(
        name="starts_with",
        summary="A text begins in a given way",
        target="polyalign.rewards.rules.text:StartsWith",
        config="polyalign.rewards.rules.config:EdgeConfig",
        inputs=("text",),
        rule=True,
    ),
    RewardSpec(
        name="ends_with",
        summary="A text ends in a given way",
        target="polyalign.rewards.rules.text:EndsWith",
        config="polyalign.rewards.rules.config:EdgeConfig",
        inputs=("text",),
        rule=True,
    ),
    RewardSpec(
        name="regex",
        summary="A regular expression occurs in a text, or does not",
        target="polyalign.rewards.rules.text:Regex",
        config="polyalign.rewards.rules.config:RegexConfig",
        inputs=("text",),
    ),
    RewardSpec(
        name="json",
        summary="A text is valid JSON, with given keys or of a given schema",
        target="polyalign.rewards.rules.text:Json",
        config="polyalign.rewards.rules.config:JsonConfig",
        inputs=("text",),
        rule=True,
    ),
    RewardSpec(
        name="extractive",
        summary="Share of the response's words that stand in the prompt",
        target="polyalign.rewards.rules.text:Extractive",
        config="polyalign.rewards.rules.config:ExtractiveConfig",
        inputs=("text",),
        rule=True,
    ),
    RewardSpec(
        name="exact_answer",
        summary="The number, letter or text that the response gives is the reference answer",
        target="polyalign.rewards.rules.answers:ExactAnswer",
        config="polyalign.rewards.rules.config:ExactAnswerConfig",
        inputs=("text",),
        rule=True,
    ),
    RewardSpec(
        name="distinct",
        summary="Share of the response that none of its siblings says too",
        target="polyalign.rewards.rules.relations:Distinct",
        config="polyalign.rewards.rules.config:DistinctConfig",
        inputs=("text",),
        rule=True,
    ),
    RewardSpec(
        name="consistent_order",
        summary="Answers of a group about before and after can all be true at once",
        target="polyalign.rewards.rules.relations:ConsistentOrder",
        config="polyalign.rewards.rules.config:ConsistentOrderConfig",
        inputs=("text",),
        rule=True,
    ),
    RewardSpec(
        name="duration",
        summary="Sound or video lasts for so many seconds",
        target="polyalign.rewards.rules.media:Duration",
        config="polyalign.rewards.rules.config:RangeConfig",
        rule=True,
    ),
    RewardSpec(
        name="success",
        summary="What an environment reported of an episode, 0 to 1",
        target="polyalign.rewards.rules.media:Success",
        config="polyalign.rewards.rules.config:SuccessConfig",
        rule=True,
    ),
)

JUDGES: tuple[RewardSpec, ...] = (
    RewardSpec(
        name="judge",
        summary="A score of each response by a model behind an OpenAI-compatible endpoint",
        target="polyalign.rewards.judge.rewards:Judge",
        config="polyalign.rewards.judge.config:JudgeConfig",
        requires=("httpx2",),
        inputs=("text", "image"),
    ),
    RewardSpec(
        name="judge_ranker",
        summary="Share of its comparisons that a response wins, by a model behind an OpenAI-compatible endpoint",
        target="polyalign.rewards.judge.rewards:JudgeRanker",
        config="polyalign.rewards.judge.config:JudgeRankerConfig",
        requires=("httpx2",),
        inputs=("text", "image"),
    ),
)

LEARNT: tuple[RewardSpec, ...] = (
    RewardSpec(
        name="reward_model",
        summary="A reward model that a run of ours has trained, on any policy's or encoder's features",
        target="polyalign.rewards.reward_model:RewardModelReward",
        config="polyalign.rewards.reward_model_config:RewardModelRewardConfig",
    ),
)

REWARDS: tuple[RewardSpec, ...] = (*COMBINED, *RULES, *JUDGES, *LEARNT)
