"""Any-to-any models for polyalign: text, pictures, sound and actions in one token stream."""
