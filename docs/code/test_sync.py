import pytest
from models import Book
from sqlalchemy import select
from sqlalchemy.orm import Session


@pytest.mark.parametrize("title", ["Emma", "Persuasion"])
def test_book_is_kept(session: Session, title: str) -> None:
    session.add(Book(title=title))
    session.commit()
    assert session.scalars(select(Book.title)).all() == [title]
