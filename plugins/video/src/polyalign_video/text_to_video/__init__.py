"""Text-to-video: pipelines of diffusers that draw clips."""
