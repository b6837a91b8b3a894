"""What a recipe can set about judges. Light: no torch here, and no HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from polyalign.training.config import Config


class EndpointConfig(Config):
    """A chat endpoint, and how much may be asked of it. The key is read from an environment variable and kept nowhere."""

    base_url: str = Field(description="up to and without /chat/completions, such as http://localhost:8000/v1")
    model: str
    api_key_env: str | None = Field(None, description="the environment variable that holds the key; never the key itself")
    temperature: float = Field(0.0, ge=0)
    max_reply_tokens: int = Field(512, gt=0)
    extra: dict[str, Any] = Field(default_factory=dict, description="further keys of the request's body")

    timeout: float = Field(60.0, gt=0, description="seconds for one answer")
    retries: int = Field(5, ge=0, description="further tries after 408, 409, 429, 5xx and broken connections")
    backoff: float = Field(1.0, gt=0, description="seconds before the first retry; doubled each time, at most 60")
    concurrency: int = Field(4, gt=0, description="requests at once")
    requests_per_minute: float | None = Field(None, gt=0)
    max_requests: int | None = Field(None, gt=0, description="of one process; answers from the cache are free")
    max_tokens: int | None = Field(None, gt=0, description="of one process, prompt and reply together, as the endpoint counts")
    max_cost: float | None = Field(None, gt=0, description="of one process, in the currency of the prices")
    price_prompt: float = Field(0.0, ge=0, description="per million tokens read")
    price_reply: float = Field(0.0, ge=0, description="per million tokens written")
    cache: bool = Field(True, description="keep replies on disk, by a hash of everything that was asked")
    cache_folder: Path | None = Field(None, description="default: judge/ in polyalign's cache")

    @field_validator("base_url")
    @classmethod
    def _bare_address(cls, value: str) -> str:
        address = urlsplit(value)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError("base_url is no http(s) address; expected one such as http://localhost:8000/v1")
        if address.query or address.fragment or address.username or address.password:
            raise ValueError("base_url carries a query or a user; keys come from the variable that api_key_env names")
        return value.rstrip("/").removesuffix("/chat/completions")

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, value: str | None) -> str | None:
        if value is not None and not value.isidentifier():
            raise ValueError("api_key_env is not the name of an environment variable; never write the key itself here")
        return value


class JudgingConfig(EndpointConfig):
    criteria: str = Field(
        "how well the response does what the user asks: correct, complete, clear, and nothing beside the point",
        description="what the judge is told to look at",
    )
    instructions: str | None = Field(
        None, description="in place of our own; {criteria}, {lowest} and {highest} are filled in. What follows is the material"
    )
    attempts: int = Field(3, gt=0, description="how often one thing is asked until the reply can be read")
    unreadable: float | None = Field(None, description="value where no reply could be read; null: an error")


class JudgeConfig(JudgingConfig):
    """Scores of single responses, brought to [0, 1]."""

    lowest: int = Field(1, description="the judge's scale")
    highest: int = 10
    aspects: dict[str, str] = Field(
        default_factory=dict, description="criteria by name, each asked by itself; the value is their mean. None: criteria"
    )

    @field_validator("highest")
    @classmethod
    def _above(cls, value: int, info: Any) -> int:
        if value <= info.data.get("lowest", value - 1):
            raise ValueError(f"highest={value} is not above lowest={info.data['lowest']}")
        return value


class JudgeRankerConfig(JudgingConfig):
    """Every two responses to one prompt are compared, in both orders; a response's value is its share of wins."""

    votes: int = Field(1, gt=0, description="how often each pair is judged; the majority counts (use a temperature above 0)")
    opponents: int | None = Field(None, gt=0, description="compare with so many of the next responses only; none: with all")
