"""Embodied action for polyalign: policies over gymnasium environments, whose responses are trajectories."""
