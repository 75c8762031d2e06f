"""The llm proposer against a real HTTP endpoint on this machine, good and bad."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from autokernel_agent.errors import Refused
from autokernel_agent.proposers import Edit, ProposalFailed, Settings, Situation
from autokernel_agent.proposers.llm import Llm
from autokernel_agent.report import Report
from autokernel_agent.usage import Price, Usage

from . import agent_fakes
from .agent_cli import Cli
from .agent_fakes import KERNEL
from .agent_repository import PATH, git, user_repository

pytest.importorskip("openai", reason="the extra `llm` is not installed")

FASTER = KERNEL.replace('"width": 1,', '"width": 4,')
ANSWER = f"Rows are short.\nCHANGE: width from 1 to 4\n\n```python\n{FASTER}```\n"
REPORT = Report.parse(agent_fakes.report(KERNEL, None, 1, full=False))
SITUATION = Situation(PATH, "softmax", KERNEL, REPORT, (), ("it broke off",), "OP = Op(...)\n")
TAKEN = {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050}
Reply = Callable[[BaseHTTPRequestHandler], None]


def event(data: Any) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def chunk(text: str, why: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": why}
    return event({"id": "1", "object": "chat.completion.chunk", "choices": [choice]})


def head(to: BaseHTTPRequestHandler, status: int, kind: str, **headers: str) -> None:
    to.send_response(status)
    for name, value in {"Content-Type": kind, **headers}.items():
        to.send_header(name.replace("_", "-"), value)
    to.end_headers()


def streamed(*parts: bytes | float) -> Reply:
    """An answer in parts; a number is a pause."""

    def reply(to: BaseHTTPRequestHandler) -> None:
        head(to, 200, "text/event-stream")
        for part in parts:
            if isinstance(part, bytes):
                to.wfile.write(part)
                to.wfile.flush()
            else:
                time.sleep(part)

    return reply


def answered(text: str, why: str = "stop", **usage: Any) -> Reply:
    pieces = [chunk(text[i : i + 40]) for i in range(0, len(text), 40)]
    end = event({"id": "1", "choices": [], "usage": {**TAKEN, **usage}})
    return streamed(*pieces, chunk("", why), end, event(b"[DONE]"))


def refused(status: int, code: str, **headers: str) -> Reply:
    def reply(to: BaseHTTPRequestHandler) -> None:
        head(to, status, "application/json", **headers)
        error = {"message": f"no: {to.headers['Authorization']}", "code": code}
        to.wfile.write(json.dumps({"error": error}).encode())

    return reply


def plain(kind: str, body: bytes) -> Reply:
    def reply(to: BaseHTTPRequestHandler) -> None:
        head(to, 200, kind)
        to.wfile.write(body)

    return reply


@dataclass
class Endpoint:
    """Gives the replies in order, the last one again and again, and remembers the requests."""

    replies: list[Reply]
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def settings(self, **more: Any) -> Settings:
        theirs = {"OPENAI_API_KEY": "sk-secret-123"}
        limits = {"limit_s": 10.0, "stall_s": 5.0, **more}
        return Settings(theirs, model="m", base_url=self.url, **limits)

    def propose(self, **more: Any) -> Edit:
        edit = Llm(self.settings(**more)).ask(SITUATION)
        assert edit is not None
        return edit


@pytest.fixture
def endpoint() -> Iterator[Callable[..., Endpoint]]:
    servers = []

    def serve(*replies: Reply) -> Endpoint:
        made = Endpoint(list(replies))

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                made.requests.append({"path": self.path, **json.loads(body)})
                made.keys.append(self.headers["Authorization"])
                number = min(len(made.requests), len(made.replies)) - 1
                with suppress(OSError):  # the client had enough
                    made.replies[number](self)

            def log_message(self, *words: object) -> None:
                """Nothing: it would be on the test's standard error."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        made.url = f"http://127.0.0.1:{server.server_port}/v1"
        return made

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


