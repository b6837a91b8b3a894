from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from polyalign.errors import TrainingError
from polyalign.policies.feature_cache import FeatureCache
from polyalign.policies.fingerprint import weights_fingerprint


def test_entries_come_back_bitwise_from_another_process_view(tmp_path: Path) -> None:
    value = {"mean": torch.randn(3, 2), "std": torch.rand(3, 2).bfloat16()}
    FeatureCache(tmp_path).store("abcd", value, "a picture")
    loaded = FeatureCache(tmp_path).load("abcd")
    assert all(torch.equal(loaded[name], value[name]) and loaded[name].dtype == value[name].dtype for name in value)


def test_a_pickled_cache_carries_its_folder_and_not_its_tensors(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.store("abcd", {"mean": torch.zeros(100_000)}, "a picture")
    data = pickle.dumps(cache)
    assert len(data) < 2000
    assert torch.equal(pickle.loads(data).load("abcd")["mean"], torch.zeros(100_000))


def test_attaching_a_folder_keeps_what_was_in_memory(tmp_path: Path) -> None:
    cache = FeatureCache()
    cache.store("abcd", {"mean": torch.ones(2)}, "a picture")
    cache.attach(tmp_path)
    assert torch.equal(FeatureCache(tmp_path).load("abcd")["mean"], torch.ones(2))


def test_memory_stays_bounded_and_everything_stays_readable(tmp_path: Path) -> None:
    """Entries of 400 bytes in a memory of 1000: two fit."""
    cache = FeatureCache(tmp_path, memory=1000)
    for number in range(5):
        cache.store(f"key{number}", {"mean": torch.full((100,), float(number))}, "a picture")
    assert len(cache._held) == 2
    assert [cache.load(f"key{number}")["mean"][0].item() for number in range(5)] == [0, 1, 2, 3, 4]
    assert len(cache._held) == 2


def test_a_leftover_of_a_killed_write_is_not_an_entry(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    path = cache.path("abcd")
    path.parent.mkdir()
    path.with_name(f"{path.name}.77.tmp").write_bytes(b"half")
    assert "abcd" not in cache
    with pytest.raises(KeyError):
        cache.load("abcd")


def test_non_finite_features_are_refused_and_not_written(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    with pytest.raises(TrainingError, match=r"1 non-finite values in 'mean' of picture 7; run it in float32"):
        cache.store("abcd", {"mean": torch.tensor([1.0, float("nan")])}, "picture 7")
    assert "abcd" not in cache and not list(tmp_path.rglob("*.safetensors"))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.path("abcd").parent.mkdir()
    cache.path("abcd").write_bytes(b"not safetensors")
    with pytest.raises(TrainingError, match=r"abcd\.safetensors is not readable .* delete it"):
        cache.load("abcd")


def test_weight_fingerprints_see_every_bit_and_no_order() -> None:
    a, b = torch.zeros(3), torch.arange(4).bfloat16()
    name = weights_fingerprint([("a", a), ("b", b)], "settings")
    assert weights_fingerprint([("b", b), ("a", a)], "settings") == name
    others = [
        weights_fingerprint([("a", a + 1e-45), ("b", b)], "settings"),
        weights_fingerprint([("a", a), ("b", b.half())], "settings"),
        weights_fingerprint([("a", a.reshape(3, 1)), ("b", b)], "settings"),
        weights_fingerprint([("a", a), ("b", b)], "other"),
    ]
    assert len({name, *others}) == 5
