"""Audio for polyalign: clips as prompts and as responses, policies that listen and that sound, rewards for both."""
