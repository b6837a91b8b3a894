"""Flow-GRPO: a rule that names the colours of pixels makes a small flow transformer draw in blue."""

from __future__ import annotations

from colours import proved
from ledger import options

if __name__ == "__main__":
    proved("grpo-image", "text-to-image/grpo-colour", "GRPO on the steps of an SDE sampler", options(__doc__).smoke)