Serve = Callable[..., Endpoint]


class TestAnAnswer:
    def test_a_streamed_file_is_an_edit_with_its_tokens(self, endpoint: Serve) -> None:
        edit = endpoint(answered(ANSWER)).propose()
        assert edit == Edit(FASTER, "width from 1 to 4", Usage(1000, 50))

    def test_the_cost_is_the_endpoints_own_or_by_the_users_price(self, endpoint: Serve) -> None:
        price = Price(2.0, 30.0)
        priced = endpoint(answered(ANSWER)).propose(price=price)
        assert priced.usage == Usage(1000, 50, pytest.approx(0.0035))
        told = endpoint(answered(ANSWER, cost=0.5)).propose(price=price)
        assert told.usage == Usage(1000, 50, 0.5)

    def test_snippets_beside_the_file_do_no_harm(self, endpoint: Serve) -> None:
        text = f"Now:\n```\nwidth = 1\n```\n{ANSWER}"
        assert endpoint(answered(text)).propose().text == FASTER

    def test_the_question_has_program_figures_reference_and_kernel(self, endpoint: Serve) -> None:
        server = endpoint(answered(ANSWER))
        server.propose()
        (request,) = server.requests
        assert (request["path"], request["model"]) == ("/v1/chat/completions", "m")
        system, user = (message["content"] for message in request["messages"])
        assert "## The playbook" in system
        for words in ("pct_roof: 40", "OP = Op(...)", KERNEL, "it broke off"):
            assert words in user
        assert server.keys == ["Bearer sk-secret-123"]


class TestABadEndpoint:
    def failure(self, server: Endpoint, **more: Any) -> ProposalFailed:
        with pytest.raises(ProposalFailed) as failure:
            server.propose(**more)
        assert "sk-secret" not in str(failure.value)
        return failure.value

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_a_busy_one_is_asked_again_when_it_says(self, endpoint: Serve, status: int) -> None:
        busy = refused(status, "busy", Retry_After="0.2")
        server = endpoint(busy, busy, answered(ANSWER))
        began = time.monotonic()
        assert server.propose().text == FASTER
        assert len(server.requests) == 3
        assert time.monotonic() - began >= 0.4

    def test_one_that_stays_busy_is_given_up_within_the_limit(self, endpoint: Serve) -> None:
        server = endpoint(refused(429, "rate_limit_exceeded"))
        failure = self.failure(server, limit_s=2.0)
        assert "RateLimitError" in str(failure)
        assert failure.usage == Usage()
        assert len(server.requests) == 2

    def test_without_quota_it_is_not_asked_again(self, endpoint: Serve) -> None:
        server = endpoint(refused(429, "insufficient_quota"))
        assert "RateLimitError" in str(self.failure(server))
        assert len(server.requests) == 1

    def test_one_that_refuses_the_key_is_quoted_without_the_key(self, endpoint: Serve) -> None:
        failure = self.failure(endpoint(refused(401, "invalid_api_key")))
        assert "AuthenticationError" in str(failure)
        assert "Bearer ***" in str(failure)

    def test_an_answer_that_breaks_off_is_no_edit(self, endpoint: Serve) -> None:
        failure = self.failure(endpoint(streamed(chunk(ANSWER[:150]))))
        assert "the answer broke off after 150 characters" in str(failure)

    def test_a_silent_one_is_left(self, endpoint: Serve) -> None:
        began = time.monotonic()
        for reply in (streamed(chunk("I think"), 3.0), lambda to: time.sleep(3)):
            failure = self.failure(endpoint(reply), stall_s=0.5)
            assert "the model was silent for 0.5 s" in str(failure)
        assert time.monotonic() - began < 3

    def test_one_that_never_ends_is_left(self, endpoint: Serve) -> None:
        drip = [part for _ in range(100) for part in (chunk("x"), 0.05)]
        failure = self.failure(endpoint(streamed(*drip)), limit_s=1.0)
        assert "the answer took over 1 s" in str(failure)

    def test_one_that_floods_is_left(self, endpoint: Serve) -> None:
        failure = self.failure(endpoint(streamed(*[chunk("x" * 500_000)] * 9)))
        assert "the answer is over 2,000,000 characters" in str(failure)

    @pytest.mark.parametrize(
        "reply",
        [
            plain("text/html", b"<html>Welcome</html>"),
            plain("application/json", b"{}"),
            plain("text/event-stream", b"\xff\xfe\x00"),
            streamed(event(b"{not json")),
            streamed(event([1, 2])),
            streamed(event({"choices": [{"delta": None}]})),
            streamed(event({"error": {"message": "overloaded"}})),
            streamed(),
        ],
    )
    def test_garbage_is_no_edit(self, endpoint: Serve, reply: Reply) -> None:
        assert self.failure(endpoint(reply)).usage == Usage()

    def test_one_that_is_not_there_is_given_up_within_the_limit(self) -> None:
        server = Endpoint([], "http://127.0.0.1:9/v1")
        assert "APIConnectionError" in str(self.failure(server, limit_s=0.5))


