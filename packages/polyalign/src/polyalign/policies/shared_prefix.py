"""Several responses behind one prompt in one row: ``[prompt | response 1 | ... | response k]``, each blind to the others.

A response attends to its prompt and to itself, and its positions go on where the prompt's end, so every score equals that of
a row of its own while the prompt, pictures included, is computed once. Several prompts may share a row too (packing): they
are as blind to each other. Exactness is probed on the real model when a policy is built (`TokenPolicy`).

Source of the idea: prefix sharing for direct alignment, arXiv 2410.20305.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import BoolTensor, Tensor

from polyalign.policies.attention_by_parts import BY_PARTS
from polyalign.policies.base import Batch

RowLayout = Literal["auto", "plain", "shared", "packed"]
PADDING = -1


@dataclass(frozen=True)
class Line:
    """One sample as a row of its own: how long its prompt and response are, which response tokens are scored, and what its
    prompt is. Samples with equal ``prefix`` have the same prompt tokens and media."""

    prompt: int
    response: int
    scored: tuple[int, ...]
    prefix: Hashable


@dataclass(frozen=True)
class Costs:
    """What rows cost: ``token`` is how many cells of an attention mask cost as much as a token's way through the weights.
    ``by_parts``: cells that a mask hides are not computed (`attention_by_parts`); otherwise all of a shared row's are."""

    token: int
    by_parts: bool = False

    def row(self, prompt: int, responses: Sequence[int], causal: bool) -> float:
        """Return the cells that a row costs. ``causal``: it holds one response and no padding, and a kernel skips half."""
        length = prompt + sum(responses)
        if causal:
            cells = length * length / 2
        elif self.by_parts:
            cells = prompt * prompt / 2 + sum(response * (prompt + response) for response in responses)
        else:
            cells = length * length
        return length * self.token + cells


def group_by_prefix(lines: Sequence[Line], costs: Costs | None = None) -> list[list[int]]:
    """Return the numbers of the lines that share a row, in order of first appearance.

    If ``costs`` are given, a group is cut into the like parts that cost least: many long responses in one row may cost more in
    attention than their prompt does again, and equally long ones in rows of their own need no mask.
    """
    groups: dict[Hashable, list[int]] = {}
    for number, line in enumerate(lines):
        groups.setdefault(line.prefix, []).append(number)
    if costs is None:
        return list(groups.values())
    return [part for group in groups.values() for part in _cheapest_parts(lines, group, costs)]


def _cheapest_parts(lines: Sequence[Line], group: list[int], costs: Costs) -> list[list[int]]:
    by_length = sorted(group, key=lambda number: lines[number].response)

    def cut(rows: int) -> list[list[int]]:
        """Deal the responses out to and fro, so that the rows come out nearly equally long and little is padded."""
        parts: list[list[int]] = [[] for _ in range(rows)]
        for turn, number in enumerate(by_length):
            place = turn % (2 * rows)
            parts[min(place, 2 * rows - 1 - place)].append(number)
        return parts

    def cost(parts: list[list[int]]) -> float:
        # Rows of one response that need no padding are causal through and through.
        causal = len(parts) == len(group) and lines[by_length[0]].response == lines[by_length[-1]].response
        prompt = lines[group[0]].prompt
        return sum(costs.row(prompt, [lines[number].response for number in part], causal) for part in parts)

    return min(map(cut, range(1, len(group) + 1)), key=cost)


