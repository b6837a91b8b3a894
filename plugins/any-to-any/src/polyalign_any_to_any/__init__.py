"""Any-to-any models for polyalign: text, pictures and sound in one token stream."""
