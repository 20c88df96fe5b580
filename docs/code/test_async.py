import pytest
from models import Book
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

# The tests share the event loop of the engine.
pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize("title", ["Emma", "Persuasion"])
async def test_book_is_kept(session: AsyncSession, title: str) -> None:
    session.add(Book(title=title))
    await session.commit()
    assert (await session.scalars(select(Book.title))).all() == [title]
