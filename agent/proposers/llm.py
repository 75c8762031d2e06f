"""A model behind any endpoint that speaks OpenAI's chat completions, as a proposer.

One question, one whole file for an answer: the model is given no tool, and remembers nothing but
what the situation tells. Needs the `openai` package, which is an extra.
"""

from __future__ import annotations

import itertools
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import Refused
from ..usage import Usage
from .briefing import situation_text
from .hygiene import Secrets
from .program import program_text
from .proposer import Edit, ProposalFailed, Situation, Try
from .settings import Settings
from .workspace import Unusable, checked

if TYPE_CHECKING:
    import openai

LONGEST_ANSWER = 2_000_000  # characters
LONGEST_WAIT_S = 60.0  # between two attempts, unless the server asks for more
QUESTION = """\
{situation}

## What it computes: the reference

```python
{reference}
```

## The kernel as it is

```python
{kernel}
```

Make one change to the kernel that you expect to be faster and that keeps it right. Answer with a \
line `CHANGE: ` and what you changed, in at most twelve words, and then with the whole new file in \
one block of ```python.
"""
BLOCK = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
CHANGE = re.compile(r"^\W*CHANGE:\W*(.+)$", re.MULTILINE)


@dataclass
class Answer:
    """What has come of an answer so far. `ended` is the server's word for why it is complete."""

    text: str = ""
    ended: str | None = None
    usage: Usage | None = None


class Llm:
    """Asks `settings.model` at `settings.base_url` (OpenAI's own, or what OPENAI_BASE_URL says)."""

    def __init__(self, settings: Settings) -> None:
        try:
            import openai
        except ImportError as error:
            raise Refused(
                "the llm proposer needs the package openai: pip install 'pytest-autokernel[llm]'"
            ) from error
        if settings.model is None:
            raise Refused("the llm proposer needs --model, the name that the endpoint knows it by")
        key = settings.environment.get(settings.key_env)
        base = settings.base_url or settings.environment.get("OPENAI_BASE_URL")
        if key is None and base is None:
            raise Refused(
                f"the llm proposer needs its key: set {settings.key_env}, or name another variable "
                "with --key-env; or name an endpoint that needs none with --base-url"
            )
        self._openai = openai
        self._settings, self._model = settings, settings.model
        self._secrets = Secrets({settings.key_env: key} if key else {})
        self._client = openai.OpenAI(
            api_key=key or "none", base_url=base, timeout=settings.stall_s, max_retries=0
        )

    def ask(self, situation: Situation) -> Edit | None:
        answer = Answer()
        end = time.monotonic() + self._settings.limit_s
        try:
            self._attempt(_messages(situation), answer, end)
            text, change = _file(situation, answer)
        except (Unusable, TimeoutError) as error:
            raise self._failed(str(error), answer) from error
        # A strange server makes the client raise more than its own errors, such as its HTTP
        # library's and the JSON parser's.
        except Exception as error:
            raise self._failed(f"{type(error).__name__}: {error}", answer) from error
        if name := self._secrets.found_in(text):
            raise self._failed(f"the kernel file holds the value of {name}", answer)
        return Edit(text, self._secrets.clean(change), self._priced(answer))

    def tell(self, tried: Try) -> None:
        """It is told of all tries by the situation."""

    def _attempt(self, messages: list[Any], answer: Answer, end: float) -> None:
        """Ask, and again where the server is busy or out of reach, until `end`."""
        for attempt in itertools.count():
            try:
                self._stream(messages, answer, end)
                return
            except self._openai.APITimeoutError as error:
                silence_s = self._settings.stall_s
                raise TimeoutError(f"the model was silent for {silence_s:g} s") from error
            except (
                self._openai.RateLimitError,
                self._openai.InternalServerError,
                self._openai.APIConnectionError,
            ) as error:
                wait_s = _wait_s(error, attempt)
                if answer.text or wait_s is None or time.monotonic() + wait_s > end:
                    raise
            time.sleep(wait_s)

    def _stream(self, messages: list[Any], answer: Answer, end: float) -> None:
        with self._client.chat.completions.create(
            model=self._model,
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
        ) as stream:
            for chunk in stream:
                if chunk.usage:
                    read, written = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
                    # OpenRouter's own field.
                    answer.usage = Usage(read, written, getattr(chunk.usage, "cost", None))
                for choice in chunk.choices[:1]:
                    answer.text += choice.delta.content or ""
                    answer.ended = choice.finish_reason or answer.ended
                if time.monotonic() > end:
                    raise TimeoutError(f"the answer took over {self._settings.limit_s:g} s")
                if len(answer.text) > LONGEST_ANSWER:
                    raise Unusable(f"the answer is over {LONGEST_ANSWER:,} characters")

    def _failed(self, reason: str, answer: Answer) -> ProposalFailed:
        return ProposalFailed(self._secrets.clean(reason), self._priced(answer))

    def _priced(self, answer: Answer) -> Usage:
        usage = answer.usage or Usage()
        return self._settings.price.of(usage) if self._settings.price else usage


def _messages(situation: Situation) -> list[Any]:
    question = QUESTION.format(
        situation=situation_text(situation), reference=situation.reference, kernel=situation.text
    )
    return [
        {"role": "system", "content": program_text()},
        {"role": "user", "content": question},
    ]


def _wait_s(error: openai.APIError, attempt: int) -> float | None:
    """How long to wait before the next attempt: as the server asks, else ever longer. None where
    waiting does not help."""
    if error.code == "insufficient_quota":
        return None
    response = getattr(error, "response", None)
    asked = response.headers.get("retry-after", "") if response is not None else ""
    if re.fullmatch(r"\d+(\.\d+)?", asked):
        return float(asked)
    return float(min(2**attempt, LONGEST_WAIT_S))


def _file(situation: Situation, answer: Answer) -> tuple[str, str]:
    """The whole new file, and what was changed. Raises Unusable."""
    if answer.ended is None:
        raise Unusable(f"the answer broke off after {len(answer.text):,} characters")
    if answer.ended == "length":
        raise Unusable("the answer was cut off at the model's limit of tokens")
    files = [block for block in BLOCK.findall(answer.text) if "KERNEL_TYPE" in block]
    if len(files) != 1:
        begins = f", the answer begins: {answer.text[:80]}" if not files else ""
        raise Unusable(f"expected one block with the whole file, found {len(files)}{begins}")
    text = checked(situation.kernel, files[0].encode())
    if text.strip() == situation.text.strip():
        raise Unusable("the file came back unchanged")
    change = CHANGE.search(answer.text)
    return text, change[1] if change else "no word on what was changed"
