"""Number walks for polyalign: a small, whole plugin to copy from."""
