"""Pipelines of diffusers as denoising policies, whatever their medium.

`policy.PipelinePolicy` does what is the same for all of them: frozen parts, caches, noise, scores, LoRA, drawing, files. A plugin
adds a `families.PipelineFamily` per architecture (how text is encoded, how the denoiser is called) and a subclass of
the policy that reads and makes its media. diffusers is imported inside functions only: the core does not need it.
"""
