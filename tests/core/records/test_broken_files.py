"""Hand-broken files, one defect each: validation names the exact line, field and reason, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from toys.scent import Scent, scent

from polyalign.errors import RecordError
from polyalign.records.files import open_file, records_of
from polyalign.records.parquet import write_rows
from polyalign.records.schema import MediaRef
from polyalign.records.store import MediaStore
from polyalign.records.validation import validate

Row = dict[str, Any]

ORANGE = scent(b"orange")
HASH = hashlib.sha256(ORANGE).hexdigest()


def good(number: int, media: MediaRef) -> Row:
    return {
        "id": f"r{number}",
        "prompt": [{"role": "user", "parts": [{"type": "text", "text": f"make a scent, number {number}"}]}],
        "candidates": [
            {"parts": [{"type": "media", "media": media.model_dump(exclude_none=True)}], "producer": "a"},
            {"parts": "none"},
            {"parts": "another", "conditions": {"level": 1}},
        ],
        "feedback": [
            {"type": "comparison", "ranking": [0, [1, 2]]},
            {"type": "rating", "candidate": 1, "value": 3, "scale": [1, 5]},
            {"type": "segment", "candidate": 0, "start": 1, "end": 2, "value": 1},
        ],
    }


def same(row: Row) -> None:
    pass


def put(*path: str | int, value: Any) -> Callable[[Row], None]:
    """Put a value at a path of the row."""

    def change(row: Row) -> None:
        holder: Any = row
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = value

    return change


def without(*path: str | int) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        holder: Any = row
        for key in path[:-1]:
            holder = holder[key]
        del holder[path[-1]]

    return change


MEDIUM = ("candidates", 0, "parts", 0, "media")
AT_MEDIUM = "candidates[0].parts[0].media"


def medium(data: bytes, **changes: object) -> Callable[[Row], None]:
    """Let the first candidate be these bytes, in the file other.raw."""
    digest = hashlib.sha256(data).hexdigest()
    return put(
        *MEDIUM,
        value={"modality": "scent", "sha256": digest, "mime": "scent/raw", "length": len(data), "uri": "other.raw"} | changes,
    )


@dataclass
class Case:
    """One defect: what is done to the second row, to its line, which bytes other.raw gets; and what must be said."""

    field: str
    kind: str
    reason: str
    row: Callable[[Row], object] = same
    line: Callable[[bytes], bytes] = bytes
    other: bytes = b""


def said(message: str) -> dict[str, Any]:
    """A user message, as JSON."""
    return {"role": "user", "parts": message}


CASES = {
    "bad JSON": Case(
        "record",
        "json",
        "not valid JSON: Unterminated string starting at (column 14)",
        line=lambda line: b'{"id": "r2", "prompt',
    ),
    "one key twice": Case(
        "record",
        "json",
        "key 'prompt' is given twice in one object",
        line=lambda line: line.replace(b'"feedback"', b'"prompt": "x", "feedback"'),
    ),
    "not an object": Case("record", "wrong type", "expected an object {...}; found list", line=lambda line: b"[1, 2]"),
    "invalid UTF-8": Case(
        "record",
        "encoding",
        "not UTF-8: byte 0xe4 at column 9",
        line=lambda line: line.replace(b"r2", b"\xe4"),
    ),
    "unknown key": Case(
        "promt",
        "unknown key",
        "unknown key 'promt'. Did you mean 'prompt'? Known: id, prompt, candidates, feedback, group, tags, conditions, "
        "provenance, licence, schema_version",
        put("promt", value="x"),
    ),
    "unknown key deep inside": Case(
        "feedback[0].anotator",
        "unknown key",
        "unknown key 'anotator'. Did you mean 'annotator'? Known: type, ranking, incomparable, aspect, strength, annotator",
        put("feedback", 0, "anotator", value="x"),
    ),
    "missing id": Case("id", "missing key", "'id' is missing", without("id")),
    "empty id": Case("id", "empty", "is empty", put("id", value="")),
    "duplicate id": Case("id", "duplicate id", "id 'r1' is also that of train.jsonl:1", put("id", value="r1")),
    "index out of range": Case(
        "feedback[0]",
        "candidate index",
        "names candidate 3, but there are 3 (0 to 2)",
        put("feedback", 0, "ranking", value=[0, 3]),
    ),
    "ranked twice": Case(
        "feedback[0]",
        "wrong value",
        "candidate 0 is named twice in one comparison; name each candidate once",
        put("feedback", 0, "ranking", value=[0, 1, 0]),
    ),
    "empty tier": Case(
        "feedback[0]",
        "wrong value",
        "a tier of the ranking is empty; remove it or name its candidates",
        put("feedback", 0, "ranking", value=[0, []]),
    ),
    "unknown feedback": Case(
        "feedback[1]",
        "wrong value",
        "type 'score' is not known; expected one of 'comparison', 'rating', 'critique', 'refinement', 'segment'",
        put("feedback", 1, "type", value="score"),
    ),
    "feedback without type": Case(
        "feedback[1]", "missing key", "'type' is missing; it says which kind this is", without("feedback", 1, "type")
    ),
    "rating outside its scale": Case(
        "feedback[1]", "wrong value", "value 6.0 lies outside its scale [1.0, 5.0]", put("feedback", 1, "value", value=6)
    ),
    "segment ends before it starts": Case(
        "feedback[2]",
        "wrong value",
        "segment ends at 0.5, which is not after its start 1.0",
        put("feedback", 2, "end", value=0.5),
    ),
    "not a number": Case(
        "feedback[1].value",
        "not finite",
        "expected a finite number; found nan",
        put("feedback", 1, "value", value=float("nan")),
    ),
    "wrong type": Case(
        "feedback[1].value",
        "wrong type",
        "should be a valid number, unable to parse string as a number; found 'high'",
        put("feedback", 1, "value", value="high"),
    ),
    "nested condition": Case(
        "candidates[2].conditions.level",
        "wrong type",
        "a condition is a text, a finite number or true/false; found [1]",
        put("candidates", 2, "conditions", "level", value=[1]),
    ),
    "no candidates": Case("candidates", "empty", "is empty; expected at least 1", put("candidates", value=[])),
    "candidate without parts": Case(
        "candidates[1].parts", "empty", "is empty; expected at least 1", put("candidates", 1, "parts", value=[])
    ),
    "no prompt": Case("candidates[0]", "no prompt", "has no prompt: give the record or the candidate one", without("prompt")),
    "empty prompt": Case("prompt", "empty prompt", "holds neither text nor media", put("prompt", value=" ")),
    "unknown role": Case(
        "prompt[0].role",
        "wrong value",
        "should be 'system', 'user', 'assistant' or 'tool'; found 'narrator'",
        put("prompt", 0, "role", value="narrator"),
    ),
    "later schema version": Case(
        "schema_version",
        "schema version",
        "schema version 7 is not known; this polyalign reads version 1: upgrade it",
        put("schema_version", value=7),
    ),
    "malformed hash": Case(
        f"{AT_MEDIUM}.sha256",
        "wrong value",
        "string should match pattern '^[0-9a-f]{64}$'; found 'beef'",
        put(*MEDIUM, "sha256", value="beef"),
    ),
    "missing medium": Case(
        f"{AT_MEDIUM}.sha256",
        "missing",
        f"media/{'0' * 64}.raw does not exist (or is no regular file)",
        put(*MEDIUM, "sha256", value="0" * 64),
    ),
    "wrong hash": Case(
        f"{AT_MEDIUM}.sha256",
        "wrong hash",
        f"other.raw hashes to {HASH[:12]}..., not to 000000000000...: the file changed, or the record names another one",
        medium(ORANGE, sha256="0" * 64),
        other=ORANGE,
    ),
    "wrong length": Case(
        f"{AT_MEDIUM}.length",
        "wrong length",
        f"media/{HASH}.raw holds 12 bytes, the record says 11: the file is cut short or was replaced",
        put(*MEDIUM, "length", value=11),
    ),
    "wrong mime": Case(
        f"{AT_MEDIUM}.mime",
        "wrong mime",
        "the bytes are scent/foul, the record says scent/raw",
        medium(scent(b"egg", b"STINK")),
        other=scent(b"egg", b"STINK"),
    ),
    "wrong modality": Case(
        f"{AT_MEDIUM}.modality",
        "wrong modality",
        "the bytes are not of modality 'scent'",
        medium(b"no scent"),
        other=b"no scent",
    ),
    "truncated medium": Case(
        AT_MEDIUM,
        "undecodable",
        "truncated: 5 of 8 bytes",
        medium(scent(b"lavender")[:-3]),
        other=scent(b"lavender")[:-3],
    ),
    "absolute path": Case(
        f"{AT_MEDIUM}.uri",
        "outside",
        "'/etc/secret.raw' is absolute; give a path relative to the data set's folder, or set allow_outside",
        medium(ORANGE, uri="/etc/secret.raw"),
    ),
    "path that climbs out": Case(
        f"{AT_MEDIUM}.uri",
        "outside",
        "'../secret.raw' climbs out by '..'; give a path below the data set's folder, or set allow_outside",
        medium(ORANGE, uri="../secret.raw"),
    ),
    "link that points out": Case(
        f"{AT_MEDIUM}.uri",
        "outside",
        "link.raw is a link to SECRET, outside the data set's folder; copy the file in, or set allow_outside",
        medium(ORANGE, uri="link.raw"),
    ),
    "URL": Case(
        f"{AT_MEDIUM}.uri",
        "url",
        "'https://example.org/a.raw' is on the network; download it into the data set's folder, or set allow_urls",
        medium(ORANGE, uri="https://example.org/a.raw"),
    ),
    "unrelated candidates": Case(
        "feedback[0].ranking",
        "unrelated candidates",
        "compares only candidates that share neither prompt nor response; nothing can be learnt from that",
        lambda row: row.update(
            candidates=[{"parts": "a", "prompt": [said("p")]}, {"parts": "b", "prompt": [said("q")]}],
            feedback=[{"type": "comparison", "ranking": [0, 1]}],
        ),
    ),
    "TRL row without rejected": Case(
        "record",
        "missing key",
        "'rejected' is missing; the row has chosen, prompt",
        line=lambda line: b'{"prompt": "p", "chosen": "a"}',
    ),
    "TRL row with pictures": Case(
        "images",
        "unsupported",
        "media in TRL columns are not read in place; write records: `polyalign data import trl`",
        line=lambda line: b'{"prompt": "p", "chosen": "a", "rejected": "b", "images": ["a.png"]}',
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_defect_is_named_by_file_line_field_and_reason(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    secret, folder = tmp_path / "secret.raw", tmp_path / "set"
    secret.write_bytes(ORANGE)
    ref = MediaStore(folder).add(ORANGE, "scent", "scent/raw")
    (folder / "other.raw").write_bytes(case.other)
    (folder / "link.raw").symlink_to(secret)
    rows = [good(number, ref) for number in range(1, 4)]
    case.row(rows[1])
    lines = [json.dumps(row).encode() for row in rows]
    path = folder / "train.jsonl"
    path.write_bytes(b"\n".join((lines[0], case.line(lines[1]), lines[2])))
    findings = validate(path, modalities={"scent": Scent})
    reason = case.reason.replace("SECRET", str(secret))
    assert [str(problem) for problem in findings.problems] == [f"{path}:2:{case.field}: {reason}"]
    assert findings.kinds == {case.kind: 1}


def test_every_problem_of_a_line_and_of_a_file_is_reported(write_lines: Callable[..., Path]) -> None:
    first = {"id": 7, "prompt": "p", "candidates": [{"parts": "a", "producr": "x"}], "extra": 1}
    path = write_lines(first, b"{", {"id": "c", "prompt": "p", "candidates": [{"parts": "a"}]}, b"nonsense")
    findings = validate(path, modalities={})
    assert [str(problem).removeprefix(f"{path}:").split(": ")[0] for problem in findings.problems] == [
        "1:id",
        "1:candidates[0].producr",
        "1:extra",
        "2:record",
        "4:record",
    ]
    with pytest.raises(RecordError, match=r"train.jsonl:1:id: .*\n.*train.jsonl:1:candidates\[0\].producr: .*\n.*1:extra"):
        list(records_of(open_file(path)))


def test_a_parquet_file_names_the_row(tmp_path: Path) -> None:
    rows = [{"id": name, "prompt": "p", "candidates": [{"parts": "a"}], "conditions": "{}"} for name in ("a", "", "c")]
    rows[2]["conditions"] = "{"
    path = tmp_path / "train.parquet"
    write_rows(path, rows)
    assert [str(problem).removeprefix(str(path)) for problem in validate(path, modalities={}).problems] == [
        ":2:id: is empty",
        ":3:conditions: not valid JSON: Expecting property name enclosed in double quotes",
    ]


def test_a_file_that_is_no_parquet_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"no")
    with pytest.raises(RecordError, match=r"train.parquet is not a readable Parquet file"):
        validate(tmp_path, modalities={})
