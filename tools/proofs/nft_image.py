"""DiffusionNFT: a rule that names the colours of pixels makes a small flow transformer draw in blue."""

from __future__ import annotations

from colours import proved
from ledger import options

if __name__ == "__main__":
    proved("nft-image", "text-to-image/nft-colour", "DiffusionNFT", options(__doc__).smoke)