class TestABadAnswer:
    @pytest.mark.parametrize(
        ("reply", "words"),
        [
            (answered("I am sorry."), "found 0, the answer begins: I am sorry."),
            (answered(f"{ANSWER}{ANSWER}"), "expected one block with the whole file, found 2"),
            (answered(ANSWER.replace(FASTER, KERNEL)), "the file came back unchanged"),
            (answered(ANSWER.replace("def kernel_fn", "def")), "has a syntax error in line"),
            (answered(ANSWER, "length"), "cut off at the model's limit of tokens"),
            (answered(ANSWER.removesuffix("```\n")), "found 0"),
            (
                answered(ANSWER.replace("tests", "sk-secret-123")),
                "the kernel file holds the value of OPENAI_API_KEY",
            ),
        ],
    )
    def test_it_is_no_edit_and_is_paid_for(self, endpoint: Serve, reply: Reply, words: str) -> None:
        with pytest.raises(ProposalFailed) as failure:
            endpoint(reply).propose()
        assert words in str(failure.value)
        assert failure.value.usage == Usage(1000, 50)


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            (Settings({"OPENAI_API_KEY": "k"}), "needs --model"),
            (Settings({}, model="m"), "set OPENAI_API_KEY"),
            (Settings({"OPENAI_API_KEY": "k"}, model="m", key_env="MINE"), "set MINE"),
        ],
    )
    def test_what_cannot_work_is_refused(self, settings: Settings, words: str) -> None:
        with pytest.raises(Refused, match=words):
            Llm(settings)

    def test_without_its_package_it_says_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "openai", None)
        with pytest.raises(Refused, match=r"pip install 'pytest-autokernel\[llm\]'"):
            Llm(Settings({"OPENAI_API_KEY": "k"}, model="m"))


def test_a_run_keeps_what_a_model_proposed_and_ends_at_its_limit(
    endpoint: Serve, tmp_path: Path
) -> None:
    repo = user_repository(tmp_path / "repo")
    server = endpoint(answered("I am sorry."), answered(ANSWER))
    where = ("--proposer", "llm", "--model", "m", "--base-url", server.url)
    limits = ("--price", "100,0", "--max-cost", "0.2")
    done = Cli(repo, tmp_path)("optimize", PATH, "--tag", "t", *where, *limits)
    assert done.returncode == 0, done.stderr
    assert "1  no edit    expected one block with the whole file, found 0" in done.stdout
    assert "1  KEEP" in done.stdout
    assert "width from 1 to 4" in done.stdout
    assert "$0.2 of $0.2 are spent" in done.stdout
    assert "proposals: 2, 1 came to nothing; 2,100 tokens, $0.2" in done.stdout
    assert git(repo, "show", f"autokernel/t:{PATH}") == FASTER.strip()
