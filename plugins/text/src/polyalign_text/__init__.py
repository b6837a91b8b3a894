"""Text for polyalign: language models as policies, and rewards that check an answer by rule."""
