"""Exact answers: found in a response, brought to one form, compared with the reference. Nothing is evaluated as code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from polyalign.errors import RewardError
from polyalign.rewards.base import Judged
from polyalign.rewards.rules.base import TextVerifier
from polyalign.rewards.rules.config import ExactAnswerConfig

_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_PLAIN = rf"(?:{_UNSIGNED})(?:[eE][-+]?\d{{1,3}})?"
NUMBER = re.compile(
    rf"(?<![\w.])[-+]?(?:\\[dt]?frac\s*\{{[-+]?\d+\}}\s*\{{\d+\}}|{_PLAIN}(?:\s*/\s*\d+(?![\d.]))?)(?!\d|[eE][-+]?\d)"
)
MARKS = re.compile(r"####|\banswer\s*(?:is|:|=)+\s*:?", re.IGNORECASE)
LONGEST = 400  # characters of a number; what is longer is none


def number(text: str) -> Fraction | None:
    """Return the value of a number: 1,234.5 or -3/4 or \\frac{3}{4} or 2e3, with $ before or % after; None for anything else."""
    text = text.strip().replace("−", "-").replace("\\$", "").replace("$", "").replace("\\!", "").replace("\\,", "")
    text = re.sub(r"\s*\\?%$", "", text.strip()).rstrip(".").strip()
    if len(text) > LONGEST or not (match := NUMBER.fullmatch(text)):
        return None
    if fraction := re.fullmatch(r"([-+]?)\\[dt]?frac\s*\{([-+]?\d+)\}\s*\{(\d+)\}", match[0]):
        sign, upper, lower = fraction.groups()
        return Fraction(int(upper) * (-1 if sign == "-" else 1), int(lower)) if int(lower) else None
    upper, _, lower = match[0].replace(",", "").partition("/")
    try:
        whole = Fraction(Decimal(upper.strip()))
    except InvalidOperation:
        return None
    if not lower:
        return whole
    return whole / int(lower) if int(lower) else None


def plain(text: str) -> str:
    """Return a text in one form: small letters, single spaces, without TeX's text commands, outer quotes and end marks."""
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    return " ".join(text.casefold().split()).strip(" \"'“”‘’*$").rstrip(".,;:!").strip(" \"'“”‘’*$")


def boxed(text: str) -> str | None:
    """Return what stands in the last \\boxed{...}, inner braces and all; None where there is none, or it is not closed."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, first = 1, start + len("\\boxed{")
    for at in range(first, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[first:at]
    return None


def marked(text: str) -> str | None:
    """Return the rest of the line after the last "####" or "answer is"; None where there is none."""
    ends = [mark.end() for mark in MARKS.finditer(text)]
    rest = text[ends[-1] :].strip() if ends else ""
    return rest.splitlines()[0] if rest else None


class ExactAnswer(TextVerifier):
    """1 if the answer that the response gives is the reference, else 0.

    Where the response gives it is ``place``; how the two are compared is ``kind``: numbers by value, letters of multiple
    choice, other text in one form (`plain`). The reference is the record's condition "answer".
    """

    name = "exact_answer"
    config: ExactAnswerConfig

    def verify_text(self, text: str, item: Judged) -> float:
        reference = item.conditions.get(self.config.answer)
        if reference is None:
            if self.config.no_reference is None:
                raise RewardError(
                    f"reward 'exact_answer' found no condition {self.config.answer!r} with the item; records carry the reference "
                    "there, or set no_reference to what an unknown answer is worth"
                )
            return self.config.no_reference
        wanted = str(reference)
        kind = self._kind(wanted)
        if (kind == "number" and number(wanted) is None) or (kind == "letter" and self._letter(wanted) is None):
            expected = "a number" if kind == "number" else f"one of the letters {self.config.letters}"
            raise RewardError(f"reward 'exact_answer' expects {expected} as the reference, but found {wanted!r}")
        return any(self._same(kind, found, wanted) for found in self._answers(kind, text))

    def _kind(self, wanted: str) -> str:
        if self.config.kind != "auto":
            return self.config.kind
        if number(wanted) is not None:
            return "number"
        return "letter" if self._letter(wanted) else "text"

    def _same(self, kind: str, found: str, wanted: str) -> bool:
        if kind == "number":
            value, target = number(found), number(wanted)
            if value is None or target is None:
                return False
            return value == target or abs(value - target) <= Fraction(self.config.tolerance) * abs(target)
        if kind == "letter":
            return self._letter(found) == self._letter(wanted) is not None
        return plain(found) == plain(wanted)

    def _answers(self, kind: str, text: str) -> Iterator[str]:
        """Yield the answer of the place, or of the first place that there is; none if it holds no such thing."""
        places = ("boxed", "marked", "last") if self.config.place == "auto" else (self.config.place,)
        for place in places:
            given = boxed(text) if place == "boxed" else marked(text) if place == "marked" else text
            if given is None:
                continue
            found = self._within(kind, given, first=place == "marked")
            if found is not None:
                yield found
            return

    def _within(self, kind: str, given: str, first: bool) -> str | None:
        """Return the number or letter in what was given, its first or last; a text is taken whole."""
        if kind == "number":
            found = NUMBER.findall(given.replace("−", "-")[-100_000:])
            return str(found[0] if first else found[-1]) if found else None
        if kind == "letter":
            return self._chosen(given, first)
        return given

    def _letter(self, text: str) -> str | None:
        """Return the letter that a text is, as in ``B``, ``(b)`` or ``**B.**``; None if it is anything else."""
        bare = re.sub(r"\\(?:text|mathrm|textbf)\s*\{([^{}]*)\}", r"\1", text).strip(" \t\n()[]{}.,:;*$\"'").upper()
        return bare if len(bare) == 1 and bare in self.config.letters.upper() else None

    def _chosen(self, text: str, first: bool) -> str | None:
        if self._letter(text):
            return self._letter(text)
        choices = re.escape(self.config.letters)
        if first and (opening := re.match(rf"\W*([{choices}])(?!\w)", text)):
            return opening[1]
        # "(B)" or "B)" or "B." is a choice wherever it stands; a bare letter is one unless a word follows ("A dog")
        for pattern in (rf"\(([{choices}])\)", rf"(?<!\w)([{choices}])[.):](?!\w)", rf"(?<!\w)([{choices}])(?![\w'’]|\s+[a-z])"):
            if found := re.findall(pattern, text):
                return str(found[0] if first else found[-1])
        return None
