"""TRL's trainers, built once a file (each fits the models' heads for its own use): losses are read, nothing is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toys.trl_models import BETA, PAIRS, WORDS, World


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<pad>", "<eos>", "<unk>", "<bos>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", bos_token="<bos>"
    )

    def model(seed: int) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            initializer_range=0.4,  # the default makes every distribution nearly uniform, and the test nearly blind
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=3,
        )
        return LlamaForCausalLM(config).eval()

    return World(model(0), model(1), tokenizer, tmp_path_factory.mktemp("trl"))


@pytest.fixture(scope="module")
def dpo_trainer(world: World) -> Any:
    from datasets import Dataset
    from trl import DPOConfig as TrlConfig
    from trl import DPOTrainer

    return DPOTrainer(
        model=world.policy,
        ref_model=world.reference,
        args=world.settings(TrlConfig),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=world.tokenizer,
    )


@pytest.fixture(scope="module")
def pairs(dpo_trainer: Any) -> dict[str, torch.Tensor]:
    """TRL's collated batch: chosen rows, then rejected rows."""
    return dpo_trainer.data_collator([dpo_trainer.train_dataset[i] for i in range(len(PAIRS))])


@pytest.fixture(scope="module")
def cpo_trainer(world: World) -> Any:
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    return CPOTrainer(
        model=world.policy,
        args=world.settings(CPOConfig, loss_type="simpo", cpo_alpha=0.0, beta=BETA, simpo_gamma=0.3, max_length=64),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=world.tokenizer,
    )
