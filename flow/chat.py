"""`python -m flow.chat`: ask the endpoint, with the conversation remembered.

With a QUESTION it prints the answer; without one it is a session: /new, /history, /export, /quit.
"""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from deployment.endpoint import connect
from flow.conversation import Endpoint, Reply, Settings, ask, messages
from flow.history import History, SqliteHistory, default_path
from infra import cli
from infra.cli import UserError, say
from infra.outputs import StackOutputs, add_stack_options, load_outputs

LONGEST_QUESTION = 100_000
"""Characters; the endpoint takes bodies of a megabyte at most."""


def endpoint_of(outputs: StackOutputs) -> Endpoint:
    """The stack's endpoint as the conversation needs it, with tokens from DefaultAzureCredential."""
    target = connect(outputs)
    return Endpoint(target.scoring_uri, target.headers)


def new_conversation() -> str:
    return uuid.uuid4().hex[:12]


@dataclass
class Chat:
    """One conversation with an endpoint, kept in a history."""

    endpoint: Endpoint
    history: History
    conversation: str
    settings: Settings = field(default_factory=Settings)

    async def answer(self, question: str, show: Callable[[str], None] = lambda piece: None) -> Reply:
        """Ask, `show` each piece as it comes, store the turn when it is whole.

        Raises:
            UserError: an empty or overlong question, or an endpoint that does not answer; nothing is stored then.
        """
        question = checked(question)
        earlier = [(turn.question, turn.answer) for turn in self.history.last(self.conversation, self.settings.window)]
        reply = Reply()
        async for piece in ask(self.endpoint, messages(question, earlier, self.settings), self.settings, reply=reply):
            show(piece)
        self.history.append(self.conversation, uuid.uuid4().hex, question, reply.text)
        return reply


def checked(question: str) -> str:
    """The question without blanks around it. Raises UserError (wrong use) if it is empty or far too long."""
    question = question.strip()
    if not question:
        raise UserError("the question is empty", next_command='python -m flow.chat "QUESTION"', code=cli.WRONG_USE)
    if len(question) > LONGEST_QUESTION:
        raise UserError(
            f"the question has {len(question)} characters; {LONGEST_QUESTION} is the limit", code=cli.WRONG_USE
        )
    return question


def main(argv: list[str]) -> int:
    parser = cli.parser(
        "flow.chat", "Ask the endpoint; without a question, a session with /new /history /export /quit."
    )
    parser.add_argument("question", nargs="?", metavar="QUESTION")
    parser.add_argument("--conversation", metavar="ID", help="go on with this one (default: a new one)")
    parser.add_argument("--system", metavar="TEXT", help="a system prompt (default: none)")
    add_stack_options(parser)
    given = parser.parse_args(argv)
    if given.question is not None:
        checked(given.question)
    outputs = load_outputs(stack=given.stack, file=given.outputs)
    history = SqliteHistory(default_path())
    settings = Settings(system=given.system)
    chat = Chat(endpoint_of(outputs), history, given.conversation or new_conversation(), settings)
    if given.question is None:
        return session(chat)
    say(f"conversation {chat.conversation}")
    once(chat, given.question, as_json=given.json)
    return 0


def once(chat: Chat, question: str, *, as_json: bool) -> None:
    """One question; the answer goes to stdout as it comes, or as one JSON object at the end."""
    reply = asyncio.run(chat.answer(question, _nothing if as_json else _show))
    if as_json:
        values = {"answer": reply.text, "conversation": chat.conversation, "usage": reply.usage}
        cli.result(values, as_json=True)
    else:
        print(flush=True)


def _show(piece: str) -> None:
    """Print a piece without control characters: an answer must not be able to steer a terminal."""
    print("".join(letter for letter in piece if letter.isprintable() or letter in "\n\t"), end="", flush=True)


def _nothing(piece: str) -> None:
    pass


def session(chat: Chat) -> int:
    """Questions line by line until /quit or the end of the input; a failed one does not end the session."""
    say(f"conversation {chat.conversation}; /new /history /export /quit")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return 0
        if line == "/quit":
            return 0
        if line.startswith("/"):
            _command(chat, line)
        elif line:
            try:
                once(chat, line, as_json=False)
            except UserError as error:
                say(f"error: {error}")


def _command(chat: Chat, line: str) -> None:
    everything = 1_000_000
    match line:
        case "/new":
            chat.conversation = new_conversation()
            say(f"conversation {chat.conversation}")
        case "/history":
            for turn in chat.history.last(chat.conversation, everything):
                print(f"{turn.number}. {turn.question}\n   {turn.answer}", flush=True)
        case "/export":
            turns = chat.history.last(chat.conversation, everything)
            said = messages("", [(turn.question, turn.answer) for turn in turns], Settings(window=everything))[:-1]
            print(json.dumps({"messages": said}, ensure_ascii=False), flush=True)
        case _:
            say(f"unknown command {line.split()[0]}; /new /history /export /quit")


if __name__ == "__main__":
    cli.run(main)
