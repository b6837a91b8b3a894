"""Our schedules and sampling grids behind the schedulers of diffusers."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from polyalign.errors import ConfigError
from polyalign.policies.samplers import Grid
from polyalign.policies.schedules import Schedule


def schedule_of(scheduler: Any, prediction: str = "auto") -> Schedule:
    """Return the training schedule behind a diffusers scheduler, as its configuration gives it before sampling.

    ``prediction`` other than "auto" overrides the scheduler's. Raises `ConfigError` for schedules we do not know.
    """
    fresh = type(scheduler).from_config(scheduler.config)  # sampling overwrites sigmas and timesteps
    if is_flow(fresh):
        if prediction not in ("auto", "flow"):
            raise ConfigError(f"policy.prediction={prediction!r}, but {type(fresh).__name__} is a flow; use 'auto' or 'flow'")
        dynamic = fresh.config.get("use_dynamic_shifting")
        shift = 1.0 if dynamic else fresh.config.get("shift", fresh.config.get("flow_shift") or 1.0)
        return Schedule.flow(fresh.config.num_train_timesteps, shift)
    if hasattr(fresh, "alphas_cumprod"):
        kind: Any = fresh.config.prediction_type if prediction == "auto" else prediction
        if kind not in ("epsilon", "v_prediction"):
            raise ConfigError(
                f"the scheduler predicts {kind!r}; expected 'epsilon' or 'v_prediction' (policy.prediction sets it)"
            )
        return Schedule.variance_preserving(fresh.alphas_cumprod, kind)
    if is_cosine(fresh):
        if fresh.config.prediction_type != "v_prediction" or fresh.config.sigma_data != 1.0 or prediction == "epsilon":
            raise ConfigError(f"{type(fresh).__name__} is known with v_prediction and sigma_data 1 only")
        return Schedule.cosine(fresh.config.num_train_timesteps)
    raise ConfigError(
        f"{type(fresh).__name__} has neither alphas_cumprod nor flow matching; "
        "use a pipeline with a DDIM-like or FlowMatch scheduler"
    )


def is_flow(scheduler: Any) -> bool:
    """Return whether a scheduler walks the straight path of flow matching (FlowMatch*, or UniPC with ``use_flow_sigmas``)."""
    return "FlowMatch" in type(scheduler).__name__ or bool(scheduler.config.get("use_flow_sigmas"))


def is_cosine(scheduler: Any) -> bool:
    """Return whether a scheduler tells its network an angle, as Stable Audio's does."""
    return "CosineDPMSolver" in type(scheduler).__name__


def grid_of_scheduler(scheduler: Any, steps: int, patches: int | None = None, levels: list[float] | None = None) -> Grid:
    """Return the noise levels at which diffusers itself would draw in so many steps: those of the pipeline's flow
    scheduler, or of DDIM with the spacing and the last level that the pipeline's scheduler is configured for.

    ``patches``: tokens of the latents, for schedules that shift with their number. ``levels``: noise levels before
    shifting, where the pipeline does not leave them to its scheduler.
    """
    fresh = type(scheduler).from_config(scheduler.config)
    if is_flow(fresh):
        more: dict[str, Any] = {} if levels is None else {"sigmas": levels}
        if fresh.config.get("use_dynamic_shifting"):
            assert patches is not None
            more["mu"] = _shift_of(patches, fresh.config)
        fresh.set_timesteps(steps, **more)
        noise = fresh.sigmas.double()
        return Grid(tuple((1 - noise).tolist()), tuple(noise.tolist()), tuple(fresh.timesteps.tolist()))
    if is_cosine(fresh):  # its sigmas are noise over signal, here on one circle
        fresh.set_timesteps(steps)
        signal = (1 + fresh.sigmas.double() ** 2).rsqrt()
        return Grid(tuple(signal.tolist()), tuple((1 - signal**2).sqrt().tolist()), tuple(fresh.timesteps.tolist()))
    from diffusers import DDIMScheduler

    known = inspect.signature(DDIMScheduler.__init__).parameters  # DDIM of another name may have settings of its own
    ddim = DDIMScheduler.from_config({name: value for name, value in scheduler.config.items() if name in known})
    ddim.set_timesteps(steps)
    last = ddim.final_alpha_cumprod if ddim.config.set_alpha_to_one else fresh.alphas_cumprod[0]
    kept = torch.cat([fresh.alphas_cumprod[ddim.timesteps], last.reshape(1)]).double()
    timesteps = tuple(float(timestep) for timestep in ddim.timesteps)
    return Grid(tuple(kept.sqrt().tolist()), tuple((1 - kept).sqrt().tolist()), timesteps)


def _shift_of(patches: int, config: Any) -> float:
    """Return the logarithm of the shift, linear in the number of tokens between the two that the scheduler names."""
    low, high = config["base_image_seq_len"], config["max_image_seq_len"]
    slope = (config["max_shift"] - config["base_shift"]) / (high - low)
    return float(config["base_shift"] + slope * (patches - low))
