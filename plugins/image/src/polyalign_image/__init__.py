"""Images for polyalign: codec, CLIP and EfficientNet encoders, rewards and judges."""
