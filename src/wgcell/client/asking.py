"""A cell's control socket for a program with an event loop: what may take long can be cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from wgcell.acquiring import acquired
from wgcell.cell.control import words
from wgcell.cell.control.client import PATIENCE, Unreachable, ask, asked, word_of
from wgcell.cell.folder import Folder
from wgcell.errors import StateError

__all__ = ["answer", "following"]


async def answer(
    folder: Folder, question: words.Question, patience: float = PATIENCE
) -> list[words.Answer]:
    """All the words of an answer that comes at once. Raises Unreachable and StateError as
    `wgcell.cell.control.client.ask` does."""
    return await asyncio.to_thread(lambda: list(ask(folder, question, patience=patience)))


async def following(folder: Folder, question: words.Question) -> AsyncGenerator[words.Answer, None]:
    """The words of an answer that may come late, as they come. Raises as `answer`."""
    sock = await acquired(asyncio.to_thread(asked, folder, question), lambda opened: opened.close())
    reader, writer = await asyncio.open_connection(sock=sock, limit=words.ANSWERS.longest)
    try:
        if not isinstance(await _word(folder, reader), words.Hello):
            raise StateError(f"{folder.id}: what answers is no cell")
        while not isinstance(word := await _word(folder, reader), words.Over):
            yield word
    finally:
        writer.close()


async def _word(folder: Folder, reader: asyncio.StreamReader) -> words.Answer:
    try:
        return word_of(folder, await reader.readline())
    except OSError as error:
        raise Unreachable(error.strerror or str(error)) from error
    except ValueError:
        raise StateError(f"{folder.id}: its answer has a line that is too long") from None