def costs_of(model: Any) -> Costs | None:
    """Return what rows cost a decoder, counted in products: a cell takes two per hidden dimension and layer. None for
    FlexAttention: sharing is always cheaper there."""
    config = model.config.get_text_config()
    if config._attn_implementation == "flex_attention":
        return None
    words = model.get_input_embeddings().weight
    weights: int = sum(weight.numel() for weight in model.get_decoder().parameters() if weight is not words)
    token = max(1, weights // int(2 * config.hidden_size * config.num_hidden_layers))
    return Costs(token, by_parts=config._attn_implementation == BY_PARTS)


def group_length(lines: Sequence[Line], group: Sequence[int]) -> int:
    """Return how many tokens a group takes: its prompt once, and every response."""
    return lines[group[0]].prompt + sum(lines[number].response for number in group)


def share_rows(lines: Sequence[Line], packed: bool = False, costs: Costs | None = None) -> dict[str, Tensor]:
    """Return where every token of R shared rows of L tokens comes from, and where each of N samples is scored.

    - ``sample``, ``column`` ``[R, L]``: the token stands at ``column`` of plain row ``sample`` (0 and 0 at padding);
    - ``owner``, ``prefix`` ``[R, L]``: the segment a token belongs to, and the segment of its prompt; padding is -1.
      A token sees the earlier tokens of both;
    - ``row`` ``[N]``, ``predictors`` ``[N, T]``, ``last`` ``[N]``: as in a plain batch, but within shared rows.

    ``packed`` puts several groups into one row, the longest first, up to the length of the longest group.
    ``costs``: as in `group_by_prefix`.
    """
    groups = group_by_prefix(lines, costs)
    rows = _packed(lines, groups) if packed else [[group] for group in groups]
    scored = max((len(line.scored) for line in lines), default=0)
    row_of, last = (torch.zeros(len(lines), dtype=torch.long) for _ in range(2))
    predictors = torch.zeros(len(lines), scored, dtype=torch.long)
    filled: list[Tensor] = []
    segment = 0
    for row, members in enumerate(rows):
        cells: list[tuple[int, int, int, int]] = []  # sample, column, owner, prefix
        for group in members:
            shared, prompt = segment, lines[group[0]].prompt
            cells += [(group[0], column, shared, shared) for column in range(prompt)]
            end = len(cells) - 1  # of the prompt: what predicts the first token of every response
            for number in group:
                line, start = lines[number], len(cells)
                segment += 1
                cells += [(number, prompt + offset, segment, shared) for offset in range(line.response)]
                before = [start + offset - 1 if offset else end for offset in line.scored]
                predictors[number, : len(before)] = torch.tensor(before, dtype=torch.long)
                row_of[number], last[number] = row, len(cells) - 1 if line.response else end
            segment += 1
        filled.append(torch.tensor(cells, dtype=torch.long).reshape(-1, 4))
    length = max(map(len, filled), default=0)
    table = torch.tensor([0, 0, PADDING, PADDING]).repeat(len(rows), length, 1)  # [R, L, 4]
    for row, part in enumerate(filled):
        table[row, : len(part)] = part
    sample, column, owner, prefix = table.unbind(-1)
    return {
        "sample": sample, "column": column, "owner": owner, "prefix": prefix,
        "row": row_of, "predictors": predictors, "last": last,
    }  # fmt: skip


def _packed(lines: Sequence[Line], groups: list[list[int]]) -> list[list[list[int]]]:
    """First fit, longest first."""
    lengths = {group[0]: group_length(lines, group) for group in groups}
    room = max(lengths.values(), default=0)
    rows: list[list[list[int]]] = []
    taken: list[int] = []
    for group in sorted(groups, key=lambda group: -lengths[group[0]]):
        own = lengths[group[0]]
        place = next((row for row, used in enumerate(taken) if used + own <= room), None)
        if place is None:
            rows.append([group])
            taken.append(own)
        else:
            rows[place].append(group)
            taken[place] += own
    return rows


def in_shared_rows(batch: Batch, by_token: Sequence[str]) -> Batch:
    """Return the batch with its tensors in shared rows: those named ``by_token`` ``[..., N, L]`` are gathered to
    ``[..., R, L]``, and ``row``, ``predictors`` and ``last`` are the shared ones. ``..._index`` is -1 at padding."""
    shared = batch.tensors["shared"]
    moved: dict[str, Any] = {name: batch.tensors[name][..., shared["sample"], shared["column"]] for name in by_token}
    for name in moved:
        if name.endswith("_index"):
            moved[name] = moved[name].masked_fill(shared["owner"] == PADDING, -1)
    moved |= {name: shared[name] for name in ("row", "predictors", "last", "owner", "prefix", "column")}
    return replace(batch, tensors={**batch.tensors, **moved})


def block_mask(tensors: dict[str, Tensor], window: int | None = None) -> BoolTensor:
    """Return which earlier tokens each token of a shared row sees, ``[R, 1, L, L]`` (query, key).

    ``window``: only keys less than so many positions back, counted as in the sample's own row.
    """
    owner, prefix = tensors["owner"], tensors["prefix"]
    keys = owner[:, None, :]  # [R, 1, L]
    length = owner.shape[1]
    seen = (owner[:, :, None] == keys) | (prefix[:, :, None] == keys)
    seen &= torch.ones(length, length, dtype=torch.bool, device=owner.device).tril()
    if window is not None:
        column = tensors["column"]
        seen &= column[:, :, None] - column[:, None, :] < window
    seen |= torch.eye(length, dtype=torch.bool, device=owner.device)  # padding sees itself: a softmax over nothing is NaN
    return seen[:, None]  # type: ignore[return-value]


def flex_mask(tensors: dict[str, Tensor], window: int | None = None) -> Any:
    """Return the same mask for FlexAttention: no ``L x L`` tensor, and blocks that nobody sees cost nothing.

    torch 2.14 has no backward pass for FlexAttention on CPUs, so training with it wants a GPU.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    owner, prefix, column = tensors["owner"], tensors["prefix"], tensors["column"]

    def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        related = (owner[row, query] == owner[row, key]) | (prefix[row, query] == owner[row, key])
        near = related & (key <= query)
        return near if window is None else near & (column[row, query] - column[row, key] < window)

    rows, length = owner.shape
    return create_block_mask(seen, rows, None, length, length, device=str(owner.device))
