"""Short records, and hypothesis' idea of any record."""

from __future__ import annotations

from hypothesis import strategies as st

from polyalign.records import schema
from polyalign.records.schema import Candidate, Comparison, Message, Rating, Record, TextPart

text = st.text(max_size=12)
name = st.text(min_size=1, max_size=8)
number = st.floats(allow_nan=False, allow_infinity=False, width=64)
scalars = st.one_of(text, st.integers(-(2**60), 2**60), number, st.booleans())
conditions = st.dictionaries(name, scalars, max_size=3)
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
maybe_name = st.none() | text

references = st.builds(
    schema.MediaRef,
    modality=name,
    sha256=hashes,
    mime=st.sampled_from(["image/png", "audio/x-wav", "application/x-thing+json"]),
    length=st.integers(0, 2**40),
    uri=st.none() | text,
)
parts = st.lists(
    st.builds(schema.TextPart, text=text) | st.builds(schema.MediaPart, media=references), min_size=1, max_size=3
).map(tuple)
messages = st.builds(Message, role=st.sampled_from(["system", "user", "assistant", "tool"]), parts=parts)
prompts = st.lists(messages, min_size=1, max_size=3).map(tuple)
candidates = st.builds(
    Candidate, parts=parts, prompt=st.none() | st.just(()) | prompts, producer=maybe_name, conditions=conditions
)


@st.composite
def comparisons(draw: st.DrawFn, count: int) -> Comparison:
    order = draw(st.permutations(range(count)))
    tiers: list[list[int]] = []
    for index in order:
        if tiers and draw(st.booleans()):
            tiers[-1].append(index)
        else:
            tiers.append([index])
    aside = tiers.pop() if len(tiers) > 1 and draw(st.booleans()) else []
    return Comparison(
        ranking=tuple(tuple(tier) for tier in tiers),
        incomparable=tuple(aside),
        aspect=draw(st.just("overall") | text),
        strength=draw(st.none() | st.floats(0, 9)),
        annotator=draw(maybe_name),
    )


@st.composite
def ratings(draw: st.DrawFn, count: int) -> Rating:
    low, high = draw(st.sampled_from([(0.0, 1.0), (1.0, 5.0), (-2.5, 2.5)]))
    return Rating(
        candidate=draw(st.integers(0, count - 1)),
        value=draw(st.floats(low, high)),
        scale=(low, high),
        aspect=draw(st.just("overall") | text),
        annotator=draw(maybe_name),
    )


@st.composite
def feedback(draw: st.DrawFn, count: int) -> object:
    index = st.integers(0, count - 1)
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return draw(comparisons(count))
    if kind == 1:
        return draw(ratings(count))
    if kind == 2:
        return draw(st.builds(schema.Critique, candidate=index, parts=parts, aspect=text, annotator=maybe_name))
    if kind == 3:
        return draw(st.builds(schema.Refinement, before=index, after=index, annotator=maybe_name))
    start = draw(st.floats(0, 100))
    unit = draw(st.sampled_from(["seconds", "frames", "tokens", "steps"]))
    value = draw(number)
    return schema.Segment(candidate=draw(index), start=start, end=start + 1.5, unit=unit, value=value, aspect=draw(text))


@st.composite
def any_records(draw: st.DrawFn) -> Record:
    """Any valid record: every field, every kind of part and feedback."""
    listed = draw(st.lists(candidates, min_size=1, max_size=4).map(tuple))
    own = all(candidate.prompt for candidate in listed)
    return Record(
        id=draw(name),
        prompt=draw(st.just(()) | prompts if own else prompts),
        candidates=listed,
        feedback=tuple(draw(st.lists(feedback(len(listed)), max_size=4))),
        group=draw(maybe_name),
        tags=tuple(draw(st.lists(text, max_size=3))),
        conditions=draw(conditions),
        provenance=draw(st.none() | st.builds(schema.Provenance, source=text, method=maybe_name, notes=maybe_name)),
        licence=draw(maybe_name),
    )


def plain(identity: str, prompt: str, *answers: str, feedback: tuple = (), **fields: object) -> Record:
    """A record of text answers to one prompt."""
    return Record(id=identity, prompt=prompt, candidates=[{"parts": answer} for answer in answers], feedback=feedback, **fields)


def grid(identity: str, cells: list[tuple[str, str]], *feedback: Comparison) -> Record:
    """A record whose candidates each carry their own prompt: (prompt, answer)."""
    listed = tuple(
        Candidate(parts=(TextPart(text=answer),), prompt=(Message(role="user", parts=(TextPart(text=prompt),)),))
        for prompt, answer in cells
    )
    return Record(id=identity, candidates=listed, feedback=feedback)
