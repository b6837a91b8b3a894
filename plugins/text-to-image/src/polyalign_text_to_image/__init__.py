"""Text-to-image models of diffusers as polyalign policies."""
