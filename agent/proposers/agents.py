"""The command lines of coding agents, and how to read what they report.

Each says where its flags are documented. All of them were run with these flags against a
stand-in for their model; the version is the one that was. Their own limits on what may be edited
are a convenience that saves a try: what counts is the difference that is found afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..usage import Usage


@dataclass(frozen=True)
class Said:
    """What a line of an agent's output says: what was taken since the line before, and words of
    its own, a new message beginning with a new line."""

    usage: Usage | None = None
    words: str = ""


@dataclass(frozen=True)
class Agent:
    """A coding agent. In `argv`, in `model` (added to it if one is named), in `env` and in the
    `files` of its home {prompt}, {kernel}, {context}, {model},
    {home} and {sandbox} are replaced. `keys` are
    variables that it is given of the user's environment: at least one must be there."""

    argv: tuple[str, ...]
    model: tuple[str, ...]
    read: Callable[[str], Said]
    keys: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


def read_claude(event: Mapping[str, Any]) -> Said:
    if event.get("type") != "result":
        return Said()
    usage = event["usage"]
    read = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    tokens = sum(usage.get(name) or 0 for name in read)
    taken = Usage(tokens, usage["output_tokens"], event["total_cost_usd"])
    return Said(taken, "\n" + str(event.get("result") or ""))


def read_codex(event: Mapping[str, Any]) -> Said:
    """It reports tokens, the cached among those read, and no cost."""
    if event.get("type") == "turn.completed":
        usage = event["usage"]
        return Said(Usage(usage["input_tokens"], usage["output_tokens"]))
    item = event.get("item") or {}
    if event.get("type") == "item.completed" and item.get("type") == "agent_message":
        return Said(words="\n" + item["text"])
    return Said()


def read_gemini(event: Mapping[str, Any]) -> Said:
    """It reports tokens and no cost. Those that it thought with are in the total alone."""
    if event.get("type") == "result" and event.get("stats"):
        stats = event["stats"]
        return Said(Usage(stats["input_tokens"], stats["total_tokens"] - stats["input_tokens"]))
    if event.get("type") == "message" and event.get("role") == "assistant":
        return Said(words=event["content"])
    return Said()


def read_opencode(event: Mapping[str, Any]) -> Said:
    """A cost of nothing is what it says of models whose price it does not know."""
    part = event.get("part") or {}
    if event.get("type") == "step_finish":
        tokens = part["tokens"]
        cache = tokens.get("cache") or {}
        read = tokens["input"] + cache.get("read", 0) + cache.get("write", 0)
        written = tokens["output"] + tokens.get("reasoning", 0)
        return Said(Usage(read, written, part.get("cost") or None))
    if event.get("type") == "text":
        return Said(words="\n" + part["text"])
    return Said()


def read_aider(event: Mapping[str, Any]) -> Said:
    """Its log of events, which is told to write to the same output. A cost of nothing is what it
    says of models whose price it does not know."""
    if event.get("event") != "message_send":
        return Said()
    told = event["properties"]
    usage = Usage(told["prompt_tokens"], told["completion_tokens"], told.get("cost") or None)
    return Said(usage)


def events(read: Callable[[Mapping[str, Any]], Said]) -> Callable[[str], Said]:
    """For an agent that prints a JSON object a line. A line that is not as expected says nothing:
    it is for the record, and no edit hangs on it."""

    def of(line: str) -> Said:
        try:
            event = json.loads(line)
            return read(event) if isinstance(event, dict) else Said()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return Said()

    return of


def plain(line: str) -> Said:
    return Said(words="\n" + line)


# A rule that denies a tool whatever its arguments takes the tool away, so that no other rule can
# allow it; a pattern with a group in it matches nothing.
GEMINI_POLICY = """\
[[rule]]
toolName = ["run_shell_command", "web_fetch", "google_web_search", "invoke_agent"]
decision = "deny"
priority = 200

[[rule]]
toolName = ["write_file", "replace"]
argsPattern = '"file_path"'
decision = "deny"
priority = 200

[[rule]]
toolName = ["write_file", "replace"]
argsPattern = '"file_path":"[^"]*{kernel}"'
decision = "allow"
priority = 300
"""

