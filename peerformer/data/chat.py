r"""Chats: messages put into one text by a template, of which the assistant's turns are learned.

A template is a Jinja program, as Hugging Face's tokenizers carry one; it runs in a sandbox. It
writes special tokens such as `<|im_start|>` around the messages. The same characters within a
message stay text: they are marked before the template runs, and the mark is taken out again. What
is learned begins where the template asks the assistant to speak and ends with the special token
that ends its turn, so a model learns to answer and to stop.

Where the tokenizer has no template, one of our own is used: `<|im_start|>role`, a line break, the
content, `<|im_end|>`. It knows nothing about tokens.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from peerformer.data.cleaning import clean
from peerformer.data.documents import Document, Ranges
from peerformer.errors import DataError

TEMPLATE_FILE = "chat_template.jinja"  # Hugging Face's name of it, beside the tokenizer
CONFIG_FILE = "tokenizer_config.json"
FILE_BYTES_MAX = 1_000_000
OWN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OWN_TOKENS = ("<|im_start|>", "<|im_end|>")
ASSISTANT = "assistant"
# A code point that is no character and never will be: put into what a message says, it keeps a
# special token that is written there from being one.
_MARK = "\ufdd0"
# What marks the assistant's turns for other programs; here they are found by rendering.
_GENERATION = re.compile(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}")


class ChatRefusedError(Exception):
    """Why messages cannot be put into the template."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template, the special tokens that it may write, and the names that it uses for some.

    Attributes:
        source: the Jinja program.
        tokens: special tokens, as they are written.
        names: such as `eos_token`, with the token.
        where: the file that it is from, for errors.
    """

    source: str = OWN_TEMPLATE
    tokens: tuple[str, ...] = OWN_TOKENS
    names: tuple[tuple[str, str], ...] = ()
    where: str = "Peerformer's own chat template"

    @cached_property
    def _template(self) -> Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        return environment.from_string(_GENERATION.sub(r"{#\1 \2#}", self.source))

    def checked(self) -> "ChatTemplate":
        """Return the template, if it is one.

        Raises:
            DataError: it is no Jinja program.
        """
        try:
            _ = self._template
        except TemplateError as error:
            raise DataError(
                "the chat template is none",
                where=self.where,
                why=str(error)[:200],
                hint="give another one: --data.chat_template FILE",
            ) from error
        return self

    def render(self, messages: Sequence[Mapping[str, str]], *, asks: bool = False) -> str:
        """Return messages as one text; `asks` ends it where the assistant's turn begins.

        Raises:
            ChatRefusedError: the template does not take such messages.
        """
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=asks, **dict(self.names)
            )
        except ChatRefusedError:
            raise
        except Exception as error:  # of a foreign program, any
            raise ChatRefusedError(f"the chat template fails: {str(error)[:100]}") from error


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise ChatRefusedError(f"the chat template refuses it: {message[:100]}")


def is_chat(record: Mapping[str, Any]) -> bool:
    """Tell whether a record holds the messages of a chat."""
    return isinstance(record.get("messages"), list)


def chat_document(source: str, record: Mapping[str, Any], template: ChatTemplate) -> Document:
    """Return the messages of a record as a document of which the assistant's turns are learned.

    Raises:
        ChatRefusedError: they are no messages, none is the assistant's, or the template refuses.
    """
    messages = [_marked(message, template.tokens) for message in record["messages"]]
    turns = [i for i, message in enumerate(messages) if message["role"] == ASSISTANT]
    if not turns:
        raise ChatRefusedError("a chat without a turn of the assistant")
    whole = template.render(messages)
    learned = []
    for turn in turns:
        before = template.render(messages[:turn], asks=True)
        upto = template.render(messages[: turn + 1])
        if not (upto.startswith(before) and whole.startswith(upto)):
            raise ChatRefusedError("the chat template writes a turn anew when others follow")
        learned.append((len(before), _end_of(upto, len(before), template.tokens)))
    control = [match.span() for match in _any_of(template.tokens).finditer(whole)]
    if not all(whole[start:end].replace(_MARK, "") for start, end in learned):
        raise ChatRefusedError("an empty turn of the assistant")

    def plain(ranges: Iterable[tuple[int, int]]) -> Ranges:
        """The same places where the marks are taken out."""
        return tuple(
            (start - whole.count(_MARK, 0, start), end - whole.count(_MARK, 0, end))
            for start, end in ranges
        )

    return Document(source, whole.replace(_MARK, ""), plain(learned), plain(control))


def _end_of(text: str, start: int, tokens: Sequence[str]) -> int:
    """Return where what is learned ends: behind the last special token, if there is one."""
    ends = [match.end() for match in _any_of(tokens).finditer(text, start)]
    return ends[-1] if ends else len(text)


def _any_of(tokens: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _marked(message: Any, tokens: Sequence[str]) -> dict[str, str]:
    """Return a message with marks in what would otherwise be a special token."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ChatRefusedError("a message without a role")
    content = message.get("content")
    if isinstance(content, list):  # parts, of which only texts can be read
        if not all(
            isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
        ):
            raise ChatRefusedError("a message with parts that are no text")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ChatRefusedError("a message without content")

    def mark(text: str) -> str:
        text = text.replace(_MARK, "")
        return _any_of(tokens).sub(lambda found: f"{found[0][0]}{_MARK}{found[0][1:]}", text)

    return {"role": mark(message["role"]), "content": mark(clean(content).removesuffix("\n"))}


def template_beside(tokenizer: Path, tokens: Sequence[str]) -> ChatTemplate | None:
    """Return the template that lies beside a tokenizer, or None.

    Args:
        tokenizer: a tokenizer.json, or the directory that holds one.
        tokens: its special tokens.

    Raises:
        DataError: there is one that is none.
    """
    folder = tokenizer if tokenizer.is_dir() else tokenizer.parent
    config = _config_of(folder / CONFIG_FILE)
    names = tuple(
        (key, _token_of(value)) for key, value in config.items() if key.endswith("_token")
    )
    file = folder / TEMPLATE_FILE
    if file.is_file():
        return ChatTemplate(read_template(file), tuple(tokens), names, str(file)).checked()
    source = config.get("chat_template")
    if isinstance(source, list):  # several by name
        named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
        source = named.get("default")
    if not isinstance(source, str):
        return None
    return ChatTemplate(source, tuple(tokens), names, str(folder / CONFIG_FILE)).checked()


def read_template(file: Path) -> str:
    """Return the text of a template's file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        if file.stat().st_size > FILE_BYTES_MAX:
            raise DataError("the chat template is too large to be one", where=str(file))
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            "the chat template cannot be read", where=str(file), why=str(error)
        ) from error


def _config_of(file: Path) -> dict[str, Any]:
    """Return what a tokenizer's configuration says; nothing where there is none."""
    try:
        if not file.is_file() or file.stat().st_size > FILE_BYTES_MAX:
            return {}
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _token_of(value: Any) -> str:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""
