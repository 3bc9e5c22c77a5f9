"""A chat: lines are questions or commands, every model answers, and the reward says what each reply is worth.

Ctrl-C ends the reply that is being written, which stays as far as it came; Ctrl-D and /quit leave.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from align.chat.conversation import ChatError, Conversation, Round, Said
from align.chat.screen import Replies, Screen
from align.chat.speaker import Speaker
from align.evaluation.replies import judged
from align.runs.seeding import derive
from align.runtime import files
from align.runtime.errors import AlignError
from align.runtime.paths import typed_path
from data_formats.records import Prompt
from data_formats.writing import as_row
from reward.protocol import Reward
from rollouts.protocol import SamplingParams

COMMANDS = {
    "/reset": "forget the conversation",
    "/undo": "take the last question and its replies back",
    "/retry": "answer the last question again",
    "/save [FILE]": "write the conversation as JSON lines, one a model",
    "/system TEXT": "set the system turn, for what was said too; without TEXT there is none",
    "/temperature X": "sample at X; 0 takes the likeliest token",
    "/help": "these lines",
    "/quit": "leave, as Ctrl-D",
}
HELP = "\n".join(f"{name:16}{words}" for name, words in COMMANDS.items())
HELP += "\nCtrl-C ends a reply; a question that begins with a slash begins with two of them"


class Session:
    """One chat.

    Args:
        speakers: the models, one or two.
        reward: says what replies are worth; None: nothing does.
        params: how replies are sampled; with a seed every reply of the chat has one of its own made of it.
        system: the system turn's text, empty for none.
        screen: where it is read and shown.

    Raises:
        ChatError: a system turn for a model without turns.
    """

    def __init__(
        self, speakers: Sequence[Speaker], reward: Reward | None, params: SamplingParams, system: str, screen: Screen
    ):
        self.speakers, self.reward, self.params, self.screen = list(speakers), reward, params, screen
        self.conversation = Conversation()
        self.answered = 0  # questions, those taken back included: a retry is to draw anew
        self.written: Path | None = None
        self.commands: dict[str, Callable[[str], None]] = {
            "/reset": self.reset,
            "/undo": self.undo,
            "/retry": self.retry,
            "/save": self.save,
            "/system": self.system,
            "/temperature": self.temperature,
            "/help": lambda _: self.screen.note(HELP),
        }
        if system:
            self._set_system(system)

    def run(self) -> None:
        """Until /quit or the end of what is typed.

        Raises:
            AlignError: a question that cannot be answered, or a command that cannot be followed, where nobody types
                who could ask another way.
        """
        while True:
            try:
                line = self.screen.ask()
                if line.strip() == "/quit":
                    return
                self.take(line)
            except EOFError:
                if self.screen.asks:
                    self.screen.note("")
                return
            except KeyboardInterrupt:
                self.screen.note("\n/quit or Ctrl-D leaves")
            except AlignError as error:
                if not self.screen.asks:
                    raise
                self.screen.note(f"error: {error}")

    def take(self, line: str) -> None:
        """Follow a command, or have a question answered.

        Raises:
            ChatError: no such command, or one that cannot be followed.
            AlignError: the question cannot be answered; it is taken back.
        """
        if not line.strip():
            return
        if not line.startswith("/") or line.startswith("//"):
            self.answer(line.removeprefix("/") if line.startswith("//") else line)
            return
        name, _, rest = line.strip().partition(" ")
        if name not in self.commands:
            raise ChatError(f"there is no command {name}; /help lists them, and //{name[1:]} asks that as a question")
        self.commands[name](rest.strip())

    def answer(self, question: str) -> Round:
        """Every model's reply to a question, shown as it comes."""
        exchange = self.conversation.ask(question)
        try:
            prompts = [self._encoded(at) for at in range(len(self.speakers))]
            for speaker, prompt in zip(self.speakers, prompts, strict=True):
                speaker.params(self.params, len(prompt))
            with self.screen.replies() as shown:
                for at, prompt in enumerate(prompts):
                    exchange.replies.append(self._reply(at, prompt, shown))
        except BaseException:
            self.conversation.undo()
            raise
        self.answered += 1
        return exchange

    def reset(self, _: str = "") -> None:
        """Forget what was said; the system turn stays."""
        self.conversation.exchanges.clear()
        self.screen.note("a new conversation")

    def undo(self, _: str = "") -> None:
        """Take the last exchange back."""
        self.screen.note(f"taken back: {self._last().question}")

    def retry(self, _: str = "") -> None:
        """Answer the last question again."""
        taken = self._last()
        try:
            self.answer(taken.question)
        except BaseException:
            self.conversation.exchanges.append(taken)
            raise

    def save(self, name: str = "") -> None:
        """Write the conversation; what this chat wrote before may be written again."""
        if not self.conversation.exchanges:
            raise ChatError("nothing was said yet, so there is nothing to save")
        path = typed_path(name) if name else self.written or Path(time.strftime("chat-%Y%m%d-%H%M%S.jsonl"))
        if path.exists() and path != self.written:
            raise ChatError(f"{path} exists; name another file")
        with files.storage_errors(path):
            files.write_json_lines(path, (self._row(at) for at in range(len(self.speakers))))
        self.written = path
        self.screen.note(f"written to {path}")

    def system(self, text: str = "") -> None:
        """Set the system turn."""
        self._set_system(text)
        self.screen.note("the system turn is set" if text else "there is no system turn")

    def temperature(self, text: str = "") -> None:
        """Sample at another temperature."""
        try:
            self.params = replace(self.params, temperature=float(text))
        except ValueError:
            raise ChatError(f"/temperature wants a number, for instance /temperature 0.7, not '{text}'") from None
        self.screen.note(f"temperature {self.params.temperature:g}")

    def _set_system(self, text: str) -> None:
        silent = next((speaker.name for speaker in self.speakers if not speaker.has_turns), None)
        if text and silent is not None:
            raise ChatError(f"{silent} knows no turns, so it has no system turn")
        self.conversation.system = text

    def _last(self) -> Round:
        taken = self.conversation.undo()
        if taken is None:
            raise ChatError("nothing was said yet")
        return taken

    def _encoded(self, at: int) -> list[int]:
        speaker = self.speakers[at]
        return speaker.encode([self.conversation.turns(at, alone=not speaker.has_turns)])[0]

    def _reply(self, at: int, prompt: list[int], shown: Replies) -> Said:
        speaker, params = self.speakers[at], self.params
        if params.seed is not None:
            params = replace(params, seed=derive(params.seed, "chat", self.answered))
        shown.begin(at)
        ids, ended = speaker.reply(prompt, params, lambda text: shown.hear(at, text))
        said = Said(speaker.text(ids), ended, self._score(at, prompt, ids))
        shown.end(at, said)
        return said

    def _score(self, at: int, prompt: list[int], ids: list[int]) -> float | None:
        if self.reward is None:
            return None
        speaker = self.speakers[at]
        asked = Prompt(self.conversation.turns(at, alone=not speaker.has_turns))
        ((reply,),) = judged(speaker.tokenizer, [asked], [prompt], [ids], [self.reward])
        return reply.scores[self.reward.name]

    def _row(self, at: int) -> dict[str, object]:
        scores = [one.replies[at].score for one in self.conversation.exchanges]
        row = as_row(self.conversation.record(at)) | {"model": self.speakers[at].name}
        return row | ({} if self.reward is None else {"rewards": scores})
