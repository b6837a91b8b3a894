"""Video for polyalign: codec, rewards and policies over clips."""