OPENCODE_EDIT = {"*": "deny", "{kernel}": "allow"}

AGENTS: Mapping[str, Agent] = {
    # 2.1.197. code.claude.com/docs/en/headless, /cli-reference, /permissions. `--bare` skips
    # settings, hooks and memory; a tool that is not allowed is denied, not asked about.
    "claude": Agent(
        argv=(
            *("claude", "-p", "{prompt}", "--bare", "--output-format", "stream-json"),
            *("--verbose", "--permission-mode", "dontAsk", "--tools", "Read,Edit"),
            *("--allowedTools", "Read", "--allowedTools", "Edit(/{kernel})"),
            "--no-session-persistence",
        ),
        model=("--model", "{model}"),
        read=events(read_claude),
        keys=("ANTHROPIC_API_KEY",),
        optional=("ANTHROPIC_BASE_URL",),
        env={
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",
            "CLAUDE_CODE_MAX_RETRIES": "3",
        },
    ),
    # 0.169.0. developers.openai.com/codex/noninteractive, /codex/cli/reference. {sandbox} is
    # danger-full-access inside our sandbox, where it cannot set up its own, else workspace-write.
    "codex": Agent(
        argv=(
            *("codex", "exec", "--json", "--color", "never", "--ephemeral"),
            *("--ignore-user-config", "-s", "{sandbox}", "{prompt}"),
        ),
        model=("-m", "{model}"),
        read=events(read_codex),
        keys=("CODEX_API_KEY",),
    ),
    # 0.61.0. geminicli.com/docs/cli/headless, /cli/cli-reference, /core/policy-engine.
    "gemini": Agent(
        argv=(
            *("gemini", "--skip-trust", "--approval-mode", "auto_edit"),
            *("--policy", "{home}/policy.toml", "-o", "stream-json", "-p", "{prompt}"),
        ),
        model=("-m", "{model}"),
        read=events(read_gemini),
        keys=("GEMINI_API_KEY",),
        optional=("GOOGLE_GEMINI_BASE_URL",),
        files={
            "policy.toml": GEMINI_POLICY,
            ".gemini/settings.json": '{"security": {"auth": {"selectedType": "gemini-api-key"}}}',
        },
    ),
    # 0.86.2. aider.chat/docs/scripting.html, /docs/config/options.html, /docs/more/analytics.html
    # (the log of events). Its key is that of the model's provider.
    "aider": Agent(
        argv=(
            *("aider", "--message", "{prompt}", "--yes-always", "--no-auto-commits"),
            *("--no-pretty", "--no-fancy-input", "--no-check-update", "--no-show-release-notes"),
            *("--no-show-model-warnings", "--map-tokens", "0", "--analytics-disable"),
            *("--analytics-log", "/dev/stdout", "--no-detect-urls", "--no-gitignore"),
            *("--no-suggest-shell-commands", "--no-auto-lint"),
            *("--input-history-file", "{home}/input", "--chat-history-file", "{home}/chat"),
            *("--read", "{context}/program.md", "--read", "{context}/situation.md"),
            *("--read", "{context}/reference.py", "{kernel}"),
        ),
        model=("--model", "{model}"),
        read=events(read_aider),
    ),
    # 1.18.33. opencode.ai/docs/cli, /docs/permissions, /docs/config. Its key is that of the
    # model's provider.
    "opencode": Agent(
        argv=("opencode", "run", "--pure", "--format", "json", "{prompt}"),
        model=("-m", "{model}"),
        read=events(read_opencode),
        env={
            "OPENCODE_DISABLE_AUTOUPDATE": "1",
            "OPENCODE_DISABLE_MODELS_FETCH": "1",
            "OPENCODE_CONFIG_CONTENT": json.dumps(
                {"permission": {"*": "deny", "read": "allow", "edit": OPENCODE_EDIT}}
            ),
        },
    ),
}
