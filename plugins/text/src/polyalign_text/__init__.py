"""Text for polyalign: language models as policies, and instructions that a rule can check."""
